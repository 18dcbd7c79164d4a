"""Probes of `RadixTree`: matches and insertions of sequences that share prefixes."""

from typing import Any

import numpy as np

from autograder.observation import refusal
from autograder.probe import probe
from autograder.probes.week06.split import picture

EXERCISE = "week06-match-insert"


def sequence(random: np.random.Generator) -> list[int]:
    """A path through a small forest, so that sequences share prefixes of every length."""
    tokens: list[int] = []
    while not tokens or random.random() < 0.7:
        branch = int(random.integers(3))
        tokens += [100 * branch + i for i in range(int(random.choice([1, 2, 3, 6])))]
    return tokens


def operations(random: np.random.Generator, count: int, salts: list[str]) -> list[list[Any]]:
    found: list[list[Any]] = []
    for number in range(count):
        name = "insert" if random.random() < 0.5 else "match"
        salt = str(random.choice(salts))
        found.append([name, sequence(random), salt, 1000 * number])
    return found


def operate(tree: Any, name: str, tokens: list[int], salt: str, first: int) -> Any:
    """One operation; values of an insertion are `first` and those after it."""
    if name == "insert":
        return tree.insert(tokens, range(first, first + len(tokens)), salt)
    match = tree.match_prefix(tokens, salt)
    return [list(match.values), list(match.node.token_ids), match.node is tree.root]


def answers(tree: Any, inputs: Any) -> list[Any]:
    return [operate(tree, *operation) for operation in inputs["operations"]]


def mixed(random: np.random.Generator) -> dict[str, Any]:
    return {"operations": operations(random, 30, [""])}


@probe(
    title="What matches and insertions answer on sequences that share prefixes",
    exercise=EXERCISE,
    trials=4,
    inputs=mixed,
    message="A match has the values of the longest prefix that was inserted, and an insertion says "
    "how many tokens were there before it.",
)
def answered(code: Any, inputs: Any) -> list[Any]:
    return answers(code.RadixTree(), inputs)


def tenants(random: np.random.Generator) -> dict[str, Any]:
    return {"operations": operations(random, 30, ["", "one", "two"])}


@probe(
    title="The same sequences under different salts",
    exercise=EXERCISE,
    trials=3,
    inputs=tenants,
    message="Sequences with different salts share no node, and those with the same salt do.",
)
def kept_apart(code: Any, inputs: Any) -> list[Any]:
    tree = code.RadixTree()
    return [answers(tree, inputs), shape(tree.root)]


def shape(node: Any) -> list[Any]:
    """Tokens and values of all nodes, without the times."""
    found = picture(node)

    def plain(one: dict[str, Any]) -> list[Any]:
        children = [[key, up, same, plain(below)] for key, up, same, below in one["children"]]
        return [one["tokens"], one["values"], children]

    return plain(found)


def many(random: np.random.Generator) -> dict[str, Any]:
    return {"operations": operations(random, 40, ["", "tenant"])}


@probe(
    title="The shape of the tree after every operation",
    exercise=EXERCISE,
    trials=3,
    inputs=many,
    message="A node is cut where a match or an insertion leaves it, and nowhere else; an insertion "
    "adds one leaf at most.",
)
def shapes(code: Any, inputs: Any) -> list[Any]:
    tree, seen = code.RadixTree(), []
    for operation in inputs["operations"]:
        operate(tree, *operation)
        seen.append(shape(tree.root))
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
def used(code: Any, inputs: Any) -> list[Any]:
    tree, seen = code.RadixTree(), []
    for operation in inputs["operations"]:
        operate(tree, *operation)
        seen.append(order_of_use(tree.root))
    return seen


def edges(random: np.random.Generator) -> dict[str, Any]:
    base = random.choice(900, 12, replace=False).tolist()
    return {"base": base, "salt": str(random.choice(["", "tenant"]))}


@probe(
    title="Empty sequences, prefixes and extensions of what is there, single tokens",
    exercise=EXERCISE,
    trials=3,
    inputs=edges,
    message="A sequence that is empty, a prefix of a cached one, or the continuation of one was not "
    "treated as the exercise says.",
)
def corner_cases(code: Any, inputs: Any) -> list[Any]:
    tree, base, salt = code.RadixTree(), inputs["base"], inputs["salt"]
    asked: list[list[Any]] = [
        ["match", base, salt, 0],
        ["insert", [], salt, 100],
        ["match", [], salt, 0],
        ["insert", base[:6], salt, 200],
        ["insert", base[:6], salt, 300],
        ["insert", base[:2], salt, 400],
        ["insert", base, salt, 500],
        ["insert", base[:1], salt, 600],
        ["match", [*base, 999], salt, 0],
        ["match", [*base[:3], 999], salt, 0],
        ["match", [999], salt, 0],
    ]
    seen: list[Any] = []
    for operation in asked:
        seen += [operate(tree, *operation), shape(tree.root)]
    return seen


@probe(
    title="Leaves that are announced, and values that do not fit the tokens",
    exercise=EXERCISE,
    trials=3,
    inputs=mixed,
    message="Each new leaf is announced once, when it hangs in the tree, and nothing else is; a "
    "refused insertion leaves the tree, and its times, as they were.",
)
def announced(code: Any, inputs: Any) -> list[Any]:
    seen: list[Any] = []

    class Watched(code.RadixTree):  # type: ignore[misc, name-defined]
        def _added(self, leaf: Any) -> None:
            in_place = leaf.parent.children.get(leaf.edge) is leaf
            seen.append([list(leaf.token_ids), list(leaf.values), in_place])

    tree = Watched()
    for operation in inputs["operations"]:
        seen.append(operate(tree, *operation))
    tokens = inputs["operations"][0][1]
    seen += [
        refusal(
            lambda given=values: tree.insert(tokens, given),
            lambda: [shape(tree.root), order_of_use(tree.root)],
        )
        for values in (range(len(tokens) + 1), range(len(tokens) - 1))
    ]
    return seen
