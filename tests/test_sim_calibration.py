"""The fit finds what made the data; recorded runs are read as they were."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from inferlab.sim import calibration
from inferlab.sim.calibrate import (
    calibrate,
    errors,
    fitted,
    fitted_errors,
    fitted_machine,
    held_out,
    this_machine,
)
from inferlab.sim.fidelity import compare
from inferlab.sim.recorded_points import recorded_points
from inferlab.sim.step_time import Overheads

RESULTS = Path(__file__).parents[1] / "results" / "cpu"
TRUTH = {"step": 0.02, "token": 0.003}


def line(values: dict[str, float]) -> list[dict[str, float]]:
    """Metrics that depend on two parameters, in ways of their own."""
    runs = []
    for size in (1, 4, 16, 64):
        itl = values["step"] + size * values["token"]
        figures = (size / itl, 2 * values["step"] + values["token"], 1000 * itl)
        runs.append(dict(zip(calibration.FITTED, figures)))
    return runs


def test_fit_finds_what_made_the_data() -> None:
    found = calibration.fit(line, line(TRUTH), {"step": 1.0, "token": 0.1})
    assert found.values == pytest.approx(TRUTH, rel=1e-3)
    assert found.residual < 1e-3


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    random, inside = np.random.default_rng(0), 0
    for _ in range(60):
        noisy = [
            {name: value * math.exp(random.normal(0, 0.05)) for name, value in run.items()}
            for run in line(TRUTH)
        ]
        found = calibration.fit(line, noisy, {"step": 0.05, "token": 0.01})
        for name, factor in found.factors.items():
            inside += 1 / factor <= found.values[name] / TRUTH[name] <= factor
    assert 0.85 < inside / 120 <= 1.0


def test_too_few_figures_are_refused() -> None:
    start = dict.fromkeys("abcdefghijklm", 1.0)
    with pytest.raises(ValueError, match="12 measured figures cannot fix 13 parameters"):
        calibration.fit(line, line(TRUTH), start)


@pytest.mark.parametrize("name", ["week01/closed-loop", "week01/request-rates", "week04/kv-pool"])
def test_recorded_points_are_those_of_one_vllm_server(name: str) -> None:
    path = RESULTS / f"{name}.json"
    found = list(recorded_points(path))
    points = [
        point
        for point in json.loads(path.read_text())["points"]
        if point["parameters"]["engine"] == "vllm"
    ]
    assert [point.parameters for point in found] == [point["parameters"] for point in points]
    for point in found:
        assert len(point.repeats) == 3
        metrics, samples = point.repeats[0]
        scheduler = point.scheduler()
        assert scheduler.kv_cache_manager.num_blocks == metrics["num_gpu_blocks"]
        assert scheduler.max_model_len == 1024
        assert len(samples["arrival_us"]) == metrics["num_requests"]
        wanted = point.parameters.get("max_concurrency", 4)
        assert point.client.get("max-concurrency", str(wanted)) == str(wanted)


def test_simulated_metrics_are_near_the_recorded_ones() -> None:
    """No bar, but what a broken simulator would miss by far: a factor of two."""
    overheads = Overheads(**fitted().values)
    points = recorded_points(RESULTS / "week01" / "closed-loop.json")
    for comparison in compare(points, this_machine(), overheads):
        if "p99" not in comparison.metric:
            assert 0.5 < 1 + comparison.error < 2, comparison


@pytest.mark.slow
@pytest.mark.full
def test_the_committed_fit_is_what_the_recorded_results_give() -> None:
    found = calibrate(this_machine())
    assert found.values == pytest.approx(fitted().values, rel=1e-3)
    assert all(1 < factor < 3 for factor in found.factors.values()), "a constant is not known"


def test_the_committed_machine_is_the_one_that_week_3_measured() -> None:
    """A student's bundle of another week holds no results of week 3."""
    assert fitted_machine() == this_machine()


def test_the_committed_errors_are_those_of_the_committed_fit() -> None:
    """Chapters state them, whose bundles hold no other week's results."""
    found = errors(held_out(this_machine(), Overheads(**fitted().values)))
    for metric, kept in fitted_errors().items():
        assert found[metric] == pytest.approx(kept, rel=1e-3), metric
