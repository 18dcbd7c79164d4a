"""Routers: nothing is lost, nobody dead is asked, and prefixes go where they were."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab.engine.router import CacheAware, PowerOfTwo, RandomChoice, RoundRobin

ROUTERS = [RoundRobin, RandomChoice, PowerOfTwo, CacheAware]
# What happens to a router: a prompt comes, an answer is complete, a worker dies.
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("route"), st.lists(st.integers(0, 2), min_size=1, max_size=8)),
        st.tuples(st.just("finish"), st.integers(0, 10)),
        st.tuples(st.just("lose"), st.integers(0, 3)),
    ),
    max_size=40,
)


@pytest.mark.parametrize("router_class", ROUTERS)
@given(events=EVENTS)
def test_every_request_is_in_the_load_of_one_live_worker(router_class, events) -> None:
    router = router_class(4)
    in_flight: list[int] = []
    for event, value in events:
        if event == "route" and router.loads:
            worker = router.route(value)
            assert worker in router.loads
            in_flight.append(worker)
        elif event == "finish" and in_flight:
            router.finish(in_flight.pop(value % len(in_flight)))
        elif event == "lose" and value in router.loads:
            router.lose(value)
            in_flight = [worker for worker in in_flight if worker != value]
        assert router.loads == {worker: in_flight.count(worker) for worker in router.loads}


@pytest.mark.parametrize("router_class", ROUTERS)
def test_without_workers_there_is_an_error_that_says_so(router_class) -> None:
    router = router_class(1)
    router.lose(0)
    router.finish(0)
    with pytest.raises(RuntimeError, match="No worker is alive"):
        router.route([1])
    with pytest.raises(ValueError, match="at least 1 worker and got 0"):
        router_class(0)


def test_turns_go_round_over_those_that_live() -> None:
    router = RoundRobin(3)
    assert [router.route([1]) for _ in range(4)] == [0, 1, 2, 0]
    router.lose(1)
    assert [router.route([1]) for _ in range(3)] == [2, 0, 2]


def test_the_less_busy_of_two_never_gets_busier_than_by_chance() -> None:
    def spread(router) -> int:
        for _ in range(2000):
            router.route([1])
        return max(router.loads.values()) - min(router.loads.values())

    # With random choice the spread grows like the square root, with two choices hardly at all.
    assert spread(PowerOfTwo(8)) <= 6 < spread(RandomChoice(8))


def test_a_prefix_goes_where_it_was_and_new_ones_to_the_least_busy() -> None:
    router = CacheAware(3)
    first, second = [1] * 100, [2] * 50
    assert router.route([*first, 7]) == 0
    assert router.route([*second, 7]) == 1, "unknown: to a worker that is idle"
    assert router.route([3] * 10) == 2
    assert router.route([*first, 8]) == 0
    assert router.route([*second, 8]) == 1
    # 30 of 101 tokens are below the threshold: a new prompt.
    assert router.route([*first[:30], *[9] * 71]) == 2
    for worker in (0, 0):
        router.finish(worker)
    assert router.route([4] * 10) == 0, "its tree is the largest, but nothing runs there"


def test_unequal_loads_count_more_than_prefixes() -> None:
    router = CacheAware(2, balance_absolute=4, balance_relative=1.5)
    prompt = [1] * 20
    workers = [router.route(prompt) for _ in range(7)]
    assert workers == [0, 0, 0, 0, 0, 1, 0], "with 5 requests more, the other is asked"
    # It has now been given the prefix too: of equals, the first.
    for _ in range(5):
        router.finish(0)
    assert router.loads == {0: 1, 1: 1}
    assert router.route(prompt) == 0


def test_a_tree_does_not_grow_for_ever() -> None:
    router = CacheAware(1, max_tree_tokens=100)
    for number in range(50):
        router.route([number] * 30)
    assert router.trees[0].evictable_size <= 100
    assert len(router.trees[0].match_prefix([49] * 30).values) == 30, "the newest is kept"
