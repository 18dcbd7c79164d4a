"""Probes of `RadixTree`: matches and insertions of sequences that share prefixes."""

import zlib
from functools import partial
from typing import Any

import numpy as np

from autograder.observation import refusal
from autograder.probe import probe
from autograder.probes.week06.split import picture

EXERCISE = "week06-match-insert"


Runs = list[list[int]]


def sequence(random: np.random.Generator) -> Runs:
    """A path through a small forest, so that sequences share prefixes of every length.

    Written as runs of a branch and a number of tokens, which `spelt` spells out.
    """
    runs: Runs = []
    while not runs or random.random() < 0.6:
        runs.append([int(random.integers(3)), int(random.choice([1, 2, 3, 6]))])
    return runs


def spelt(runs: Runs) -> list[int]:
    return [100 * branch + i for branch, count in runs for i in range(count)]


def fingerprint(data: Any) -> int:
    """A short form of what is too long to be kept after every operation."""
    return zlib.crc32(repr(data).encode())


def operations(random: np.random.Generator, count: int, salts: list[str]) -> list[list[Any]]:
    found: list[list[Any]] = []
    for number in range(count):
        name = "insert" if random.random() < 0.5 else "match"
        found.append([name, sequence(random), str(random.choice(salts)), 1000 * number])
    return found


def operate(tree: Any, name: str, runs: Runs, salt: str, first: int) -> Any:
    """One operation; values of an insertion are `first` and those after it."""
    tokens = spelt(runs)
    if name == "insert":
        return tree.insert(tokens, range(first, first + len(tokens)), salt)
    match = tree.match_prefix(tokens, salt)
    return [list(match.values), list(match.node.token_ids), match.node is tree.root]


def answers(tree: Any, inputs: Any) -> list[Any]:
    return [operate(tree, *operation) for operation in inputs["operations"]]


def mixed(random: np.random.Generator) -> dict[str, Any]:
    return {"operations": operations(random, 24, [""])}


@probe(
    title="What matches and insertions answer on sequences that share prefixes",
    exercise=EXERCISE,
    trials=4,
    inputs=mixed,
    message="A match has the values of the longest prefix that was inserted, and an insertion says "
    "how many tokens were there before it.",
)
def answers_of_a_tree(code: Any, inputs: Any) -> list[Any]:
    return answers(code.RadixTree(), inputs)


def tenants(random: np.random.Generator) -> dict[str, Any]:
    return {"operations": operations(random, 24, ["", "one", "two"])}


@probe(
    title="The same sequences under different salts",
    exercise=EXERCISE,
    trials=3,
    inputs=tenants,
    message="Sequences with different salts share no node, and those with the same salt do.",
)
def salted_trees(code: Any, inputs: Any) -> list[Any]:
    tree = code.RadixTree()
    return [answers(tree, inputs), fingerprint(shape(tree.root))]


def shape(node: Any) -> list[Any]:
    """Tokens and values of all nodes, without the times."""
    found = picture(node)

    def plain(one: dict[str, Any]) -> list[Any]:
        children = [[key, up, same, plain(below)] for key, up, same, below in one["children"]]
        return [one["tokens"], one["values"], children]

    return plain(found)


def many(random: np.random.Generator) -> dict[str, Any]:
    return {"operations": operations(random, 30, ["", "tenant"])}


@probe(
    title="The shape of the tree after every operation",
    exercise=EXERCISE,
    trials=3,
    inputs=many,
    message="A node is cut where a match or an insertion leaves it, and nowhere else; an insertion "
    "adds one leaf at most.",
)
def shape_after_each(code: Any, inputs: Any) -> list[Any]:
    tree, seen = code.RadixTree(), []
    for operation in inputs["operations"]:
        operate(tree, *operation)
        seen.append(fingerprint(shape(tree.root)))
    return seen


def order_of_use(node: Any) -> list[Any]:
    """All nodes by their time of use; those with the same time are one group."""
    groups: dict[int, list[Any]] = {}
    pending = list(node.children.values())
    while pending:
        one = pending.pop()
        groups.setdefault(one.last_used, []).append([list(one.token_ids), list(one.values)])
        pending += one.children.values()
    return [sorted(groups[time]) for time in sorted(groups)]


@probe(
    title="Which nodes count as used, and in which order",
    exercise=EXERCISE,
    trials=3,
    inputs=many,
    message="Every node of the path is used by a match and by an insertion, all at one time; a "
    "new leaf, and a node that was cut off, come after them.",
)
def use_after_each(code: Any, inputs: Any) -> list[Any]:
    tree, seen = code.RadixTree(), []
    for operation in inputs["operations"]:
        operate(tree, *operation)
        seen.append(fingerprint(order_of_use(tree.root)))
    return seen


def edges(random: np.random.Generator) -> dict[str, Any]:
    counts = random.integers(2, 9, 3).tolist()
    return {"counts": counts, "salt": str(random.choice(["", "tenant"]))}


@probe(
    title="Empty sequences, prefixes and extensions of what is there, single tokens",
    exercise=EXERCISE,
    trials=3,
    inputs=edges,
    message="A sequence that is empty, a prefix of a cached one, or the continuation of one was "
    "not treated as the exercise says.",
)
def trees_at_the_edges(code: Any, inputs: Any) -> list[Any]:
    tree, salt = code.RadixTree(), inputs["salt"]
    first, second, third = inputs["counts"]
    whole = [[1, first], [2, second], [3, third]]
    asked: list[list[Any]] = [
        ["match", whole, salt, 0],
        ["insert", [], salt, 100],
        ["match", [], salt, 0],
        ["insert", whole[:2], salt, 200],
        ["insert", whole[:2], salt, 300],
        ["insert", whole[:1], salt, 400],
        ["insert", whole, salt, 500],
        ["insert", [[1, 1]], salt, 600],
        ["match", [*whole, [9, 1]], salt, 0],
        ["match", [[1, first], [2, 1], [9, 1]], salt, 0],
        ["match", [[9, 1]], salt, 0],
    ]
    seen: list[Any] = []
    for operation in asked:
        seen += [operate(tree, *operation), fingerprint(shape(tree.root))]
    return seen


@probe(
    title="Leaves that are announced, and values that do not fit the tokens",
    exercise=EXERCISE,
    trials=3,
    inputs=mixed,
    message="Each new leaf is announced once, when it hangs in the tree, and nothing else is; a "
    "refused insertion leaves the tree, and its times, as they were.",
)
def leaves_announced(code: Any, inputs: Any) -> list[Any]:
    seen: list[Any] = []

    class Watched(code.RadixTree):  # type: ignore[misc]
        def _added(self, leaf: Any) -> None:
            in_place = leaf.parent.children.get(leaf.edge) is leaf
            seen.append([leaf.token_ids[0], list(leaf.values), in_place])

    tree = Watched()
    for operation in inputs["operations"]:
        seen.append(operate(tree, *operation))
    tokens = spelt(inputs["operations"][0][1])
    seen += [
        refusal(
            partial(tree.insert, tokens, values),
            lambda: [shape(tree.root), order_of_use(tree.root)],
        )
        for values in (range(len(tokens) + 1), range(len(tokens) - 1))
    ]
    return seen
