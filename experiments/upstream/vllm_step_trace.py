"""Traces a handful of steps of vLLM in all of its processes: runs in the engines' interpreter.

vLLM's own profiler (`profiler_config`) covers the worker. The front end and the engine core are
traced here with the same PyTorch profiler: each process writes a Chrome trace, and all of them have
one clock. What is cut away is counted in the answer.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(tempfile.mkdtemp())
OPERATORS, ANNOTATIONS = "cpu_op", "user_annotation"
# Loaded by vLLM in each of its processes, as a plugin. It has no span of its own round these three
# methods, and no profiler in the engine core.
PLUGIN = """
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, record_function


def install():
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore

    if hasattr(EngineCore, "own_profiler"):
        return
    EngineCore.own_profiler = None
    span(Scheduler, "schedule", "schedule")
    span(Scheduler, "update_from_output", "update_from_output")
    span(EngineCore, "step", "engine core step")
    profile_worker = EngineCore.profile

    def profile_core_too(
        self, is_start=True, profile_prefix=None, delay_iterations=None, max_iterations=None
    ):
        if is_start:
            self.own_profiler = profile(activities=[ProfilerActivity.CPU])
            self.own_profiler.start()
        profile_worker(self, is_start, profile_prefix, delay_iterations, max_iterations)
        if not is_start:
            self.own_profiler.stop()
            self.own_profiler.export_chrome_trace(str(Path(__file__).parent / "engine-core.json"))

    EngineCore.profile = profile_core_too


def span(owner, method, name):
    original = getattr(owner, method)

    def wrapped(*arguments, **options):
        with record_function(name):
            return original(*arguments, **options)

    setattr(owner, method, wrapped)
"""

# All of this before vLLM is imported: its own spans round the parts of a step are switched on by a
# variable, and its processes find the plugin on their path.
about = FOLDER / "step_trace_plugin-1.dist-info"
about.mkdir()
(FOLDER / "step_trace_plugin.py").write_text(PLUGIN)
(about / "METADATA").write_text("Metadata-Version: 2.1\nName: step_trace_plugin\nVersion: 1\n")
(about / "entry_points.txt").write_text(
    "[vllm.general_plugins]\nstep_trace_plugin = step_trace_plugin:install\n"
)
sys.path.insert(0, str(FOLDER))
os.environ["PYTHONPATH"] = f"{FOLDER}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
os.environ["VLLM_CUSTOM_SCOPES_FOR_PROFILING"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
os.environ["OMP_NUM_THREADS"] = "1"

from torch.profiler import ProfilerActivity, profile, record_function  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402
from vllm.inputs import TokensPrompt  # noqa: E402


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
    files = {name: path for name, path in files.items() if path.exists()}
    vllm_config = llm.llm_engine.vllm_config
    return {
        **cut({name: read(path) for name, path in files.items()}, data["max_bytes"]),
        "seconds": {"before": before, "traced": traced, "after": after},
        "hardware": {"cpu": processor(), "cores": len(os.sched_getaffinity(0))},
        "layout": {
            "model_runner": "V2" if vllm_config.use_v2_model_runner else "V1",
            "executor": str(vllm_config.parallel_config.distributed_executor_backend),
            "async_scheduling": bool(vllm_config.scheduler_config.async_scheduling),
        },
    }


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "")


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
