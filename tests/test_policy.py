"""Scheduling policies: the orders, what they save, who is preempted, and that nobody starves."""

from collections.abc import Callable, Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from inferlab.engine import BlockPool, KVCacheManager, Request, Scheduler, SchedulerOutput
from inferlab.engine.kv_cache import CacheManager
from inferlab.engine.policy import (
    MAX_WAITING_TO_MATCH,
    Aged,
    Policy,
    dfs_weight,
    fcfs,
    lpm,
    priority,
    shortest_prefill_first,
)
from inferlab.engine.radix_kv_cache import RadixKVCacheManager
from tests.toy_engine import PROMPTS, ToyEngine, make_request

ANY_CACHE = [fcfs, priority, lpm, shortest_prefill_first]


def names(requests: Sequence[Request]) -> str:
    return "".join(request.request_id for request in requests)


def holding(*sequences: Sequence[int]) -> RadixKVCacheManager:
    """A cache that holds the sequences."""
    manager = RadixKVCacheManager(1000)
    for token_ids in sequences:
        manager.tree.insert(token_ids, token_ids)
    return manager


def test_lpm_puts_the_longest_match_first_and_keeps_equals_in_place() -> None:
    waiting = [
        make_request("A", [900], 1),
        make_request("B", [*range(10), 900], 1),
        make_request("C", [*range(40), 900], 1),
        make_request("D", [901], 1),
        make_request("E", [*range(10), 901], 1),
    ]
    assert names(lpm(waiting, holding(range(50)))) == "CBEAD"


def test_lpm_counts_the_blocks_of_a_hashed_cache_too() -> None:
    manager = KVCacheManager(64, 4)
    first = make_request("first", range(20), 1)
    assert manager.allocate_slots(first, 20) is not None
    first.num_computed_tokens = 20
    waiting = [make_request("A", [7], 1), make_request("B", range(9), 1)]
    assert names(lpm(waiting, manager)) == "BA"


def test_of_those_that_share_an_uncached_prefix_one_goes_and_the_others_wait() -> None:
    """31 tokens are too few to wait for, and what is cached is nothing to wait for."""
    waiting = [
        make_request(name, [*range(first, first + shared), ord(name)], 1)
        for name, first, shared in [
            ("A", 1000, 32), ("B", 1000, 32), ("C", 2000, 31), ("D", 2000, 31), ("E", 0, 40),
            ("F", 0, 40), ("G", 1000, 32),
        ]
    ]  # fmt: skip
    assert names(lpm(waiting, holding(range(100)))) == "EFACDBG"
    assert names(shortest_prefill_first(waiting, holding(range(100)))) == "EFCDABG"


def test_with_too_many_waiting_lpm_leaves_the_order_alone() -> None:
    manager = holding([0])
    waiting = [make_request(str(i), [i, 5], 1) for i in range(MAX_WAITING_TO_MATCH, -1, -1)]
    assert lpm(waiting, manager) == waiting
    assert lpm(waiting[1:], manager) != waiting[1:]


def test_dfs_weight_walks_into_the_heaviest_branch_first() -> None:
    manager = holding([1, 2, 3], [1, 2, 4], [8, 9])
    waiting = [
        make_request(name, token_ids, 1)
        for name, token_ids in [
            ("A", [8, 9, 0]), ("B", [1, 2, 3, 0]), ("C", [5]), ("D", [1, 2, 4, 0]),
            ("E", [1, 2, 0]), ("F", [1, 2, 4, 7]),
        ]
    ]  # fmt: skip
    # Branch 1-2 has four requests, in it 4 has two and 3 one; C matches nothing: the root is last.
    assert names(dfs_weight(waiting, manager)) == "DFBEAC"


def test_dfs_weight_needs_a_tree() -> None:
    with pytest.raises(ValueError, match="KVCacheManager has none"):
        dfs_weight([make_request("A", [1], 1)], KVCacheManager(8, 4))


def test_priority_puts_the_lowest_number_first_and_then_the_earliest() -> None:
    waiting = [
        make_request(name, [1], 1, priority=level, arrival_time=time)
        for name, level, time in [("A", 1, 0.0), ("B", 0, 5.0), ("C", 0, 3.0), ("D", -1, 9.0)]
    ]
    assert names(priority(waiting, holding())) == "DCBA"


@given(st.integers(1, 20), st.randoms())
def test_on_an_unshared_workload_lpm_is_fcfs(num_waiting: int, rng: object) -> None:
    lengths = [rng.randrange(1, 80) for _ in range(num_waiting)]  # type: ignore[attr-defined]
    waiting = [make_request(str(i), [i] * n, 1) for i, n in enumerate(lengths)]
    manager = holding(range(1000, 1100))
    assert lpm(waiting, manager) == fcfs(waiting, manager) == waiting


def computed_tokens(policy: Policy, shared: bool) -> int:
    """Eight groups of four prompts of 60 tokens arrive group by group in turn; room for two."""
    scheduler = Scheduler(RadixKVCacheManager(150), max_num_seqs=2, policy=policy)
    requests = [
        make_request(
            f"{i}-{group}", [*[group if shared else 100 + 8 * i + group] * 50, *[i] * 10], 2
        )
        for i in range(4)
        for group in range(8)
    ]
    engine = ToyEngine(scheduler)
    engine.run(requests)
    assert engine.num_preemptions == 0
    return engine.num_computed_tokens


def test_lpm_computes_less_than_fcfs_where_prefixes_are_shared_and_no_less_where_not() -> None:
    everything = 32 * (60 + 1)
    assert computed_tokens(fcfs, shared=True) == everything  # each prefix is gone by its next turn
    assert computed_tokens(lpm, shared=True) <= everything - 8 * 3 * 50 + 8 * 50
    assert computed_tokens(fcfs, shared=False) == computed_tokens(lpm, shared=False) == everything


def longest_match_only(waiting: Sequence[Request], cache: CacheManager) -> list[Request]:
    return sorted(waiting, key=lambda r: -cache.get_computed_blocks(r).num_tokens)


@pytest.mark.parametrize(
    ("policy", "num_shared"), [(fcfs, 0), (longest_match_only, 0), (lpm, 50)], ids=lambda p: str(p)
)
def test_waiting_for_anothers_prefix_saves_computing_it_twice(
    policy: Policy, num_shared: int
) -> None:
    """A and B share 50 tokens that nobody has computed, C shares nothing; two run at once."""
    scheduler = Scheduler(RadixKVCacheManager(300), max_num_seqs=2, policy=policy)
    engine = ToyEngine(scheduler)
    requests = [make_request(name, [*range(50), ord(name)], 2) for name in "AB"]
    engine.run([*requests, make_request("C", [7] * 51, 2)])
    assert engine.num_computed_tokens == 3 * 52 - num_shared


def step_in_which_room_runs_out(policy: Policy) -> SchedulerOutput:
    """Ten tokens a step, eight of them at most for one request; 12 blocks of 4 tokens.

    L is not urgent and came first. In the fifth step it gets the last two free blocks for 8 tokens;
    then U needs one for its fifth token, and V, in the middle of its prompt, is still to come.
    """
    scheduler = Scheduler(
        KVCacheManager(13, 4),
        max_num_batched_tokens=10,
        long_prefill_token_threshold=8,
        policy=policy,
    )
    engine = ToyEngine(scheduler)
    scheduler.add_request(make_request("L", range(40), 2, priority=5))
    engine.step()
    scheduler.add_request(make_request("U", range(100, 103), 4))
    scheduler.add_request(make_request("V", range(200, 220), 4, priority=1))
    assert engine.step().num_scheduled_tokens == {"L": 8, "U": 2}
    assert engine.step().num_scheduled_tokens == {"L": 8, "U": 1, "V": 1}
    assert engine.step().num_scheduled_tokens == {"L": 8, "U": 1, "V": 1}
    output = engine.step()
    engine.run([])
    return output


def test_a_victim_that_was_scheduled_gives_its_tokens_back_to_the_step() -> None:
    output = step_in_which_room_runs_out(priority)
    assert names(output.preempted) == "L"
    assert output.num_scheduled_tokens == {"U": 1, "V": 8}


@pytest.mark.parametrize("policy", [fcfs, lpm, Aged(priority, 4)])
def test_without_priorities_the_victim_is_the_last_to_be_admitted(policy: Policy) -> None:
    output = step_in_which_room_runs_out(policy)
    assert names(output.preempted) == "V"
    assert output.num_scheduled_tokens == {"L": 8, "U": 1}


def victim_of_the_step_that_would_have_filled_two_blocks() -> int:
    """L is preempted when 8 tokens of it are scheduled; returns what it hits when it is back."""
    scheduler = Scheduler(KVCacheManager(9, 4), long_prefill_token_threshold=8, policy=priority)
    engine = ToyEngine(scheduler)
    late = make_request("L", range(24), 2, priority=5)
    scheduler.add_request(late)
    engine.step()
    scheduler.add_request(make_request("U", range(100, 108), 2))
    engine.step()
    assert names(engine.step().preempted) == "L"
    engine.step()
    return late.num_cached_tokens


def test_what_a_victim_was_about_to_compute_is_not_found_in_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks are indexed when they are scheduled. Control: left so, they are found, and empty."""
    assert victim_of_the_step_that_would_have_filled_two_blocks() == 16
    monkeypatch.setattr(BlockPool, "uncache_blocks", lambda pool, blocks: None)
    with pytest.raises(AssertionError, match="does not hold token 16"):
        victim_of_the_step_that_would_have_filled_two_blocks()


@settings(max_examples=60)
@given(
    specification=st.lists(
        st.tuples(PROMPTS, st.integers(1, 8), st.integers(0, 2)), min_size=1, max_size=8
    ),
    num_tokens=st.integers(16, 60),
    budget=st.integers(1, 30),
    max_num_seqs=st.integers(1, 6),
    threshold=st.sampled_from([0, 3, 16]),
)
def test_a_policy_changes_no_tokens_and_loses_no_request(
    specification: list[tuple[list[int], int, int]],
    num_tokens: int,
    budget: int,
    max_num_seqs: int,
    threshold: int,
) -> None:
    caches: list[tuple[Callable[[], CacheManager], list[Policy]]] = [
        (lambda: KVCacheManager(num_tokens // 4 + 2, 4), ANY_CACHE),
        (lambda: RadixKVCacheManager(num_tokens), [*ANY_CACHE, dfs_weight]),
    ]
    for new_cache, policies in caches:
        outputs = []
        for policy in [*policies, Aged(lpm, 2)]:
            scheduler = Scheduler(new_cache(), max_num_seqs, budget, threshold, policy=policy)
            requests = [
                make_request(str(i), prompt, max_tokens, priority=level, arrival_time=i)
                for i, (prompt, max_tokens, level) in enumerate(specification)
            ]
            outputs.append(ToyEngine(scheduler).run(requests))
            assert scheduler.kv_cache_manager.num_free_blocks == (
                scheduler.kv_cache_manager.num_blocks - 1
            )
        assert all(output == outputs[0] for output in outputs)


def steps_until_admitted(policy: Policy, limit: int) -> int | None:
    """A long prompt waits while a short one arrives in every step; one runs at a time."""
    scheduler = Scheduler(RadixKVCacheManager(100), max_num_seqs=1, policy=policy)
    engine = ToyEngine(scheduler)
    starving = make_request("long", range(50), 1)
    scheduler.add_request(starving)
    for step in range(limit):
        scheduler.add_request(make_request(str(step), [step], 1))
        engine.step()
        if starving.num_output_tokens:
            return step
    return None


def test_a_long_prompt_starves_unless_the_policy_is_aged() -> None:
    assert steps_until_admitted(shortest_prefill_first, limit=300) is None
    assert steps_until_admitted(Aged(shortest_prefill_first, 5), limit=300) == 5


@settings(max_examples=60)
@given(
    arrivals=st.lists(
        st.lists(st.tuples(PROMPTS, st.integers(1, 4)), max_size=4), min_size=1, max_size=25
    ),
    max_overtaken=st.integers(1, 5),
    max_num_seqs=st.integers(1, 4),
)
def test_an_aged_policy_bounds_how_often_a_request_is_overtaken(
    arrivals: list[list[tuple[list[int], int]]], max_overtaken: int, max_num_seqs: int
) -> None:
    policy = Aged(shortest_prefill_first, max_overtaken)
    scheduler = Scheduler(RadixKVCacheManager(500), max_num_seqs, policy=policy)
    engine, arrived = ToyEngine(scheduler), 0
    admitted: list[int] = []
    pending = list(arrivals)
    while pending or scheduler.has_unfinished_requests():
        for prompt, max_tokens in pending.pop(0) if pending else []:
            scheduler.add_request(make_request(str(arrived), prompt, max_tokens))
            arrived += 1
        before = {request.request_id for request in scheduler.running}
        for request, _ in engine.step().scheduled:
            if request.request_id not in before:
                admitted.append(int(request.request_id))
    assert sorted(admitted) == list(range(arrived))
    for place, number in enumerate(admitted):
        overtaken = sum(other > number for other in admitted[:place])
        assert overtaken <= max_overtaken - 1 + max_num_seqs


def test_fcfs_costs_nothing() -> None:
    """The queue is not rebuilt, and no order is computed."""
    scheduler = Scheduler(KVCacheManager(64, 4), max_num_seqs=1)
    queue = scheduler.waiting
    ToyEngine(scheduler).run([make_request(str(i), [i], 2) for i in range(5)])
    assert scheduler.waiting is queue
