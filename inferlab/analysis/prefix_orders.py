"""What an order of requests costs a prefix cache, on a model that has no radix tree.

Requests are served one after another. Each finds what the cache holds of it, computes the rest and
leaves all of it behind; then tokens are dropped, always the least recently used of those that no
cached token continues, until the rest fits. The unit is one token, so that every claim about trees
can be counted. Beside Zheng et al., SGLang: efficient execution of structured language model
programs, NeurIPS 2024, section 3, which proves the claims for an order by depth-first search.
"""

from collections.abc import Sequence

Tokens = Sequence[int]


def trie_paths(sequences: Sequence[Tokens]) -> list[list[int]]:
    """Each sequence as its path through the tree of all of them, one node a token.

    Nodes are numbered from 0 in the order in which they first appear.
    """
    numbers: dict[tuple[int, int], int] = {}
    paths = []
    for sequence in sequences:
        node, path = -1, []
        for token in sequence:
            node = numbers.setdefault((node, token), len(numbers))
            path.append(node)
        paths.append(path)
    return paths


def distinct_prefixes(sequences: Sequence[Tokens]) -> int:
    """Tokens that any cache has to compute, in any order: nodes of the tree of all sequences."""
    return len({node for path in trie_paths(sequences) for node in path})


class TokenCache:
    """A prefix cache of single tokens with room for `capacity` of them.

    A token is a node of `trie_paths`. Invariant: with a token the cache holds all before it.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._last_used: dict[int, int] = {}
        self._parent: dict[int, int] = {}
        self._num_children: dict[int, int] = {}
        self._time = 0

    def found(self, path: Sequence[int]) -> int:
        """Leading tokens of `path` that the cache holds."""
        return next((i for i, node in enumerate(path) if node not in self._last_used), len(path))

    def serve(self, path: Sequence[int]) -> int:
        """Compute what is missing of `path`, and return how many tokens that are.

        Raises ValueError if `path` alone is longer than the capacity.
        """
        if len(path) > self.capacity:
            raise ValueError(f"A request of {len(path)} tokens cannot fit into {self.capacity}.")
        num_found = self.found(path)
        self._time += 1
        for parent, node in zip([-1, *path], path):
            if node not in self._last_used:
                self._parent[node], self._num_children[node] = parent, 0
                if parent >= 0:
                    self._num_children[parent] += 1
            self._last_used[node] = self._time
        while len(self._last_used) > self.capacity:
            self._drop_one()
        return len(path) - num_found

    def _drop_one(self) -> None:
        ends = (node for node in self._last_used if not self._num_children[node])
        node = min(ends, key=self._last_used.__getitem__)
        del self._last_used[node]
        if self._parent[node] >= 0:
            self._num_children[self._parent[node]] -= 1


def computed_tokens(sequences: Sequence[Tokens], order: Sequence[int], capacity: int) -> list[int]:
    """Tokens that each request computes, in the order in which they are served.

    Args:
        sequences: tokens of each request.
        order: places in `sequences`.
        capacity: of the cache, in tokens.

    Raises:
        ValueError: if a sequence is longer than the capacity.
    """
    paths, cache = trie_paths(sequences), TokenCache(capacity)
    return [cache.serve(paths[place]) for place in order]


def depth_first(sequences: Sequence[Tokens]) -> list[int]:
    """The places of the sequences in the order of a walk through their tree, first seen first."""
    paths = trie_paths(sequences)
    return sorted(range(len(paths)), key=paths.__getitem__)


def longest_match_first(sequences: Sequence[Tokens], capacity: int) -> list[int]:
    """The order in which always the sequence is served of which the cache holds most.

    Of several, the one that stands first. Raises ValueError as `computed_tokens`.
    """
    paths, cache = trie_paths(sequences), TokenCache(capacity)
    waiting, order = list(range(len(paths))), []
    while waiting:
        place = max(waiting, key=lambda one: cache.found(paths[one]))
        cache.serve(paths[place])
        waiting.remove(place)
        order.append(place)
    return order
