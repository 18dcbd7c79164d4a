"""Match and insert in a radix tree: ours beside SGLang's, turn about in one process.

A few-shot workload: 16 prefixes of 500 to 2,000 tokens, each with 32 questions of 20 to 60. Both
sides are given the keys that they take, ready made, and match the same tokens. Ours also collects
the slots of the match, which SGLang leaves to a later call.
"""

import random
from pathlib import Path

from inferlab.lab import upstream
from tests.bench.measurement import Measurement

TITLE = "radix tree: match, insert and evict"
SCRIPT = Path(__file__).parents[1] / "upstream" / "sglang_radix_speed.py"


def few_shot_prompts(seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    prompts = []
    for _ in range(16):
        shared = [rng.randrange(32_000) for _ in range(rng.randint(500, 2000))]
        for _ in range(32):
            prompts.append(shared + [rng.randrange(32_000) for _ in range(rng.randint(20, 60))])
    rng.shuffle(prompts)
    return prompts


def measure(repeats: int) -> list[Measurement]:
    data = {"prompts": few_shot_prompts(), "repeats": repeats}
    samples = upstream(SCRIPT.read_text(), data)
    return [
        Measurement(f"{call}, {name}", "µs/call", [sample[side][call] for sample in samples])
        for call in ("match", "insert", "evict")
        for side, name in (("ours", "inferlab"), ("theirs", "SGLang"))
    ]
