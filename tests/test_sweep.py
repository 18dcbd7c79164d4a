"""Sweeps: both views go through one function, and the static one holds every point."""

import itertools
import json
import os

import plotly.graph_objects as go
import pytest
from IPython.utils.capture import capture_output

from inferlab.notebook import FIGURE_LIMIT_BYTES
from inferlab.sweep import Control, Impossible, Sweep, compact

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

    def words(self, waste, size, length):
        return f"At {size} and {length}, the first waste is {waste[0]}."


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def sweep(recorder):
    controls = [Control("size", "Block size", SIZES), Control("length", "Length", LENGTHS)]
    return Sweep(
        recorder.compute,
        controls,
        recorder.figure,
        recorder.words,
        {"Small blocks": {}, "Large blocks, long": {"size": 256, "length": 100}},
    )


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


def test_a_control_that_plays_has_a_button_in_both_views(recorder):
    controls = [
        Control("size", "Block size", SIZES),
        Control("length", "Length", LENGTHS, plays=True),
    ]
    film = Sweep(recorder.compute, controls, recorder.figure, recorder.words)
    assert [control["plays"] for control in film.static()["controls"]] == [False, True]
    with capture_output():
        size, (play, length) = film.live().children[0], film.live().children[1].children
    assert play.max == len(LENGTHS) - 1
    assert length.options == tuple(LENGTHS)
    assert not hasattr(size, "children")


def test_the_live_and_the_static_figure_of_a_point_are_equal(sweep):
    point = {"size": 64, "length": 30}
    index = sweep.points.index(point)
    static = sweep.static()
    live = compact(sweep.at(**point))
    assert apply(static["figure"]["data"][0], static["points"][index]["data"][0]) == live["data"][0]


def test_a_sweep_that_a_table_would_serve_better_is_refused(recorder):
    one = [Control("size", "Size", list(range(60)))]
    with pytest.raises(ValueError, match="1 controls and 60 points"):
        Sweep(recorder.compute, one, recorder.figure, recorder.words)
    few = [Control("size", "Size", [1, 2]), Control("length", "Length", [1, 2])]
    with pytest.raises(ValueError, match="2 controls and 4 points"):
        Sweep(recorder.compute, few, recorder.figure, recorder.words)


def test_a_scenario_that_no_control_can_choose_is_refused(recorder, sweep):
    with pytest.raises(ValueError, match=r"'Huge' is .*4096.* no control can choose"):
        Sweep(
            recorder.compute,
            sweep.controls,
            recorder.figure,
            recorder.words,
            {"Huge": {"size": 4096}},
        )


def test_scenarios_and_reset_move_all_controls_and_draw_once(sweep, recorder):
    with capture_output():
        size, length, buttons, said, _ = sweep.live().children
        small, large, reset = buttons.children
        assert [small.description, large.description] == list(sweep.scenarios)
        large.click()
        assert (size.value, length.value) == (256, 100)
        assert said.value == '<p role="status">At 256 and 100, the first waste is 156.</p>'
        reset.click()
        assert (size.value, length.value) == (8, 10)
        size.value = 16
    assert recorder.drawn == [(8, 10), (256, 100), (8, 10), (16, 10)]
    assert recorder.computed == [(8, 10), (256, 100), (16, 10)], "what was computed is kept"


def test_the_page_has_every_point_in_words_and_the_scenarios(sweep):
    static = sweep.static()
    assert static["words"] == [sweep.said_at(**point) for point in sweep.points]
    assert static["scenarios"] == [
        {"name": "Small blocks", "positions": [0, 0]},
        {"name": "Large blocks, long", "positions": [5, 9]},
    ]


def test_an_impossible_point_is_an_empty_figure_that_says_why(recorder):
    reason = "The weights take 140.0 GB and 1 GPU has 80.0 GB: take more GPUs."

    def compute(size, length):
        if size == 8:
            raise ValueError(reason)
        return recorder.compute(size, length)

    controls = [Control("size", "Size", SIZES), Control("length", "Length", LENGTHS)]
    sweep = Sweep(compute, controls, recorder.figure, recorder.words)
    figure, possible = sweep.at(size=8, length=10), sweep.at(size=16, length=10)
    assert len(figure.data) == len(possible.data)
    assert not figure.data[0].x
    assert figure.layout.annotations[0].text.replace("<br>", " ") == reason
    assert figure.layout.yaxis.title.text == possible.layout.yaxis.title.text
    assert not possible.layout.annotations
    static = sweep.static()
    assert static["words"][0] == sweep.said_at(size=8, length=10) == reason


def test_what_takes_long_is_computed_by_other_processes_with_the_same_result(
    sweep, recorder, monkeypatch
):
    def compute(size, length):
        """Defined here, so that no other process could import it."""
        if length == 100:
            raise ValueError(f"{size} is impossible")
        return [os.getpid(), *range(size)]

    controls = sweep.controls
    monkeypatch.setattr("inferlab.sweep.sweep.ALONE_S", 0.0)
    parallel = Sweep(compute, controls, recorder.figure, recorder.words)
    parallel._compute_all()
    results = [parallel.result(**point) for point in parallel.points]
    assert results[0][0] == os.getpid(), "the first is computed here, to see how long it takes"
    assert {found[0] for found in results[1:] if not isinstance(found, Impossible)}.isdisjoint(
        {os.getpid()}
    )
    monkeypatch.setattr("inferlab.sweep.sweep.ALONE_S", 1e9)
    alone = Sweep(compute, controls, recorder.figure, recorder.words)
    alone._compute_all()
    assert [found[1:] for found in results] == [alone.result(**point)[1:] for point in alone.points]


def test_points_with_different_traces_are_refused(recorder):
    def figure(_waste, size, length):
        return go.Figure([go.Scatter(x=[1], y=[1])] * (1 if size == 8 else 2))

    controls = [Control("size", "Size", SIZES), Control("length", "Length", LENGTHS)]
    with pytest.raises(ValueError, match="1 and 2 traces"):
        Sweep(recorder.compute, controls, figure, recorder.words).static()


def test_compact_rounds_and_keeps_no_template():
    figure = go.Figure(go.Scatter(x=[1.23456789, float("nan")], y=[123456.7, 2]))
    assert compact(figure)["data"][0]["x"] == [1.235, None]
    assert compact(figure)["data"][0]["y"] == [123500, 2]
    assert "template" not in compact(figure)["layout"]
