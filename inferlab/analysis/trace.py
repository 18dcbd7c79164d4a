"""Reads a Chrome trace, and says which span every nanosecond belongs to.

The format is that of `chrome://tracing`, Perfetto and `torch.profiler`: a list of events, among
them spans with a start and a duration in microseconds. Spans of one thread nest like the calls
that they stand for, so that their durations count the same time several times over.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Event = Mapping[str, Any]
OTHER = "other"


class Span(NamedTuple):
    """Something that a thread did from one moment to another."""

    name: str
    start_ns: int
    end_ns: int
    thread: tuple[Any, Any]  # process and thread id
    category: str = ""


class Segment(NamedTuple):
    """A piece of a thread's time in which the same phase was at work."""

    start_ns: int
    end_ns: int
    thread: tuple[Any, Any]
    phase: str


def nanoseconds(microseconds: float | str) -> int:
    """Whole nanoseconds: as fractions, the end of a span and the start of the next may differ."""
    return round(1000 * float(microseconds))


def make_span(begin: Event, end: Event) -> Span:
    """The span of a pair of events, or of a complete event that is given as both.

    Raises:
        ValueError: if it ends before it starts.
    """
    start = nanoseconds(begin["ts"])
    stop = start + nanoseconds(end["dur"]) if end["ph"] == "X" else nanoseconds(end["ts"])
    if stop < start:
        raise ValueError(f"The span {begin['name']!r} ends {start - stop} ns before it starts.")
    thread = (begin.get("pid"), begin.get("tid"))
    return Span(begin["name"], start, stop, thread, begin.get("cat", ""))


def begins_in(span: Span | None, outer: Span) -> bool:
    """Whether `span` begins while `outer` is open, on its thread; None begins in nothing."""
    return span is not None and span.thread == outer.thread and span.start_ns < outer.end_ns


def read_spans(trace: Mapping[str, Any] | Sequence[Event]) -> list[Span]:
    """The spans of a trace, thread by thread, each after the one around it.

    So of one thread those that begin first come first, of those that begin together the longest,
    and of those that end together as well the one whose first event comes first. A complete event
    (`"ph": "X"`) is a span; a pair `"B"` and `"E"` is one too, and an end belongs to the last begin
    of its thread that is open. Other events are no spans.

    Args:
        trace: the events, or an object that holds them under `traceEvents`; in any order, except
            that those of kind B and E are in the order of their times.

    Raises:
        ValueError: if an end has no begin, a begin has no end, or a span ends before it starts.
    """
    events = trace["traceEvents"] if isinstance(trace, Mapping) else trace
    threads: dict[tuple[Any, Any], list[tuple[int, int, int, Span]]] = {}
    begun: dict[tuple[Any, Any], list[tuple[int, Event]]] = {}
    for place, event in enumerate(events):
        kind, thread = event.get("ph"), (event.get("pid"), event.get("tid"))
        if kind == "B":
            begun.setdefault(thread, []).append((place, event))
        if kind not in ("X", "E"):
            continue
        if kind == "E" and not begun.get(thread):
            raise ValueError(f"The thread {thread} ends a span that it has not begun: {event}.")
        first, begin = (place, event) if kind == "X" else begun[thread].pop()
        span = make_span(begin, event)
        threads.setdefault(thread, []).append((span.start_ns, -span.end_ns, first, span))
    if unfinished := [event["name"] for left in begun.values() for _, event in left]:
        raise ValueError(f"These spans begin and never end: {', '.join(unfinished)}.")
    return [span for found in threads.values() for *_, span in sorted(found)]


def flatten(spans: Sequence[Span], phase_of: Callable[[Span], str | None]) -> list[Segment]:
    """Cut nested spans into segments that do not overlap, each of the phase of its innermost span.

    A span for which `phase_of` returns None is of the phase of the span around it, and of
    `OTHER` if there is none. Time in no span is in no segment. Adjacent segments may have the
    same phase; none is empty.

    Args:
        spans: as `read_spans` returns them.
    """
    segments: list[Segment] = []
    open_spans: list[tuple[Span, str]] = []
    now = 0

    def pass_to(moment: int) -> None:
        """The innermost open span has the time up to `moment`."""
        nonlocal now
        if open_spans and moment > now:
            span, phase = open_spans[-1]
            segments.append(Segment(now, moment, span.thread, phase))
        now = max(now, moment) if open_spans else moment

    for span in [*spans, None]:
        while open_spans and not begins_in(span, open_spans[-1][0]):
            pass_to(open_spans[-1][0].end_ns)
            open_spans.pop()
        if span is not None:
            pass_to(span.start_ns)
            around = open_spans[-1][1] if open_spans else OTHER
            open_spans.append((span, phase_of(span) or around))
    return segments


def time_by_phase(spans: Sequence[Span], phase_of: Callable[[Span], str | None]) -> dict[str, int]:
    """Nanoseconds of each phase: the segments of `flatten`, added up.

    With `phase_of=lambda span: span.name`, the self time of each name.
    """
    total: Counter[str] = Counter()
    for segment in flatten(spans, phase_of):
        total[segment.phase] += segment.end_ns - segment.start_ns
    return dict(total)
