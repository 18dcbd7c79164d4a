"""The trace reader against a definition that looks at every nanosecond on its own."""

from collections import Counter
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from inferlab.analysis.launch_gaps import Gap, blame, idle_gaps
from inferlab.analysis.trace import OTHER, Segment, Span, flatten, read_spans, time_by_phase

SPANS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(0, 30), st.integers(0, 12), st.integers(0, 1)),
    max_size=12,
)


def complete(name: str, start: int, duration: int, thread: int) -> dict[str, Any]:
    return {"ph": "X", "name": name, "ts": start / 1000, "dur": duration / 1000, "tid": thread}


def by_the_nanosecond(spans: list[Span]) -> Counter[str]:
    """Each nanosecond of a thread is the span's that began last among those open then."""
    total: Counter[str] = Counter()
    for thread in {span.thread for span in spans}:
        own = [span for span in spans if span.thread == thread]
        for moment in range(50):
            if open_spans := [s for s in own if s.start_ns <= moment < s.end_ns]:
                total[open_spans[-1].name] += 1
    return total


@given(SPANS)
def test_no_nanosecond_is_counted_twice_and_none_is_lost(drawn: list[Any]) -> None:
    spans = read_spans([complete(*span) for span in drawn])
    assert time_by_phase(spans, lambda span: span.name) == by_the_nanosecond(spans)
    segments = flatten(spans, lambda span: span.name)
    assert all(segment.start_ns < segment.end_ns for segment in segments)
    for earlier, later in pairwise(segments):
        assert earlier.thread != later.thread or earlier.end_ns <= later.start_ns


@given(SPANS)
def test_phases_add_up_to_the_time_in_any_span(drawn: list[Any]) -> None:
    spans = read_spans({"traceEvents": [complete(*span) for span in drawn]})
    phases = time_by_phase(spans, lambda span: {"a": "first", "b": "second"}.get(span.name))
    assert set(phases) <= {"first", "second", OTHER}
    assert sum(phases.values()) == sum(by_the_nanosecond(spans).values())


@given(SPANS, st.randoms())
def test_the_order_of_complete_events_does_not_matter(drawn: list[Any], random: Any) -> None:
    distinct = list({span[1:]: span for span in drawn}.values())
    events = [complete(*span) for span in distinct]
    in_order = time_by_phase(read_spans(events), lambda span: span.name)
    random.shuffle(events)
    assert time_by_phase(read_spans(events), lambda span: span.name) == in_order


TREES = st.recursive(st.just([]), lambda inner: st.lists(inner, max_size=3), max_leaves=12)


@given(TREES)
def test_pairs_mean_the_same_as_complete_events(tree: list[Any]) -> None:
    """Every node of the tree is a span round its children; many begin and end together."""
    pairs: list[Any] = []
    complete_events: list[Any] = []

    def walk(node: list[Any], name: str, start: int) -> int:
        pairs.append({"ph": "B", "name": name, "ts": start, "tid": 1})
        event = {"ph": "X", "name": name, "ts": start, "tid": 1}
        complete_events.append(event)
        now = start
        for number, child in enumerate(node):
            now = walk(child, f"{name}{number}", now)
        now += not node
        pairs.append({"ph": "E", "ts": now, "tid": 1})
        event["dur"] = now - start
        return now

    walk(tree, "r", 0)
    assert read_spans(pairs) == read_spans(complete_events)
    assert [span.name for span in read_spans(pairs)] == [e["name"] for e in complete_events]


def test_a_span_without_a_phase_is_of_the_one_around_it() -> None:
    spans = read_spans(
        [
            {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "worker"}},
            {"ph": "B", "name": "step", "ts": 0, "pid": 1, "tid": 1},
            complete("outside", 0, 5, 2),
            {"ph": "X", "name": "forward", "ts": 1, "dur": "3", "pid": 1, "tid": 1},
            {"ph": "X", "name": "matmul", "ts": 1.5, "dur": 1, "pid": 1, "tid": 1, "cat": "cpu_op"},
            {"ph": "E", "ts": 5, "pid": 1, "tid": 1},
        ]
    )
    assert [span.name for span in spans] == ["outside", "step", "forward", "matmul"]
    phases = {"step": "step", "forward": "model"}
    found = time_by_phase(spans, lambda span: phases.get(span.name))
    assert found == {"step": 2000, "model": 3000, OTHER: 5}


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([{"ph": "E", "ts": 1, "tid": 1}], "ends a span that it has not begun"),
        ([{"ph": "B", "name": "step", "ts": 1, "tid": 1}], "begin and never end: step"),
        ([complete("back", 5, -2, 1)], "ends 2 ns before it starts"),
        (
            [
                {"ph": "B", "name": "step", "ts": 1, "tid": 1},
                {"ph": "E", "ts": 2, "tid": 2},
            ],
            "ends a span that it has not begun",
        ),
    ],
)
def test_a_broken_trace_is_refused(events: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_spans(events)


@given(SPANS, st.integers(0, 20), st.integers(1, 30))
def test_gaps_are_exactly_the_nanoseconds_in_which_nothing_ran(
    drawn: list[Any], start: int, length: int
) -> None:
    spans = [Span(name, at, at + long, (0, thread)) for name, at, long, thread in drawn]
    gaps = idle_gaps(spans, start, start + length)
    idle = {
        moment
        for moment in range(start, start + length)
        if not any(span.start_ns <= moment < span.end_ns for span in spans)
    }
    assert {moment for gap in gaps for moment in range(gap.start_ns, gap.end_ns)} == idle
    assert sum(gap.length_ns for gap in gaps) == len(idle), "gaps do not overlap"
    for gap in gaps:
        assert (gap.after is None) == (gap.start_ns == start)
        assert (gap.before is None) == (gap.end_ns == start + length)


@given(SPANS, SPANS)
def test_all_of_a_gap_is_blamed_on_something(kernels: list[Any], host: list[Any]) -> None:
    device = [Span(name, at, at + long, (0, thread)) for name, at, long, thread in kernels]
    segments = flatten(
        read_spans([complete(name, at, long, 0) for name, at, long, _ in host]),
        lambda span: span.name,
    )
    gaps = idle_gaps(device, 0, 40)
    assert sum(blame(gaps, segments).values()) == sum(gap.length_ns for gap in gaps)


def test_a_gap_is_shared_out_among_what_the_host_did() -> None:
    gaps = [Gap(10, 30, "a", "b"), Gap(40, 45, "b", None)]
    host = [Segment(0, 15, (0, 0), "schedule"), Segment(20, 50, (0, 0), "sample")]
    assert blame(gaps, host) == {"schedule": 5, "sample": 15, "unknown": 5}


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="is empty"):
        idle_gaps([], 5, 5)
