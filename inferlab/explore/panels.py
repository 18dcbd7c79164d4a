"""Figures of several panels over one quantity."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from plotly.graph_objects import Figure
from plotly.subplots import make_subplots

from inferlab.theme import PALETTE


class Curve(NamedTuple):
    """One line of a panel; curves of one name share a colour and a place in the legend."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = "blue"
    dash: str = "solid"
    mode: str = "lines+markers"


class Panel(NamedTuple):
    """What one panel shows; `title` is its vertical axis, with the unit."""

    title: str
    curves: Sequence[Curve]
    is_logarithmic: bool = False


def panels(x_title: str, shown: Sequence[Panel], columns: int = 2, **x_axis: Any) -> Figure:
    """The panels side by side, `columns` in a row; `x_axis` are Plotly's settings of all x axes."""
    rows = -(-len(shown) // columns)
    figure = make_subplots(rows=rows, cols=columns, vertical_spacing=0.2, horizontal_spacing=0.16)
    named: set[str] = set()
    for number, panel in enumerate(shown):
        where = {"row": number // columns + 1, "col": number % columns + 1}
        for curve in panel.curves:
            figure.add_scatter(
                x=list(curve.x),
                y=list(curve.y),
                name=curve.name,
                mode=curve.mode,
                line={"color": PALETTE[curve.colour], "dash": curve.dash},
                legendgroup=curve.name,
                showlegend=curve.name not in named,
                **where,
            )
            named.add(curve.name)
        if panel.is_logarithmic:
            figure.update_yaxes(title=panel.title, type="log", **where)
        else:
            figure.update_yaxes(title=panel.title, rangemode="tozero", **where)
    figure.update_xaxes(title=x_title, **x_axis)
    return figure.update_layout(height=280 * rows)
