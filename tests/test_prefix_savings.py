"""The savings law beside the engine's own manager and beside everything that vLLM counted."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferlab import lab
from inferlab.analysis import hit_tokens, predicted_hits, saved_tokens
from inferlab.analysis.prefix_savings import common_prefix_length
from inferlab.engine import KVCacheManager, Request

# Few tokens, so that prompts agree for a while.
prompts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=24), min_size=1, max_size=12)


def engine_hits(
    sequences: list[list[int]], answers: list[list[int]], block_size: int, salts: list[str]
) -> list[int]:
    """What our manager finds for prompts that come one after another and leave, answered."""
    manager = KVCacheManager(num_blocks=2000, block_size=block_size)
    hits = []
    for number, (prompt, answer, salt) in enumerate(zip(sequences, answers, salts)):
        request = Request(f"{number}", prompt, cache_salt=salt)
        hit = manager.get_computed_blocks(request)
        manager.allocate_slots(request, request.num_tokens - hit.num_tokens, hit.blocks)
        request.num_computed_tokens = request.num_tokens
        for token_id in answer[:-1]:
            request.output_token_ids.append(token_id)
            manager.allocate_slots(request, 1)
            request.num_computed_tokens += 1
        manager.free(request)
        hits.append(hit.num_tokens)
    return hits


@settings(deadline=None)
@given(prompts, st.integers(1, 5), st.randoms(use_true_random=False))
def test_the_engine_hits_what_the_law_predicts(
    sequences: list[list[int]], block_size: int, random: object
) -> None:
    answers = [[random.randrange(3) for _ in range(random.randrange(1, 8))] for _ in sequences]  # type: ignore[attr-defined]
    found = engine_hits(sequences, answers, block_size, [""] * len(sequences))
    assert predicted_hits(sequences, block_size, answers) == found


@settings(deadline=None)
@given(prompts, st.integers(1, 5))
def test_with_salts_the_law_holds_within_each_and_nothing_is_shared_across(
    sequences: list[list[int]], block_size: int
) -> None:
    salts = [f"tenant {number % 3}" for number in range(len(sequences))]
    found = engine_hits(sequences, [[]] * len(sequences), block_size, salts)
    for tenant in range(3):
        assert predicted_hits(sequences[tenant::3], block_size) == found[tenant::3]


@given(st.integers(1, 300), st.integers(0, 300), st.integers(1, 40))
def test_a_hit_is_whole_blocks_and_leaves_the_last_token(
    num_tokens: int, num_shared: int, block_size: int
) -> None:
    num_shared = min(num_shared, num_tokens)
    hit = hit_tokens(num_tokens, num_shared, block_size)
    assert hit % block_size == 0
    assert hit <= num_shared
    assert hit < num_tokens
    assert hit + block_size > min(num_shared, num_tokens - 1), "no further block would do"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 0, 4), "both have to be at least 1"),
        ((8, 4, 0), "both have to be at least 1"),
        ((8, 9, 4), "cannot share 9"),
        ((8, -1, 4), "cannot share -1"),
    ],
)
def test_what_cannot_be_is_refused(arguments: tuple[int, int, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        hit_tokens(*arguments)
    with pytest.raises(ValueError, match=words):
        saved_tokens(3, *arguments)


def test_answers_belong_to_prompts() -> None:
    with pytest.raises(ValueError, match="2 prompts and 1 answers"):
        predicted_hits([[1], [2]], 4, [[1]])
    assert predicted_hits([], 4) == []


def test_the_worked_cases() -> None:
    assert 8 * 68 - saved_tokens(8, 65, 64, 4) == 96
    assert 8 * 67 - saved_tokens(8, 64, 64, 4) == 116
    assert saved_tokens(0, 64, 64, 4) == saved_tokens(1, 64, 64, 4) == 0
    assert common_prefix_length([1, 2, 3], [1, 2]) == 2
    assert common_prefix_length([1, 2, 3], [1, 9, 3]) == 1
    assert common_prefix_length([], [1]) == 0


def test_vllms_manager_hits_what_the_law_predicts() -> None:
    data, answers = lab.upstream_answer("week05/savings")
    admitted = [
        (operation[1].split()[0], operation[2], seen["hit_tokens"])
        for operation, seen in zip(data["operations"], answers, strict=True)
        if operation[0] == "admit"
    ]
    totals = {}
    for kind in ("shared", "identical", "short", "unshared"):
        own = [(prompt, hit) for name, prompt, hit in admitted if name == kind]
        assert len(own) == 8
        assert predicted_hits([prompt for prompt, _ in own], data["block_size"]) == [
            hit for _, hit in own
        ]
        totals[kind] = sum(hit for _, hit in own)
    assert totals == {"shared": 448, "identical": 420, "short": 0, "unshared": 0}


def test_vllms_server_counted_what_the_law_predicts_in_every_repeat() -> None:
    data, lengths = lab.upstream_answer("week05/prefix-repetition")
    table = lab.load("week05/prefix-length")
    met = 0
    for (prefix_tokens, seed), prompts_drawn in zip(data["cases"], lengths, strict=True):
        for block_size in (32, 128):
            where = {"block_size": block_size, "prefix_repetition_prefix_len": prefix_tokens}
            law = sum(hit_tokens(tokens, shared, block_size) for tokens, shared in prompts_drawn)
            assert law == table.repeats("prefix_cache_hits_tokens", **where)[seed]
            queries = table.repeats("prefix_cache_queries_tokens", **where)[seed]
            assert sum(tokens for tokens, _ in prompts_drawn) == queries
            met += 1
    assert met == 24


def test_the_agent_loop_was_counted_as_the_law_says() -> None:
    lengths = [128 + 96 * turn for turn in range(8)]
    law = 8 * sum(hit_tokens(own, former, 32) for own, former in zip(lengths, [0, *lengths]))
    table = lab.load("week05/agent-loop")
    where = {"workload": "agent-loop", "enable_prefix_caching": True}
    assert table.repeats("prefix_cache_hits_tokens", **where) == [law] * 3 == [23296] * 3
    assert table.repeats("prefix_cache_queries_tokens", **where) == [8 * sum(lengths)] * 3
