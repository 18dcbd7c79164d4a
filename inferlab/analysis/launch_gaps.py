"""Gaps between kernels or operators: when nothing computed, and what the host did meanwhile."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from inferlab.analysis.trace import Segment, Span


class Gap(NamedTuple):
    """A time in which none of the spans ran."""

    start_ns: int
    end_ns: int
    after: str | None  # name of the span that ended at its start; None at the window's start
    before: str | None  # name of the span that started at its end; None at the window's end

    @property
    def length_ns(self) -> int:
        return self.end_ns - self.start_ns


def idle_gaps(spans: Sequence[Span], start_ns: int, end_ns: int) -> list[Gap]:
    """The times of a window in which none of `spans` ran, in order.

    Spans may overlap, as kernels on two streams do, nest, touch, come in any order, and reach out
    of the window. What is covered by one of them is no gap, whatever the others do. Of several
    spans that end together where a gap starts, or start together where it ends, the one that began
    first is named, and of those the first of `spans`; a span of no length covers nothing and is
    ignored.

    Raises:
        ValueError: if the window is empty.
    """
    if end_ns <= start_ns:
        raise ValueError(f"The window from {start_ns} to {end_ns} ns is empty.")
    gaps = []
    covered, last = start_ns, None
    for span in sorted(spans, key=lambda span: span.start_ns):
        if span.end_ns <= max(span.start_ns, start_ns) or span.start_ns >= end_ns:
            continue
        if span.start_ns > covered:
            gaps.append(Gap(covered, span.start_ns, last, span.name))
        if span.end_ns > covered:
            covered, last = span.end_ns, span.name
    if covered < end_ns:
        gaps.append(Gap(covered, end_ns, last, None))
    return gaps


def blame(gaps: Sequence[Gap], host: Sequence[Segment]) -> dict[str, int]:
    """Nanoseconds of all gaps by what the host was doing; "unknown" where it says nothing.

    Args:
        gaps: that do not overlap.
        host: segments of one thread, which do not overlap (see `trace.flatten`).
    """
    total: Counter[str] = Counter()
    for gap in gaps:
        unknown = gap.length_ns
        for segment in host:
            shared = min(gap.end_ns, segment.end_ns) - max(gap.start_ns, segment.start_ns)
            if shared > 0:
                total[segment.phase] += shared
                unknown -= shared
        total["unknown"] += unknown
    return {phase: time for phase, time in total.items() if time}
