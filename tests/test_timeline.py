"""The timeline: what is drawn where, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab.analysis.serving_metrics import Answer
from inferlab.theme import require_axis_titles
from inferlab.timeline import Row, timeline


def traces(figure):
    return {trace.name: trace for trace in figure.data}


def test_times_count_from_the_first_arrival_in_the_unit_asked_for():
    rows = [Row("a", 10.0, [10.2, 10.3], 10.1), Row("b", 10.05, [10.4])]
    drawn = traces(timeline(rows))
    assert list(drawn["arrival"].x) == [0.0, 50.0]
    assert list(drawn["token"].x) == [200.0, 300.0, 400.0]
    assert list(drawn["token"].y) == ["a", "a", "b"]
    assert list(drawn["waiting"].x) == [0.0, 100.0, None, 50.0, 400.0, None]
    assert list(drawn["prefill"].x) == [100.0, 200.0, None]
    assert list(traces(timeline(rows, unit="s"))["token"].x) == [0.2, 0.3, 0.4]


def test_a_client_sees_no_prefill_of_its_own():
    figure = timeline([Row.of(Answer(0.0, [0.1, 0.2], 5), "only")])
    assert "prefill" not in traces(figure)
    assert list(traces(figure)["until the first token"].x) == [0.0, 100.0, None]
    require_axis_titles(figure)


def test_the_first_row_is_on_top_and_a_failed_request_keeps_its_row():
    figure = timeline([Row("first", 0.0, [0.1]), Row("failed", 0.0, [])])
    assert list(figure.layout.yaxis.categoryarray) == ["failed", "first"]
    assert "failed" in traces(figure)["arrival"].y
    assert list(traces(figure)["token"].y) == ["first"]


@given(st.lists(st.lists(st.floats(0, 5), max_size=6), min_size=1, max_size=5))
def test_every_token_is_drawn_once_and_nothing_lies_before_zero(gaps):
    rows = []
    for number, own in enumerate(gaps):
        times, now = [], float(number)
        for gap in own:
            now += gap
            times.append(now)
        rows.append(Row(str(number), float(number), times))
    figure = timeline(rows, unit="s")
    assert len(traces(figure)["token"].x) == sum(map(len, gaps))
    assert min(x for trace in figure.data for x in trace.x if x is not None) >= 0


@pytest.mark.parametrize(
    ("rows", "unit", "message"),
    [
        ([], "ms", "at least one row"),
        ([Row("a", 0, [1]), Row("a", 0, [1])], "ms", "a name of its own"),
        ([Row("a", 0, [2, 1])], "ms", "run backwards"),
        ([Row("a", 0, [1], 2)], "ms", "run backwards"),
        ([Row("a", 0, [1])], "min", "not 'min'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(rows, unit, message):
    with pytest.raises(ValueError, match=message):
        timeline(rows, unit)
