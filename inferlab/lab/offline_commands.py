"""The commands that measure an engine without a server, each in the engine's own words.

A command is given the point, what the engine loads (a path or a Hugging Face name), the folder for
its results, and the seed of the repeat. As shown to a reader it starts at the repository's root.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inferlab.lab import accuracy_questions, launch
from inferlab.lab.paths import EXPERIMENTS, without_root
from inferlab.lab.point import Point
from inferlab.lab.specification import Flags
from inferlab.lab.yaml_file import SpecificationError

# A workload says which requests there are, and how a client sends them. A program takes all of them
# at once and lets no answer end early.
CLIENT_ONLY = ("request-rate", "burstiness", "max-concurrency", "ignore-eos", "temperature")


def throughput(point: Point, model: str, output: Path, seed: int) -> list[str]:
    """vLLM on the workload's requests, at once: as `vllm bench serve` with the same seed makes."""
    flags = {**point.server, **requests(point), **point.options}
    return [
        *("vllm", "bench", "throughput", "--model", model),
        *launch.flag_arguments(flags, "vllm"),
        *("--seed", str(seed), "--output-json", str(output / "throughput.json")),
    ]


def latency(point: Point, model: str, output: Path, seed: int) -> list[str]:
    """vLLM on one batch, again and again; it needs a vocabulary of 10,000 tokens or more."""
    flags = {**point.server, **point.options}
    return [
        *("vllm", "bench", "latency", "--model", model),
        *launch.flag_arguments(flags, "vllm"),
        *("--seed", str(seed), "--output-json", str(output / "latency.json")),
    ]


def offline_throughput(point: Point, model: str, output: Path, seed: int) -> list[str]:
    """SGLang on as many requests of the same lengths as the workload's; the texts are others.

    Raises:
        SpecificationError: for a workload of several lengths, or of more requests than texts.
    """
    wanted = requests(point)
    lengths = {"random-input-len", "random-output-len"}
    if wanted.pop("dataset-name", None) != "random" or set(wanted) != {"num-prompts", *lengths}:
        raise SpecificationError(
            "The offline-throughput program needs a workload of random prompts with one length, "
            f"and this one has {', '.join(wanted)}."
        )
    if int(wanted["num-prompts"]) > accuracy_questions.COUNT:
        raise SpecificationError(
            f"The offline-throughput program has texts for {accuracy_questions.COUNT} requests, "
            f"and the workload has {wanted['num-prompts']}."
        )
    flags = {**point.server, **wanted, **point.options}
    return [
        *("python", "-m", "sglang.benchmark.offline_throughput", "--model-path", model),
        *launch.flag_arguments(flags, "sglang"),
        # Without a file it downloads one; without the ratio, lengths are drawn from 0 up.
        *("--dataset-name", "random", "--dataset-path", without_root(str(accuracy_questions.FILE))),
        *("--random-range-ratio", "1.0", "--seed", str(seed)),
        *("--result-filename", str(output / "offline-throughput.jsonl")),
    ]


def accuracy(point: Point, model: str, output: Path, seed: int) -> list[str]:
    """lm_eval on vLLM; the point's options are lm_eval's, the task among them."""
    return [
        *("lm_eval", "run", "--model", "vllm"),
        *("--model_args", json.dumps({"pretrained": model, **engine_arguments(point.server)})),
        *("--include_path", without_root(str(EXPERIMENTS / "accuracy")), "--batch_size", "auto"),
        *launch.flag_arguments(point.options, "lm_eval"),
        *("--seed", str(seed), "--log_samples", "--output_path", str(output / "accuracy.json")),
    ]


def machine(point: Point, model: str, output: Path, seed: int) -> list[str]:
    """This machine itself; what was measured is printed."""
    flags = launch.flag_arguments(point.options, "inferlab")
    return ["python", "-m", "inferlab.lab.machine", str(point.program), *flags]


def requests(point: Point) -> Flags:
    """The flags of the point's workload that say which requests there are."""
    return {flag: value for flag, value in point.client.items() if flag not in CLIENT_ONLY}


def engine_arguments(flags: Flags) -> dict[str, Any]:
    """Flags of `vllm serve` as the arguments of vLLM's Python class, which lm_eval calls."""
    arguments: dict[str, Any] = {}
    for flag, value in flags.items():
        name, _, key = flag.partition(".")
        name = name.replace("-", "_")
        arguments[name] = {**arguments.get(name, {}), key: value} if key else value
    return arguments


COMMANDS: dict[str, Callable[[Point, str, Path, int], list[str]]] = {
    "throughput": throughput,
    "latency": latency,
    "offline-throughput": offline_throughput,
    "accuracy": accuracy,
    **dict.fromkeys(("copy", "matmul", "all-reduce"), machine),
}


def command(point: Point, model: str, output: Path, seed: int) -> list[str]:
    """What runs the point's program.

    Raises:
        SpecificationError: if the program cannot do what the point asks for.
    """
    return COMMANDS[str(point.program)](point, model, output, seed)
