"""The dense Llama's step as PyTorch operators on static buffers, so that graphs can capture it.

`GraphedLlama` takes the place of `LLM.model`. Built in week 10; mirrors
`vllm/v1/worker/gpu/cudagraph_utils.py:CudaGraphManager`, which captures every size at start-up. On
a GPU the pages live there; elsewhere they are the arrays of the `KVCache` itself.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch

from inferlab.engine.kv_cache import KVCache
from inferlab.engine.layers import DenseLinear, Linear, rotary_table
from inferlab.engine.model import Batch, DecoderLayer, LlamaModel
from inferlab.engine.step_graph import GraphMode, LaunchLog, StepGraph, dispatch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class GraphedStep(NamedTuple):
    """How a step ran; source: vllm/compilation/cuda_graph.py:CUDAGraphStat."""

    mode: GraphMode
    num_tokens: int
    num_padded_tokens: int
    num_launches: int


class GraphedLlama:
    """Replays the graph that `dispatch` finds for a step, or runs its operators one by one.

    Every token is a row with a block table and a position: a prefill chunk of n tokens is n rows,
    which see one another because a layer's K and V are written before any row attends. Its context
    is read n times, so this suits short prompts.

    Invariants:
      - every operator works row by row, so a padding row may hold anything, NaN included;
      - a padding row's inputs are 0: its K and V go to the null block, never to a block that an
        earlier owner of the row has given back.

    Args:
        model: its head stays outside the graphs, as in vLLM.
        cache: the pages that the graphs are captured on, in float32.
        sizes: numbers of tokens to capture, for example from `capture_sizes`.
    """

    def __init__(
        self,
        model: LlamaModel,
        cache: KVCache,
        mode: GraphMode,
        sizes: Sequence[int],
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 2048,
    ) -> None:
        if cache.dtype != "float32":
            raise ValueError(
                f"The KV cache holds {cache.dtype}; step graphs read and write float32 pages, so "
                "leave this cache to `LlamaModel.forward`."
            )
        config = self.config = model.config
        self.logits = model.logits
        self.mode, self.sizes, self.max_num_seqs = mode, sorted(sizes), max_num_seqs
        self.steps: Counter[GraphedStep] = Counter()
        self._embedding = _tensor(model.embedding)
        self._rotations = _tensor(rotary_table(config))
        self._layers = [_weights(layer) for layer in model.layers]
        if DEVICE != "cpu":
            cache.keys, cache.values = _pages(cache).values()  # type: ignore[assignment]
        self._pages = _pages(cache)
        num_blocks, self._block_size = cache.keys.shape[1:3]
        self._max_blocks = min(num_blocks, -(-config.max_position_embeddings // self._block_size))

        rows = max(max_num_batched_tokens, *sizes)
        shapes = dict(token_ids=(), positions=(), slots=(), tables=(self._max_blocks,))
        self.inputs = {
            name: torch.zeros(rows, *shape, dtype=torch.int64, device=DEVICE)
            for name, shape in shapes.items()
        }
        heads = rows, config.num_heads, config.head_dim
        self._hidden = torch.zeros(rows, config.hidden_size, device=DEVICE)
        self._queries, self._attended = (torch.zeros(heads, device=DEVICE) for _ in range(2))
        self._graphs: dict[tuple[GraphMode, int], list[StepGraph | Callable[[], None]]] = {}
        for size in self.sizes:
            for uniform in (True, False):
                step = dispatch(mode, size, uniform, self.sizes, max_num_seqs)
                if step[0] is not GraphMode.NONE and step not in self._graphs:
                    self._graphs[step] = self._capture(*step)

    def forward(self, batch: Batch, cache: KVCache) -> np.ndarray:
        """As `LlamaModel.forward`: hidden states `[num_tokens, hidden]` before the head.

        Raises:
            ValueError: if a graph fits and was captured on other arrays than those of `cache`.
        """
        num_tokens = len(batch.token_ids)
        uniform = num_tokens == batch.num_decodes
        step = dispatch(self.mode, num_tokens, uniform, self.sizes, self.max_num_seqs)
        self._pages = _pages(cache)
        self._write_inputs(batch, step[1])
        num_launches = 0
        for part in self._graphs.get(step) or [run for _, run in self._pieces(step[1])]:
            if isinstance(part, StepGraph):
                part.replay(self.inputs, self._pages)
                num_launches += 1
            else:
                with LaunchLog() as log:
                    part()
                num_launches += len(log.launches)
        self.steps[GraphedStep(step[0], num_tokens, step[1], num_launches)] += 1
        # A copy, because the next step writes its result into the same memory.
        return self._hidden[:num_tokens].cpu().numpy().copy()

    def _write_inputs(self, batch: Batch, size: int) -> None:
        """Copy the batch into the first `size` rows of the static buffers, zeros after its end."""
        tables = np.zeros((len(batch.token_ids), self._max_blocks), dtype=int)
        tables[: batch.num_decodes, : batch.decode_tables.shape[1]] = batch.decode_tables
        for row, chunk in batch.prefills:
            table = tables[row : row + len(chunk.token_ids)]
            table[:, : len(chunk.block_table)] = chunk.block_table
        arrays = batch.token_ids, batch.positions, batch.slots, tables
        for buffer, values in zip(self.inputs.values(), arrays):
            padded = np.zeros((size, *values.shape[1:]), dtype=np.int64)
            padded[: len(values)] = values
            buffer[:size] = torch.from_numpy(padded)
        self._width = int(batch.positions.max()) // self._block_size + 1

    def _capture(self, mode: GraphMode, size: int) -> list[StepGraph | Callable[[], None]]:
        """Graphs of the step's pieces, and between them the functions that stay eager."""
        self._width = self._max_blocks  # a graph's shapes are fixed: attention reads whole tables
        parts: list[StepGraph | Callable[[], None]] = []
        pieces = groupby(self._pieces(size), lambda piece: piece[0] or mode is GraphMode.FULL)
        for captured, group in pieces:
            runs = [run for _, run in group]
            step = partial(_run_all, runs)
            parts += [StepGraph(step, self.inputs, self._pages)] if captured else runs
        return parts

    def _pieces(self, size: int) -> list[tuple[bool, Callable[[], None]]]:
        """The step on `size` rows in order; False marks attention, left out of piecewise graphs."""
        pieces: list[tuple[bool, Callable[[], None]]] = [(True, partial(self._embed, size))]
        for layer in range(len(self._layers)):
            pieces.append((True, partial(self._project, layer, size)))
            pieces.append((False, partial(self._attend, layer, size)))
            pieces.append((True, partial(self._feed_forward, layer, size)))
        return pieces

    def _embed(self, size: int) -> None:
        self._hidden[:size] = self._embedding[self.inputs["token_ids"][:size]]

    def _project(self, layer: int, size: int) -> None:
        """Queries into their buffer, K and V into the pages."""
        config, (norm, qkv) = self.config, self._layers[layer][:2]
        heads = (self._norm(self._hidden[:size], norm) @ qkv).view(size, -1, config.head_dim)
        num_rotated = config.num_heads + config.num_kv_heads
        cosines, sines = self._rotations[self.inputs["positions"][:size]].unbind(dim=1)
        first, second = heads[:, :num_rotated].chunk(2, dim=-1)
        rotated = torch.cat(
            [first * cosines - second * sines, second * cosines + first * sines], dim=-1
        )
        self._queries[:size] = rotated[:, : config.num_heads]
        slots = self.inputs["slots"][:size]
        self._pages["keys"][layer].flatten(0, 1)[slots] = rotated[:, config.num_heads :]
        self._pages["values"][layer].flatten(0, 1)[slots] = heads[:, num_rotated:]

    def _attend(self, layer: int, size: int) -> None:
        """Each row over the first `_width` blocks of its table, up to its own position."""
        kv_heads, head_dim = self.config.num_kv_heads, self.config.head_dim
        tables = self.inputs["tables"][:size, : self._width]
        keys, values = (pages[layer][tables].flatten(1, 2) for pages in self._pages.values())
        places = torch.arange(keys.shape[1], device=DEVICE)
        unseen = places > self.inputs["positions"][:size, None]
        queries = self._queries[:size].view(size, kv_heads, -1, head_dim) * head_dim**-0.5
        scores = torch.einsum("rkgd,rskd->rkgs", queries, keys)
        weights = scores.masked_fill_(unseen[:, None, None], -torch.inf).softmax(dim=-1)
        # A weight of 0 does not silence a NaN in a slot that nobody has written.
        values.masked_fill_(unseen[..., None, None], 0)
        attended = torch.einsum("rkgs,rskd->rkgd", weights, values)
        self._attended[:size] = attended.reshape(size, -1, head_dim)

    def _feed_forward(self, layer: int, size: int) -> None:
        output, norm, gate_up, down = self._layers[layer][2:]
        hidden = self._hidden[:size]
        hidden.addmm_(self._attended[:size].flatten(1), output)
        gate, up = (self._norm(hidden, norm) @ gate_up).chunk(2, dim=-1)
        hidden.addmm_(torch.nn.functional.silu(gate) * up, down)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        mean_square = x.square().mean(dim=-1, keepdim=True)
        return x * (mean_square + self.config.rms_norm_eps).rsqrt() * weight


def _weights(layer: DecoderLayer) -> list[torch.Tensor]:
    """Norm and QKV; then output, norm, gate and up, down."""
    # A mixture of experts has neither: it then stands for both, and is refused by its name.
    gate_up, down = (getattr(layer.mlp, name, layer.mlp) for name in ("gate_up", "down"))
    norm, next_norm = _tensor(layer.input_norm), _tensor(layer.post_attention_norm)
    matrices = [_matrix(linear) for linear in (layer.qkv, layer.output, gate_up, down)]
    return [norm, *matrices[:2], next_norm, *matrices[2:]]


def _matrix(linear: Linear) -> torch.Tensor:
    if not isinstance(linear, DenseLinear):
        raise ValueError(
            f"A layer holds a {type(linear).__name__}; step graphs run dense Llama layers, so "
            "leave this model to `LlamaModel.forward`."
        )
    return _tensor(linear.weight)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(DEVICE)


def _pages(cache: KVCache) -> dict[str, torch.Tensor]:
    """K and V as tensors: on a CPU the cache's own memory, not a copy."""
    return {
        "keys": torch.as_tensor(cache.keys, device=DEVICE),
        "values": torch.as_tensor(cache.values, device=DEVICE),
    }


def _run_all(runs: Sequence[Callable[[], None]]) -> None:
    for run in runs:
        run()
