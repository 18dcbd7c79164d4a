"""Time the course's engine on this machine: `make bench`. Timings are printed, never asserted."""

import subprocess
import sys
import time

from inferlab import models
from inferlab.engine import LLM, SamplingParams

PROMPT_TOKENS = 64
OUTPUT_TOKENS = 64
IMPORT_TIMER = (
    "import time; start = time.perf_counter(); import inferlab.engine; "
    "print(1e3 * (time.perf_counter() - start))"
)


def import_ms() -> float:
    """Time in ms that `import inferlab.engine` takes in a fresh interpreter: the best of five."""
    command = [sys.executable, "-c", IMPORT_TIMER]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(5)]
    return min(float(run.stdout) for run in runs)


def output_tokens_per_second(num_requests: int) -> float:
    """Output tokens/s of `num_requests` distinct prompts served at once."""
    llm = LLM(models.path("tiny-chat"), num_blocks=1024)
    vocab_size = llm.model.config.vocab_size
    prompts = [
        [(7 * i + 11 * j) % vocab_size for j in range(PROMPT_TOKENS)] for i in range(num_requests)
    ]
    start = time.perf_counter()
    completions = llm.generate(
        prompts, SamplingParams(OUTPUT_TOKENS, temperature=0, ignore_eos=True)
    )
    elapsed = time.perf_counter() - start
    return sum(len(completion.token_ids) for completion in completions) / elapsed


if __name__ == "__main__":
    print(f"import inferlab.engine: {import_ms():.0f} ms")
    for num_requests in (1, 4, 16, 64):
        speed = output_tokens_per_second(num_requests)
        print(f"tiny-chat, {num_requests:2d} requests at once: {speed:,.0f} output tokens/s")
