"""Pipeline parallelism: a rank computes some of the layers and sends the hidden states on; week 13.

Mirrors vllm/v1/engine/core.py:EngineCore.step_with_batch_queue, which keeps as many batches in
flight as there are stages. `LLM` has one in flight, so there one stage works while the others wait.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from inferlab.engine.checkpoint import ModelConfig, load_weights
from inferlab.engine.kv_cache import KVCache
from inferlab.engine.model import Batch, LlamaModel
from inferlab.engine.process_group import ProcessGroup


class PipelineStage(LlamaModel):
    """A rank's consecutive layers, with the same face as the whole model, so that `LLM` can run it.

    Source: vllm/distributed/utils.py:get_pp_indices (which gives the layers left over to the middle
    stages, not to the first ones).
    """

    def __init__(self, group: ProcessGroup, checkpoint: str | Path) -> None:
        config = ModelConfig.from_json(Path(checkpoint) / "config.json")
        if config.num_layers < group.size:
            raise ValueError(
                f"{config.num_layers} layers cannot be divided over {group.size} stages; "
                "each stage needs at least one."
            )
        LlamaModel.__init__(self, config, load_weights(Path(checkpoint)))
        own = np.array_split(np.arange(config.num_layers), group.size)[group.rank]
        self.layers = [self.layers[i] for i in own]
        self.config = replace(config, num_layers=len(own))
        self.group = group

    def forward(self, batch: Batch, cache: KVCache) -> np.ndarray:
        """Hidden states `[num_tokens, hidden]` after this stage; the next stage has them too."""
        rank = self.group.rank
        if rank > 0:
            # What the previous stage sends stands in for the embedding, token i in row i.
            num_tokens = len(batch.token_ids)
            self.embedding = self.group.receive((num_tokens, self.config.hidden_size), rank - 1)
            batch = batch._replace(token_ids=np.arange(num_tokens))
        hidden = LlamaModel.forward(self, batch, cache)
        if rank < self.group.size - 1:
            self.group.send(hidden, rank + 1)
        return hidden

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """The last stage's logits, on every rank: each of them samples."""
        last = self.group.size - 1
        if self.group.rank == last:
            return self.group.broadcast(LlamaModel.logits(self, hidden), last)
        shape = len(hidden), self.config.vocab_size
        return self.group.broadcast(np.empty(shape, np.float32), last)


def pipeline_schedule(num_stages: int, num_micro_batches: int) -> list[list[int | None]]:
    """The micro-batch that each stage computes in each tick, `[tick][stage]`; None is a bubble.

    A stage can begin one tick after the stage before it: of all ticks, a share
    `(num_stages - 1) / (num_micro_batches + num_stages - 1)` is idle.
    Source: Huang et al., "GPipe", NeurIPS 2019, section 2.3 (its forward half).
    """
    return [
        [
            tick - stage if 0 <= tick - stage < num_micro_batches else None
            for stage in range(num_stages)
        ]
        for tick in range(num_micro_batches + num_stages - 1)
    ]
