"""Reads what the programs of `offline_commands` leave behind into our metrics and samples.

Every reader raises ValueError for a result that is missing, empty or malformed.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from inferlab.lab.load_metrics import microseconds
from inferlab.lab.step_log import read_steps, step_metrics, step_samples
from inferlab.models.proportion import wilson_interval

# What a program prints, beside its results.
LOG = "program.log"

Measured = tuple[dict[str, float], dict[str, list[Any]]]
Result = TypeVar("Result", bound=BaseModel)


class Throughput(BaseModel):
    """What `vllm bench throughput` writes; it counts prompts and answers together only."""

    elapsed_time: float = Field(gt=0)
    num_requests: int = Field(gt=0)
    total_num_tokens: int


class Latency(BaseModel):
    latencies: list[float] = Field(min_length=1)


class OfflineThroughput(BaseModel):
    total_latency: float = Field(gt=0)
    successful_requests: int = Field(gt=0)
    total_input_tokens: int
    total_output_tokens: int


class Answer(BaseModel):
    """One line of lm_eval's samples; a task with several filters has a line for each."""

    doc_id: int
    doc: dict[str, Any]
    filter: str
    exact_match: float


class Printed(BaseModel):
    """The line of `inferlab.lab.machine`."""

    metrics: dict[str, float]
    samples: dict[str, list[Any]]


def read_throughput(output: Path) -> Measured:
    """Rates, and the steps if vLLM was asked to log them."""
    result = read_json(output / "throughput.json", Throughput)
    log = (output / LOG).read_text(errors="replace")
    _, found, number = log.rpartition("Total num output tokens:")
    if not found:
        raise ValueError("the log does not say how many output tokens there were")
    outputs = int(number.split()[0])
    inputs = result.total_num_tokens - outputs
    metrics = rates(result.elapsed_time, result.num_requests, inputs, outputs)
    steps = read_steps(log)
    return (metrics | step_metrics(steps), step_samples(steps)) if steps else (metrics, {})


def read_latency(output: Path) -> Measured:
    latencies = read_json(output / "latency.json", Latency).latencies
    return (
        {"batch_latency_mean_ms": 1000 * sum(latencies) / len(latencies)},
        {"batch_latency_us": microseconds(latencies)},
    )


def read_offline_throughput(output: Path) -> Measured:
    result = read_json(output / "offline-throughput.jsonl", OfflineThroughput)
    return (
        rates(
            result.total_latency,
            result.successful_requests,
            result.total_input_tokens,
            result.total_output_tokens,
        ),
        {},
    )


def read_accuracy(output: Path) -> Measured:
    """The share of right answers with its interval, in all and for each kind of question.

    Samples are 1 or 0 for each question, in the order of the task, so that two runs can be compared
    question by question.
    """
    files = list(output.glob("samples_*.jsonl"))
    if len(files) != 1:
        raise ValueError(f"there are {len(files)} files of samples, and one task has one")
    answers = [parsed(line, files[0], Answer) for line in files[0].read_text().splitlines()]
    if not answers:
        raise ValueError(f"{files[0].name} is empty")
    chosen = [answer for answer in answers if answer.filter == answers[0].filter]
    chosen.sort(key=lambda answer: answer.doc_id)
    right = [int(answer.exact_match) for answer in chosen]
    by_task: dict[str, list[int]] = defaultdict(list)
    for answer in chosen:
        if "task" in answer.doc:
            by_task[answer.doc["task"]].append(int(answer.exact_match))
    metrics = {"num_questions": len(right), **shares("accuracy", right)}
    for task, own in by_task.items():
        metrics |= shares(f"{task}_accuracy", own)
    return metrics, {"is_right": right}


def read_machine(output: Path) -> Measured:
    """What `inferlab.lab.machine` printed last."""
    lines = (output / LOG).read_text(errors="replace").splitlines()
    printed = next((line for line in reversed(lines) if line.startswith("{")), "")
    measured = parsed(printed, output / LOG, Printed)
    return measured.metrics, measured.samples


def shares(name: str, right: list[int]) -> dict[str, float]:
    """The share, its 95 % interval, and its standard error as lm_eval has it."""
    low, high = wilson_interval(sum(right), len(right))
    share = sum(right) / len(right)
    return {
        f"{name}_share": share,
        f"{name}_low_share": low,
        f"{name}_high_share": high,
        f"{name}_stderr_share": math.sqrt(share * (1 - share) / max(len(right) - 1, 1)),
    }


def rates(duration_s: float, num_requests: int, inputs: int, outputs: int) -> dict[str, float]:
    return {
        "duration_s": duration_s,
        "num_requests": num_requests,
        "input_tokens": inputs,
        "output_tokens": outputs,
        "requests_per_s": num_requests / duration_s,
        "output_tokens_per_s": outputs / duration_s,
        "total_tokens_per_s": (inputs + outputs) / duration_s,
    }


def read_json(path: Path, kind: type[Result]) -> Result:
    if not path.exists():
        raise ValueError(f"it wrote no {path.name}")
    return parsed(path.read_text(), path, kind)


def parsed(text: str, path: Path, kind: type[Result]) -> Result:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path.name}: {where} {first['msg']}".replace(":  ", ": ")) from None


READERS: dict[str, Callable[[Path], Measured]] = {
    "throughput": read_throughput,
    "latency": read_latency,
    "offline-throughput": read_offline_throughput,
    "accuracy": read_accuracy,
    **dict.fromkeys(("copy", "matmul", "all-reduce"), read_machine),
}
