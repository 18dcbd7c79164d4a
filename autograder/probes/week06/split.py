"""Probes of `RadixNode.split`: the whole neighbourhood of the cut is noted."""

from array import array
from functools import partial
from typing import Any

import numpy as np

from autograder.observation import refusal
from autograder.probe import probe

EXERCISE = "week06-split"


def chain(random: np.random.Generator, salts: list[str]) -> dict[str, Any]:
    """A node below the root with two children, all of random tokens, and a sister."""
    count = int(random.integers(3, 9))
    tokens = random.choice(5000, count + 20, replace=False).tolist()
    return {
        "salt": str(random.choice(salts)),
        "tokens": tokens[:count],
        "values": random.integers(0, 10**6, count).tolist(),
        "others": tokens[count:],
        "length": int(random.integers(1, count)),
        "locks": int(random.integers(0, 4)),
        "last_used": int(random.integers(1, 50)),
        "now": int(random.integers(50, 99)),
    }


def built(code: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
    """The root, and the node that is to be cut."""

    def node(edge: Any, parent: Any, tokens: Any, values: Any, last_used: int) -> Any:
        new = code.RadixNode(edge, parent, array("q", tokens), array("q", values), last_used)
        if parent is not None:
            parent.children[edge] = new
        return new

    root = node(None, None, [], [], 0)
    root.lock_count = 1
    salt, tokens, others = inputs["salt"], inputs["tokens"], inputs["others"]
    middle = node((salt, tokens[0]), root, tokens, inputs["values"], inputs["last_used"])
    middle.lock_count = inputs["locks"]
    node((salt, others[0]), root, others[:2], [1, 2], 1)
    for first in (2, 5):
        node(others[first], middle, others[first : first + 3], [first] * 3, first)
    return root, middle


def edge_of(node: Any) -> Any:
    return list(node.edge) if isinstance(node.edge, tuple) else node.edge


def picture(node: Any) -> dict[str, Any]:
    """A node and all below it, with every link checked in both directions."""
    return {
        "edge": edge_of(node),
        "tokens": list(node.token_ids),
        "values": list(node.values),
        "used": node.last_used,
        "locks": node.lock_count,
        "queued": node.is_queued,
        "children": [
            [
                list(key) if isinstance(key, tuple) else key,
                child.parent is node,
                key == child.edge,
                picture(child),
            ]
            for key, child in sorted(node.children.items(), key=lambda item: str(item[0]))
        ],
    }


def unsalted(random: np.random.Generator) -> dict[str, Any]:
    return chain(random, [""])


@probe(
    title="Tokens and values of both parts",
    exercise=EXERCISE,
    trials=4,
    inputs=unsalted,
    message="Tokens and values are cut at the same place, and none is lost or kept twice.",
)
def both_parts_of_a_cut(code: Any, inputs: Any) -> list[Any]:
    _, node = built(code, inputs)
    upper = node.split(inputs["length"], inputs["now"])
    return [[list(one.token_ids), list(one.values)] for one in (upper, node)]


def salted(random: np.random.Generator) -> dict[str, Any]:
    return chain(random, ["", "tenant", "other"])


@probe(
    title="All links around the cut, with salts and with children below",
    exercise=EXERCISE,
    trials=4,
    inputs=salted,
    message="Every node is found by its parent under its own edge, and knows that parent; the "
    "children stay below the lower part.",
)
def links_around_a_cut(code: Any, inputs: Any) -> Any:
    root, node = built(code, inputs)
    upper = node.split(inputs["length"], inputs["now"])
    return [picture(root), upper.parent is root, node.parent is upper]


def held(random: np.random.Generator) -> dict[str, Any]:
    return chain(random, [""]) | {"locks": int(random.integers(2, 6))}


@probe(
    title="A node that several requests hold",
    exercise=EXERCISE,
    trials=3,
    inputs=held,
    message="Whoever holds the node holds the path to it, and still holds the object that it got.",
)
def locks_after_a_cut(code: Any, inputs: Any) -> list[Any]:
    root, node = built(code, inputs)
    upper = node.split(inputs["length"], inputs["now"])
    return [upper.lock_count, node.lock_count, root.lock_count, list(node.token_ids)]


def queued(random: np.random.Generator) -> dict[str, Any]:
    return chain(random, [""]) | {"queued": bool(random.integers(2))}


@probe(
    title="Time of use and place in the queue",
    exercise=EXERCISE,
    trials=4,
    inputs=queued,
    message="Only the new node is used now; what was queued for eviction is the object that was "
    "queued, not the new one.",
)
def times_after_a_cut(code: Any, inputs: Any) -> list[Any]:
    _, node = built(code, inputs)
    node.is_queued = inputs["queued"]
    upper = node.split(inputs["length"], inputs["now"])
    return [upper.last_used, node.last_used, upper.is_queued, node.is_queued]


def repeated_cuts(random: np.random.Generator) -> dict[str, Any]:
    drawn = chain(random, ["", "tenant"])
    count = int(random.integers(8, 14))
    tokens = random.choice(np.arange(6000, 9000), count, replace=False).tolist()
    cuts = sorted(random.choice(np.arange(1, count), 4, replace=False).tolist())
    return drawn | {"tokens": tokens, "values": list(range(count)), "cuts": cuts}


@probe(
    title="One node cut again and again, from either end",
    exercise=EXERCISE,
    trials=3,
    inputs=repeated_cuts,
    message="A cut of a node that is not below the root, or that came from a cut itself, left a "
    "wrong edge or a wrong link.",
)
def cut_many_times(code: Any, inputs: Any) -> Any:
    root, node = built(code, inputs)
    first, second, third, fourth = inputs["cuts"]
    node.split(second, 60)
    node.split(fourth - second, 61)
    node.parent.split(third - second, 62)
    root.children[inputs["salt"], inputs["tokens"][0]].split(first, 63)
    return picture(root)


def bad_cuts(random: np.random.Generator) -> dict[str, Any]:
    return chain(random, ["", "tenant"])


@probe(
    title="Cuts that cannot be made",
    exercise=EXERCISE,
    trials=2,
    inputs=bad_cuts,
    message="A cut that leaves a part without tokens, and a cut of the root, raise ValueError and "
    "change nothing.",
)
def refused_cuts(code: Any, inputs: Any) -> list[Any]:
    root, node = built(code, inputs)
    count = len(inputs["tokens"])
    seen: list[Any] = [
        refusal(partial(node.split, length, 70), lambda: picture(root))
        for length in (0, count, count + 2, -1)
    ]
    root.token_ids, root.values = array("q", [1, 2]), array("q", [1, 2])
    return [*seen, refusal(lambda: root.split(1, 70), lambda: picture(root))]
