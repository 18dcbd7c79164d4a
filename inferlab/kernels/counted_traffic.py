"""Counts the elements that kernels load and store while the Triton interpreter runs them.

The interpreter has no clock worth reading, but it sees every element; a GPU has the clock, and
hardware counters in place of this.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from inferlab.kernels import INTERPRETED


class KernelTraffic:
    """Elements so far; those that a mask leaves out are not moved and not counted."""

    def __init__(self) -> None:
        self.loaded = 0
        self.stored = 0


@contextmanager
def counted_traffic() -> Iterator[KernelTraffic]:
    """Count what every kernel moves that is launched inside the block.

    Raises:
        RuntimeError: on a machine with a GPU, where kernels are compiled.
    """
    if not INTERPRETED:
        raise RuntimeError(
            "Kernels are compiled here, and only the interpreter sees single elements: read the "
            "counters of ncu, or set CUDA_VISIBLE_DEVICES to nothing and restart Python."
        )
    from triton.runtime.interpreter import interpreter_builder

    found = KernelTraffic()
    load, store = interpreter_builder.create_masked_load, interpreter_builder.create_masked_store

    def counted_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        found.loaded += int(np.broadcast_to(mask.data, pointers.data.shape).sum())
        return load(pointers, mask, *rest)

    def counted_store(pointers: Any, values: Any, mask: Any, *rest: Any) -> Any:
        found.stored += int(np.broadcast_to(mask.data, pointers.data.shape).sum())
        return store(pointers, values, mask, *rest)

    interpreter_builder.create_masked_load = counted_load
    interpreter_builder.create_masked_store = counted_store
    try:
        yield found
    finally:
        del interpreter_builder.create_masked_load, interpreter_builder.create_masked_store
