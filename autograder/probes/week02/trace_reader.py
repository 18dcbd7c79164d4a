"""Probes of the trace reader: traces drawn at random, with what traces really hold."""

from collections.abc import Callable
from typing import Any

import numpy as np

from autograder.observation import refuses
from autograder.probe import probe
from inferlab.analysis.trace import Span

EXERCISE = "week02-trace-reader"
NAMES = ["step", "forward", "matmul", "copy", "sample"]
PHASES = {"step": "engine", "forward": "model", "sample": "sampler"}


def by_thread(found: Any) -> list[Any]:
    """Spans as plain rows; threads in an order of their own, as any is right."""
    threads: dict[str, list[Any]] = {}
    for name, start, end, thread, category in found:
        threads.setdefault(repr(thread), []).append([name, start, end, category])
    return [[thread, threads[thread]] for thread in sorted(threads)]


def merged(segments: Any) -> list[Any]:
    """Segments as plain rows; adjacent ones of the same phase are one, as both are right."""
    threads: dict[str, list[list[Any]]] = {}
    for start, end, thread, phase in segments:
        rows = threads.setdefault(repr(thread), [])
        if rows and rows[-1][1:] == [start, phase]:
            rows[-1][1] = end
        else:
            rows.append([start, end, phase])
    return [[thread, threads[thread]] for thread in sorted(threads)]


def nested(
    random: np.random.Generator, pid: Any, tid: Any, start: int = 0, depth: int = 3
) -> list[dict[str, Any]]:
    """Spans of one thread in whole ns, nested; some begin or end together, some are adjacent."""
    found: list[dict[str, Any]] = []

    def walk(now: int, depth: int) -> int:
        place = len(found)
        found.append({"name": str(random.choice(NAMES)), "pid": pid, "tid": tid, "start": now})
        begin = now
        if depth and len(found) < 7:
            for _ in range(random.integers(1, 4)):
                now = walk(now + int(random.integers(0, 3)) * 7, int(random.integers(depth)))
        found[place]["end"] = now + int(random.integers(begin == now, 3)) * 11
        return int(found[place]["end"])

    for _ in range(1 + (depth > 2)):
        start = walk(start + int(random.integers(0, 50)), depth)
    return found


def complete(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The spans as complete events, in microseconds as a profiler prints them."""
    return [
        {
            "ph": "X",
            "name": s["name"],
            "pid": s["pid"],
            "tid": s["tid"],
            "cat": "op",
            "ts": round(s["start"] / 1000, 3),
            "dur": round((s["end"] - s["start"]) / 1000, 3),
        }
        for s in spans
    ]


def phase_of(span: Any) -> str | None:
    return PHASES.get(span.name)


def name_of(span: Any) -> str | None:
    return str(span.name)


def unordered(random: np.random.Generator) -> dict[str, Any]:
    spans = [*nested(random, 1, 1, depth=2), *nested(random, 1, 2, 5, 2), *nested(random, 2, 1)]
    # Which of two equal spans is the outer one, only their order in the file can say.
    distinct = {(s["pid"], s["tid"], s["start"], s["end"]): s for s in spans}
    events = complete(list(distinct.values()))
    return {"events": [events[i] for i in random.permutation(len(events))]}


@probe(
    title="Complete events of several threads, in any order",
    exercise=EXERCISE,
    trials=3,
    inputs=unordered,
    message="Spans come thread by thread, each after the one around it, with start and end in "
    "whole nanoseconds.",
)
def spans_in_order(code: Any, inputs: Any) -> list[Any]:
    found = code.read_spans(inputs["events"])
    again = by_thread(code.read_spans({"traceEvents": inputs["events"]}))
    return [by_thread(found), by_thread(found) == again]


def pairs(random: np.random.Generator) -> dict[str, Any]:
    threads = []
    for tid in (1, 2):
        events: list[dict[str, Any]] = []
        now, depth = 0, 0
        for _ in range(14):
            now += int(random.integers(0, 3)) * 5
            if depth and random.random() < 0.5:
                events.append({"ph": "E", "ts": now / 1000, "pid": 7, "tid": tid})
                depth -= 1
            else:
                name = str(random.choice(NAMES))
                events.append({"ph": "B", "name": name, "ts": now / 1000, "pid": 7, "tid": tid})
                depth += 1
        events += [{"ph": "E", "ts": (now + 9) / 1000, "pid": 7, "tid": tid}] * depth
        threads.append(events)
    turns = random.permutation([0] * len(threads[0]) + [1] * len(threads[1])).tolist()
    return {"events": [threads[turn].pop(0) for turn in turns]}


@probe(
    title="Begin and end events of two threads, interleaved",
    exercise=EXERCISE,
    trials=4,
    inputs=pairs,
    message="An end belongs to the last span of its own thread that is still open; of spans that "
    "begin and end together, the one that was begun first is the outer one.",
)
def begins_and_ends(code: Any, inputs: Any) -> list[Any]:
    spans = code.read_spans(inputs["events"])
    return [by_thread(spans), code.time_by_phase(spans, name_of)]


def real_life(random: np.random.Generator) -> dict[str, Any]:
    events = complete(nested(random, "Spans", "PyTorch Profiler (0)", depth=2))
    events += complete(nested(random, 4, 12345, depth=2))
    for event in events[::3]:
        event["ts"], event["dur"] = str(event["ts"]), str(event["dur"])
    for event in events[1::3]:
        del event["cat"]
    others: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 4, "args": {"name": "worker"}},
        {"ph": "i", "name": "mark", "ts": 3, "pid": 4, "tid": 12345, "s": "t"},
        {"ph": "C", "name": "memory", "ts": 4, "pid": 4, "args": {"bytes": 3}},
        {"ph": "s", "id": 1, "name": "launch", "ts": 4, "pid": 4, "tid": 12345},
        {"name": "no kind"},
    ]
    for event in others:
        events.insert(int(random.integers(len(events) + 1)), event)
    return {"events": events}


@probe(
    title="What else stands in a trace: names of processes, marks, counters, text for numbers",
    exercise=EXERCISE,
    trials=3,
    inputs=real_life,
    message="Events that are no spans are passed over, and a span may leave out its category and "
    "write its times as text.",
)
def other_events(code: Any, inputs: Any) -> list[Any]:
    spans = code.read_spans(inputs["events"])
    return [by_thread(spans), merged(code.flatten(spans, phase_of))]


def late_times(random: np.random.Generator) -> dict[str, Any]:
    """Adjacent spans whose times, as fractions of microseconds, do not add up exactly."""
    now = int(random.integers(10**9, 10**10))
    spans = [{"name": "step", "pid": 1, "tid": 1, "start": now, "end": 0}]
    for _ in range(25):
        end = now + int(random.integers(1, 5000))
        name = str(random.choice(NAMES[1:]))
        spans.append({"name": name, "pid": 1, "tid": 1, "start": now, "end": end})
        now = end
    spans[0]["end"] = now
    return {"events": complete(spans)}


@probe(
    title="Spans that touch, long after the trace began",
    exercise=EXERCISE,
    trials=3,
    inputs=late_times,
    message="A span that starts where another ends does not lie in it: compare whole nanoseconds.",
)
def touching_spans(code: Any, inputs: Any) -> list[Any]:
    spans = code.read_spans(inputs["events"])
    return [code.time_by_phase(spans, name_of), merged(code.flatten(spans, name_of))]


def trees(random: np.random.Generator) -> dict[str, Any]:
    return {"events": complete([*nested(random, 1, 1, 3), *nested(random, 1, 2, depth=2)])}


def spans_of(events: list[dict[str, Any]]) -> list[Span]:
    """The spans of complete events in the order in which `nested` made them, read by the probe."""
    spans = []
    for event in events:
        start = round(1000 * event["ts"])
        end = start + round(1000 * event["dur"])
        thread = (event["pid"], event["tid"])
        spans.append(Span(event["name"], start, end, thread, "op"))
    return spans


@probe(
    title="Every moment belongs to the innermost span, on every thread",
    exercise=EXERCISE,
    trials=3,
    inputs=trees,
    message="Segments do not overlap, leave nothing of a span out, and are none where no span is.",
)
def segments_of_names(code: Any, inputs: Any) -> list[Any]:
    spans = spans_of(inputs["events"])
    total = code.time_by_phase(spans, name_of)
    return [merged(code.flatten(spans, name_of)), {name: total[name] for name in sorted(total)}]


@probe(
    title="Spans that have no phase of their own",
    exercise=EXERCISE,
    trials=4,
    inputs=trees,
    message="A span without a phase is of the phase of the span around it, however far out that "
    "is, and of no span before it.",
)
def inherited_phases(code: Any, inputs: Any) -> list[Any]:
    spans = spans_of(inputs["events"])
    return [merged(code.flatten(spans, phase_of)), code.time_by_phase(spans, phase_of)]


def crossing(random: np.random.Generator) -> dict[str, Any]:
    starts = np.sort(random.permutation(60)[:6])
    lengths = random.integers(1, 40, 6)
    lengths[2] = 0
    return {
        "events": [
            {"ph": "X", "name": f"{i}", "ts": int(start) / 1000, "dur": int(length) / 1000}
            for i, (start, length) in enumerate(zip(starts, lengths))
        ]
    }


@probe(
    title="Spans of one thread that cross, and one of no length",
    exercise=EXERCISE,
    trials=4,
    inputs=crossing,
    message="Where spans cross, a moment belongs to the one that began last among those still "
    "open; it is never counted twice, and no segment is empty.",
)
def crossing_spans(code: Any, inputs: Any) -> list[Any]:
    spans = code.read_spans(inputs["events"])
    total = code.time_by_phase(spans, name_of)
    shortest = min(end - start for start, end, *_ in code.flatten(spans, name_of))
    return [{name: total[name] for name in sorted(total) if total[name]}, shortest > 0]


def broken(random: np.random.Generator) -> dict[str, Any]:
    good = complete(nested(random, 1, 1, depth=1))
    begin = {"ph": "B", "name": "begun", "ts": 1, "pid": 1, "tid": 2}
    end = {"ph": "E", "ts": 2, "pid": 1, "tid": 2}
    return {
        "traces": [
            [*good, begin, end],
            [*good, end],
            [begin, *good],
            [begin, *good, {**end, "tid": 3}],
            [begin, end, *good, end],
            [begin, {**begin, "tid": 5}, end, *good],
            [begin, {**end, "ts": 0.5}],
            [*good, {**good[0], "dur": -0.001}],
            [],
        ]
    }


@probe(
    title="Traces that are broken, and traces that only look so",
    exercise=EXERCISE,
    trials=2,
    inputs=broken,
    message="An end without a begin, a begin without an end and a span that ends before it starts "
    "are a ValueError; an empty trace is none.",
)
def broken_traces(code: Any, inputs: Any) -> list[bool]:
    def reading(trace: Any) -> Callable[[], Any]:
        return lambda: code.read_spans(trace)

    return [refuses(reading(trace)) for trace in inputs["traces"]]
