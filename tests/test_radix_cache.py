"""Invariants of the radix tree on random operation sequences, beside a model without a tree."""

from array import array
from collections.abc import Iterator
from copy import deepcopy

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inferlab.engine.radix_cache import RadixCache
from inferlab.engine.radix_node import RadixMatch, RadixNode
from inferlab.engine.radix_tree import RadixTree
from inferlab.lab.radix_replay import random_operations

SEQUENCES = st.lists(st.integers(0, 2), min_size=1, max_size=9)
SALTS = st.sampled_from(["", "tenant"])


def nodes(tree: RadixCache) -> Iterator[RadixNode]:
    """All nodes but the root."""
    stack = list(tree.root.children.values())
    while stack:
        node = stack.pop()
        yield node
        stack += node.children.values()


def path(node: RadixNode) -> tuple[str, list[int]]:
    """Salt and tokens from the root to the end of `node`, read upwards."""
    token_ids = list(node.token_ids)
    while node.parent is not None and node.parent.parent is not None:
        node = node.parent
        token_ids = [*node.token_ids, *token_ids]
    assert isinstance(node.edge, tuple)
    return node.edge[0], token_ids


def check_invariants(tree: RadixCache) -> None:
    """What the class promises, except the order of eviction and who holds which lock."""
    found = list(nodes(tree))
    paths = [path(node) for node in found]
    assert len({(salt, tuple(ids)) for salt, ids in paths}) == len(paths)
    for node, (salt, _) in zip(found, paths):
        assert node.parent is not None
        assert len(node.token_ids) == len(node.values) > 0
        first = node.token_ids[0]
        assert node.edge == (first if node.parent is not tree.root else (salt, first))
        assert node.parent.children[node.edge] is node
        assert node.lock_count >= sum(child.lock_count for child in node.children.values())
    locked = [len(node.token_ids) for node in found if node.lock_count]
    assert tree.protected_size == sum(locked)
    assert tree.evictable_size + tree.protected_size == sum(len(n.token_ids) for n in found)


def evictable_leaves(tree: RadixCache) -> list[RadixNode]:
    return [node for node in nodes(tree) if not node.children and not node.lock_count]


class RadixMachine(RuleBasedStateMachine):
    """Random use of a tree. The model maps each cached prefix to the value of its last token."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = RadixCache()
        self.model: dict[tuple[str, tuple[int, ...]], int] = {}
        self.held: list[tuple[RadixNode, str, list[int]]] = []
        self.next_value = 0

    def expected_values(self, token_ids: list[int], salt: str) -> list[int]:
        values = []
        for end in range(1, len(token_ids) + 1):
            value = self.model.get((salt, tuple(token_ids[:end])))
            if value is None:
                break
            values.append(value)
        return values

    def match(self, token_ids: list[int], salt: str) -> RadixMatch:
        match = self.tree.match_prefix(token_ids, salt)
        assert list(match.values) == self.expected_values(token_ids, salt)
        if match.values:
            assert path(match.node) == (salt, token_ids[: len(match.values)])
        else:
            assert match.node is self.tree.root
        return match

    @rule(token_ids=SEQUENCES, salt=SALTS)
    def look_up(self, token_ids: list[int], salt: str) -> None:
        self.match(token_ids, salt)

    @rule(token_ids=SEQUENCES, salt=SALTS)
    def insert(self, token_ids: list[int], salt: str) -> None:
        values = range(self.next_value, self.next_value + len(token_ids))
        self.next_value += len(token_ids)
        num_present = len(self.expected_values(token_ids, salt))
        assert self.tree.insert(token_ids, values, salt) == num_present
        for end in range(num_present + 1, len(token_ids) + 1):
            self.model[salt, tuple(token_ids[:end])] = values[end - 1]

    @rule(token_ids=SEQUENCES, salt=SALTS)
    def lock(self, token_ids: list[int], salt: str) -> None:
        match = self.match(token_ids, salt)
        self.tree.lock(match.node)
        self.held.append((match.node, salt, token_ids[: len(match.values)]))

    @precondition(lambda self: self.held)
    @rule(choice=st.integers(0))
    def unlock(self, choice: int) -> None:
        self.tree.unlock(self.held.pop(choice % len(self.held))[0])

    @rule(num_tokens=st.integers(0, 12))
    def evict(self, num_tokens: int) -> None:
        naive, expected = deepcopy(self.tree), array("q")
        while len(expected) < num_tokens and (leaves := evictable_leaves(naive)):
            oldest, *others = sorted(leaves, key=lambda node: node.last_used)
            assert all(node.last_used > oldest.last_used for node in others), "two are oldest"
            dropped = naive.evict(1)
            assert dropped == oldest.values
            expected += dropped
        freed = self.tree.evict(num_tokens)
        assert freed == expected
        gone = set(freed)
        self.model = {key: value for key, value in self.model.items() if value not in gone}

    @invariant()
    def promises_hold(self) -> None:
        check_invariants(self.tree)
        assert self.tree.evictable_size + self.tree.protected_size == len(self.model)

    @invariant()
    def locks_cover_whole_paths(self) -> None:
        covered = {
            (salt, tuple(ids[:end])) for _, salt, ids in self.held for end in range(1, len(ids) + 1)
        }
        assert self.tree.protected_size == len(covered)
        for node in nodes(self.tree):
            salt, token_ids = path(node)
            holders = [ids for _, s, ids in self.held if s == salt]
            assert node.lock_count == sum(ids[: len(token_ids)] == token_ids for ids in holders)

    @invariant()
    def each_evictable_leaf_is_queued_once(self) -> None:
        queued = [node for _, _, node in self.tree._queue]
        assert len(set(map(id, queued))) == len(queued)
        assert set(map(id, queued)) >= set(map(id, evictable_leaves(self.tree)))
        assert len(queued) <= len(list(nodes(self.tree)))


TestRadixMachine = RadixMachine.TestCase
TestRadixMachine.settings = settings(max_examples=60, stateful_step_count=40)


def test_a_match_inside_a_node_splits_it_there() -> None:
    tree = RadixCache()
    tree.insert([1, 2, 3, 4, 5], [10, 20, 30, 40, 50])
    match = tree.match_prefix([1, 2, 9])
    assert list(match.values) == [10, 20]
    assert list(match.node.token_ids) == [1, 2]
    (rest,) = match.node.children.values()
    assert (list(rest.token_ids), list(rest.values)) == ([3, 4, 5], [30, 40, 50])
    assert tree.match_prefix([1, 2, 3, 4, 5]).node is rest


def test_a_prefix_of_an_existing_sequence_adds_nothing() -> None:
    tree = RadixCache()
    tree.insert(range(8), range(8))
    assert tree.insert([0, 1, 2], [70, 71, 72]) == 3
    assert tree.evictable_size == 8
    assert list(tree.match_prefix(range(8)).values) == list(range(8))


def test_an_empty_sequence_matches_the_root_and_adds_nothing() -> None:
    tree = RadixCache()
    assert tree.insert([], []) == 0
    assert tree.match_prefix([]) == (array("q"), tree.root)
    tree.lock(tree.root)  # what a request without a hit does
    tree.unlock(tree.root)
    tree.unlock(tree.root)
    assert (tree.evictable_size, tree.protected_size) == (0, 0)


def test_a_salt_keeps_equal_sequences_apart() -> None:
    tree = RadixCache()
    tree.insert([1, 2], [10, 20], salt="one")
    assert tree.insert([1, 2], [30, 40], salt="two") == 0
    assert list(tree.match_prefix([1, 2], "one").values) == [10, 20]
    assert list(tree.match_prefix([1, 2]).values) == []


def test_a_split_under_a_lock_keeps_both_parts_locked_and_unlocks_both() -> None:
    tree = RadixCache()
    tree.insert(range(8), range(8))
    node = tree.match_prefix(range(8)).node
    tree.lock(node)
    tree.match_prefix([0, 1, 2])
    assert tree.protected_size == 8
    assert len(tree.evict(8)) == 0
    tree.unlock(node)
    assert (tree.protected_size, tree.evictable_size) == (0, 8)
    assert len(tree.evict(8)) == 8


def test_a_new_leaf_below_a_locked_path_can_be_evicted() -> None:
    tree = RadixCache()
    tree.insert([1, 2], [10, 20])
    tree.lock(tree.match_prefix([1, 2]).node)
    tree.insert([1, 2, 3, 4], [0, 0, 30, 40])
    assert (tree.protected_size, tree.evictable_size) == (2, 2)
    assert list(tree.evict(100)) == [30, 40]


def test_the_least_recently_used_leaf_goes_first_and_its_parent_after_it() -> None:
    tree = RadixCache()
    for first, ids in ((10, [1, 2]), (20, [1, 2, 3]), (30, [7, 8])):
        tree.insert(ids, range(first, first + len(ids)))
    tree.match_prefix([1, 2, 3])
    assert list(tree.evict(1)) == [30, 31]  # used least recently, though inserted last
    assert list(tree.evict(1)) == [22]
    assert list(tree.evict(1)) == [10, 11]


def test_eviction_touches_the_leaves_it_drops_only() -> None:
    """A count: with 1,000 leaves, dropping ten takes ten from the heap, and a use puts none in."""
    tree = RadixCache()
    for i in range(1000):
        tree.insert([i, i], [2 * i, 2 * i + 1])
    for i in range(1000):
        tree.match_prefix([i, i])
    assert len(tree._queue) == 1000
    tree.evict(2000)  # puts all times right, then empties the tree
    assert (tree.evictable_size, len(tree._queue)) == (0, 0)
    for i in range(1000):
        tree.insert([i, i], [2 * i, 2 * i + 1])
    assert len(tree.evict(20)) == 20
    assert len(tree._queue) == 990


def test_wrong_calls_are_refused_and_change_nothing() -> None:
    tree = RadixCache()
    with pytest.raises(ValueError, match="3 tokens came with 2 values"):
        tree.insert([1, 2, 3], [1, 2])
    tree.insert([1, 2, 3], [1, 2, 3])
    node = tree.match_prefix([1, 2, 3]).node
    with pytest.raises(ValueError, match="not locked"):
        tree.unlock(node)
    tree.evict(3)
    with pytest.raises(ValueError, match="was evicted"):
        tree.lock(node)
    assert (tree.evictable_size, tree.protected_size) == (0, 0)


@given(st.lists(st.tuples(SEQUENCES, SALTS), max_size=12))
def test_evicting_everything_returns_every_value_once(keys: list[tuple[list[int], str]]) -> None:
    tree, owned = RadixCache(), []
    for number, (token_ids, salt) in enumerate(keys):
        values = range(100 * number, 100 * number + len(token_ids))
        owned += values[tree.insert(token_ids, values, salt) :]
    assert sorted(tree.evict(10**6)) == sorted(owned)
    assert not tree.root.children


def test_a_path_of_more_nodes_than_calls_may_nest_is_no_problem() -> None:
    """One token a node, as a chat that grows a turn at a time makes it: nothing recurses."""
    tree = RadixCache()
    for end in range(1, 1201):
        tree.insert(range(end), range(end))
    match = tree.match_prefix(range(1200))
    tree.lock(match.node)
    tree.unlock(match.node)
    assert len(tree.evict(1200)) == 1200


def test_a_cut_that_leaves_a_part_without_tokens_is_refused() -> None:
    tree = RadixCache()
    tree.insert([1, 2, 3], [10, 20, 30])
    node = tree.match_prefix([1, 2, 3]).node
    for length in (-1, 0, 3, 4):
        with pytest.raises(ValueError, match="both parts need a token"):
            node.split(length, 9)
    with pytest.raises(ValueError, match="the root has none"):
        tree.root.split(1, 9)
    assert list(node.token_ids) == [1, 2, 3]


def test_a_tree_without_books_finds_what_the_cache_finds() -> None:
    """What adds locks, sums and eviction changes nothing about matching and inserting."""
    tree, cache = RadixTree(), RadixCache()
    for name, *arguments in random_operations(seed=2, num_operations=400):
        if name == "insert":
            token_ids, salt, first = arguments
            values = range(first, first + len(token_ids))
            assert tree.insert(token_ids, values, salt) == cache.insert(token_ids, values, salt)
        elif name == "match":
            assert tree.match_prefix(*arguments).values == cache.match_prefix(*arguments).values
