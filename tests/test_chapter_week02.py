"""Week 2 as a reader meets it: cells that can be run again, and claims about what was recorded."""

import ast
import builtins
import json
import symtable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autograder.live_results import live_results
from autograder.rubric import load_rubrics
from inferlab import lab
from inferlab.analysis.benchmark import speedup, summarise
from inferlab.analysis.trace import begins_in, read_spans
from inferlab.lab.paths import ROOT
from inferlab.lab.upstream import UPSTREAM
from inferlab.publish import read_page
from inferlab.publish.answers import ANSWER
from inferlab.publish.editions import exercises
from inferlab.publish.page import Cell

PAGE = read_page(ROOT, Path("notebooks/week02-offline-profiling.md"))
CODE = [cell for cell in PAGE.cells if cell.kind == "code"]
EXERCISES = exercises(PAGE)


def tags(cell: Cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def test_the_exercises_are_worth_40_points() -> None:
    assert {name: exercise.points for name, (_, exercise) in EXERCISES.items()} == {
        "week02-engine-step": 12,
        "week02-trace-reader": 12,
        "week02-launch-gaps": 8,
        "week02-benchmark-summary": 8,
    }


def test_each_visible_test_ends_by_installing_what_the_reader_wrote() -> None:
    tests = [cell for cell in CODE if "test" in tags(cell)]
    assert len(tests) == len(EXERCISES)
    for cell, (name, (_, exercise)) in zip(tests, EXERCISES.items(), strict=True):
        assert cell.source.startswith(f"# test: {name}\n")
        last = ast.parse(cell.source).body[-1]
        assert isinstance(last, ast.Expr)
        assert isinstance(last.value, ast.Call)
        assert ast.unparse(last.value.func) == "install"
        assert {ast.unparse(argument) for argument in last.value.args} == exercise.owners


def names(source: str) -> tuple[set[str], set[str]]:
    """Names that a cell assigns, and those it needs from other cells."""
    assigned, imported, read = set(), set(), set()
    tables = [symtable.symtable(source, "cell", "exec")]
    for table in tables:
        tables += table.get_children()
        for symbol in table.get_symbols():
            if table.get_type() == "module":
                assigned |= {symbol.get_name()} if symbol.is_assigned() else set()
                imported |= {symbol.get_name()} if symbol.is_imported() else set()
            if symbol.is_referenced() and symbol.is_global():
                read.add(symbol.get_name())
    return assigned - imported, read - assigned - imported - set(dir(builtins))


def test_a_name_that_another_cell_needs_is_assigned_in_one_cell_only() -> None:
    """Otherwise running a cell again, or an exercise late, gives a later cell another's value."""
    found = [names(cell.source) for cell in CODE]
    needed = {name for _, read in found for name in read}
    assert {"steps", "amdahl", "our_phases", "LLM"} <= needed
    assigned = [name for here, _ in found for name in here]
    assert {name for name in needed if assigned.count(name) > 1} == set()


def test_a_reader_who_has_written_nothing_gets_through_the_theory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INFERLAB_CONTEXT", "book")

    def unwritten(*arguments: Any, **options: Any) -> None:
        raise NotImplementedError

    for _, exercise in EXERCISES.values():
        for home, members in exercise.homes.items():
            for member in members:
                owner, _, method = member.rpartition(".")
                module = import_module(home)
                monkeypatch.setattr(getattr(module, owner) if owner else module, method, unwritten)
    namespace: dict[str, Any] = {}
    for cell in CODE:
        if "exercise" in tags(cell):
            break
        exec(cell.source, namespace)
    assert "HTML object" in capsys.readouterr().out, "figures were shown"


def test_every_answer_has_its_rubric_and_they_are_worth_60_points() -> None:
    rubrics = load_rubrics("week02")
    assert sorted(ANSWER.findall((ROOT / PAGE.path).read_text())) == sorted(rubrics)
    assert sum(found.points for found in rubrics.values()) == 60
    for name, found in rubrics.items():
        if found.is_written:
            shares = sorted(sample.points / found.points for sample in found.samples)
            assert shares[0] < 0.5, name
            assert shares[-1] >= 0.8, name
            assert any(0.3 <= share < 0.8 for share in shares), name


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


LINES = {
    ("v1/engine/core.py", 668): "execute_model(scheduler_output, non_block=True)",
    ("v1/engine/core.py", 669): "get_grammar_bitmask",
    ("v1/engine/core.py", 674): "future.result()",
    ("v1/engine/core.py", 676): "sample_tokens",
    ("v1/engine/core.py", 681): "update_from_output",
    ("v1/engine/core.py", 720): "assert len(batch_queue) < self.batch_queue_size",
    ("v1/engine/core.py", 753): "batch_queue.appendleft(",
    ("v1/engine/core.py", 754): "len(batch_queue) < self.batch_queue_size",
    ("v1/engine/core.py", 768): "batch_queue.pop()",
    ("platforms/cpu.py", 331): "async_scheduling = False",
    ("platforms/cpu.py", 336): 'distributed_executor_backend == "uni"',
    ("platforms/cpu.py", 341): 'distributed_executor_backend = "mp"',
    ("config/vllm.py", 720): "envs.VLLM_USE_V2_MODEL_RUNNER",
    ("config/vllm.py", 724): "if not HAS_TRITON",
    ("config/vllm.py", 730): "_get_v2_model_runner_unsupported_features()",
    ("v1/worker/gpu_model_runner.py", 4201): "gpu_model_runner: forward",
}


@pytest.mark.engines
def test_the_lines_that_model_answers_name_hold_what_they_say() -> None:
    from inferlab.lab import engines

    (package,) = engines.interpreter().parents[1].glob("lib/python3*/site-packages/vllm")
    for (file, number), text in LINES.items():
        assert text in (package / file).read_text().splitlines()[number - 1], (file, number)
