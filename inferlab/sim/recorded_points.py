"""Recorded points of real vLLM as something to simulate: the same settings, the same requests."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from inferlab.engine.kv_cache import KVCacheManager
from inferlab.engine.scheduler import Scheduler
from inferlab.sim.clients import Clients, Prompt

# What `vllm serve` takes on a CPU where its command line does not say
# (vllm/engine/arg_utils.py:EngineArgs.get_batch_defaults).
MAX_NUM_SEQS = 128
MAX_NUM_BATCHED_TOKENS = 2048


class Repeat(NamedTuple):
    """One repeat of a point, as it stands in the result file."""

    metrics: dict[str, float]
    samples: dict[str, list[Any]]


@dataclass(frozen=True)
class RecordedPoint:
    """A point for which one vLLM server ran alone."""

    experiment: str
    parameters: dict[str, Any]
    server: dict[str, str]  # flags of `vllm serve`, without their dashes
    client: dict[str, str]  # flags of `vllm bench serve`
    repeats: list[Repeat]

    @property
    def name(self) -> str:
        values = ", ".join(f"{k} {v}" for k, v in self.parameters.items() if k != "engine")
        return f"{self.experiment}: {values}"

    def scheduler(self) -> Scheduler:
        """Our scheduler with the server's settings, over as many blocks as it had."""
        metrics = self.repeats[0].metrics
        manager = KVCacheManager(
            int(metrics["num_gpu_blocks"]),
            int(metrics["kv_block_size_tokens"]),
            enable_caching="no-enable-prefix-caching" not in self.server,
        )
        return Scheduler(
            manager,
            max_num_seqs=int(self.server.get("max-num-seqs", MAX_NUM_SEQS)),
            max_num_batched_tokens=int(
                self.server.get("max-num-batched-tokens", MAX_NUM_BATCHED_TOKENS)
            ),
            long_prefill_token_threshold=int(self.server.get("long-prefill-token-threshold", 0)),
            max_model_len=int(self.server["max-model-len"]),
        )

    def clients(self, repeat: Repeat) -> Clients:
        """The same requests: at the same times, or, in a closed loop, as soon as others end."""
        in_flight = self.client.get("max-concurrency")
        columns = (repeat.samples[name] for name in ("arrival_us", "input_tokens", "output_tokens"))
        prompts = [
            Prompt(0.0 if in_flight else arrival_us / 1e6, prompt_tokens, output_tokens)
            for arrival_us, prompt_tokens, output_tokens in zip(*columns)
        ]
        return Clients(prompts, int(in_flight) if in_flight else None)


def recorded_points(path: Path) -> Iterator[RecordedPoint]:
    """The points of a result file for which one vLLM server ran alone."""
    document = json.loads(path.read_text(encoding="utf-8"))
    for point in document["points"]:
        commands = [shlex.split(command) for command in point["commands"]]
        serving = [command for command in commands if "bench" not in command]
        if point["status"] != "ok" or len(commands) != 2 or len(serving) != 1:
            continue
        if point["parameters"]["engine"] != "vllm" or "serve" not in serving[0]:
            continue
        yield RecordedPoint(
            document["experiment"],
            point["parameters"],
            flags(serving[0]),
            flags(commands[1]),
            [Repeat(repeat["metrics"], repeat["samples"]) for repeat in point["repeats"]],
        )


def flags(command: list[str]) -> dict[str, str]:
    """The flags of a command by name; those without a value have an empty one."""
    return {
        word.removeprefix("--"): "" if after.startswith("--") else after
        for word, after in zip(command, [*command[1:], "--"])
        if word.startswith("--")
    }
