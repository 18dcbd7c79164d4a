"""Reads what vLLM logs of every step when it has `--enable-logging-iteration-details`."""

import re
import statistics
from typing import NamedTuple

STEP = re.compile(
    r"Iteration\(\d+\): \d+ context requests, (\d+) context tokens, "
    r"\d+ generation requests, (\d+) generation tokens, iteration elapsed time: ([\d.]+) ms"
)


class Step(NamedTuple):
    """Prompt tokens that a step computed, tokens that it made, and the time the model took."""

    context_tokens: int
    generation_tokens: int
    elapsed_ms: float


def read_steps(log: str) -> list[Step]:
    """Every step in `log`, in order: of a server's output or of `vllm bench throughput`'s.

    The time is what the engine waited for the model and the sampler. Scheduling and what is done
    with the tokens come on top, so the times add up to less than the run took. Requests that warm
    the engine up are logged like all others.
    """
    return [
        Step(int(context), int(generation), float(elapsed))
        for context, generation, elapsed in STEP.findall(log)
    ]


def step_metrics(steps: list[Step]) -> dict[str, float]:
    """How many steps there were, and the median time of those that computed no prompt."""
    tokens = sum(step.context_tokens + step.generation_tokens for step in steps)
    metrics = {
        "engine_steps": len(steps),
        "tokens_per_step_mean": tokens / len(steps),
        "model_time_s": sum(step.elapsed_ms for step in steps) / 1000,
    }
    decoding = [step.elapsed_ms for step in steps if step.context_tokens == 0]
    if decoding:
        metrics["decode_step_p50_ms"] = statistics.median(decoding)
    return metrics


def step_samples(steps: list[Step]) -> dict[str, list[int]]:
    """The same steps as columns; times in microseconds, as in all samples."""
    return {
        "step_context_tokens": [step.context_tokens for step in steps],
        "step_generation_tokens": [step.generation_tokens for step in steps],
        "step_us": [round(1000 * step.elapsed_ms) for step in steps],
    }
