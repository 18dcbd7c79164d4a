"""The scheduler without a model: composition of steps, conservation, preemption, refusal."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from inferlab.engine import (
    KVCacheManager,
    Request,
    RequestStatus,
    SamplingParams,
    Scheduler,
    SchedulerOutput,
)


def make_request(name: str, prompt_length: int, max_tokens: int) -> Request:
    first = sum(map(ord, name)) * 1000
    return Request(
        name, list(range(first, first + prompt_length)), SamplingParams(max_tokens=max_tokens)
    )


def run(scheduler: Scheduler, limit: int = 2000) -> list[SchedulerOutput]:
    """Drive the scheduler to the end with a made-up token per sample, checking its invariants."""
    steps = []
    while scheduler.has_unfinished_requests():
        assert len(steps) < limit, "The scheduler makes no progress: a livelock."
        output = scheduler.schedule()
        steps.append(output)
        assert output.total_num_scheduled_tokens <= scheduler.max_num_batched_tokens
        assert len(scheduler.running) <= scheduler.max_num_seqs
        assert len({entry.request.request_id for entry in output.scheduled}) == len(
            output.scheduled
        )
        waiting = set(map(id, scheduler.waiting))
        assert not waiting & set(map(id, scheduler.running))
        for entry in output.scheduled:
            assert entry.num_tokens > 0
            assert entry.request in scheduler.running
        for victim in output.preempted:
            assert victim.num_computed_tokens == 0
            assert scheduler.kv_cache_manager.block_table(victim.request_id) == []
        sampled = {e.request.request_id: [len(steps)] for e in output.scheduled if e.samples}
        scheduler.update_from_output(output, sampled)
    return steps


def composition(steps: list[SchedulerOutput]) -> list[dict[str, int]]:
    return [step.num_scheduled_tokens for step in steps]


def test_steps_mix_prefill_and_decode_as_worked_out_by_hand() -> None:
    scheduler = Scheduler(KVCacheManager(64, 4), max_num_batched_tokens=8)
    scheduler.add_request(make_request("A", 11, 4))
    scheduler.add_request(make_request("B", 7, 4))
    assert composition(run(scheduler)) == [
        {"A": 8},
        {"A": 3, "B": 5},
        {"A": 1, "B": 2},
        {"A": 1, "B": 1},
        {"A": 1, "B": 1},
        {"B": 1},
    ]


def test_the_two_counters_of_a_request() -> None:
    scheduler = Scheduler(KVCacheManager(16, 4))
    item = make_request("A", 5, 4)
    scheduler.add_request(item)
    trace = []
    while scheduler.has_unfinished_requests():
        output = scheduler.schedule()
        scheduler.update_from_output(output, {"A": [0]})
        trace.append((item.num_computed_tokens, item.num_tokens))
    assert trace == [(5, 6), (6, 7), (7, 8), (8, 9)]
    assert item.status is RequestStatus.FINISHED_LENGTH


@pytest.mark.parametrize(("threshold", "first_steps"), [(0, [257, 2]), (32, [33] * 8 + [2])])
def test_a_threshold_caps_the_spike_that_a_long_prompt_causes(
    threshold: int, first_steps: list[int]
) -> None:
    scheduler = Scheduler(
        KVCacheManager(64, 16), max_num_batched_tokens=512, long_prefill_token_threshold=threshold
    )
    scheduler.add_request(make_request("victim", 4, 16))
    scheduler.update_from_output(scheduler.schedule(), {"victim": [0]})
    scheduler.add_request(make_request("long", 256, 2))
    totals = [step.total_num_scheduled_tokens for step in run(scheduler)]
    assert totals == first_steps + [1] * (15 - len(first_steps))
    assert sum(totals) == 272


def test_a_cap_on_sequences_defers_the_rest() -> None:
    scheduler = Scheduler(KVCacheManager(64, 4), max_num_seqs=4)
    for i in range(10):
        scheduler.add_request(make_request(f"r{i}", 3, 2))
    assert [len(step.scheduled) for step in run(scheduler)] == [4, 4, 4, 4, 2, 2]


def test_the_prefix_cache_serves_a_follower_in_the_same_step() -> None:
    scheduler = Scheduler(KVCacheManager(64, 4))
    for name in "AB":
        scheduler.add_request(Request(name, [*range(64), ord(name)], SamplingParams(max_tokens=1)))
    assert composition(run(scheduler)) == [{"A": 65, "B": 1}]


@pytest.mark.parametrize(("caching", "total"), [(False, 544), (True, 96)])
def test_prefix_caching_saves_the_tokens_that_the_law_predicts(caching: bool, total: int) -> None:
    """Eight prompts of 65 tokens that share 64, four new tokens each, blocks of 4."""
    scheduler = Scheduler(KVCacheManager(256, 4, enable_caching=caching))
    for i in range(8):
        scheduler.add_request(Request(str(i), [*range(64), 100 + i], SamplingParams(max_tokens=4)))
    assert sum(step.total_num_scheduled_tokens for step in run(scheduler)) == total


def test_preemption_happens_and_the_victim_finishes() -> None:
    """Two requests of 8 + 9 tokens need 8 blocks at their longest; 4 are there."""
    scheduler = Scheduler(KVCacheManager(5, 4))
    requests = [make_request(name, 8, 9) for name in "AB"]
    for item in requests:
        scheduler.add_request(item)
    steps = run(scheduler)
    assert sum(len(step.preempted) for step in steps) > 0
    assert [item.num_output_tokens for item in requests] == [9, 9]
    assert requests[1].num_preemptions > 0
    assert scheduler.kv_cache_manager.block_pool.num_free_blocks == 4


def test_a_preempted_request_finds_its_own_prefix_in_the_cache() -> None:
    scheduler = Scheduler(KVCacheManager(7, 4))
    first, second = make_request("A", 8, 9), make_request("B", 8, 9)
    scheduler.add_request(first)
    scheduler.add_request(second)
    run(scheduler)
    assert second.num_preemptions > 0
    assert second.num_cached_tokens > 0


def test_nothing_is_admitted_in_a_step_that_preempts() -> None:
    scheduler = Scheduler(KVCacheManager(6, 4, enable_caching=False))
    for name in "ABC":
        scheduler.add_request(make_request(name, 8, 9))
    steps = run(scheduler)
    preempting = [step for step in steps if step.preempted]
    assert preempting
    for step in preempting:
        assert all(entry.request.num_computed_tokens > 0 for entry in step.scheduled)


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    scheduler = Scheduler(KVCacheManager(5, 4))
    scheduler.add_request(make_request("fits", 8, 9))  # 16 tokens need slots; 16 are there
    with pytest.raises(ValueError, match=r"17 tokens .* can hold 16"):
        scheduler.add_request(make_request("long", 8, 10))
    assert [item.request_id for item in scheduler.waiting] == ["fits"]


def test_the_model_length_limits_a_request_too() -> None:
    scheduler = Scheduler(KVCacheManager(50, 4), max_model_len=10)
    with pytest.raises(ValueError, match="can hold 10"):
        scheduler.add_request(make_request("long", 9, 3))


def test_abort_frees_a_running_and_a_waiting_request() -> None:
    scheduler = Scheduler(KVCacheManager(64, 4), max_num_seqs=1)
    running, waiting = make_request("A", 9, 4), make_request("B", 9, 4)
    scheduler.add_request(running)
    scheduler.add_request(waiting)
    scheduler.update_from_output(scheduler.schedule(), {"A": [1]})
    scheduler.abort(waiting)
    scheduler.abort(running)
    scheduler.abort(running)
    assert not scheduler.has_unfinished_requests()
    assert running.status is RequestStatus.FINISHED_ABORTED
    assert scheduler.kv_cache_manager.block_pool.num_free_blocks == 63


@settings(max_examples=60)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 24), st.integers(1, 12)), min_size=1, max_size=8),
    num_blocks=st.integers(10, 40),
    block_size=st.integers(2, 5),
    budget=st.integers(1, 40),
    max_num_seqs=st.integers(1, 6),
    threshold=st.sampled_from([0, 3, 16]),
    caching=st.booleans(),
)
def test_every_request_gets_every_token_whatever_the_limits(
    lengths: list[tuple[int, int]],
    num_blocks: int,
    block_size: int,
    budget: int,
    max_num_seqs: int,
    threshold: int,
    caching: bool,
) -> None:
    manager = KVCacheManager(num_blocks, block_size, caching)
    scheduler = Scheduler(manager, max_num_seqs, budget, threshold)
    requests = []
    for i, (prompt, new) in enumerate(lengths):
        item = make_request(chr(65 + i), prompt, new)
        if item.max_num_tokens <= manager.capacity:
            scheduler.add_request(item)
            requests.append(item)
    steps = run(scheduler)
    scheduled: dict[str, int] = dict.fromkeys((item.request_id for item in requests), 0)
    for step in steps:
        for name, count in step.num_scheduled_tokens.items():
            scheduled[name] += count
    for item in requests:
        assert item.num_output_tokens == item.sampling_params.max_tokens
        if not item.num_preemptions:  # conservation: prompt + output - 1, less what was cached
            assert scheduled[item.request_id] == item.max_num_tokens - item.num_cached_tokens
    assert manager.block_pool.num_free_blocks == num_blocks - 1
