"""Simulated servers: what fits, what is shared, what is handed over."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab.analysis.operators import Precision, StepShape, operators
from inferlab.analysis.serving_metrics import summary
from inferlab.engine.request import Request
from inferlab.engine.router import CacheAware, RoundRobin, Router
from inferlab.engine.scheduler import Scheduler
from inferlab.sim import traffic
from inferlab.sim.clients import Prompt
from inferlab.sim.devices import DEVICES
from inferlab.sim.disaggregation import Pools, colocated
from inferlab.sim.fleet import serve_behind
from inferlab.sim.kv_tiers import Tier, TieredKVCacheManager
from inferlab.sim.server import SimulatedServer
from inferlab.sim.shapes import SHAPES
from inferlab.sim.step_time import Overheads, RooflineStepTime

A100 = DEVICES["A100-80GB SXM"]
LLAMA = SHAPES["Llama-3.1-8B"]
SERVER = SimulatedServer(LLAMA, A100)
STEPS = [
    StepShape.of([(500, 700, True), (1, 300, False), (1, 40, False)]),
    StepShape.decode(64, 64 * 500),
    StepShape.decode(1, 1),
]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("model", [LLAMA, SHAPES["Mixtral-8x7B"]])
def test_a_step_takes_the_slower_of_arithmetic_and_memory(model, step) -> None:
    shares = Overheads(arithmetic_share=0.5, bandwidth_share=0.8, attention_share=0.6, step_s=0.001)
    expected = 0.001
    for operator in operators(model, step, Precision()):
        attention = operator.name == "attention"
        flop_per_s = 312e12 * (0.6 if attention else 0.5)
        bytes_per_s = 2039e9 * (0.6 if attention else 0.8)
        expected += max(operator.flop / flop_per_s, operator.bytes / bytes_per_s)
    found = RooflineStepTime(model, A100, overheads=shares)(step)
    assert float(found) == pytest.approx(expected)


def test_steps_are_taken_together_as_one_by_one() -> None:
    step_time = RooflineStepTime(SHAPES["Mixtral-8x7B"], A100)
    contexts = np.arange(100, 2000, 300)
    together = step_time(StepShape.decode(7, contexts))
    assert together == pytest.approx(
        [float(step_time(StepShape.decode(7, int(c)))) for c in contexts]
    )


def test_decode_at_batch_one_is_bound_by_the_weights() -> None:
    """7.36 ms: 15.0 GB of weights in products at 2,039 GB/s."""
    seconds = float(RooflineStepTime(LLAMA, A100)(StepShape.decode(1, 1)))
    assert seconds == pytest.approx(2 * LLAMA.num_active_parameters / 2039e9, rel=0.01)


def test_gpus_are_faster_and_pay_for_the_link() -> None:
    step = StepShape.decode(16, 16 * 1000)
    alone, pair = (float(RooflineStepTime(LLAMA, A100, num_gpus=n)(step)) for n in (1, 2))
    slow = replace(A100, link_bytes_per_s=1e8)
    assert alone / 2 < pair < alone
    assert float(RooflineStepTime(LLAMA, slow, num_gpus=2)(step)) > alone


def test_blocks_are_what_the_weights_leave() -> None:
    left = 80e9 * 0.92 - 2 * LLAMA.num_parameters
    assert SERVER.num_blocks == int(left // (16 * 131072))
    assert replace(SERVER, precision=Precision(kv=1.0)).num_blocks == pytest.approx(
        2 * SERVER.num_blocks, abs=1
    )


def test_weights_that_do_not_fit_are_explained() -> None:
    with pytest.raises(ValueError, match=r"141\.1 GB.*1 × A100.*73\.6 GB.*no room for K and V"):
        SimulatedServer(SHAPES["Llama-3.1-70B"], A100).serve([Prompt(0.0, 10, 10)])


def test_arithmetic_that_a_device_has_no_units_for_is_explained() -> None:
    with pytest.raises(ValueError, match="no figure for T4 computing in bf16"):
        SimulatedServer(SHAPES["Llama-3.2-1B"], DEVICES["T4"]).serve([Prompt(0.0, 10, 10)])


def test_fewer_bits_decode_faster() -> None:
    prompts = traffic.alike(np.zeros(8), 100, 50)
    times = [
        replace(SERVER, precision=Precision(weight=bits / 8)).serve(prompts).now_s
        for bits in (16, 8, 4)
    ]
    assert times[0] > times[1] > times[2]


def test_drafts_help_one_request_and_cost_a_full_batch() -> None:
    drafting = replace(SERVER, num_drafts=4, acceptance=0.7)
    one = traffic.alike(np.zeros(1), 100, 200)
    assert drafting.serve(one).now_s < SERVER.serve(one).now_s
    many = traffic.alike(np.zeros(256), 100, 100)
    never = replace(drafting, acceptance=0.0)
    assert never.serve(many).now_s > SERVER.serve(many).now_s


def test_prefix_cache_saves_what_is_shared() -> None:
    times = traffic.poisson(8.0, 60, seed=0)
    prompts = traffic.sharing(
        times, 0, num_prefixes=4, prefix_tokens=1024, suffix_tokens=64, output_tokens=20
    )
    cached, uncached = SERVER.serve(prompts), replace(SERVER, prefix_cache=None).serve(prompts)
    radix = replace(SERVER, prefix_cache="radix").serve(prompts)
    hits = [sum(one.cached_tokens for one in run.served) for run in (cached, uncached, radix)]
    assert hits[1] == 0 < hits[0] <= hits[2] == 56 * 1024
    ttft = [summary([s.answer for s in run.served])["ttft_p50_ms"] for run in (cached, uncached)]
    assert ttft[0] < ttft[1] / 2


# A document and its answer fill the cache: nothing of another one is left.
SMALL = replace(SERVER, kv_tokens=2080)
MEMORY = Tier("memory", 100_000, bytes_per_s=20e9, latency_s=1e-4)
DISK = Tier("disk", 1_000_000, bytes_per_s=2e9, latency_s=1e-3)


def about(*documents: int) -> list[Prompt]:
    """Questions about documents of 2,048 tokens, far apart."""
    return [Prompt(5.0 * i, 2048, 8, document, 2048) for i, document in enumerate(documents)]


def test_what_the_cache_lost_is_loaded_and_the_engine_waits_for_it() -> None:
    prompts = about(0, 1, 0)
    lost = SMALL.serve(prompts).served[-1]
    loaded = replace(SMALL, tiers=(MEMORY,)).serve(prompts).served[-1]
    assert (lost.cached_tokens, loaded.cached_tokens) == (0, 7 * 256)  # the last token is computed
    computing_s = float(SMALL.step_time(StepShape.of([(256, 2048, True)])))
    loading_s = 7 * (1e-4 + 256 * 131072 / 20e9)
    assert loaded.answer.ttft_ms == pytest.approx(1000 * (computing_s + loading_s))
    assert loaded.answer.ttft_ms < lost.answer.ttft_ms


def test_tiers_change_nothing_as_long_as_the_cache_has_it() -> None:
    prompts = about(0, 0, 0)
    alone, tiered = SMALL.serve(prompts), replace(SMALL, tiers=(MEMORY,)).serve(prompts)
    assert [one.answer for one in tiered.served] == [one.answer for one in alone.served]


def loaded_tokens(server: SimulatedServer, prompts: list[Prompt]) -> dict[str, int]:
    manager = server.serve(prompts).scheduler.kv_cache_manager
    assert isinstance(manager, TieredKVCacheManager)
    return manager.loaded_tokens


def test_the_fastest_tier_that_has_a_chunk_serves_it_and_the_least_recently_used_leaves() -> None:
    small = replace(SMALL, tiers=(MEMORY._replace(capacity_tokens=2048), DISK))
    # Document 1 pushed document 0 out of memory; it is loaded from disk, and pushes out 1.
    assert loaded_tokens(small, about(0, 1, 0)) == {"memory": 0, "disk": 1792}
    assert loaded_tokens(small, about(0, 1, 0, 1)) == {"memory": 0, "disk": 2 * 1792}
    both = replace(SMALL, tiers=(MEMORY, DISK))
    assert loaded_tokens(both, about(0, 1, 0, 1)) == {"memory": 2 * 1792, "disk": 0}


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    st.integers(1, 40),
    st.sampled_from([16, 64, 256]),
)
def test_tiers_hold_no_more_than_they_may_and_every_block_comes_back(
    documents, capacity_chunks, chunk_size
) -> None:
    prompts = [replace(prompt, due_s=0.05 * i) for i, prompt in enumerate(about(*documents))]
    capacity = capacity_chunks * chunk_size
    tiers = (MEMORY._replace(capacity_tokens=capacity),)
    run = replace(SMALL, tiers=tiers, chunk_size=chunk_size).serve(prompts)
    manager = run.scheduler.kv_cache_manager
    assert isinstance(manager, TieredKVCacheManager)
    assert all(len(kept) * chunk_size <= capacity for kept in manager._kept)
    assert manager.num_free_blocks == manager.num_blocks - 1
    assert [len(one.answer.token_s) for one in run.served] == [8] * len(prompts)


def test_a_chunk_is_a_whole_number_of_blocks() -> None:
    with pytest.raises(ValueError, match="chunk of 100 tokens is not a whole number of blocks"):
        replace(SMALL, tiers=(DISK,), chunk_size=100).serve(about(0))


class NewestFirst(Scheduler):
    """A reader's scheduler: who came last is served next."""

    def add_request(self, request: Request) -> None:
        self.waiting.appendleft(request)


def test_a_readers_scheduler_decides() -> None:
    prompts = traffic.alike(np.arange(5) * 1e-3, 100, 20)
    one_by_one = replace(SERVER, max_num_seqs=1)
    for kind, order in ((Scheduler, [0, 1, 2, 3, 4]), (NewestFirst, [0, 4, 3, 2, 1])):
        served = replace(one_by_one, scheduler_class=kind).serve(prompts).served
        assert [prompts.index(one.prompt) for one in served] == order


def test_pools_hand_every_request_over_once() -> None:
    prompts = traffic.chats(traffic.poisson(5.0, 40, seed=0), seed=1)
    pools = Pools(SERVER, num_prefill=2, num_decode=1, link_bytes_per_s=25e9)
    served = pools.serve(prompts)
    assert sorted(one.prompt.due_s for one in served) == sorted(p.due_s for p in prompts)
    for one in served:
        assert len(one.answer.token_s) == one.prompt.output_tokens
        assert one.answer.sent_s == one.prompt.due_s
        assert one.cached_tokens == (one.prompt.prompt_tokens - 1) // 16 * 16


def test_a_slow_link_shows_in_ttft_and_nowhere_else() -> None:
    prompts = traffic.alike(np.arange(10) * 5.0, 2000, 50)
    fast, slow = (
        summary([s.answer for s in Pools(SERVER, 1, 1, link).serve(prompts)])
        for link in (math.inf, 1e9)
    )
    transfer_ms = 1000 * 2000 * 131072 / 1e9
    assert slow["ttft_p50_ms"] - fast["ttft_p50_ms"] == pytest.approx(transfer_ms, rel=1e-6)
    assert slow["itl_p99_ms"] == pytest.approx(fast["itl_p99_ms"])


def test_disaggregation_shortens_the_longest_intervals() -> None:
    prompts = traffic.alike(traffic.poisson(6.0, 80, seed=2), 1800, 100)
    together = summary([s.answer for s in colocated(SERVER, prompts, 2)])
    apart = summary([s.answer for s in Pools(SERVER, 1, 1, 200e9).serve(prompts)])
    assert apart["itl_p99_ms"] < together["itl_p99_ms"] / 3


def test_one_server_behind_a_router_is_that_server() -> None:
    prompts = traffic.chats(traffic.poisson(5.0, 60, seed=1), seed=1)
    fleet = serve_behind(RoundRobin(1), SERVER, prompts)
    alone = SERVER.serve(prompts).served
    assert [one.answer for one in fleet.served] == [one.answer for one in alone]
    assert fleet.requests == [60]


def test_servers_behind_a_router_that_takes_turns_are_servers_that_share_out_requests() -> None:
    prompts = traffic.chats(traffic.poisson(20.0, 90, seed=2), seed=2)
    fleet = serve_behind(RoundRobin(3), SERVER, prompts)
    apart = colocated(SERVER, prompts, 3)
    assert sorted(one.answer.token_s[-1] for one in fleet.served) == pytest.approx(
        sorted(one.answer.token_s[-1] for one in apart)
    )
    assert fleet.requests == [30, 30, 30]


def test_a_cache_aware_router_finds_more_than_one_that_takes_turns() -> None:
    prompts = traffic.sharing(
        traffic.poisson(8.0, 120, seed=3),
        seed=3,
        num_prefixes=12,
        prefix_tokens=512,
        suffix_tokens=64,
        output_tokens=16,
    )
    server = replace(SERVER, kv_tokens=6 * 1024)

    def hits(router: Router) -> int:
        return sum(one.cached_tokens for one in serve_behind(router, server, prompts).served)

    assert hits(CacheAware(4)) > 1.2 * hits(RoundRobin(4))
