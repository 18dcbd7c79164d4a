"""What the engine costs before it computes anything: time to import, and resident memory."""

import json
import subprocess
import sys
from collections.abc import Iterator

from tests.bench.measurement import Measurement

TITLE = "Footprint: import, and resident memory with 4,096 blocks of 16 tokens"
IMPORT_TIMER = (
    "import time; start = time.perf_counter(); import inferlab.engine; "
    "print(1e3 * (time.perf_counter() - start))"
)
# Linux gives zeroed memory on first touch: an untouched cache costs nothing, so each stage counts.
MEMORY = """
import json, psutil
from inferlab import models
from inferlab.engine import LLM, SamplingParams
from tests.bench.throughput import REQUESTS
resident = lambda: psutil.Process().memory_info().rss / 1e6
llm = LLM(models.path("tiny-chat"), num_blocks=4096)
loaded = resident()
params = [SamplingParams(max_tokens=n, temperature=0, ignore_eos=True) for _, n in REQUESTS]
llm.generate([prompt for prompt, _ in REQUESTS], params)
served = resident()
llm.kv_cache.keys[:] = llm.kv_cache.values[:] = 1
print(json.dumps([loaded, served, resident()]))
"""
STAGES = ("model loaded", "64 requests served", "every slot of the cache written once")


def output_of(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout


def measure(repeats: int) -> Iterator[Measurement]:
    """Import in a fresh interpreter each time, then memory in MB after each stage."""
    imports = [float(output_of(IMPORT_TIMER)) for _ in range(repeats)]
    yield Measurement("import inferlab.engine", "ms", imports)
    runs = [json.loads(output_of(MEMORY)) for _ in range(repeats)]
    for i, stage in enumerate(STAGES):
        yield Measurement(f"resident, {stage}", "MB", [run[i] for run in runs])
