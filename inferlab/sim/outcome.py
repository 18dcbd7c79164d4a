"""What a simulation tells: of each request, and of each step."""

from typing import NamedTuple

from inferlab.analysis.serving_metrics import Answer
from inferlab.sim.clients import Prompt


class Served(NamedTuple):
    """One request and what became of it."""

    prompt: Prompt
    answer: Answer
    cached_tokens: int
    num_preemptions: int


class Step(NamedTuple):
    """One step, or `repeats` in a row that differ in nothing but the length of the contexts."""

    start_s: float
    end_s: float
    repeats: int
    prefill_tokens: int
    decode_tokens: int
    num_waiting: int
    num_free_blocks: int
