"""The chapters' sweeps: each is drawn, said in words, small enough, and driven by our scheduler."""

import importlib
import json
import pkgutil

import numpy as np
import pytest

from inferlab import explore
from inferlab.analysis.serving_metrics import Answer
from inferlab.engine.scheduler import Scheduler
from inferlab.explore import (
    block_sizes,
    radix_tree,
    request_rates,
    routing,
    static_batches,
    token_budget,
)
from inferlab.explore.steady_state import saturated_rate, steady_rates
from inferlab.notebook import FIGURE_LIMIT_BYTES, figure_html
from inferlab.sim import traffic
from inferlab.sim.devices import DEVICES
from inferlab.sim.server import SimulatedServer
from inferlab.sim.shapes import SHAPES
from inferlab.sweep import Impossible
from inferlab.theme import TEMPLATE, require_axis_titles

SWEEPS = sorted(
    {module.name for module in pkgutil.iter_modules(explore.__path__)} - {"panels", "steady_state"}
)


def module(name: str):
    return importlib.import_module(f"inferlab.explore.{name}")


@pytest.mark.parametrize("name", SWEEPS)
def test_every_scenario_is_drawn_and_said(name) -> None:
    sweep = module(name).sweep()
    figures = []
    for point in [sweep.first_point, *sweep.scenarios.values()]:
        figure = sweep.at(**point)
        require_axis_titles(figure)
        assert 40 < len(sweep.said_at(**point)) < 500
        assert "nan" not in sweep.said_at(**point)
        figures.append(figure)
    assert len({len(figure.data) for figure in figures}) == 1
    assert not isinstance(sweep.result(**sweep.first_point), Impossible)
    assert module(name).PREDICTION.endswith("?")


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("name", SWEEPS)
def test_every_point_can_be_computed_and_the_page_stays_small(name) -> None:
    static = module(name).sweep().static()
    figure_html({**static, "template": TEMPLATE.to_plotly_json()}, "caption", "badge", "alt")
    assert len(static["points"]) >= 60
    size = len(json.dumps(static, separators=(",", ":")))
    assert size < FIGURE_LIMIT_BYTES


@pytest.mark.parametrize("of", [block_sizes, request_rates, routing, static_batches, token_budget])
def test_a_readers_scheduler_decides(of) -> None:
    class Readers(Scheduler):
        """One request at a time."""

        def __init__(self, *arguments, **settings) -> None:
            super().__init__(*arguments, **{**settings, "max_num_seqs": 1})

    ours, same, other = (
        of.sweep(scheduler_class)
        for scheduler_class in (Scheduler, type("C", (Scheduler,), {}), Readers)
    )
    point = ours.first_point
    assert ours.result(**point) == same.result(**point)
    assert ours.result(**point) != other.result(**point)


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, second = (request_rates.sweep() for _ in range(2))
    request_rates.answered.cache_clear()
    found = first.result(**first.first_point)
    request_rates.answered.cache_clear()
    assert json.dumps(found) == json.dumps(second.result(**second.first_point))


def test_what_does_not_fit_is_explained() -> None:
    sweep = module("playground").sweep()
    assert "there is no room for K and V" in sweep.said_at(**sweep.scenarios["Too large a model"])


def test_steady_rates_leave_out_how_a_run_begins_and_ends() -> None:
    """One request a second, each answered in 4 tokens over 3.5 s, every second one late."""
    answers = [
        Answer(float(i), [i + 0.5 + i % 2, i + 1.5, i + 2.5, i + 3.5], 10) for i in range(11)
    ]
    rates = steady_rates(answers, {"ttft_ms": 600.0, "tpot_ms": 2000.0}, rate_per_s=1.0)
    # From 2 to 10 s, four tokens a second; before 3 s one is missing, as nothing was sent at -1 s.
    assert rates["output_tokens_per_s"] == 31 / 8
    assert rates["goodput_requests_per_s"] == 5 / 9  # of nine that are sent from 2 s on
    with pytest.raises(ValueError, match="sent at once"):
        steady_rates([Answer(0.0, [1.0], 1)] * 3, {"ttft_ms": 1.0, "tpot_ms": 1.0}, 1.0)


def test_a_saturated_server_makes_as_many_tokens_as_its_steps_do() -> None:
    """Batches of four, one step of 64 tokens after the other: 4 requests in 64 steps."""
    server = SimulatedServer(
        SHAPES["Llama-3.2-1B"], DEVICES["A100-80GB SXM"], max_num_seqs=4, prefix_cache=None
    )
    run = server.serve(traffic.alike(np.zeros(40), 8, 64))
    step_s = run.now_s / sum(step.repeats for step in run.steps)
    assert saturated_rate(run) == pytest.approx(4 / (64 * step_s), rel=0.01)
    alone = server.serve(traffic.alike(np.zeros(2), 8, 64))
    assert saturated_rate(alone) == pytest.approx(2 / alone.now_s, rel=0.02)


@pytest.mark.parametrize("kind", radix_tree.SEQUENCES)
@pytest.mark.parametrize("capacity", [4096, 1024])
def test_the_tree_shows_what_the_last_request_found_and_what_made_room(kind, capacity) -> None:
    def tokens(part) -> int:
        depths = part[0]
        return sum(depths[i + 2] - depths[i] for i in range(0, len(depths), 4))

    dropped = 0
    for count in range(1, radix_tree.REQUESTS + 1):
        found = radix_tree.tree_after(kind, capacity, count)
        assert tokens(found["found"]) == found["hit"]
        assert tokens(found["computed"]) == found["asked"] - found["hit"]
        kept = tokens(found["cached"]) + found["asked"]
        assert kept == found["tokens"] <= capacity
        dropped += tokens(found["dropped"])
        assert dropped == found["all_dropped"]
    assert dropped or capacity == 4096
