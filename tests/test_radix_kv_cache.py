"""The radix tree as the engine's prefix cache: slots, hits to the token, the same tokens."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from inferlab import models
from inferlab.engine import LLM, KVCacheManager, Request, SamplingParams, Scheduler
from inferlab.engine.radix_kv_cache import RadixKVCacheManager
from tests.oracle import MAX_NEW_TOKENS, disagreements, prompts
from tests.test_radix_cache import check_invariants, nodes
from tests.toy_engine import PROMPTS, ToyEngine, make_request

REQUESTS = st.lists(
    st.tuples(PROMPTS, st.integers(1, 8), st.sampled_from(["", "", "tenant"])),
    min_size=1,
    max_size=8,
)
Specification = list[tuple[list[int], int, str]]


def requests_of(specification: Specification) -> list[Request]:
    return [
        make_request(str(number), prompt, max_tokens, cache_salt=salt)
        for number, (prompt, max_tokens, salt) in enumerate(specification)
    ]


def check_slots(manager: RadixKVCacheManager, running: list[Request]) -> None:
    """Every slot is free, or in the tree, or private to one request; what is in use is locked."""
    check_invariants(manager.tree)
    in_tree = [slot for node in nodes(manager.tree) for slot in node.values]
    locked = {slot for n in nodes(manager.tree) if n.lock_count for slot in n.values}
    private = []
    for request in running:
        table = manager.block_table(request.request_id)
        assert locked >= set(table) & set(in_tree)
        private += [slot for slot in table if slot not in set(in_tree)]
    everything = sorted([*manager._free, *in_tree, *private])
    assert everything == list(range(1, manager.num_blocks))
    if not running:
        assert manager.tree.protected_size == 0


def prefill(manager: RadixKVCacheManager | KVCacheManager, request: Request) -> int:
    """Admit a request and mark all its tokens computed; returns the tokens it found cached."""
    hit = manager.get_computed_blocks(request)
    slots = manager.allocate_slots(request, request.num_tokens - hit.num_tokens, hit.blocks)
    assert slots is not None
    request.num_computed_tokens = request.num_tokens
    return hit.num_tokens


@settings(max_examples=100)
@given(
    REQUESTS, st.integers(16, 60), st.integers(1, 40), st.integers(1, 6), st.sampled_from([0, 3])
)
def test_any_requests_get_the_same_tokens_as_from_the_hashed_cache(
    specification: Specification, num_blocks: int, budget: int, max_num_seqs: int, threshold: int
) -> None:
    outputs = []
    for manager in (
        RadixKVCacheManager(num_blocks),
        KVCacheManager(num_blocks, 1),
        KVCacheManager(num_blocks, 1, enable_caching=False),
    ):
        engine = ToyEngine(Scheduler(manager, max_num_seqs, budget, threshold))
        outputs.append(engine.run(requests_of(specification)))
        assert manager.num_free_blocks == num_blocks - 1
    assert outputs[0] == outputs[1] == outputs[2]


@settings(max_examples=60)
@given(REQUESTS, st.integers(16, 40), st.integers(1, 20))
def test_no_slot_is_lost_or_shared_by_mistake_at_any_step(
    specification: Specification, num_blocks: int, budget: int
) -> None:
    manager = RadixKVCacheManager(num_blocks)
    engine = ToyEngine(Scheduler(manager, 4, budget))
    for request in requests_of(specification):
        if request.max_num_tokens <= manager.capacity:
            engine.scheduler.add_request(request)
    while engine.scheduler.has_unfinished_requests():
        engine.step()
        check_slots(manager, engine.scheduler.running)
    assert manager.num_free_blocks == manager.capacity


def crowd(manager: KVCacheManager | RadixKVCacheManager) -> ToyEngine:
    """Six requests of 8 + 9 tokens that share 4, in a cache that holds two at their longest."""
    engine = ToyEngine(Scheduler(manager))
    for i in range(6):
        engine.scheduler.add_request(make_request(str(i), [7, 7, 7, 7, i, i, i, i], 9))
    while engine.scheduler.has_unfinished_requests():
        engine.step()
        if isinstance(manager, RadixKVCacheManager):
            check_slots(manager, engine.scheduler.running)
    return engine


def test_preemption_happens_and_leaves_what_was_computed_to_the_tree() -> None:
    radix, without = crowd(RadixKVCacheManager(33)), crowd(KVCacheManager(33, 1, False))
    assert radix.num_preemptions > 0
    resumed = [
        entry.request.num_cached_tokens
        for step in radix.steps
        for entry in step.scheduled
        if entry.request.num_preemptions
    ]
    # The whole prompt, not only the four tokens that all share. The output is one leaf: of it
    # eviction leaves nothing, however little was needed.
    assert max(resumed) == 8
    assert without.num_preemptions > 0
    assert radix.num_computed_tokens < without.num_computed_tokens


@pytest.mark.parametrize(
    ("manager", "hit"), [(KVCacheManager(64, 16), 0), (RadixKVCacheManager(64), 8)], ids=str
)
def test_a_shared_prefix_of_eight_tokens_is_hit_to_the_token(
    manager: KVCacheManager | RadixKVCacheManager, hit: int
) -> None:
    first, second = (make_request(n, [*range(8), *[ord(n)] * 12], 1) for n in "AB")
    assert prefill(manager, first) == 0
    manager.free(first)
    assert prefill(manager, second) == hit


def test_the_last_token_is_always_computed_anew() -> None:
    manager = RadixKVCacheManager(64)
    first, twin = make_request("A", range(10), 1), make_request("B", range(10), 1)
    prefill(manager, first)
    manager.free(first)
    assert prefill(manager, twin) == 9
    assert manager.block_table("A") == []
    assert len(manager.block_table("B")) == 10
    check_slots(manager, [twin])
    manager.free(twin)  # its tenth slot is a duplicate
    assert manager.tree.evictable_size == 10


def test_a_prompt_is_shared_as_soon_as_it_is_computed_and_not_before() -> None:
    """Waiting for the first to end would be no use to those that run beside it."""
    scheduler = Scheduler(RadixKVCacheManager(200))
    engine = ToyEngine(scheduler)
    for name in "AB":
        scheduler.add_request(make_request(name, [*range(40), ord(name)], 5))
    assert engine.step().num_scheduled_tokens == {"A": 41, "B": 41}  # at once: no copy to share
    scheduler.add_request(make_request("C", [*range(40), 9], 5))
    assert engine.step().num_scheduled_tokens == {"A": 1, "B": 1, "C": 1}
    tables = [scheduler.kv_cache_manager.block_table(name)[:40] for name in "ABC"]
    assert tables[2] == tables[0] != tables[1]
    while scheduler.has_unfinished_requests():
        engine.step()
    manager = scheduler.kv_cache_manager
    assert isinstance(manager, RadixKVCacheManager)
    check_slots(manager, [])
    assert len(manager._free) == 199 - manager.tree.evictable_size
    assert manager.tree.evictable_size == 40 + 3 * 5  # one prefix, three tails of 1 + 4 tokens


def test_decoding_adds_no_node_a_token() -> None:
    scheduler = Scheduler(manager := RadixKVCacheManager(200))
    scheduler.add_request(make_request("A", range(20), 50))
    engine = ToyEngine(scheduler)
    while scheduler.has_unfinished_requests():
        engine.step()
        assert len(list(nodes(manager.tree))) <= 2


def test_a_refusal_changes_nothing_and_leaves_no_lock() -> None:
    manager = RadixKVCacheManager(12)
    first = make_request("A", range(8), 1)
    prefill(manager, first)
    manager.free(first)
    longer = make_request("B", range(14), 1)
    hit = manager.get_computed_blocks(longer)
    assert hit.num_tokens == 8
    assert manager.allocate_slots(longer, 6, hit.blocks) is None
    assert manager.allocate_slots(longer, 1, hit.blocks, full_sequence_must_fit=True) is None
    assert (manager.tree.protected_size, manager.num_free_blocks) == (0, 11)
    assert manager.allocate_slots(longer, 3, hit.blocks) is not None
    assert manager.num_free_blocks == 0  # the hit itself is no room


def test_a_hit_is_never_evicted_for_the_request_that_hits_it() -> None:
    manager = RadixKVCacheManager(12)
    for name, first in (("old", 0), ("other", 100)):
        request = make_request(name, range(first, first + 5), 1)
        prefill(manager, request)
        manager.free(request)
    again = make_request("again", range(8), 1)
    assert prefill(manager, again) == 5  # three more slots: one is free, "other" goes
    assert manager.get_computed_blocks(make_request("x", range(100, 106), 1)).num_tokens == 0
    check_slots(manager, [again])


def test_rejected_drafts_give_their_slots_back() -> None:
    manager = RadixKVCacheManager(32)
    request = make_request("A", range(6), 8)
    prefill(manager, request)
    request.append_output_token(9)
    request.draft_token_ids = [1, 2, 3]
    assert manager.allocate_slots(request, 4) is not None
    request.draft_token_ids = []
    request.append_output_token(5)  # none was accepted: one computed token more
    manager.settle(request)
    request.num_computed_tokens = request.num_tokens - 1
    assert len(manager.block_table("A")) == 7
    check_slots(manager, [request])


def test_a_cache_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="no room beside its null block"):
        RadixKVCacheManager(1)


GREEDY = SamplingParams(max_tokens=MAX_NEW_TOKENS, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def asked() -> list[list[int]]:
    """Short prompts, many of them with a common beginning."""
    return [prompt for prompt in prompts(LLM(models.path("tiny-chat"))) if len(prompt) < 60][::4]


@pytest.fixture(scope="module")
def expected(asked: list[list[int]]) -> list[list[int]]:
    """Each prompt with no cache and without preemption."""
    llm = LLM(models.path("tiny-chat"), enable_prefix_caching=False)
    return [completion.token_ids for completion in llm.generate(asked, GREEDY)]


@pytest.mark.parametrize("num_blocks", [256, 8])
def test_the_engine_generates_the_same_tokens_with_a_tree(
    num_blocks: int, asked: list[list[int]], expected: list[list[int]]
) -> None:
    cached = {}
    for prefix_cache in ("hash", "radix"):
        llm = LLM(models.path("tiny-chat"), num_blocks=num_blocks, prefix_cache=prefix_cache)
        assert disagreements(llm, asked, expected) <= 1
        again = llm.generate(asked, GREEDY)
        cached[prefix_cache] = sum(completion.num_cached_tokens for completion in again)
        num_preemptions = sum(completion.num_preemptions for completion in again)
        assert (num_preemptions > 0) == (num_blocks == 8)
        manager = llm.scheduler.kv_cache_manager
        assert manager.num_free_blocks == manager.num_blocks - 1
    if num_blocks == 256:
        assert cached["radix"] > cached["hash"] > 0


def test_another_kind_of_prefix_cache_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="prefix_cache is 'trie'; it has to be 'hash' or 'radix'"):
        LLM(models.path("tiny-chat"), prefix_cache="trie")
