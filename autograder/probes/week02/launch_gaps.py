"""Probes of the gap analysis: kernels on one stream and on two, and a host that may be mute."""

from typing import Any

import numpy as np

from autograder.observation import refuses
from autograder.probe import probe
from inferlab.analysis.launch_gaps import Gap
from inferlab.analysis.trace import Segment, Span

EXERCISE = "week02-launch-gaps"


def spans_of(rows: list[list[int]]) -> list[Span]:
    return [
        Span(f"k{number}", start, end, (0, stream))
        for number, (start, end, stream) in enumerate(rows)
    ]


def plain(gaps: Any) -> list[Any]:
    return [[gap.start_ns, gap.end_ns, gap.after, gap.before] for gap in gaps]


def in_turn(random: np.random.Generator, count: int = 8) -> list[list[int]]:
    """Kernels of one stream, one after another; some follow at once."""
    rows, now = [], int(random.integers(0, 9))
    for _ in range(count):
        now += int(random.integers(0, 4)) * 5
        end = now + int(random.integers(1, 20))
        rows.append([now, end, 0])
        now = end
    return rows


def one_stream(random: np.random.Generator) -> dict[str, Any]:
    rows = in_turn(random)
    return {"rows": rows, "window": [rows[0][0], rows[-1][1]]}


@probe(
    title="Gaps between kernels that run one after another",
    exercise=EXERCISE,
    trials=3,
    inputs=one_stream,
    message="A gap lies between the end of one kernel and the start of the next, with the names "
    "of both, and there is none between kernels that touch.",
)
def gaps_in_turn(code: Any, inputs: Any) -> list[Any]:
    return plain(code.idle_gaps(spans_of(inputs["rows"]), *inputs["window"]))


def two_streams(random: np.random.Generator) -> dict[str, Any]:
    rows = [*in_turn(random, 5), [int(random.integers(20)), int(random.integers(40, 60)), 1]]
    rows += [[start + 3, end + int(random.integers(-1, 9)), 1] for start, end, _ in rows[1:4]]
    rows = [row for row in rows if row[0] < row[1]]
    rows += [[130, 160, 0], [135, 140, 1], [150, 170, 1], [190, 200, 0]]
    return {"rows": [rows[i] for i in random.permutation(len(rows))], "window": [0, 210]}


@probe(
    title="Kernels that overlap, nest and come in any order",
    exercise=EXERCISE,
    trials=4,
    inputs=two_streams,
    message="What one kernel covers is no gap, also when a shorter one inside it has ended; the "
    "kernel before a gap is the one that ended last.",
)
def gaps_of_two_streams(code: Any, inputs: Any) -> list[Any]:
    spans = spans_of(inputs["rows"])
    before = [*spans]
    return [plain(code.idle_gaps(spans, *inputs["window"])), spans == before]


def windows(random: np.random.Generator) -> dict[str, Any]:
    rows = in_turn(random)
    middle = sum(rows[3][:2]) // 2
    return {
        "rows": rows,
        "windows": [
            [0, rows[-1][1] + 30],
            [middle, rows[6][0] + 1],
            [rows[2][1], rows[5][0] + int(rows[5][0] == rows[2][1])],
            [rows[-1][1] + 5, rows[-1][1] + 9],
            [rows[3][0], rows[3][1]],
        ],
    }


@probe(
    title="A window that begins and ends anywhere",
    exercise=EXERCISE,
    trials=4,
    inputs=windows,
    message="Idle time at either end of the window is a gap without a neighbour there; what lies "
    "outside of the window does not count.",
)
def gaps_in_a_window(code: Any, inputs: Any) -> list[Any]:
    spans = spans_of(inputs["rows"])
    return [plain(code.idle_gaps(spans, *window)) for window in inputs["windows"]]


def nothing_much(random: np.random.Generator) -> dict[str, Any]:
    at = int(random.integers(10, 20))
    return {"at": at, "length": int(random.integers(1, 9))}


@probe(
    title="No kernel, kernels of no length, kernels that fill the window, an empty window",
    exercise=EXERCISE,
    trials=2,
    inputs=nothing_much,
    message="Without kernels the whole window is one gap; a span of no length covers nothing; a "
    "window without length is a ValueError.",
)
def degenerate_windows(code: Any, inputs: Any) -> list[Any]:
    at, length = inputs["at"], inputs["length"]
    full = spans_of([[0, at + length + 5, 0], [at, at + length, 1]])
    instants = spans_of([[at + length // 2, at + length // 2, 0], [at, at, 0]])
    return [
        plain(code.idle_gaps([], at, at + length)),
        plain(code.idle_gaps(instants, at, at + length)),
        plain(code.idle_gaps(full, at, at + length)),
        refuses(lambda: code.idle_gaps(full, at, at)),
        refuses(lambda: code.idle_gaps([], at, at - length)),
    ]


def ties(random: np.random.Generator) -> dict[str, Any]:
    a, b = sorted(random.permutation(np.arange(5, 40))[:2].tolist())
    rows = [[2, a, 0], [0, a, 1], [1, a, 0], [b, b + 9, 1], [b, b + 3, 0], [b, b + 5, 0]]
    return {"rows": [rows[i] for i in random.permutation(6)], "window": [0, b + 20]}


@probe(
    title="Several kernels that end, or start, at the same time",
    exercise=EXERCISE,
    trials=3,
    inputs=ties,
    message="Of several kernels that fit, the one that began first is named, and of those the "
    "first in the list.",
)
def tied_kernels(code: Any, inputs: Any) -> list[Any]:
    return plain(code.idle_gaps(spans_of(inputs["rows"]), *inputs["window"]))


def host_and_gaps(random: np.random.Generator) -> dict[str, Any]:
    edges = np.sort(random.permutation(200)[:16]).reshape(8, 2).tolist()
    cuts = np.sort(random.permutation(200)[:9]).tolist()
    names = random.choice(["schedule", "prepare", "launch", "sample"], 8).tolist()
    host = [[a, b, name] for a, b, name in zip(cuts, cuts[1:], names)]
    del host[int(random.integers(2, 6))]
    return {"gaps": edges, "host": host}


def blamed(code: Any, gaps: list[Any], host: list[Any]) -> dict[str, int]:
    found = code.blame(
        [Gap(start, end, None, None) for start, end in gaps],
        [Segment(start, end, (0, 0), phase) for start, end, phase in host],
    )
    return {phase: int(found[phase]) for phase in sorted(found)}


@probe(
    title="What the host did during the gaps",
    exercise=EXERCISE,
    trials=4,
    inputs=host_and_gaps,
    message='Each nanosecond of a gap is blamed on the segment that covers it, and on "unknown" '
    "where none does; together they are as long as the gaps.",
)
def blame_of_the_host(code: Any, inputs: Any) -> list[Any]:
    gaps, host = inputs["gaps"], inputs["host"]
    return [blamed(code, gaps, host), blamed(code, [[0, 500]], host), blamed(code, gaps, host[:1])]


@probe(
    title="A silent host, no gaps, and a gap that one segment covers",
    exercise=EXERCISE,
    trials=2,
    inputs=host_and_gaps,
    message="A phase that shares no time with a gap is not in the answer.",
)
def blame_of_nobody(code: Any, inputs: Any) -> list[Any]:
    gaps, host = inputs["gaps"], inputs["host"]
    inside = [[host[0][0], host[0][1]]]
    return [blamed(code, gaps, []), blamed(code, [], host), blamed(code, inside, host)]
