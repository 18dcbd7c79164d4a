"""Week 2 as a reader meets it: cells that can be run again, and claims about what was recorded."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from autograder.live_results import live_results
from inferlab import lab
from inferlab.analysis.benchmark import speedup, summarise
from inferlab.analysis.trace import begins_in, read_spans
from inferlab.lab.upstream import UPSTREAM


def test_the_experiment_that_needs_a_gpu_costs_nobody_points(tmp_path: Path) -> None:
    assert set(live_results(tmp_path, "week02")) == {
        "week02/offline-against-online",
        "week02/steps",
    }


def test_the_first_step_of_a_recorded_batch_holds_one_or_two_prompts() -> None:
    steps = lab.load("week02/steps")
    for count in (16, 64):
        for run in steps.samples(num_prompts=count):
            assert run["step_context_tokens"][0] < 3 * 210, "the rest was still on its way"


def test_the_intervals_of_three_repeats_exclude_one_another() -> None:
    found = []
    for run in lab.load("week02/steps").samples(num_prompts=1):
        decoding = np.array(run["step_us"])[np.array(run["step_context_tokens"]) == 0] / 1e3
        found.append(summarise(decoding.tolist()))
    found.sort(key=lambda summary: summary.median)
    assert all(lower.high < upper.low for lower, upper in pairwise(found))


def test_offline_and_online_ranges_do_not_overlap() -> None:
    offline, online, sglang = lab.load("week02/offline-against-online").rows
    assert online["output_tokens_per_s_max"] < offline["output_tokens_per_s_min"]
    assert sglang["output_tokens_per_s_max"] < online["output_tokens_per_s_min"]


def recorded_trace() -> Any:
    path = UPSTREAM / "week02" / "step-trace.json"
    assert path.stat().st_size < 300_000
    return json.loads(path.read_text())["answer"]


def test_the_trace_holds_six_steps_in_three_processes() -> None:
    answer = recorded_trace()
    names = {e["pid"]: e["args"]["name"] for e in answer["trace"]["traceEvents"] if e["ph"] == "M"}
    assert set(names.values()) == {"front end", "engine core", "worker"}
    assert answer["layout"] == {"model_runner": "V1", "executor": "mp", "async_scheduling": False}
    spans = read_spans(answer["trace"])
    steps = [span for span in spans if span.name == "engine core step"]
    forwards = [span for span in spans if span.name == "gpu_model_runner: forward"]
    assert len(forwards) == 6
    of_step = [
        sum(step.start_ns <= forward.start_ns < step.end_ns for forward in forwards)
        for step in steps
    ]
    assert of_step == [0] + [1] * 6, "a step without tokens comes first"
    lengths = [step.end_ns - step.start_ns for step in steps[1:]]
    assert 2.5 < lengths[0] / np.mean(lengths[1:]) < 4, "the page says about three times"


def test_the_spans_of_the_trace_are_nested() -> None:
    """Otherwise lanes in the timeline would overlap."""
    open_spans: list[Any] = []
    for span in read_spans(recorded_trace()["trace"]):
        while open_spans and not begins_in(span, open_spans[-1]):
            open_spans.pop()
        assert not open_spans or span.end_ns <= open_spans[-1].end_ns, span
        open_spans.append(span)


def test_what_the_profiler_costs_is_not_settled_by_ten_runs_in_a_block() -> None:
    seconds = recorded_trace()["seconds"]
    before = speedup(seconds["traced"], seconds["before"])
    assert before.low < 1 < before.high
