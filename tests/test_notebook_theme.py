"""The house style is readable on both backgrounds and refuses unlabelled axes."""

import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

from inferlab.theme import PALETTE, require_axis_titles

WHITE, DARK_PAGE = "#ffffff", "#14191f"


def luminance(colour):
    """Relative luminance as WCAG 2.1 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))


@pytest.mark.parametrize("background", [WHITE, DARK_PAGE])
@pytest.mark.parametrize("name", PALETTE)
def test_every_colour_has_a_contrast_of_three_to_one(name, background):
    low, high = sorted((luminance(PALETTE[name]), luminance(background)))
    assert (high + 0.05) / (low + 0.05) >= 3


def test_every_subplot_needs_its_titles():
    figure = make_subplots(rows=1, cols=2)
    figure.add_scatter(x=[1], y=[1], row=1, col=1)
    figure.add_scatter(x=[1], y=[1], row=1, col=2)
    figure.update_layout(xaxis_title="a", yaxis_title="b", xaxis2_title="c")
    with pytest.raises(ValueError, match="yaxis2"):
        require_axis_titles(figure)
    require_axis_titles(figure.update_layout(yaxis2_title="d"))


def test_a_hidden_axis_and_a_table_need_none():
    drawing = go.Figure(go.Scatter(x=[1], y=[1]))
    with pytest.raises(ValueError, match="xaxis"):
        require_axis_titles(drawing)  # the control: visible, it would be refused
    drawing.update_layout(xaxis_visible=False, yaxis_visible=False)
    require_axis_titles(drawing)
    require_axis_titles(go.Figure(go.Table()))
