"""Traces a handful of steps of vLLM in all of its processes: runs in the engines' interpreter.

vLLM's own profiler (`profiler_config`) covers the worker. The front end and the engine core are
traced here with the same PyTorch profiler: each process writes a Chrome trace, and all of them have
one clock. What is cut away is counted in the answer.
"""

import json
import os
import tempfile
import time
from pathlib import Path

# Read by vLLM when it starts: spans of its own round the parts of a step, and processes that
# inherit what is wrapped below.
os.environ["VLLM_CUSTOM_SCOPES_FOR_PROFILING"] = "1"
os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
os.environ["OMP_NUM_THREADS"] = "1"

from torch.profiler import ProfilerActivity, profile, record_function
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCore

FOLDER = Path(tempfile.mkdtemp())
OPERATORS, ANNOTATIONS = "cpu_op", "user_annotation"


def spanned(owner, method, name):
    """Put a span round a method, as vLLM has round others."""
    original = getattr(owner, method)

    def wrapped(*arguments, **options):
        with record_function(name):
            return original(*arguments, **options)

    setattr(owner, method, wrapped)


# vLLM has no span of its own round these three.
spanned(Scheduler, "schedule", "schedule")
spanned(Scheduler, "update_from_output", "update_from_output")
spanned(EngineCore, "step", "engine core step")

profile_worker = EngineCore.profile


def profile_core_too(self, is_start=True, *arguments, **options):
    if is_start:
        self.own_profiler = profile(activities=[ProfilerActivity.CPU])
        self.own_profiler.start()
    profile_worker(self, is_start, *arguments, **options)
    if not is_start:
        self.own_profiler.stop()
        self.own_profiler.export_chrome_trace(str(FOLDER / "engine-core.json"))


EngineCore.profile = profile_core_too


def main(data):
    config = {
        "profiler": "torch",
        "torch_profiler_dir": str(FOLDER / "worker"),
        "torch_profiler_with_stack": False,
        "torch_profiler_use_gzip": False,
    }
    llm = LLM(
        data["checkpoint"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        kv_cache_memory_bytes=128 * 2**20,
        enable_prefix_caching=False,
        profiler_config=config,
        seed=0,
    )
    params = SamplingParams(temperature=0, max_tokens=data["max_tokens"], ignore_eos=True)
    prompts = [
        TokensPrompt(prompt_token_ids=[9 + (7 * i + j) % 600 for j in range(data["prompt_tokens"])])
        for i in range(data["num_prompts"])
    ]

    def seconds_of_runs():
        seconds = []
        for _ in range(data["repeats"]):
            start = time.perf_counter()
            with record_function("LLM.generate"):
                llm.generate(prompts, params, use_tqdm=False)
            seconds.append(round(time.perf_counter() - start, 6))
        return seconds

    seconds_of_runs()  # warms up
    before = seconds_of_runs()
    llm.start_profile()
    with profile(activities=[ProfilerActivity.CPU]) as front_end:
        traced = seconds_of_runs()
    llm.stop_profile()
    front_end.export_chrome_trace(str(FOLDER / "front-end.json"))
    after = seconds_of_runs()
    (worker,) = (FOLDER / "worker").glob("*.pt.trace.json")
    files = {
        "front end": FOLDER / "front-end.json",
        "engine core": FOLDER / "engine-core.json",
        "worker": worker,
    }
    vllm_config = llm.llm_engine.vllm_config
    return {
        **cut({name: read(path) for name, path in files.items()}, data["max_bytes"]),
        "seconds": {"before": before, "traced": traced, "after": after},
        "layout": {
            "model_runner": "V2" if vllm_config.use_v2_model_runner else "V1",
            "executor": str(vllm_config.parallel_config.distributed_executor_backend),
            "async_scheduling": bool(vllm_config.scheduler_config.async_scheduling),
        },
    }


def read(path):
    """The complete spans of operators and annotations; times in ns on the machine's clock."""
    trace = json.loads(path.read_text())
    base = int(trace.get("baseTimeNanoseconds", 0))
    spans = []
    for event in trace["traceEvents"]:
        if event.get("ph") == "X" and event.get("cat") in (OPERATORS, ANNOTATIONS):
            start = base + round(1000 * float(event["ts"]))
            kept = {key: event[key] for key in ("name", "cat", "pid", "tid")}
            spans.append({**kept, "start": start, "end": start + round(1000 * event["dur"])})
    return sorted(spans, key=lambda span: (span["pid"], span["tid"], span["start"], -span["end"]))


def cut(traces, max_bytes):
    """The last run alone, and of its operators as many levels of nesting as fit."""
    last = [span for span in traces["front end"] if span["name"] == "LLM.generate"][-1]
    kept = []
    names = {}
    for process, spans in traces.items():
        open_spans = []
        for span in spans:
            while open_spans and (
                open_spans[-1]["tid"] != span["tid"] or open_spans[-1]["end"] <= span["start"]
            ):
                open_spans.pop()
            span["level"] = sum(outer["cat"] == OPERATORS for outer in open_spans)
            open_spans.append(span)
            if last["start"] <= span["start"] and span["end"] <= last["end"]:
                kept.append(span)
                names[span["pid"]] = process
    levels = 1 + max(span["level"] for span in kept)
    while True:
        events = [
            {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": process}}
            for pid, process in names.items()
        ]
        for span in kept:
            if span["cat"] == OPERATORS and span["level"] >= levels:
                continue
            events.append(
                {
                    "ph": "X",
                    "name": span["name"],
                    "cat": span["cat"],
                    "pid": span["pid"],
                    "tid": span["tid"],
                    "ts": round((span["start"] - last["start"]) / 1000, 3),
                    "dur": round((span["end"] - span["start"]) / 1000, 3),
                }
            )
        if len(json.dumps(events, separators=(",", ":"))) <= max_bytes or levels == 1:
            break
        levels -= 1
    return {
        "trace": {"displayTimeUnit": "ms", "traceEvents": events},
        "operator_levels": levels,
        "spans_traced": sum(len(spans) for spans in traces.values()),
        "spans_of_the_run": len(kept),
    }
