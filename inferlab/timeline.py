"""Requests on a timeline: arrival, waiting, prefill, each token. The course's one way to draw them.

A row is a request. Time runs to the right, from the first arrival of the figure. Grey is waiting,
orange is prefill, and each mark on the blue line is a token that came. Where nobody recorded when
the prefill began, waiting and prefill are one grey bar, up to the first token: a client sees no
more than that.
"""

from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from inferlab.analysis.serving_metrics import Answer
from inferlab.theme import PALETTE

UNITS = {"s": 1.0, "ms": 1e3}
BAR_WIDTH = 10
PREFILL, DECODE = PALETTE["orange"], PALETTE["blue"]


class Row(NamedTuple):
    """One request; times in seconds on one clock."""

    name: str
    arrived_s: float
    token_s: Sequence[float]  # when each token came; none if the request failed
    started_s: float | None = None  # when its prefill began, if that was recorded

    @classmethod
    def of(cls, answer: Answer, name: str, started_s: float | None = None) -> "Row":
        """The row of an answer as its client saw it."""
        return cls(name, answer.sent_s, answer.token_s, started_s)


def timeline(rows: Sequence[Row], unit: str = "ms") -> go.Figure:
    """The rows from top to bottom.

    Args:
        rows: at least one, with names that differ.
        unit: of the time axis, "ms" or "s".

    Raises:
        ValueError: if there is no row, two have one name, times run backwards, or the unit is
            another.
    """
    _check(rows, unit)
    zero_s, scale = min(row.arrived_s for row in rows), UNITS[unit]

    def at(time_s: float) -> float:
        return round((time_s - zero_s) * scale, 6)

    figure = go.Figure()
    names = [row.name for row in rows]
    begins_known = any(row.started_s is not None for row in rows)
    waiting = "waiting" if begins_known else "until the first token"
    bars: dict[str, list[tuple[str, float, float]]] = {waiting: [], "prefill": [], "decode": []}
    for row in rows:
        first_s = row.token_s[0] if row.token_s else row.arrived_s
        if row.started_s is None:
            bars[waiting].append((row.name, row.arrived_s, first_s))
        else:
            bars[waiting].append((row.name, row.arrived_s, row.started_s))
            bars["prefill"].append((row.name, row.started_s, first_s))
        if row.token_s:
            bars["decode"].append((row.name, first_s, row.token_s[-1]))
    for name, colour, width in (
        (waiting, PALETTE["grey"], BAR_WIDTH),
        ("prefill", PREFILL, BAR_WIDTH),
        ("decode", DECODE, 2),
    ):
        x: list[float | None] = []
        y: list[str | None] = []
        for row_name, start_s, end_s in bars[name]:
            x += [at(start_s), at(end_s), None]
            y += [row_name, row_name, None]
        if x:
            line = {"color": colour, "width": width}
            figure.add_scatter(x=x, y=y, mode="lines", name=name, line=line, hoverinfo="skip")
    figure.add_scatter(
        x=[at(row.arrived_s) for row in rows],
        y=names,
        mode="markers",
        name="arrival",
        marker={"symbol": "triangle-right", "size": 11, "color": PALETTE["vermilion"]},
    )
    figure.add_scatter(
        x=[at(time_s) for row in rows for time_s in row.token_s],
        y=[row.name for row in rows for _ in row.token_s],
        mode="markers",
        name="token",
        marker={"symbol": "line-ns", "size": 13, "line": {"color": DECODE, "width": 2}},
    )
    figure.update_xaxes(title=f"Time since the first arrival ({unit})", rangemode="tozero")
    figure.update_yaxes(
        title="Request",
        type="category",
        categoryorder="array",
        categoryarray=names[::-1],
        range=[-0.6, len(names) - 0.4],
    )
    return figure.update_layout(height=max(240, 150 + 34 * len(rows)))


def _check(rows: Sequence[Row], unit: str) -> None:
    if unit not in UNITS:
        raise ValueError(f"The unit of a timeline is {' or '.join(UNITS)}, not {unit!r}.")
    if not rows or len({row.name for row in rows}) < len(rows):
        raise ValueError("A timeline needs at least one row, and a name of its own for each.")
    for row in rows:
        started = [] if row.started_s is None else [row.started_s]
        times = [row.arrived_s, *started, *row.token_s]
        if times != sorted(times):
            raise ValueError(
                f"The times of {row.name!r} run backwards: a request arrives, starts, and has its "
                "tokens one after another."
            )
