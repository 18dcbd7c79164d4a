"""Week 6: the radix tree itself, as it grows with each request and loses leaves."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from plotly.graph_objects import Figure

from inferlab.engine.radix_cache import RadixCache
from inferlab.engine.radix_node import RadixNode
from inferlab.sweep import Control, Sweep
from inferlab.theme import PALETTE

PREDICTION = (
    "Six conversations share a system prompt, and each comes back with a longer transcript. How "
    "many nodes does the tree have after their second turns, and which leaf is dropped first?"
)
REQUESTS = 24
SYSTEM, OWN, TURN = 256, 64, 128  # tokens


def sweep() -> Sweep:
    """Requests arrive one after another; each is matched, then inserted, then room is made."""
    return Sweep(
        tree_after,
        [
            Control("kind", "Requests", list(SEQUENCES)),
            Control("capacity", "Capacity (tokens)", [4096, 2048, 1024]),
            Control("count", "Requests so far", list(range(1, REQUESTS + 1)), plays=True),
        ],
        draw,
        in_words,
        {
            "Second turns": {"count": 12},
            "Too small for all": {"capacity": 1024, "count": REQUESTS},
            "Few-shot examples": {"kind": "few-shot examples", "count": REQUESTS},
        },
    )


def conversations(random: np.random.Generator) -> list[list[int]]:
    """Six conversations in turn, each behind the same system prompt and a turn longer each time."""
    transcripts = [[0] * SYSTEM + [number + 1] * OWN for number in range(6)]
    sequences = []
    for request in range(REQUESTS):
        number = request % 6
        sequences.append(list(transcripts[number]))
        transcripts[number] += [100 + request] * TURN
    return sequences


def examples(random: np.random.Generator) -> list[list[int]]:
    """Three tasks with examples of their own, each before another question, in random order."""
    return [
        [int(task)] * 2 * SYSTEM + [100 + request] * OWN
        for request, task in enumerate(random.integers(0, 3, REQUESTS))
    ]


def strangers(random: np.random.Generator) -> list[list[int]]:
    """Prompts that share nothing."""
    return [[100 + request] * int(random.integers(OWN, SYSTEM)) for request in range(REQUESTS)]


SEQUENCES = {
    "conversations": conversations,
    "few-shot examples": examples,
    "nothing shared": strangers,
}


def tree_after(kind: str, capacity: int, count: int) -> dict[str, Any]:
    """Edges of the tree as lines when the last request has come, and what was found so far.

    `found` is what the last request had in the cache, `computed` what it added, `dropped` what
    made room for it and is there no more, `cached` all the rest. A line goes from the depth
    (tokens) at which an edge begins to that at which it ends; `None` separates lines.
    """
    tree = RadixCache()
    asked = found = dropped = hit = 0
    tokens: list[int] = []
    for tokens in SEQUENCES[kind](np.random.default_rng(0))[:count]:
        asked += len(tokens)
        hit = len(tree.match_prefix(tokens).values)
        found += hit
        tree.insert(tokens, [0] * len(tokens))
        path = tree.match_prefix(tokens).node
        heights = heights_of(tree.root)
        edges = list(edges_of(tree.root, heights, 0))
        tree.lock(path)
        dropped += len(tree.evict(tree.evictable_size + tree.protected_size - capacity))
        tree.unlock(path)
    last = set(map(id, ancestry(path)))
    parts: dict[str, list[Line]] = {"cached": [], "found": [], "computed": [], "dropped": []}
    for node, line in edges:
        if id(node) in last:
            part = "found" if line[0][-1] <= hit else "computed"
        else:
            part = "cached" if node.parent else "dropped"
        parts[part].append(line)
    return {
        **{part: joined(lines) for part, lines in parts.items()},
        "nodes": len(edges) - len(parts["dropped"]),
        "tokens": tree.evictable_size,
        "hit": hit,
        "asked": len(tokens),
        "found_share": found / asked,
        "all_dropped": dropped,
    }


Line = tuple[list[float], list[float]]


def heights_of(root: RadixNode) -> dict[int, float]:
    """Where each node is drawn: leaves one above another, the others amid their children."""
    heights: dict[int, float] = {}
    leaves = 0

    def place(node: RadixNode) -> float:
        nonlocal leaves
        if not node.children:
            leaves += 1
            heights[id(node)] = float(leaves)
        else:
            heights[id(node)] = float(np.mean([place(child) for child in node.children.values()]))
        return heights[id(node)]

    place(root)
    return heights


def edges_of(
    node: RadixNode, heights: dict[int, float], depth: int
) -> Iterator[tuple[RadixNode, Line]]:
    """Each node below `node` with the line that leads to it."""
    for child in node.children.values():
        end = depth + len(child.token_ids)
        above, here = heights[id(node)], heights[id(child)]
        yield child, ([depth, depth, end], [above, here, here])
        yield from edges_of(child, heights, end)


def ancestry(node: RadixNode | None) -> Iterator[RadixNode]:
    while node is not None:
        yield node
        node = node.parent


def joined(lines: list[Line]) -> tuple[list[float | None], list[float | None]]:
    """All lines as one, with gaps between them."""
    x: list[float | None] = []
    y: list[float | None] = []
    for xs, ys in lines:
        x += [*xs, None]
        y += [*ys, None]
    return x, y


def draw(found: dict[str, Any], **_: Any) -> Figure:
    figure = Figure()
    for part, name, colour, dash in (
        ("dropped", "dropped to make room", "grey", "dot"),
        ("cached", "cached before", "blue", "solid"),
        ("found", "found by the last request", "green", "solid"),
        ("computed", "computed for it", "vermilion", "solid"),
    ):
        x, y = found[part]
        figure.add_scatter(
            x=x,
            y=y,
            name=name,
            mode="lines+markers",
            line={"color": PALETTE[colour], "width": 3, "dash": dash},
            marker={"size": 5},
        )
    figure.update_xaxes(title="Depth (tokens)", rangemode="tozero")
    figure.update_layout(showlegend=True)
    return figure.update_yaxes(title="Leaf", showticklabels=False)


def in_words(found: dict[str, Any], **_: Any) -> str:
    nodes = f"{found['nodes']} node{'s' if found['nodes'] > 1 else ''}"
    return (
        f"The last request found {found['hit']:,} of its {found['asked']:,} tokens. The tree has "
        f"{nodes} with {found['tokens']:,} tokens. So far "
        f"{found['found_share']:.0%} of all prompt tokens were found, and "
        f"{found['all_dropped']:,} dropped to make room."
    )
