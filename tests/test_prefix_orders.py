"""Orders of requests: what the theorem of week 6 promises, and what it does not."""

from itertools import permutations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from inferlab.analysis.prefix_orders import (
    computed_tokens,
    depth_first,
    distinct_prefixes,
    longest_match_first,
    trie_paths,
)
from inferlab.engine.radix_cache import RadixCache

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=9)


def longest(sequences: list[list[int]]) -> int:
    return max(map(len, sequences))


@given(SEQUENCES, st.integers(0, 6))
def test_depth_first_and_longest_match_first_compute_every_prefix_once(
    sequences: list[list[int]], extra: int
) -> None:
    capacity = longest(sequences) + extra
    least = distinct_prefixes(sequences)
    for order in (depth_first(sequences), longest_match_first(sequences, capacity)):
        assert sorted(order) == list(range(len(sequences)))
        assert sum(computed_tokens(sequences, order, capacity)) == least


@given(SEQUENCES, st.randoms(), st.integers(0, 6))
def test_no_order_computes_less_and_with_room_for_all_every_order_is_as_good(
    sequences: list[list[int]], rng: object, extra: int
) -> None:
    order = list(range(len(sequences)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    least = distinct_prefixes(sequences)
    assert sum(computed_tokens(sequences, order, longest(sequences) + extra)) >= least
    assert sum(computed_tokens(sequences, order, max(least, longest(sequences)))) == least


def test_the_order_matters_where_the_tree_does_not_fit() -> None:
    sequences = [[1, 1, 1, 5], [2, 2, 2, 5], [1, 1, 1, 6], [2, 2, 2, 6]]
    costs = {order: sum(computed_tokens(sequences, order, 4)) for order in permutations(range(4))}
    assert min(costs.values()) == distinct_prefixes(sequences) == 10
    assert costs[0, 1, 2, 3] == max(costs.values()) == 16
    assert longest_match_first(sequences, 4) == [0, 2, 1, 3]


def test_a_request_that_cannot_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="3 tokens cannot fit into 2"):
        computed_tokens([[1, 2, 3]], [0], 2)


@settings(max_examples=60)
@given(SEQUENCES, st.randoms())
def test_the_radix_tree_finds_what_the_model_finds(sequences: list[list[int]], rng: object) -> None:
    """With room for everything; the tree drops whole leaves, so that with less they differ."""
    order = list(range(len(sequences)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    tree, computed = RadixCache(), []
    for place in order:
        tokens = sequences[place]
        computed.append(len(tokens) - tree.insert(tokens, tokens))
    assert computed == computed_tokens(sequences, order, 100)
    assert tree.evictable_size == distinct_prefixes(sequences)


def test_paths_share_nodes_as_long_as_the_tokens_agree() -> None:
    assert trie_paths([[7, 8], [7, 9], [8]]) == [[0, 1], [0, 2], [3]]
