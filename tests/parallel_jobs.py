"""What the ranks of `tests/test_parallel.py` run; on its own, so that they start quickly."""

import os
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from inferlab import models
from inferlab.engine import SequenceChunk, make_batch
from inferlab.engine.attention import SoftmaxState
from inferlab.engine.checkpoint import load_weights
from inferlab.engine.layers import DenseLinear, GatedMLP, fused_linear
from inferlab.engine.model import LlamaModel
from inferlab.engine.parallel import generate, merge_over_ranks, tensor_parallel_model
from inferlab.engine.pipeline import PipelineStage, pipeline_schedule
from inferlab.engine.process_group import ProcessGroup
from inferlab.engine.scheduler import SchedulerOutput

BLOCK_SIZE = 16
CHUNKS = [([7, 8, 9] * 9, range(1, 4)), ([600], range(4, 5)), ([30, 40], range(5, 6))]
"""Token ids and block table of the chunks of one batch: prefills and a single token."""


EXPERT_PARALLEL = partial(tensor_parallel_model, expert_parallel=True)
Jobs = dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]


def run_jobs(group: ProcessGroup, jobs: Jobs) -> dict[str, Any]:
    """Every job's result, with the calls and bytes that it took: starting a rank is slow."""
    results = {}
    for name, (job, args) in jobs.items():
        group.num_calls.clear()
        group.num_bytes.clear()
        result = job(group, *args)
        results[name] = result, Counter(group.num_calls), Counter(group.num_bytes)
    return results


def collectives(group: ProcessGroup, arrays: list[np.ndarray]) -> list[Any]:
    """Each collective on this rank's array, which stays as it is."""
    mine = arrays[group.rank].copy()
    last = group.size - 1
    results = [group.all_reduce(mine), group.all_gather(mine), group.broadcast(mine, last)]
    if group.rank == 0:
        group.send(mine, last)
    elif group.rank == last:
        results.append(group.receive(mine.shape, 0))
    assert np.array_equal(mine, arrays[group.rank])
    return results


def serve(
    group: ProcessGroup, divide: Any, name: str, prompts: Any, params: Any, options: Any
) -> Any:
    """Tokens, preemptions and cached tokens of each prompt, and tokens and samples of each step."""
    steps: list[tuple[int, int]] = []

    def count(output: SchedulerOutput) -> None:
        if output.scheduled:
            samples = sum(entry.samples for entry in output.scheduled)
            steps.append((output.total_num_scheduled_tokens, samples))

    checkpoint = models.path(name)
    completions = generate(group, divide, checkpoint, prompts, params, on_schedule=count, **options)
    counts = [(c.num_preemptions, c.num_cached_tokens) for c in completions]
    return [completion.token_ids for completion in completions], counts, steps


def forward(model: LlamaModel) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states and logits of one batch of `CHUNKS`, each its prompt's first tokens."""
    batch = make_batch([SequenceChunk(ids, 0, table) for ids, table in CHUNKS], BLOCK_SIZE)
    hidden = model.forward(batch, model.new_kv_cache(8, BLOCK_SIZE))
    return hidden, model.logits(hidden)


def batch_rows() -> np.ndarray:
    """Where the rows of `CHUNKS`, one after the other, are in their batch: one token goes first."""
    batch = make_batch([SequenceChunk(ids, 0, table) for ids, table in CHUNKS], BLOCK_SIZE)
    ends = batch.last_rows + 1
    return np.concatenate([np.arange(e - len(ids), e) for e, (ids, _) in zip(ends, CHUNKS)])


def divided_forward(group: ProcessGroup, divide: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    return forward(divide(group, models.path(name)))


def experts_held(group: ProcessGroup) -> list[list[int]]:
    """Which experts of each layer this rank computes itself."""
    model = EXPERT_PARALLEL(group, models.path("tiny-moe"))
    layers = [layer.mlp.part.experts for layer in model.layers]
    return [[i for i, e in enumerate(experts) if isinstance(e, GatedMLP)] for experts in layers]


def forward_with_gate_up_in_one_block(group: ProcessGroup) -> tuple[np.ndarray, np.ndarray]:
    """Wrong on purpose: the rank's block of the fused matrix, not of gate and of up."""
    folder = models.path("tiny-chat")
    weights = load_weights(folder)
    model = tensor_parallel_model(group, folder)
    for i, layer in enumerate(model.layers):
        names = (f"model.layers.{i}.mlp.{part}_proj" for part in ("gate", "up"))
        fused = fused_linear(weights, *names).weight
        layer.mlp.part.gate_up = DenseLinear(np.split(fused, group.size, axis=1)[group.rank])
    return forward(model)


def attend_over_ranks(group: ProcessGroup, states: list[SoftmaxState]) -> np.ndarray:
    return merge_over_ranks(group, states[group.rank])


def micro_batches(group: ProcessGroup) -> list[np.ndarray]:
    """Hidden states of each of `CHUNKS` as a batch of its own, in the order of the schedule."""
    stage = PipelineStage(group, models.path("tiny-chat"))
    cache = stage.new_kv_cache(8, BLOCK_SIZE)
    batches = [make_batch([SequenceChunk(ids, 0, table)], BLOCK_SIZE) for ids, table in CHUNKS]
    hidden = []
    for tick in pipeline_schedule(group.size, len(batches)):
        index = tick[group.rank]
        if index is not None:
            hidden.append(stage.forward(batches[index], cache))
    return hidden


def wait_for_ever(group: ProcessGroup, folder: Path) -> None:
    """Rank 0 waits in the second all-reduce for a peer that has left its pid and sleeps."""
    group.all_reduce(np.ones(1000, np.float32))
    (folder / str(group.rank)).write_text(str(os.getpid()))
    if group.rank > 0:
        time.sleep(3600)
    group.all_reduce(np.ones(1000, np.float32))
