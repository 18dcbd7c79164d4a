"""The simulator: the scheduler decides, leaps change nothing, counts add up."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferlab.analysis.operators import StepShape
from inferlab.analysis.serving_metrics import summary
from inferlab.engine.kv_cache import KVCacheManager
from inferlab.engine.policy import fcfs, lpm, priority
from inferlab.engine.radix_kv_cache import RadixKVCacheManager
from inferlab.engine.scheduler import Scheduler
from inferlab.sim import traffic
from inferlab.sim.clients import Clients, Prompt
from inferlab.sim.drafts import Drafts
from inferlab.sim.simulator import Simulation


def step_time(step: StepShape) -> Any:
    """1 ms, 10 µs a token and 100 ns a pair: exact sums of these are easy to follow."""
    return 1e-3 + 1e-5 * step.tokens + 1e-7 * step.pairs


def scheduler(**options: Any) -> Scheduler:
    blocks, size = options.pop("num_blocks", 2000), options.pop("block_size", 16)
    caching = options.pop("caching", False)
    return Scheduler(KVCacheManager(blocks, size, caching), **options)


class StepByStep(Simulation):
    """The same without leaps."""

    def _is_settled(self) -> bool:
        return False


@st.composite
def loads(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(1, 25))
    prompts = [
        Prompt(
            draw(st.sampled_from([0.0, 0.01, 0.5])) * number,
            draw(st.integers(1, 90)) + 40,
            draw(st.integers(1, 60)),
            prefix=draw(st.integers(0, 2)),
            prefix_tokens=40,
            priority=draw(st.integers(0, 2)),
        )
        for number in range(count)
    ]
    return {
        "prompts": prompts,
        "in_flight": draw(st.sampled_from([None, 1, 3])),
        "max_num_seqs": draw(st.sampled_from([1, 2, 5, 64])),
        "max_num_batched_tokens": draw(st.sampled_from([8, 64, 2048])),
        "num_blocks": draw(st.sampled_from([14, 30, 400])),
        "policy": draw(st.sampled_from([fcfs, priority, lpm])),
        "cache": draw(st.sampled_from(["none", "hash", "radix"])),
    }


def simulate(load: dict[str, Any], kind: type[Simulation]) -> Simulation:
    blocks = load["num_blocks"]
    manager = (
        RadixKVCacheManager(blocks * 16)
        if load["cache"] == "radix"
        else KVCacheManager(blocks, 16, load["cache"] == "hash")
    )
    own = Scheduler(
        manager,
        max_num_seqs=load["max_num_seqs"],
        max_num_batched_tokens=load["max_num_batched_tokens"],
        policy=load["policy"],
    )
    clients = Clients(load["prompts"], load["in_flight"])
    return kind(own, step_time, clients, frontend_s=0.002).run()


@settings(max_examples=60, deadline=None)
@given(loads())
def test_leaps_change_nothing(load: dict[str, Any]) -> None:
    leaping, stepping = simulate(load, Simulation), simulate(load, StepByStep)
    assert sum(step.repeats for step in leaping.steps) == len(stepping.steps)
    for one, other in zip(leaping.served, stepping.served, strict=True):
        assert one.prompt is other.prompt
        assert (one.cached_tokens, one.num_preemptions) == (
            other.cached_tokens,
            other.num_preemptions,
        )
        assert one.answer.sent_s == pytest.approx(other.answer.sent_s)
        assert list(one.answer.token_s) == pytest.approx(list(other.answer.token_s))


@settings(max_examples=60, deadline=None)
@given(loads())
def test_every_token_is_counted_once(load: dict[str, Any]) -> None:
    run = simulate(load, Simulation)
    assert len(run.served) == len(load["prompts"])
    for one in run.served:
        assert len(one.answer.token_s) == one.prompt.output_tokens
        assert list(one.answer.token_s) == sorted(one.answer.token_s)
        assert one.answer.token_s[0] > one.answer.sent_s >= one.prompt.due_s
    manager = run.scheduler.kv_cache_manager
    computed = sum(s.repeats * s.decode_tokens + s.prefill_tokens for s in run.steps)
    needed = sum(
        one.prompt.prompt_tokens - one.cached_tokens + one.prompt.output_tokens - 1
        for one in run.served
    )
    if not any(one.num_preemptions for one in run.served):
        assert computed == needed
    else:
        assert computed > needed
    assert manager.num_free_blocks >= load["num_blocks"] - 1


def test_leaps_happen() -> None:
    run = Simulation(scheduler(), step_time, Clients([Prompt(0.0, 10, 500)])).run()
    assert [step.repeats for step in run.steps] == [1, 499]


def test_times_are_sums_of_step_times() -> None:
    run = Simulation(scheduler(), step_time, Clients([Prompt(3.0, 10, 3)])).run()
    first = 3.0 + 1e-3 + 10e-5 + 100e-7
    second = first + 1e-3 + 1e-5 + 11e-7
    third = second + 1e-3 + 1e-5 + 12e-7
    assert list(run.served[0].answer.token_s) == pytest.approx([first, second, third])


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_at_a_time_waits_as_long_as_queueing_theory_says(load: float) -> None:
    """Random arrivals, equal service: the mean wait is load / (2 (1 - load)) services (M/D/1)."""
    service_s = 1e-3 + 10e-5 + 100e-7
    times_s = traffic.poisson(load / service_s, 20_000, seed=4)
    prompts = traffic.alike(times_s, 10, 1)
    run = Simulation(scheduler(max_num_seqs=1), step_time, Clients(prompts)).run()
    waits_s = [one.answer.token_s[0] - one.answer.sent_s - service_s for one in run.served]
    assert np.mean(waits_s) == pytest.approx(service_s * load / (2 * (1 - load)), rel=0.05)


def test_closed_loop_keeps_so_many_in_flight() -> None:
    prompts = traffic.alike(np.zeros(12), 20, 30)
    run = Simulation(scheduler(), step_time, Clients(prompts, max_in_flight=3)).run()
    events = [(one.answer.sent_s, 1) for one in run.served]
    events += [(one.answer.token_s[-1], -1) for one in run.served]
    in_flight = np.cumsum([change for _, change in sorted(events)])
    assert in_flight.max() == 3
    assert len(run.served) == 12


def test_same_seed_same_run() -> None:
    def run() -> list[Any]:
        prompts = traffic.chats(traffic.poisson(20.0, 100, seed=1), seed=2)
        drafts = Drafts(3, 0.7, seed=3)
        served = Simulation(scheduler(), step_time, Clients(prompts), drafts=drafts).run().served
        return [(one.prompt, list(one.answer.token_s)) for one in served]

    assert run() == run()


@pytest.mark.parametrize(("acceptance", "per_step"), [(0.0, 1.0), (1.0, 4.0), (0.6, 2.176)])
def test_accepted_drafts_are_what_the_formula_says(acceptance: float, per_step: float) -> None:
    """Of k drafts 1 + a + … + a^k tokens come from a step (Leviathan et al., 2023, equation 1)."""
    prompts = traffic.alike(np.zeros(20), 20, 400)
    drafts = Drafts(3, acceptance, seed=0)
    run = Simulation(scheduler(max_num_seqs=1), step_time, Clients(prompts), drafts=drafts).run()
    decode_steps = sum(step.repeats for step in run.steps if not step.prefill_tokens)
    made = sum(one.prompt.output_tokens - 1 for one in run.served)
    assert made / decode_steps == pytest.approx(per_step, rel=0.02)


def test_request_that_can_never_be_served_says_why() -> None:
    clients = Clients([Prompt(0.0, 2000, 10)])
    with pytest.raises(ValueError, match="the cache can hold"):
        Simulation(scheduler(num_blocks=10), step_time, clients).run()


def test_sharing_is_found_and_unshared_is_not() -> None:
    times = np.arange(24) * 10.0
    lengths = {"prefix_tokens": 64, "suffix_tokens": 16, "output_tokens": 4}
    for prefixes, hits in ((3, 21 * 64), (24, 0)):
        prompts = traffic.sharing(times, 0, num_prefixes=prefixes, **lengths)
        run = Simulation(scheduler(caching=True), step_time, Clients(prompts)).run()
        assert sum(one.cached_tokens for one in run.served) == hits


def test_saturation_shows() -> None:
    def at(rate: float) -> dict[str, float]:
        prompts = traffic.alike(traffic.poisson(rate, 300, seed=0), 100, 50)
        run = Simulation(scheduler(max_num_seqs=16), step_time, Clients(prompts)).run()
        return summary([one.answer for one in run.served])

    slow, fast, all_at_once = at(5.0), at(1000.0), at(math.inf)
    assert slow["requests_per_s"] == pytest.approx(5.0, rel=0.15)
    assert fast["requests_per_s"] < 500
    assert fast["output_tokens_per_s"] == pytest.approx(all_at_once["output_tokens_per_s"], rel=0.1)
    assert slow["ttft_p50_ms"] < fast["ttft_p50_ms"]
