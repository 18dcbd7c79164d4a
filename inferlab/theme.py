"""The house style of every figure: one Plotly template, one palette, axes that are labelled.

Backgrounds are transparent and the greys are middling, so a figure is readable on a light and on a
dark page; in the book `figures.js` sets fonts and grid to the page's own colours.
"""

from typing import Any

import plotly.graph_objects as go
import plotly.io as pio

# The hues of Okabe and Ito (2008), which colour-blind readers tell apart, some of them lighter
# or darker so that each has a contrast of 3:1 on white and on the dark page; a test computes it.
PALETTE = {
    "blue": "#1f83c4",
    "orange": "#c47f00",
    "green": "#0a9a72",
    "vermilion": "#d8601a",
    "purple": "#c06a9b",
    "sky": "#3c98c9",
    "grey": "#808791",
}
GREY_LINE = "rgba(128, 135, 145, 0.35)"

_AXIS: dict[str, Any] = {
    "gridcolor": "rgba(128, 135, 145, 0.22)",
    "linecolor": GREY_LINE,
    "zerolinecolor": GREY_LINE,
    "showline": True,
    "ticks": "outside",
    "tickcolor": GREY_LINE,
    "ticklen": 4,
    "automargin": True,
    # The other value hides labels that do not fit, and looking for them takes a third of a redraw.
    "ticklabeloverflow": "allow",
    "title": {"font": {"size": 14}, "standoff": 10},
}

TEMPLATE = go.layout.Template(
    layout={
        "colorway": list(PALETTE.values()),
        "colorscale": {"sequential": "Cividis", "diverging": "RdBu"},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#6b7280"},
        "paper_bgcolor": "rgba(0, 0, 0, 0)",
        "plot_bgcolor": "rgba(0, 0, 0, 0)",
        "height": 400,
        "margin": {"l": 56, "r": 16, "t": 32, "b": 48},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)
pio.templates["inferlab"] = TEMPLATE
pio.templates.default = "inferlab"


def require_axis_titles(figure: go.Figure) -> None:
    """Refuse a figure with a visible axis that has no title.

    Raises ValueError naming the axis: a number on an axis without quantity and unit says nothing.
    """
    for trace in figure.data:
        for letter in "xy":
            # Traces without Cartesian axes, such as a table, have no such attribute.
            if f"{letter}axis" not in trace:
                continue
            name = f"{letter}axis{(trace[f'{letter}axis'] or letter)[1:]}"
            axis = figure.layout[name]
            if axis.visible is not False and not axis.title.text and not axis.matches:
                raise ValueError(
                    f"The axis {name} of the figure has no title; "
                    "give it the quantity and its unit, for example 'KV cache (GiB)'."
                )
