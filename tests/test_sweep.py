"""Sweeps: both views go through one function, and the static one holds every point."""

import itertools
import json

import plotly.graph_objects as go
import pytest
from IPython.utils.capture import capture_output

from inferlab.notebook import FIGURE_LIMIT_BYTES
from inferlab.sweep import Control, Sweep, compact

SIZES = [8, 16, 32, 64, 128, 256]
LENGTHS = list(range(10, 110, 10))


class Recorder:
    """Compute and figure functions that remember how they were called."""

    def __init__(self):
        self.computed, self.drawn = [], []

    def compute(self, size, length):
        self.computed.append((size, length))
        return [-(length + i) % size for i in range(50)]

    def figure(self, waste, size, length):
        self.drawn.append((size, length))
        figure = go.Figure(go.Scatter(x=list(range(50)), y=waste, mode="lines"))
        title = f"block size {size}" if size > 8 else None
        return figure.update_layout(xaxis_title="sequence", yaxis_title="waste", title=title)


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def sweep(recorder):
    controls = [Control("size", "Block size", SIZES), Control("length", "Length", LENGTHS)]
    return Sweep(recorder.compute, controls, recorder.figure)


def apply(base, difference):
    return {k: v for k, v in {**base, **difference}.items() if v is not None}


def test_the_static_view_restores_the_figure_of_every_point(sweep, recorder):
    static = json.loads(json.dumps(sweep.static()))
    assert recorder.computed == recorder.drawn == list(itertools.product(SIZES, LENGTHS))
    for index, point in enumerate(sweep.points):
        expected = compact(sweep.at(**point))
        stored = static["points"][index]
        assert apply(static["figure"]["data"][0], stored["data"][0]) == expected["data"][0]
        assert apply(static["figure"]["layout"], stored["layout"]) == expected["layout"]
    assert len(json.dumps(static)) < FIGURE_LIMIT_BYTES


def test_the_live_view_calls_the_same_functions(sweep, recorder):
    with capture_output():
        box = sweep.live()
        assert recorder.computed == recorder.drawn == [(8, 10)]
        box.children[0].value = 64
        box.children[1].value = 30
    assert recorder.computed == recorder.drawn == [(8, 10), (64, 10), (64, 30)]


def test_the_live_and_the_static_figure_of_a_point_are_equal(sweep):
    point = {"size": 64, "length": 30}
    index = sweep.points.index(point)
    static = sweep.static()
    live = compact(sweep.at(**point))
    assert apply(static["figure"]["data"][0], static["points"][index]["data"][0]) == live["data"][0]


def test_a_sweep_that_a_table_would_serve_better_is_refused(recorder):
    with pytest.raises(ValueError, match="1 controls and 60 points"):
        Sweep(recorder.compute, [Control("size", "Size", list(range(60)))], recorder.figure)
    few = [Control("size", "Size", [1, 2]), Control("length", "Length", [1, 2])]
    with pytest.raises(ValueError, match="2 controls and 4 points"):
        Sweep(recorder.compute, few, recorder.figure)


def test_points_with_different_traces_are_refused(recorder):
    def figure(_waste, size, length):
        return go.Figure([go.Scatter(x=[1], y=[1])] * (1 if size == 8 else 2))

    controls = [Control("size", "Size", SIZES), Control("length", "Length", LENGTHS)]
    with pytest.raises(ValueError, match="1 and 2 traces"):
        Sweep(recorder.compute, controls, figure).static()


def test_compact_rounds_and_keeps_no_template():
    figure = go.Figure(go.Scatter(x=[1.23456789, float("nan")], y=[123456.7, 2]))
    assert compact(figure)["data"][0]["x"] == [1.235, None]
    assert compact(figure)["data"][0]["y"] == [123500, 2]
    assert "template" not in compact(figure)["layout"]
