"""Output tokens/s of our engine, real vLLM and Hugging Face, in turn on the same requests.

The lengths are drawn once from a log-normal like those of ShareGPT, prompts of 136 tokens and
outputs of 133 on average with a long tail, and committed: the mean hides what static batching pays.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inferlab import models
from inferlab.lab import engines
from tests.bench.measurement import Measurement

TITLE = "Output tokens/s on tiny-chat, float32, ShareGPT-like lengths, prefix caching off"
HERE = Path(__file__).parent
LENGTHS: list[list[int]] = json.loads((HERE / "sharegpt_like_lengths.json").read_text())
REQUESTS = [
    ([(7 * i + 11 * j) % 600 + 6 for j in range(prompt)], output)
    for i, (prompt, output) in enumerate(LENGTHS)
]
NUM_REQUESTS = {1: 12, 16: 64, 64: 64}  # by concurrency: one at a time, a dozen is enough
SIDES = {"vLLM": "vllm_side", "inferlab": "inferlab_side", "Hugging Face": "transformers_side"}
LARGEST_STATIC_BATCH = 16  # one of 64 takes minutes a turn, until its longest output has ended


class Side:
    """One engine in a process of its own, which waits while the others are measured."""

    def __init__(self, module: str) -> None:
        is_vllm = module == "vllm_side"
        self.process = subprocess.Popen(
            [
                engines.interpreter() if is_vllm else sys.executable,
                HERE / "sides" / "side.py",
                module,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=engines.process_environment({"HF_HUB_OFFLINE": "1"}) if is_vllm else None,
        )

    def ask(self, **question: Any) -> float:
        """Seconds that the engine took, start-up not counted."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise RuntimeError(f"The process of {self.process.args!r} ended without an answer.")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def measure(repeats: int) -> Iterator[Measurement]:
    """Each engine at each concurrency, in turns; the first turn of each is not counted."""
    for concurrency, num_requests in NUM_REQUESTS.items():
        requests = REQUESTS[:num_requests]
        tokens = sum(output for _, output in requests)
        sides = {
            name: Side(module)
            for name, module in SIDES.items()
            if name != "Hugging Face" or concurrency <= LARGEST_STATIC_BATCH
        }
        samples: dict[str, list[float]] = {name: [] for name in sides}
        try:
            for turn in range(repeats + 1):
                for name, side in sides.items():
                    seconds = side.ask(
                        checkpoint=str(models.path("tiny-chat")),
                        concurrency=concurrency,
                        requests=requests if turn else requests[:2],
                    )
                    if turn:
                        samples[name].append(tokens / seconds)
        finally:
            for side in sides.values():
                side.stop()
        for name, values in samples.items():
            yield Measurement(f"{name}, {concurrency} at once", "tokens/s", values)
