"""Capture a step once, replay it with one launch: what CUDA graphs do, visible and exact on a CPU.

Holds the sizes to capture, the dispatch of a step to a mode and a size, the count of launches, and
the graph. On a GPU that is a real `torch.cuda.CUDAGraph`; elsewhere it is the list of recorded
operators, replayed on the very tensors of the capture, so that it goes stale where a real one
would. `torch_llama.py` captures the model with it. Built in week 10; mirrors
`vllm/v1/cudagraph_dispatcher.py` and `vllm/compilation/cuda_graph.py`.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Buffers = Mapping[str, torch.Tensor]


class GraphMode(Enum):
    """What decode-only steps run as, and what mixed steps run as.

    FULL is one graph for the whole step; PIECEWISE leaves attention out, which then runs between
    one graph and the next. Source: vllm/config/compilation.py:CUDAGraphMode.
    """

    NONE = "NONE", "NONE"
    PIECEWISE = "PIECEWISE", "PIECEWISE"
    FULL = "FULL", "FULL"
    FULL_DECODE_ONLY = "FULL", "NONE"
    FULL_AND_PIECEWISE = "FULL", "PIECEWISE"


def capture_sizes(max_num_seqs: int, max_num_batched_tokens: int, max_size: int = 512) -> list[int]:
    """The numbers of tokens to capture, ascending and denser where padding weighs more.

    Source: vllm/config/vllm.py:VllmConfig._set_cudagraph_sizes.
    """
    largest = min(2 * max_num_seqs, max_size, max_num_batched_tokens)
    # A full batch is captured too: it is the one that would be padded in every step.
    full = {max_num_seqs, max_num_batched_tokens}
    sizes = {1, 2, 4, *range(8, 256, 8), *range(256, max_size + 1, 16)} | full
    return sorted(size for size in sizes if size <= largest)


def padded_size(num_tokens: int, sizes: Sequence[int]) -> int | None:
    """The smallest of the ascending `sizes` that holds `num_tokens`; None above the largest."""
    place = bisect_left(sizes, num_tokens)
    return sizes[place] if place < len(sizes) else None


def padding_waste(steps: Iterable[int], sizes: Sequence[int]) -> int:
    """Tokens computed for nothing in `steps` of so many tokens each; eager steps compute none."""
    return sum((padded_size(num_tokens, sizes) or num_tokens) - num_tokens for num_tokens in steps)


def dispatch(
    mode: GraphMode, num_tokens: int, uniform_decode: bool, sizes: Sequence[int], max_num_seqs: int
) -> tuple[GraphMode, int]:
    """What a step runs as (NONE, PIECEWISE or FULL), and its number of tokens with padding.

    A decode graph has one sequence a row, so that none is captured above `max_num_seqs` rows.
    Source: vllm/v1/cudagraph_dispatcher.py:CudagraphDispatcher.dispatch, without LoRA.
    """
    padded = padded_size(num_tokens, sizes)
    if padded is None:
        return GraphMode.NONE, num_tokens
    decode, mixed = mode.value
    runtime = GraphMode[decode if uniform_decode and padded <= max_num_seqs else mixed]
    return runtime, num_tokens if runtime is GraphMode.NONE else padded


class LaunchLog(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, lists the operators that compute: each is at least one launch on a GPU.

    Views are left out: they change a shape on the host and launch nothing.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # PyTorch would import its compiler otherwise, and with it Triton, before
        # `inferlab.kernels` has chosen the interpreter.
        return False

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)  # type: ignore[no-untyped-call]
        self.launches: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, operator: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        if not operator.is_view and operator is not torch.ops.aten._unsafe_view.default:
            self.launches.append((operator, args, kwargs or {}, result))
        return result


class StepGraph:
    """A step captured on static buffers and replayed as a whole.

    A capture keeps addresses, not names, and every value that the host passed to an operator.
    Invariant: a replay on memory that does not hold this step's values is an error; a real graph
    would answer wrongly without a word. Source: vllm/compilation/cuda_graph.py:CUDAGraphWrapper,
    which checks addresses only when it logs for debugging.

    Args:
        step: works on the buffers; it is run once or twice here, on what they hold now.
        inputs: buffers that the caller writes before every replay.
        state: buffers that outlive a step, such as the KV cache.

    Raises:
        ValueError: if the step reads a tensor's value on the host, which cannot be captured.
    """

    def __init__(self, step: Callable[[], None], inputs: Buffers, state: Buffers) -> None:
        with LaunchLog() as log:  # on a GPU this is the warm-up that a capture needs
            step()
        for operator, *_ in log.launches:
            if torch.Tag.data_dependent_output in operator.tags:
                raise ValueError(
                    f"The step reads a tensor's value on the host ({operator}), and every replay "
                    "would see the captured value; keep it in a tensor or out of the graph."
                )
        self.num_operators = len(log.launches)
        self._addresses = {name: _address(tensor) for name, tensor in {**inputs, **state}.items()}
        self._versions = {name: tensor._version for name, tensor in inputs.items()}
        self._run: Callable[[], None] = partial(_run_again, log.launches)
        if any(tensor.is_cuda for tensor in inputs.values()):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            self._run = graph.replay

    def replay(self, inputs: Buffers, state: Buffers) -> None:
        """Run the captured step on what the buffers hold now.

        Raises:
            ValueError: if a buffer has moved, or an input was not written since the last replay.
        """
        for name, tensor in {**inputs, **state}.items():
            if _address(tensor) != self._addresses[name]:
                raise ValueError(
                    f"Buffer {name!r} has address, shape and strides {_address(tensor)}; the graph "
                    f"was captured on {self._addresses[name]} and would use that memory. Copy the "
                    "values into the captured buffer, or capture anew."
                )
        versions = {name: tensor._version for name, tensor in inputs.items()}
        stale = [name for name, version in versions.items() if version == self._versions[name]]
        if stale:
            raise ValueError(
                f"Not written since the last replay: {', '.join(stale)}. The graph would compute "
                "the last step again; copy this step's values into every input first."
            )
        self._versions = versions
        self._run()


def _address(tensor: torch.Tensor) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    return hex(tensor.data_ptr()), tuple(tensor.shape), tensor.stride()


def _run_again(launches: Iterable[tuple[Any, Any, Any, Any]]) -> None:
    """Each operator on its captured arguments, its result into the captured result."""
    for operator, args, kwargs, kept in launches:
        result = operator(*args, **kwargs)
        for old, new in zip(tree_leaves(kept), tree_leaves(result)):
            if new is not old:
                old.copy_(new)
