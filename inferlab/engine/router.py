"""Routers in front of several workers that serve the same model: who gets a request.

Built in week 9. The policies are those of sglang-router (sglang_router/router_args.py:RouterArgs).
"""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence

import numpy as np

from inferlab.engine.radix_cache import RadixCache

# sglang_router/router_args.py:RouterArgs
CACHE_THRESHOLD = 0.3
BALANCE_ABSOLUTE = 64
BALANCE_RELATIVE = 1.5


class Router(ABC):
    """Chooses a worker for each request, and knows how many each of them still has to answer.

    Invariant: every request that was routed and not finished is counted in the load of one live
    worker.
    """

    def __init__(self, num_workers: int) -> None:
        if num_workers < 1:
            raise ValueError(f"A router needs at least 1 worker and got {num_workers}.")
        self.loads = dict.fromkeys(range(num_workers), 0)  # by live worker: requests in flight

    def route(self, token_ids: Sequence[int]) -> int:
        """The worker for a prompt, which is then one request busier.

        Raises:
            RuntimeError: if no worker is alive.
        """
        if not self.loads:
            raise RuntimeError("No worker is alive: start one before sending requests.")
        worker = self.choose(token_ids)
        self.loads[worker] += 1
        return worker

    def finish(self, worker: int) -> None:
        """A request of `worker` was answered; of a lost worker nothing is expected."""
        if worker in self.loads:
            self.loads[worker] -= 1

    def lose(self, worker: int) -> None:
        """`worker` died: it gets nothing any more, and its requests have to be routed again."""
        del self.loads[worker]

    def least_loaded(self) -> int:
        """The live worker with the fewest requests in flight, of equals the first."""
        return min(self.loads, key=lambda worker: (self.loads[worker], worker))

    @abstractmethod
    def choose(self, token_ids: Sequence[int]) -> int:
        """One of the live workers in `loads`, of which there is at least one."""


class RoundRobin(Router):
    """One after another, whatever they are asked and however busy they are."""

    def __init__(self, num_workers: int) -> None:
        super().__init__(num_workers)
        self._last = -1

    def choose(self, token_ids: Sequence[int]) -> int:
        after = [worker for worker in self.loads if worker > self._last]
        self._last = min(after or self.loads)
        return self._last


class RandomChoice(Router):
    """Any worker, each as likely."""

    def __init__(self, num_workers: int, seed: int = 0) -> None:
        super().__init__(num_workers)
        self._random = np.random.default_rng(seed)

    def choose(self, token_ids: Sequence[int]) -> int:
        return int(self._random.choice(sorted(self.loads)))


class PowerOfTwo(RandomChoice):
    """The less busy of two workers chosen at random (Mitzenmacher, 2001)."""

    def choose(self, token_ids: Sequence[int]) -> int:
        drawn = self._random.choice(sorted(self.loads), min(2, len(self.loads)), replace=False)
        return int(min(drawn, key=lambda worker: self.loads[int(worker)]))


class CacheAware(Router):
    """The worker that has probably cached most of the prompt, unless the load is unequal.

    What a worker has cached is guessed from what was sent to it, in a radix tree for each that the
    worker itself knows nothing of. The least busy worker gets a prompt that no tree knows to more
    than `cache_threshold` of its length, and every prompt while loads are unequal: while the
    largest exceeds the smallest by more than `balance_absolute` requests and `balance_relative`
    times.

    Differences from sglang-router 0.3.2: its tree holds characters and not tokens, and of two
    workers that know as much of a prompt it takes the one that was sent it last, not the first.
    """

    def __init__(
        self,
        num_workers: int,
        cache_threshold: float = CACHE_THRESHOLD,
        balance_absolute: int = BALANCE_ABSOLUTE,
        balance_relative: float = BALANCE_RELATIVE,
        max_tree_tokens: int = 2**24,
    ) -> None:
        super().__init__(num_workers)
        self.cache_threshold = cache_threshold
        self.balance_absolute = balance_absolute
        self.balance_relative = balance_relative
        self.max_tree_tokens = max_tree_tokens
        self.trees = {worker: RadixCache() for worker in self.loads}

    def choose(self, token_ids: Sequence[int]) -> int:
        worker = self._preferred(token_ids)
        tree = self.trees[worker]
        tree.insert(token_ids, array("q", bytes(8 * len(token_ids))))
        tree.evict(tree.evictable_size - self.max_tree_tokens)
        return worker

    def lose(self, worker: int) -> None:
        super().lose(worker)
        del self.trees[worker]

    def _preferred(self, token_ids: Sequence[int]) -> int:
        if self._is_unequal():
            return self.least_loaded()
        matched = {w: len(tree.match_prefix(token_ids).values) for w, tree in self.trees.items()}
        best = max(matched, key=lambda worker: (matched[worker], -worker))
        is_known = matched[best] > self.cache_threshold * len(token_ids)
        return best if is_known else self.least_loaded()

    def _is_unequal(self) -> bool:
        least, most = min(self.loads.values()), max(self.loads.values())
        is_far = most - least > self.balance_absolute
        return is_far and most > self.balance_relative * least
