"""What counts as a difference: the rule, its error rate, claims, results side by side."""

import copy
import math
import random
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab.lab import comparison
from inferlab.lab.difference import ClaimError, claim, differs
from inferlab.lab.paths import result_path
from inferlab.lab.results import ResultError, write_document
from inferlab.lab.table import Table
from tests.test_lab_results import document

values = st.floats(min_value=1e-3, max_value=1e6)
enough = st.lists(values, min_size=3, max_size=6)
MIRRORED = {"larger": "smaller", "smaller": "larger"}


@given(enough, enough)
def test_sides_differ_exactly_if_their_ranges_do_not_touch(
    first: list[float], second: list[float]
) -> None:
    verdict = differs(first, second)
    expected = "not distinguishable"
    if all(a > b for a in first for b in second):
        expected = "larger"
    if all(a < b for a in first for b in second):
        expected = "smaller"
    assert verdict.outcome == expected
    assert verdict.ratio == median(first) / median(second)
    ratios = [a / b for a in first for b in second]
    assert (verdict.low, verdict.high) == (min(ratios), max(ratios))
    assert verdict.low <= verdict.ratio <= verdict.high
    # Rounding may make the quotient of two neighbouring numbers exactly 1.
    assert (verdict.outcome == "larger") <= (verdict.low >= 1)
    assert (verdict.low > 1) <= (verdict.outcome == "larger")


@given(enough, enough, st.randoms(use_true_random=False), st.integers(-8, 8))
def test_verdict_depends_neither_on_order_nor_on_units_and_mirrors(
    first: list[float], second: list[float], shuffler: random.Random, exponent: int
) -> None:
    verdict = differs(first, second)
    shuffled, scale = list(first), 2.0**exponent
    shuffler.shuffle(shuffled)
    assert differs([scale * a for a in shuffled], [scale * b for b in second]) == verdict
    other = differs(second, first)
    assert other.outcome == MIRRORED.get(verdict.outcome, verdict.outcome)
    assert other.error_rate == verdict.error_rate
    assert other.low == pytest.approx(1 / verdict.high)


@given(st.lists(values, max_size=2), st.lists(values, max_size=6))
def test_fewer_than_three_repeats_never_say_anything(few: list[float], many: list[float]) -> None:
    for first, second in ((few, many), (many, few)):
        assert differs(first, second).outcome == "not measured often enough"


def test_zero_has_no_ratio_but_a_verdict() -> None:
    verdict = differs([28, 33, 28], [0, 0, 0])
    assert (verdict.outcome, verdict.ratio, verdict.low) == ("larger", math.inf, math.inf)
    assert str(verdict) == "larger"
    nothing = differs([0, 0, 0], [0, 0, 0])
    assert (nothing.outcome, nothing.low, nothing.high) == ("not distinguishable", 0, math.inf)
    assert math.isnan(nothing.ratio)
    assert str(nothing) == "not distinguishable"


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_value_that_is_no_measurement_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=f"A repeat is {value}"):
        differs([1, 2, 3], [1, value, 3])


@pytest.mark.parametrize(("n", "m"), [(3, 3), (3, 4), (4, 4), (5, 5)])
def test_error_rate_is_the_share_of_orders_that_separate_the_sides(n: int, m: int) -> None:
    """If nothing differs, every choice of n ranks out of n + m is equally likely."""
    ranks = set(range(n + m))
    outcomes = [
        differs(sorted(first), sorted(ranks - set(first))).outcome
        for first in combinations(ranks, n)
    ]
    different = sum(outcome != "not distinguishable" for outcome in outcomes)
    assert different == 2
    assert differs(range(n), range(m)).error_rate == different / len(outcomes)


TRIALS = 5_000


def found(
    seed: int, factor: float, drift: float = 0.0, requests: float = 0.0
) -> tuple[float, float]:
    """Share of trials that show a difference, and share whose interval holds `factor`.

    Repeats scatter by about 10 %; `drift` is how far the machine's speed moves between points, and
    `requests` how far the requests of one seed are from those of another.
    """
    draw = random.Random(seed)
    different = held = 0
    for _ in range(TRIALS):
        moved = math.exp(drift * draw.gauss(0, 1))
        seeds = [math.exp(requests * draw.gauss(0, 1)) for _ in range(3)]
        first = [factor * moved * shared * math.exp(0.1 * draw.gauss(0, 1)) for shared in seeds]
        second = [shared * math.exp(0.1 * draw.gauss(0, 1)) for shared in seeds]
        verdict = differs(first, second)
        different += verdict.outcome != "not distinguishable"
        held += verdict.low <= factor <= verdict.high
    return different / TRIALS, held / TRIALS


def test_simulated_repeats_err_as_often_as_the_verdict_says() -> None:
    # Five standard deviations of a share of 10 % in 5,000 trials are 0.02.
    different, held = found(seed=1, factor=1.0)
    assert different == pytest.approx(0.1, abs=0.02)
    assert held == pytest.approx(0.9, abs=0.02)
    different, held = found(seed=2, factor=1.2)
    assert different > 0.4, "twice the scatter is found more often than not found"
    assert held == pytest.approx(0.9, abs=0.02)
    assert found(seed=3, factor=1.5)[0] > 0.98


def test_requests_that_both_sides_share_make_the_error_rarer() -> None:
    assert found(seed=5, factor=1.0, requests=0.1)[0] < 0.08
    assert found(seed=6, factor=1.0, requests=0.3)[0] < 0.02


def test_a_machine_that_drifts_between_points_defeats_the_rule() -> None:
    """The limit that the module states: repeats of a point run directly after each other."""
    assert found(seed=4, factor=1.0, drift=0.1)[0] > 0.2


def table_of(rates: dict[int, list[float]]) -> Table:
    """A result whose points, one a block size, have these rates; a point without any failed."""
    contents = document()
    template = contents["points"][0]
    contents["points"] = [
        {
            **copy.deepcopy(template),
            "parameters": {"engine": "vllm", "block_size": size},
            **({} if found else {"status": "failed", "error": "It died.", "log": ""}),
            "repeats": [
                {"metrics": {"output_tokens_per_s": rate, "ttft_p50_ms": 5.0}, "samples": {}}
                for rate in found
            ],
        }
        for size, found in rates.items()
    ]
    return Table(contents, live=False)


def test_claim_returns_the_ratio_that_a_chapter_prints() -> None:
    table = table_of({32: [300.0, 310.0, 320.0], 128: [100.0, 120.0, 155.0]})
    ratio = claim(
        table, "output_tokens_per_s", larger={"block_size": 32}, smaller={"block_size": 128}
    )
    assert ratio == 310 / 120


@pytest.mark.parametrize(
    ("small", "large", "message"),
    [
        ([100, 120, 301], [300, 310, 320], r"was 300, 310, 320 at block_size 32.*take the claim b"),
        ([300, 300, 300], [300, 310, 320], "not all of its repeats lie above"),
        ([400, 410, 420], [300, 310, 320], "not all of its repeats lie above"),
        ([100, 120], [300, 310, 320], r"100, 120 at block_size 128: a claim needs 3 repeats"),
        ([], [300, 310, 320], r"not measured at block_size 128: a claim needs 3 repeats"),
    ],
)
def test_claim_that_the_repeats_do_not_carry_is_refused(
    small: list[float], large: list[float], message: str
) -> None:
    table = table_of({32: large, 128: small})
    sides: dict[str, Any] = {"larger": {"block_size": 32}, "smaller": {"block_size": 128}}
    with pytest.raises(ClaimError, match=message):
        claim(table, "output_tokens_per_s", **sides)


def test_claim_about_points_that_are_not_there_is_a_mistake() -> None:
    table = table_of({32: [1.0, 2.0, 3.0]})
    with pytest.raises(KeyError, match="0 points have the parameters"):
        claim(table, "output_tokens_per_s", larger={"block_size": 32}, smaller={"block_size": 64})


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A recorded result on cpu, and live ones on cpu and a100; points 64 and 128 differ."""
    for name in ("RECORDED", "LIVE"):
        monkeypatch.setattr(comparison, name, tmp_path / name)
    rates = {
        ("RECORDED", "cpu"): {32: [100.0, 104.0, 108.0], 64: [50.0, 52.0, 54.0]},
        ("LIVE", "cpu"): {32: [106.0, 109.0, 112.0], 64: [25.0, 26.0, 27.0]},
        ("LIVE", "a100"): {32: [900.0, 950.0, 990.0], 128: [10.0, 11.0]},
    }
    for (folder, profile), points in rates.items():
        contents = table_of(points).document
        contents["profile"] = profile
        contents["provenance"]["workloads"] = {"varied-lengths": profile}
        contents["metrics"] = ["output_tokens_per_s"]
        write_document(result_path(tmp_path / folder, profile, "week04/block-size"), contents)
    return tmp_path


def cells(text: str, size: int) -> list[str]:
    """The row of one point, split at its gaps."""
    line = next(line for line in text.splitlines() if line.split()[:1] == [str(size)])
    return [part.strip() for part in line.split("  ") if part.strip()]


def test_recorded_and_live_lie_side_by_side_with_a_verdict(results: Path) -> None:
    files = [
        result_path(results / folder, "cpu", "week04/block-size") for folder in ("RECORDED", "LIVE")
    ]
    text = comparison.compare([str(file) for file in files])
    assert text.splitlines()[0].startswith("A  recorded · cpu: ")
    assert text.splitlines()[1].startswith("B  live · cpu: ")
    assert "Output tokens (tokens/s)" in text
    overlap = "not distinguishable, × 0.954 [0.893, 1.02]"
    assert cells(text, 32) == ["32", "104 [100, 108]", "109 [106, 112]", overlap]
    assert cells(text, 64) == ["64", "52 [50, 54]", "26 [25, 27]", "larger, × 2 [1.85, 2.16]"]
    assert text.endswith(
        "1 of 2 comparisons show a difference. If there were none, about 0.2 would."
    )
    assert "The workload" not in text


def test_experiment_stands_for_all_its_results(results: Path) -> None:
    text = comparison.compare(["week04/block-size"])
    kinds = [line.split(": ")[0] for line in text.splitlines()[:3]]
    assert kinds == ["A  recorded · cpu", "B  live · cpu", "C  live · a100"]
    assert "The workload varied-lengths is not the same in all of them." in text
    dash = "–"
    assert cells(text, 64)[3:] == [dash, "larger, × 2 [1.85, 2.16]", dash, dash]
    # Two repeats are shown and not judged.
    assert cells(text, 128) == ["128", dash, dash, "10.5 [10, 11]", dash, dash, dash]
    assert cells(text, 32)[4].startswith("not distinguishable")
    assert [cell.split(",")[0] for cell in cells(text, 32)[5:]] == ["smaller", "smaller"]


def test_what_cannot_be_compared_is_refused(results: Path) -> None:
    file = result_path(results / "RECORDED", "cpu", "week04/block-size")
    with pytest.raises(ResultError, match=r"needs two results, and .* names 1"):
        comparison.compare([str(file), str(file)])
    other = document()
    other["experiment"] = "week04/kv-pool"
    write_document(results / "other.json", other)
    with pytest.raises(ResultError, match=r"experiments \(week04/block-size, week04/kv-pool\)"):
        comparison.compare([str(file), str(results / "other.json")])
    file.write_text(file.read_text()[:500])
    with pytest.raises(ResultError, match="cut short"):
        comparison.compare(["week04/block-size"])
