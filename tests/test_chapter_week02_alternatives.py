"""Solutions of week 2 that are right and not the reference: they get full marks."""

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from autograder.hidden_cell import hidden_cell, run_cell
from inferlab.lab.paths import ROOT
from inferlab.publish import expand, read_page
from inferlab.publish.editions import exercises

PAGE = read_page(ROOT, Path("notebooks/week02-offline-profiling.md"))

STEP = """
def _sample(self, output, hidden, last_rows):
    if self.proposer is not None:
        return self._verify(output, hidden, last_rows)
    found, rows, requests = {}, [], []
    for row, entry in zip(last_rows.tolist(), output.scheduled):
        if entry.samples:
            rows.append(row)
            requests.append(entry.request)
    if rows:
        for request, token in zip(
            requests, self.sampler.sample(self.model.logits(hidden[rows]), requests)
        ):
            found[request.request_id] = [token]
    else:
        self.model.logits(hidden[:0])
    return found

LLM._sample = _sample
"""
TRACE = """
def flatten(spans, phase_of):
    segments = []
    for thread in dict.fromkeys(span.thread for span in spans):
        own = [span for span in spans if span.thread == thread]
        edges = sorted({edge for span in own for edge in (span.start_ns, span.end_ns)})
        for start, end in zip(edges, edges[1:]):
            chain = [span for span in own if span.start_ns <= start and end <= span.end_ns]
            if chain:
                named = [phase for phase in map(phase_of, chain) if phase]
                phase = named[-1] if named else OTHER
                if segments and segments[-1][1:] == (start, thread, phase):
                    start = segments.pop().start_ns
                segments.append(Segment(start, end, thread, phase))
    return segments

def time_by_phase(spans, phase_of):
    total = {}
    for start, end, _, phase in flatten(spans, phase_of):
        total[phase] = total.get(phase, 0) + end - start
    return total
"""
GAPS = """
def idle_gaps(spans, start_ns, end_ns):
    if end_ns <= start_ns:
        raise ValueError("an empty window")
    spans = [s for s in spans if s.end_ns > max(s.start_ns, start_ns) and s.start_ns < end_ns]
    edges = {start_ns, end_ns}
    for span in spans:
        edges |= {min(max(e, start_ns), end_ns) for e in (span.start_ns, span.end_ns)}
    edges = sorted(edges)
    free = [
        (a, b) for a, b in zip(edges, edges[1:])
        if not any(s.start_ns <= a and b <= s.end_ns for s in spans)
    ]
    by_start = sorted(spans, key=lambda s: s.start_ns)
    return [
        Gap(
            a, b,
            next((s.name for s in by_start if s.end_ns == a), None) if a > start_ns else None,
            next((s.name for s in by_start if s.start_ns == b), None) if b < end_ns else None,
        )
        for a, b in free
    ]
"""
SUMMARY = """
import math

def fewest_samples(confidence):
    if confidence <= 0 or confidence >= 1:
        raise ValueError("between 0 and 1")
    least = max(1, math.ceil(1 - math.log2(1 - confidence)) - 2)
    while 1 - 0.5 ** (least - 1) < confidence:
        least += 1
    return least

def summarise(samples, confidence=0.95, seed=0):
    values = checked(samples, confidence)
    medians = sorted(np.median(row) for row in resample(values, np.random.default_rng(seed)))
    low = np.percentile(medians, 50 * (1 - confidence))
    return Summary(
        num_samples=len(values), median=np.median(values), low=low,
        high=np.percentile(medians, 100 - 50 * (1 - confidence)),
    )
"""


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("week02-engine-step", STEP),
        ("week02-trace-reader", TRACE),
        ("week02-launch-gaps", GAPS),
        ("week02-benchmark-summary", SUMMARY),
    ],
)
def test_a_right_solution_that_is_not_the_reference_gets_full_marks(name: str, other: str) -> None:
    _, exercise = exercises(PAGE)[name]
    cell = hidden_cell(ROOT, exercise)
    (last,) = [line for line in cell.splitlines() if line.startswith('_probes["score"](')]
    names: dict[str, Any] = run_cell(expand(ROOT, exercise, solution=True), {})
    run_cell(other, names)
    with redirect_stdout(io.StringIO()) as printed:
        run_cell(cell.replace(last, ""), names)
        marks = eval(last, names)
    assert marks == exercise.points, printed.getvalue()
