"""Speculation changes the number of steps, and nothing that can be seen in the output.

Differences from vLLM on purpose: a draft model samples its drafts as the request samples (vLLM's
default is greedy drafts); blocks of rejected drafts are given back at once (vLLM keeps them until
the request ends); tokens accepted in a request's last step are indexed like all others (vLLM
indexes them in the next step, which that request does not have).
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from copy import copy

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.stats import chi2, ncx2

from inferlab import models
from inferlab.engine import (
    LLM,
    DraftModelProposer,
    KVCacheManager,
    LlamaModel,
    NgramProposer,
    Proposer,
    Request,
    RequestStatus,
    SamplingParams,
    Scheduler,
    SchedulerOutput,
    SequenceChunk,
    hash_block_tokens,
    make_batch,
    speculation,
)
from inferlab.engine.layers import DenseLinear
from inferlab.engine.model import Batch
from inferlab.engine.sampler import draw, token_probabilities
from inferlab.engine.scheduler import ScheduledRequest
from inferlab.engine.speculation import greedy_verify, rejection_sample, residual_distribution
from inferlab.lab import upstream
from inferlab.lab.upstream import SCRIPTS
from tests.oracle import MAX_NEW_TOKENS, disagreements, prompts

TARGET = models.path("tiny-chat")
ALPHA = 1e-6
QUESTION = "<|bos|><|user|>What is 12 + 34?<|end|><|assistant|>"


def draft_model(name: str, num_speculative_tokens: int = 3) -> DraftModelProposer:
    model = LlamaModel.from_pretrained(models.path(name))
    return DraftModelProposer(model, num_speculative_tokens)


def proposer(name: str, num_speculative_tokens: int = 3) -> Proposer:
    if name == "ngram":
        return NgramProposer(1, 4, num_speculative_tokens)
    return draft_model(name, num_speculative_tokens)


# --- the n-gram proposer


def slow_propose(tokens: list[int], min_n: int, max_n: int, k: int) -> list[int]:
    """The definition, word for word: longest match first, then the earliest."""
    for n in range(max_n, min_n - 1, -1):
        for start in range(len(tokens) - n):
            if tokens[start : start + n] == tokens[len(tokens) - n :]:
                return tokens[start + n : start + n + k]
    return []


@settings(max_examples=300)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(1, 6),
)
def test_the_ngram_proposer_is_its_definition(
    tokens: list[int], min_n: int, extra: int, k: int
) -> None:
    expected = slow_propose(tokens, min_n, min_n + extra, k)
    assert NgramProposer(min_n, min_n + extra, k).propose(tokens) == expected


@pytest.mark.parametrize(
    ("tokens", "drafts"),
    [
        ([1, 2, 3, 9, 1, 2], [3, 9, 1]),
        ([7, 2, 5, 1, 2, 6, 1, 2], [6, 1, 2]),  # the longer match, though a shorter comes earlier
        ([1, 2, 5, 8, 1, 2, 6, 9, 1, 2], [5, 8, 1]),  # of two equally long ones the first
        ([4, 4], [4]),  # a match may overlap the end, and what follows it may be short
        ([1, 2, 3, 4], []),
        ([1], []),
    ],
)
def test_ngram_drafts_by_hand(tokens: list[int], drafts: list[int]) -> None:
    assert NgramProposer(1, 3, 3).propose(tokens) == drafts


class LatestMatch(NgramProposer):
    """Wrong on purpose: the most recent match instead of the earliest."""

    def propose(self, token_ids: Sequence[int]) -> list[int]:
        tokens = list(token_ids)
        for n in range(self.max_n, self.min_n - 1, -1):
            for start in range(len(tokens) - n - 1, -1, -1):
                if tokens[start : start + n] == tokens[len(tokens) - n :]:
                    return tokens[start + n : start + n + self.num_speculative_tokens]
        return []


@pytest.mark.engines
@pytest.mark.slow
def test_ngram_drafts_equal_those_of_vllm() -> None:
    rng = np.random.default_rng(0)
    cases = []
    for min_n, max_n, k in [(1, 1, 1), (1, 4, 3), (2, 4, 5), (3, 3, 7), (2, 8, 2)]:
        sequences = [
            rng.integers(0, vocabulary, size=rng.integers(1, 200)).tolist()
            for vocabulary in (2, 3, 8, 640)
            for _ in range(50)
        ]
        for _ in range(50):  # a phrase again and again, with a slip now and then
            phrase = rng.integers(0, 50, size=rng.integers(1, 20)).tolist()
            repeated = (phrase * 20)[: rng.integers(1, 200)]
            for _ in range(rng.integers(0, 3)):
                repeated[rng.integers(len(repeated))] = 99
            sequences.append(repeated)
        shape = {"min_n": min_n, "max_n": max_n, "num_speculative_tokens": k}
        cases.append({**shape, "sequences": sequences})
    theirs = upstream((SCRIPTS / "vllm_ngram_proposer.py").read_text(), {"cases": cases})

    def ours(kind: type[NgramProposer]) -> list[list[list[int]]]:
        return [
            [kind(c["min_n"], c["max_n"], c["num_speculative_tokens"]).propose(s) for s in asked]
            for c in cases
            for asked in [c["sequences"]]
        ]

    assert ours(NgramProposer) == theirs
    assert sum(bool(drafts) for case in theirs for drafts in case) > 500
    assert ours(LatestMatch) != theirs


# --- verification


@given(st.lists(st.integers(0, 4), max_size=7), st.integers(0, 10**6))
def test_greedy_verification_keeps_the_drafts_up_to_the_first_wrong_one(
    drafts: list[int], seed: int
) -> None:
    logits = np.random.default_rng(seed).standard_normal((len(drafts) + 1, 5))
    tokens = greedy_verify(logits, drafts)
    assert tokens == logits.argmax(axis=-1).tolist()[: len(tokens)]
    assert tokens[:-1] == drafts[: len(tokens) - 1]
    ended = len(tokens) - 1
    assert ended == len(drafts) or tokens[-1] != drafts[ended]


def test_all_drafts_right_earn_the_bonus_token() -> None:
    logits = np.eye(5)[[3, 1, 4]]
    assert greedy_verify(logits, [3, 1]) == [3, 1, 4]
    p = np.eye(5)[[3, 1, 4]]
    generator = np.random.default_rng(0)
    assert rejection_sample(p, [3, 1], None, generator) == [3, 1, 4]
    assert rejection_sample(p, [3, 1], list(p[:2]), generator) == [3, 1, 4]


def test_a_draft_that_the_target_never_says_is_always_replaced() -> None:
    p = np.array([[0.0, 0.6, 0.4], [1.0, 0.0, 0.0]])
    generator = np.random.default_rng(0)
    for q in ([np.array([0.9, 0.05, 0.05])], None):
        runs = [rejection_sample(p, [0], q, generator) for _ in range(300)]
        assert {len(run) for run in runs} == {1}
        assert {run[0] for run in runs} == {1, 2}


def test_the_residual_is_what_the_drafts_leave() -> None:
    p, q = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.1, 0.4, 0.2, 0.3])
    assert residual_distribution(p, q).tolist() == [1, 0, 0, 0]
    assert residual_distribution(p, p) is p
    one_hot = np.array([1.0, 0, 0, 0])
    assert residual_distribution(p, one_hot) == pytest.approx([0, 0.6, 0.4, 0])


def chi_square_p_value(draws: Sequence[int], expected: np.ndarray) -> float:
    """Pearson's test; the tokens expected less than five times together make one cell."""
    counts = np.bincount(draws, minlength=len(expected))
    expected = expected * len(draws)
    assert not counts[expected == 0].any(), "a token of probability zero came out"
    rare = expected < 5
    cells = [(counts[i], expected[i]) for i in np.flatnonzero(~rare)]
    if expected[rare].sum() > 0:
        cells.append((counts[rare].sum(), expected[rare].sum()))
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in cells)
    return float(chi2.sf(statistic, len(cells) - 1))


def power(expected: np.ndarray, wrong: np.ndarray, num_draws: int) -> float:
    """Probability that the test at ALPHA notices draws from `wrong` instead of `expected`."""
    if wrong[expected == 0].sum() * num_draws > 50:
        return 1.0  # one such token is enough, and e^-50 of missing them all
    kept = expected * num_draws >= 5
    distance = ((wrong[kept] - expected[kept]) ** 2 / expected[kept]).sum() * num_draws
    degrees = int(kept.sum()) - 1
    return float(ncx2.sf(chi2.isf(ALPHA, degrees), degrees, distance))


def distribution(seed: int, zeros: int = 0, concentration: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(10, concentration))
    probabilities[rng.permutation(10)[:zeros]] = 0
    return probabilities / probabilities.sum()


ONE_HOT = np.eye(10)[4]
CASES = {
    "two of a kind": (distribution(1), distribution(2)),
    "drafts of probability zero": (distribution(3, zeros=5), distribution(4)),
    "tokens never drafted": (distribution(5), distribution(6, zeros=6)),
    "hardly any overlap": (distribution(7, concentration=0.2), distribution(8, concentration=0.2)),
    "drafts that were not drawn": (distribution(9), ONE_HOT),
    "the same": (distribution(10), distribution(10)),
}
NUM_DRAWS = 12_000


def first_tokens(p: np.ndarray, q: np.ndarray, seed: int) -> list[int]:
    """First token of many runs with one draft each."""
    generator = np.random.default_rng(seed)
    rows = np.stack([p, p])
    handed = None if q is ONE_HOT else [q]
    return [
        rejection_sample(rows, [draw(q, generator)], handed, generator)[0] for _ in range(NUM_DRAWS)
    ]


@pytest.mark.parametrize("case", CASES)
def test_rejection_sampling_keeps_the_targets_distribution(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chi-square at 1e-6; both broken variants would be noticed with a probability above 0.999."""
    p, q = CASES[case]
    assert chi_square_p_value(first_tokens(p, q, seed=0), p) > ALPHA
    if p is q or np.array_equal(p, q):
        return  # with nothing to reject the broken variants are right too
    assert power(p, q, NUM_DRAWS) > 0.999
    generator = np.random.default_rng(1)
    accepts_all = [draw(q, generator) for _ in range(NUM_DRAWS)]
    assert noticed(accepts_all, p)
    overlap = np.minimum(p, q)
    assert power(p, overlap + (1 - overlap.sum()) * p, NUM_DRAWS) > 0.999
    monkeypatch.setattr(speculation, "residual_distribution", lambda p, q: p)
    assert noticed(first_tokens(p, q, seed=2), p)


def noticed(draws: Sequence[int], expected: np.ndarray) -> bool:
    try:
        return chi_square_p_value(draws, expected) < ALPHA
    except AssertionError:
        return True


def test_later_positions_and_the_bonus_keep_the_distribution() -> None:
    """Position i of the runs that reach it follows row i, also the one behind the last draft."""
    p = [distribution(seed) for seed in (20, 21, 22)]
    q = [distribution(seed) for seed in (23, 24)]
    generator = np.random.default_rng(0)
    runs = [
        rejection_sample(p, [draw(row, generator) for row in q], q, generator)
        for _ in range(NUM_DRAWS)
    ]
    for i in range(3):
        reached = [run[i] for run in runs if len(run) > i]
        assert len(reached) > 1500
        assert chi_square_p_value(reached, p[i]) > ALPHA
        assert power(p[i], p[(i + 1) % 3], len(reached)) > 0.999


def test_identical_distributions_accept_everything() -> None:
    p = [distribution(30), distribution(31)]
    generator = np.random.default_rng(0)
    runs = [rejection_sample(p, [draw(p[0], generator)], p[:1], generator) for _ in range(500)]
    assert {len(run) for run in runs} == {2}


# --- the scheduler, without a model


def truth(request: Request, position: int) -> int:
    """The token that a made-up target says at a position of a request's sequence."""
    return hash((request.prompt_token_ids[0], position)) % 97


class MadeUpTarget:
    """Drives a scheduler, remembers what each slot holds, and checks the books after every step.

    A slot holds a prefix: the tokens that its K and V depend on. So a block under a hash that is
    not the hash of what its slots hold would be found, and be wrong.
    """

    def __init__(self, scheduler: Scheduler, num_drafts: int, seed: int) -> None:
        self.scheduler = scheduler
        self.num_drafts = num_drafts
        self.rng = np.random.default_rng(seed)
        self.slots: dict[tuple[int, int], tuple[int, ...]] = {}
        self.accepted = self.rejected = self.preempted = 0
        self.stop_after: dict[str, int] = {}

    def run(self, limit: int = 3000) -> None:
        for _ in range(limit):
            if not self.scheduler.has_unfinished_requests():
                return
            self.step()
        raise AssertionError("The scheduler makes no progress: a livelock.")

    def step(self) -> SchedulerOutput:
        output = self.scheduler.schedule()
        self.preempted += len(output.preempted)
        assert output.total_num_scheduled_tokens <= self.scheduler.max_num_batched_tokens
        for victim in output.preempted:
            assert victim.draft_token_ids == []
        for entry in output.scheduled:
            self.write(entry)
        sampled = {
            entry.request.request_id: self.verify(entry)
            for entry in output.scheduled
            if entry.samples
        }
        self.scheduler.update_from_output(output, sampled)
        self.check(sampled)
        return output

    def write(self, entry: ScheduledRequest) -> None:
        """The forward pass: every token of the step goes to its slot, drafts included."""
        request, manager = entry.request, self.scheduler.kv_cache_manager
        size = manager.block_size
        table = manager.block_table(request.request_id)
        drafts = request.draft_token_ids[: entry.num_draft_tokens]
        tokens = request.token_ids(0, request.num_tokens) + drafts
        end = request.num_computed_tokens + entry.num_tokens
        assert end <= request.max_num_tokens
        for i in range(request.num_computed_tokens, end):
            self.slots[table[i // size], i % size] = tuple(tokens[: i + 1])
        # A proposer would write behind them, at most as far as the scheduler looked ahead.
        lookahead = min(self.scheduler.num_lookahead_tokens, request.max_num_tokens - end)
        if entry.samples:
            assert (end + lookahead - 1) // size < len(table)

    def verify(self, entry: ScheduledRequest) -> list[int]:
        """Accept what is true, and draft again: right for a while, then wrong."""
        request = entry.request
        drafts = request.draft_token_ids[: entry.num_draft_tokens]
        tokens = [truth(request, request.num_tokens + i) for i in range(len(drafts) + 1)]
        num_right = next((i for i, t in enumerate(drafts) if t != tokens[i]), len(drafts))
        self.accepted += num_right
        self.rejected += len(drafts) - num_right
        tokens = tokens[: num_right + 1]
        num_right = self.rng.integers(0, self.num_drafts + 1)
        position = request.num_tokens + len(tokens)
        request.draft_token_ids = [
            truth(request, position + i) if i < num_right else 1000
            for i in range(self.rng.integers(0, self.num_drafts + 1))
        ]
        return tokens

    def check(self, sampled: Collection[str]) -> None:
        manager = self.scheduler.kv_cache_manager
        assert isinstance(manager, KVCacheManager)
        size = manager.block_size
        for block in manager.block_pool.blocks:
            if block.block_hash is not None:
                held = [self.slots[block.block_id, offset] for offset in range(size)]
                assert all(held[i] == held[-1][: len(held[i])] for i in range(size))
                assert chained_hash(held[-1], size) == block.block_hash
        for request in self.scheduler.running:
            table = manager.block_table(request.request_id)
            tokens = request.token_ids(0, request.num_tokens)
            for i in range(request.num_computed_tokens):
                assert self.slots[table[i // size], i % size] == tuple(tokens[: i + 1])
            if request.request_id in sampled:
                assert request.num_computed_tokens == request.num_tokens - 1
                if not request.draft_token_ids:
                    assert len(table) == -(-request.num_computed_tokens // size)


def chained_hash(tokens: Sequence[int], block_size: int) -> bytes:
    block_hash = None
    for start in range(0, len(tokens), block_size):
        block_hash = hash_block_tokens(block_hash, tokens[start : start + block_size])
    assert block_hash is not None
    return block_hash


def cached_hashes(manager: KVCacheManager) -> set[bytes]:
    return {b.block_hash for b in manager.block_pool.blocks if b.block_hash is not None}


def requests_of(lengths: Sequence[tuple[int, int]]) -> list[Request]:
    return [
        Request(str(i), list(range(100 * i, 100 * i + prompt)), SamplingParams(max_tokens=new))
        for i, (prompt, new) in enumerate(lengths)
    ]


LENGTHS = st.lists(st.tuples(st.integers(1, 24), st.integers(1, 16)), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(
    lengths=LENGTHS,
    num_blocks=st.integers(10, 40),
    block_size=st.integers(1, 5),
    budget=st.integers(1, 40),
    max_num_seqs=st.integers(1, 6),
    threshold=st.sampled_from([0, 3, 16]),
    num_drafts=st.integers(0, 7),
    looks_ahead=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_books_are_right_after_every_step_whatever_is_drafted(
    lengths: list[tuple[int, int]],
    num_blocks: int,
    block_size: int,
    budget: int,
    max_num_seqs: int,
    threshold: int,
    num_drafts: int,
    looks_ahead: bool,
    seed: int,
) -> None:
    manager = KVCacheManager(num_blocks, block_size)
    scheduler = Scheduler(
        manager,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        long_prefill_token_threshold=threshold,
        num_lookahead_tokens=num_drafts if looks_ahead else 0,
    )
    target = MadeUpTarget(scheduler, num_drafts, seed)
    asked = [item for item in requests_of(lengths) if item.max_num_tokens <= manager.capacity]
    for item in asked:
        scheduler.add_request(item)
    target.run()
    for item in asked:
        first, last = item.num_prompt_tokens, item.num_prompt_tokens + item.num_output_tokens
        assert item.num_output_tokens == item.sampling_params.max_tokens
        assert item.output_token_ids == [truth(item, i) for i in range(first, last)]
    assert manager.num_free_blocks == num_blocks - 1


@pytest.mark.parametrize("num_lookahead_tokens", [0, 5])
def test_a_cramped_pool_preempts_and_the_books_stay_right(num_lookahead_tokens: int) -> None:
    manager = KVCacheManager(12, 4)
    scheduler = Scheduler(manager, num_lookahead_tokens=num_lookahead_tokens)
    target = MadeUpTarget(scheduler, num_drafts=5, seed=0)
    for item in requests_of([(10, 20), (9, 20), (12, 15), (3, 30)]):
        scheduler.add_request(item)
    target.run()
    assert target.preempted > 0
    assert target.accepted > 10
    assert target.rejected > 10
    assert manager.num_free_blocks == 11


@pytest.mark.parametrize("seed", range(5))
def test_what_is_cached_in_the_end_is_what_is_cached_without_speculation(seed: int) -> None:
    pools = []
    for num_drafts in (0, 6):
        manager = KVCacheManager(200, 4)
        scheduler = Scheduler(manager, num_lookahead_tokens=num_drafts)
        target = MadeUpTarget(scheduler, num_drafts, seed)
        for item in requests_of([(10, 21), (3, 30), (17, 9), (8, 1)]):
            scheduler.add_request(item)
        target.run()
        pools.append((cached_hashes(manager), manager.num_free_blocks))
    assert target.accepted > 5
    assert target.rejected > 5
    assert pools[0] == pools[1]


class RejectedStayIndexed(KVCacheManager):
    """Wrong on purpose: full blocks are indexed with the drafts in them, before verification."""

    def allocate_slots(self, request, num_new_tokens, *rest, **named):  # type: ignore[no-untyped-def]
        drafts = request.draft_token_ids
        request.output_token_ids += drafts
        blocks = super().allocate_slots(request, num_new_tokens, *rest, **named)
        del request.output_token_ids[request.num_output_tokens - len(drafts) :]
        return blocks


def test_a_manager_that_indexes_drafts_is_caught() -> None:
    """Control for the two tests above."""
    scheduler = Scheduler(RejectedStayIndexed(60, 4))
    target = MadeUpTarget(scheduler, num_drafts=6, seed=0)
    for item in requests_of([(10, 21), (3, 30)]):
        scheduler.add_request(item)
    with pytest.raises(AssertionError):
        target.run()


def started(scheduler: Scheduler, item: Request, first_token: int = 50) -> None:
    scheduler.add_request(item)
    scheduler.update_from_output(scheduler.schedule(), {item.request_id: [first_token]})


def test_a_step_schedules_the_drafts_and_takes_back_what_was_rejected() -> None:
    manager = KVCacheManager(64, 4)
    scheduler = Scheduler(manager)
    (item,) = requests_of([(6, 20)])
    started(scheduler, item)
    item.draft_token_ids = [1, 2, 3, 4, 5]
    output = scheduler.schedule()
    (entry,) = output.scheduled
    assert (entry.num_tokens, entry.num_draft_tokens, entry.samples) == (6, 5, True)
    assert len(manager.block_table("0")) == 3  # slots for 12 tokens
    item.draft_token_ids = []
    scheduler.update_from_output(output, {"0": [1, 9]})
    assert (item.num_computed_tokens, item.num_tokens) == (8, 9)
    assert item.output_token_ids == [50, 1, 9]
    assert len(manager.block_table("0")) == 2  # for the 8 tokens that are computed


@pytest.mark.parametrize(
    ("budget", "threshold", "max_tokens", "scheduled"),
    [
        (100, 0, 20, 6),
        (4, 0, 20, 4),  # the budget cuts the drafts
        (100, 3, 20, 3),  # so does the threshold of long prefills
        (100, 0, 4, 3),  # 1 token out, 3 to come: two drafts and the token after them
        (100, 0, 2, 1),  # the last token needs no draft
    ],
)
def test_limits_cut_the_drafts(
    budget: int, threshold: int, max_tokens: int, scheduled: int
) -> None:
    manager = KVCacheManager(64, 4)
    scheduler = Scheduler(manager, 8, budget, threshold)
    (item,) = requests_of([(3, max_tokens)])
    started(scheduler, item)
    item.draft_token_ids = [1, 2, 3, 4, 5]
    (entry,) = scheduler.schedule().scheduled
    assert entry.num_tokens == scheduled


def test_the_model_length_limits_the_drafts() -> None:
    scheduler = Scheduler(KVCacheManager(64, 4), max_model_len=9, num_lookahead_tokens=5)
    (item,) = requests_of([(6, 4)])  # 9 tokens may need K and V
    started(scheduler, item)
    item.draft_token_ids = [1, 2, 3, 4, 5]
    (entry,) = scheduler.schedule().scheduled
    assert item.num_computed_tokens + entry.num_tokens == 9


@pytest.mark.parametrize(
    ("params", "sampled", "kept", "status"),
    [
        (SamplingParams(20), [1, 2, 3], [1, 2], RequestStatus.FINISHED_STOPPED),
        (SamplingParams(20, stop_token_ids=(1,)), [1, 2, 3], [1], RequestStatus.FINISHED_STOPPED),
        (SamplingParams(20, ignore_eos=True), [1, 2, 3], [1, 2, 3], RequestStatus.RUNNING),
        (SamplingParams(3, ignore_eos=True), [1, 2, 3], [1, 2], RequestStatus.FINISHED_LENGTH),
        (SamplingParams(3), [1, 2, 3], [1, 2], RequestStatus.FINISHED_STOPPED),
    ],
)
def test_a_run_ends_where_the_request_ends(
    params: SamplingParams, sampled: list[int], kept: list[int], status: RequestStatus
) -> None:
    """The end token is 2, in the middle of what was accepted; the rest is dropped."""
    manager = KVCacheManager(64, 4)
    scheduler = Scheduler(manager, num_lookahead_tokens=3)
    item = Request("0", [7] * 6, params, eos_token_id=2)
    started(scheduler, item)
    item.draft_token_ids = [1, 2]
    finished = scheduler.update_from_output(scheduler.schedule(), {"0": sampled})
    assert item.output_token_ids == [50, *kept]
    assert item.status is status
    assert (finished == [item]) is status.is_finished
    assert status is RequestStatus.RUNNING or manager.num_free_blocks == 63


def test_preemption_drops_the_drafts() -> None:
    scheduler = Scheduler(KVCacheManager(7, 4))
    first, second = requests_of([(8, 9), (8, 9)])
    scheduler.add_request(first)
    scheduler.add_request(second)
    scheduler.update_from_output(scheduler.schedule(), {"0": [50], "1": [50]})
    first.draft_token_ids = [1, 2, 3, 4, 5]
    second.draft_token_ids = [1, 2, 3, 4, 5]
    output = scheduler.schedule()
    assert output.preempted == [second]
    assert second.draft_token_ids == []
    assert second.num_computed_tokens == 0


# --- the whole engine


@pytest.fixture(scope="module")
def asked() -> list[list[int]]:
    """Some of the oracle's prompts, none longer than 257 tokens."""
    return [prompt for prompt in prompts(LLM(TARGET)) if len(prompt) <= 257][::5]


@pytest.fixture(scope="module")
def expected(asked: list[list[int]]) -> list[list[int]]:
    params = SamplingParams(max_tokens=MAX_NEW_TOKENS, temperature=0, ignore_eos=True)
    return [completion.token_ids for completion in LLM(TARGET).generate(asked, params)]


def watched(**options: object) -> tuple[LLM, Counter[str]]:
    """An engine, and counts of its steps, of preemptions and of requests computed."""
    seen: Counter[str] = Counter()

    def watch(output: SchedulerOutput) -> None:
        seen["steps"] += 1
        seen["preempted"] += len(output.preempted)
        seen["tokens"] += output.total_num_scheduled_tokens

    return LLM(TARGET, on_schedule=watch, **options), seen  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["ngram", "tiny-draft", "tiny-draft-weak", "tiny-chat"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_size": 1, "num_blocks": 6000},
        {"block_size": 32, "max_num_batched_tokens": 48},
        {"long_prefill_token_threshold": 5, "max_num_seqs": 3},
        {"num_blocks": 19},
        {"num_blocks": 19, "enable_prefix_caching": False},
        {"prefix_cache": "radix"},
    ],
    ids=str,
)
def test_greedy_tokens_are_those_without_speculation(
    name: str,
    options: dict[str, object],
    asked: list[list[int]],
    expected: list[list[int]],
) -> None:
    llm, seen = watched(proposer=proposer(name), **options)
    free = llm.scheduler.kv_cache_manager.num_free_blocks
    assert disagreements(llm, asked, expected) <= 1
    accepted = sum(count * drafts[1] for drafts, count in llm.verifications.items())
    assert accepted > 50
    assert llm.scheduler.kv_cache_manager.num_free_blocks == free
    if options.get("num_blocks") == 19:
        assert seen["preempted"] > 0


def test_greedy_tokens_of_a_mixture_of_experts_are_those_without_speculation() -> None:
    checkpoint = models.path("tiny-moe")
    llm = LLM(checkpoint, proposer=NgramProposer(1, 4, 3))
    question = llm.tokenizer.encode(QUESTION).ids
    asked = [question, question * 3, list(range(6, 60))]
    params = SamplingParams(max_tokens=MAX_NEW_TOKENS, temperature=0, ignore_eos=True)
    expected = [c.token_ids for c in LLM(checkpoint).generate(asked, params)]
    assert disagreements(llm, asked, expected) == 0
    assert any(accepted for _, accepted in llm.verifications)


@pytest.mark.parametrize("k", range(1, 8))
def test_the_target_as_its_own_drafter_saves_exactly_the_steps_that_it_can(k: int) -> None:
    llm, seen = watched(proposer=draft_model("tiny-chat", k))
    params = SamplingParams(max_tokens=25, temperature=0, ignore_eos=True)
    (completion,) = llm.generate([QUESTION], params)
    assert completion.token_ids == LLM(TARGET).generate([QUESTION], params)[0].token_ids
    assert all(drafted == accepted for drafted, accepted in llm.verifications)
    # One token with the prompt, then k + 1 a step.
    assert seen["steps"] == 1 - (-24 // (k + 1))


def test_penalties_count_the_accepted_drafts() -> None:
    """With them the text does not repeat, so a verification that ignored them would differ."""
    params = SamplingParams(
        max_tokens=30,
        temperature=0,
        ignore_eos=True,
        frequency_penalty=1.0,
        presence_penalty=0.5,
        repetition_penalty=1.2,
    )
    plain = LLM(TARGET).generate([QUESTION], params)[0].token_ids
    for name in ("ngram", "tiny-chat"):
        llm = LLM(TARGET, proposer=proposer(name))
        assert llm.generate([QUESTION], params)[0].token_ids == plain
    assert all(drafted == accepted for drafted, accepted in llm.verifications)
    unpenalised = SamplingParams(max_tokens=30, temperature=0, ignore_eos=True)
    assert LLM(TARGET).generate([QUESTION], unpenalised)[0].token_ids != plain


@pytest.mark.parametrize("k", [2, 7])
def test_the_end_token_inside_an_accepted_run_ends_the_request(k: int) -> None:
    params = SamplingParams(max_tokens=40, temperature=0, logprobs=1)
    (plain,) = LLM(TARGET).generate([QUESTION], params)
    llm = LLM(TARGET, proposer=draft_model("tiny-chat", k))
    request = llm.add_request(QUESTION, params)
    while llm.scheduler.has_unfinished_requests():
        llm.step()
    assert request.output_token_ids == plain.token_ids
    assert request.status is RequestStatus.FINISHED_STOPPED
    assert len(request.logprobs) == len(plain.token_ids)
    verified = sum((accepted + 1) * n for (_, accepted), n in llm.verifications.items())
    assert verified > len(plain.token_ids), "the end token was the last one of its run"
    assert llm.scheduler.kv_cache_manager.num_free_blocks == 511


def test_logprobs_are_those_without_speculation() -> None:
    params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True, logprobs=2)
    both = []
    for name in (None, "ngram"):
        llm = LLM(TARGET, proposer=proposer(name) if name else None)
        request = llm.add_request(QUESTION, params)
        while llm.scheduler.has_unfinished_requests():
            llm.step()
        both.append([entry.logprob for entry in request.logprobs])
    assert any(accepted for _, accepted in llm.verifications)
    assert both[0] == pytest.approx(both[1], abs=1e-4)


@pytest.mark.parametrize("name", ["ngram", "tiny-draft"])
def test_seeded_samples_do_not_depend_on_the_neighbours(name: str, asked: list[list[int]]) -> None:
    """True while the budget and the pool leave the drafts alone, which they do here."""
    params = SamplingParams(max_tokens=16, seed=5, ignore_eos=True)
    others = SamplingParams(max_tokens=16, seed=9, ignore_eos=True)
    alone = LLM(TARGET, proposer=proposer(name)).generate(asked[:1], params)[0].token_ids
    crowd = LLM(TARGET, proposer=proposer(name), num_blocks=2048)
    together = crowd.generate(asked[:6], [params] + [others] * 5)[0].token_ids
    assert together == alone
    assert any(drafted for drafted, _ in crowd.verifications)


def test_an_abort_between_drafts_and_verification_frees_everything() -> None:
    for name in ("ngram", "tiny-draft"):
        llm = LLM(TARGET, proposer=proposer(name))
        params = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
        request = llm.add_request([5, 6, 7, 8] * 5, params)
        other = llm.add_request([9, 8, 7, 9, 8] * 3, params)
        while not request.draft_token_ids:
            llm.step()
        llm.abort(request.request_id)
        while llm.scheduler.has_unfinished_requests():
            llm.step()
        assert other.num_output_tokens == 60
        assert llm.scheduler.kv_cache_manager.num_free_blocks == 511


def test_a_proposer_that_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="0 drafts were asked for"):
        NgramProposer(1, 2, 0)
    with pytest.raises(ValueError, match="0 drafts were asked for"):
        draft_model("tiny-draft", 0)
    with pytest.raises(ValueError, match="min_n is 3 and max_n 2"):
        NgramProposer(3, 2, 1)
    with pytest.raises(ValueError, match="min_n is 0"):
        NgramProposer(0, 2, 1)
    small = draft_model("tiny-draft")
    small.model.config = copy(small.model.config)
    object.__setattr__(small.model.config, "vocab_size", 500)
    with pytest.raises(ValueError, match="vocab_size is 500; the target's is 640"):
        LLM(TARGET, proposer=small)


# --- the drafter follows the target

DRAFT = models.path("tiny-draft")


def twin(noise: float, num_speculative_tokens: int = 4) -> DraftModelProposer:
    """tiny-draft as its own drafter: the same K and V, but a head that is often wrong."""
    proposer = draft_model("tiny-draft", num_speculative_tokens)
    assert isinstance(proposer.model.head, DenseLinear)
    weight = proposer.model.head.weight
    rng = np.random.default_rng(0)
    proposer.model.head = DenseLinear(
        weight + noise * weight.std() * rng.standard_normal(weight.shape, dtype=np.float32)
    )
    return proposer


def followed(llm: LLM) -> bool:
    """Whether both caches hold the same wherever a request or the prefix cache can read."""
    manager = llm.scheduler.kv_cache_manager
    assert isinstance(manager, KVCacheManager)
    assert isinstance(llm.proposer, DraftModelProposer)
    size = manager.block_size
    readable = {
        (block.block_id, offset)
        for block in manager.block_pool.blocks
        if block.block_hash is not None
        for offset in range(size)
    }
    for request in llm.scheduler.running:
        table = manager.block_table(request.request_id)
        readable |= {(table[i // size], i % size) for i in range(request.num_computed_tokens)}
    slots = np.array([block * size + offset for block, offset in sorted(readable)], dtype=int)
    target, drafter = llm.kv_cache, llm.proposer.kv_cache
    return all(
        np.allclose(flat_slots(mine)[:, slots], flat_slots(theirs)[:, slots], atol=1e-4)
        for mine, theirs in [(target.keys, drafter.keys), (target.values, drafter.values)]
    )


def flat_slots(cache: np.ndarray) -> np.ndarray:
    """`[num_layers, num_slots, num_kv_heads, head_dim]`."""
    return cache.reshape(len(cache), -1, *cache.shape[3:])


OPTIONS: list[dict[str, int]] = [
    {"block_size": 4},
    {"block_size": 4, "num_blocks": 30},
    {"block_size": 3, "num_blocks": 35, "max_num_batched_tokens": 19},
    {"block_size": 16, "long_prefill_token_threshold": 7},
]


def stream(llm: LLM, temperature: float) -> Iterator[LLM]:
    """Requests of all sizes that come and go and share prefixes; yields after every step."""
    rng = np.random.default_rng(3)
    shared = rng.integers(6, 600, size=30).tolist()
    for i in range(18):
        prompt = shared[: rng.integers(1, 30)] + rng.integers(6, 600, rng.integers(1, 12)).tolist()
        max_tokens = int(rng.integers(1, 24))
        llm.add_request(
            prompt, SamplingParams(max_tokens, temperature, seed=i, ignore_eos=bool(i % 2))
        )
        if i % 3 == 0:
            llm.step()
            yield llm
    while llm.scheduler.has_unfinished_requests():
        llm.step()
        yield llm


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_drafters_cache_follows_the_targets_slot_by_slot(
    options: dict[str, int], temperature: float
) -> None:
    seen: Counter[str] = Counter()

    def watch(output: SchedulerOutput) -> None:
        seen["preempted"] += len(output.preempted)
        seen["hits"] += sum(entry.request.num_cached_tokens for entry in output.scheduled)

    llm = LLM(DRAFT, proposer=twin(0.5), on_schedule=watch, **options)  # type: ignore[arg-type]
    assert all(followed(engine) for engine in stream(llm, temperature))
    assert seen["hits"] > 0
    assert any(accepted == drafted > 1 for drafted, accepted in llm.verifications)
    assert any(accepted < drafted for drafted, accepted in llm.verifications)
    if "num_blocks" in options:
        assert seen["preempted"] > 0


class IgnoresPrompts(DraftModelProposer):
    """Wrong on purpose: computes nothing for a request until it has sampled."""

    def draft(self, scheduled: list[ScheduledRequest], sampled: dict[str, list[int]]) -> None:
        DraftModelProposer.draft(self, [entry for entry in scheduled if entry.samples], sampled)


def without_the_first_of_two(chunks: Sequence[SequenceChunk], block_size: int) -> Batch:
    """Wrong on purpose: of an accepted last draft and the token behind it, only the token."""
    cut = [
        SequenceChunk(tokens[1:], start + 1, table) if len(tokens) == 2 else SequenceChunk(*chunk)
        for chunk in chunks
        for tokens, start, table in [chunk]
    ]
    return make_batch(cut, block_size)


@pytest.mark.parametrize("ignored", ["prompts", "the last draft"])
def test_a_drafter_that_falls_behind_is_caught(
    ignored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: the comparison of the caches notices a slot that was not computed."""
    wrong = twin(0.5)
    if ignored == "prompts":
        wrong.__class__ = IgnoresPrompts
    else:
        monkeypatch.setattr(speculation, "make_batch", without_the_first_of_two)
    llm = LLM(DRAFT, proposer=wrong, max_num_batched_tokens=19, block_size=4)
    assert not all(followed(engine) for engine in stream(llm, 0.0))


def test_after_preemption_and_a_prefix_hit_it_drafts_what_a_fresh_drafter_drafts() -> None:
    proposer = draft_model("tiny-draft", 4)
    llm = LLM(TARGET, num_blocks=15, block_size=4, proposer=proposer)
    params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    question = llm.tokenizer.encode(QUESTION).ids[:14]
    requests = [llm.add_request([*question, extra], params) for extra in (30, 31)]
    compared = 0
    while llm.scheduler.has_unfinished_requests():
        llm.step()
        for request in requests:
            if request.draft_token_ids and request.num_preemptions and request.num_cached_tokens:
                context = request.token_ids(0, request.num_tokens)
                drafts = greedy_continuation(proposer.model, context, len(request.draft_token_ids))
                if not request.status.is_finished:
                    assert request.draft_token_ids == drafts
                    compared += 1
    assert compared > 0


def greedy_continuation(model: LlamaModel, context: list[int], count: int) -> list[int]:
    """The next tokens by a forward pass over everything, on a new cache each time."""
    tokens = list(context)
    for _ in range(count):
        num_blocks = -(-len(tokens) // 16) + 1
        batch = make_batch([SequenceChunk(tokens, 0, list(range(1, num_blocks)))], 16)
        hidden = model.forward(batch, model.new_kv_cache(num_blocks, 16))
        tokens.append(int(model.logits(hidden[-1:])[0].argmax()))
    return tokens[len(context) :]


def test_a_step_costs_one_forward_pass_of_the_drafter_per_position(
    asked: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of requests: at most k, also in steps that still compute prompts."""
    calls: Counter[str] = Counter()
    proposer = draft_model("tiny-draft", 3)
    forward = proposer.model.forward

    def counted(*arguments: object) -> np.ndarray:
        calls["forward"] += 1
        return forward(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(proposer.model, "forward", counted)
    llm = LLM(TARGET, proposer=proposer, max_num_batched_tokens=64)
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    for prompt in asked[:6]:
        llm.add_request(prompt, params)
    while llm.scheduler.has_unfinished_requests():
        calls["forward"] = 0
        llm.step()
        assert 1 <= calls["forward"] <= 3


# --- the distribution, end to end


CONTEXT = "<|bos|>The fox "
DRAFTER = "tiny-draft-weak"
NUM_SEEDS = 900


def sampling(seed: int | None = None) -> SamplingParams:
    return SamplingParams(max_tokens=3, top_k=3, seed=seed, ignore_eos=True)


def next_distribution(model: LlamaModel, context: list[int]) -> np.ndarray:
    chunk = SequenceChunk(context, 0, list(range(1, -(-len(context) // 16) + 1)))
    cache = model.new_kv_cache(len(chunk.block_table) + 1, 16)
    hidden = model.forward(make_batch([chunk], 16), cache)
    return token_probabilities(model.logits(hidden[-1:])[0], sampling())


def laws(context: list[int]) -> dict[tuple[int, int, int], tuple[float, float]]:
    """Exact probability of the three tokens of a request, and that under a broken sampler.

    The first token comes with the prompt, the second is drafted, and the third is the bonus token
    or the next step's. The broken sampler replaces a rejected draft by a draw from the target
    instead of the residual distribution.
    """
    target, drafter = (LlamaModel.from_pretrained(models.path(n)) for n in ("tiny-chat", DRAFTER))
    first = next_distribution(target, context)
    found = {}
    for a in np.flatnonzero(first).tolist():
        p, q = (next_distribution(model, [*context, a]) for model in (target, drafter))
        overlap = np.minimum(p, q)
        broken = overlap + (1 - overlap.sum()) * p
        for b in np.flatnonzero(p).tolist():
            third = next_distribution(target, [*context, a, b])
            for c in np.flatnonzero(third).tolist():
                found[a, b, c] = first[a] * p[b] * third[c], first[a] * broken[b] * third[c]
    return found


def many_runs(context: list[int]) -> list[tuple[int, ...]]:
    """The tokens of NUM_SEEDS requests, and the proof that drafts were accepted and rejected."""
    llm = LLM(TARGET, proposer=draft_model(DRAFTER, 1), max_num_seqs=256, num_blocks=1024)
    params = [sampling(seed) for seed in range(NUM_SEEDS)]
    completions = llm.generate([context] * NUM_SEEDS, params)
    assert llm.verifications[1, 0] > NUM_SEEDS / 10
    assert llm.verifications[1, 1] > NUM_SEEDS / 10
    return [tuple(completion.token_ids) for completion in completions]


def test_sampled_tokens_follow_the_targets_law_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-square at 1e-6 over whole outputs, against probabilities worked out from the logits.

    The broken control is noticed with a probability above 0.999.
    """
    context = LLM(TARGET).tokenizer.encode(CONTEXT).ids
    outputs = laws(context)
    right, wrong = np.array(list(outputs.values())).T
    assert right.sum() == pytest.approx(1)
    assert wrong.sum() == pytest.approx(1)
    assert power(right, wrong, NUM_SEEDS) > 0.999

    def p_value() -> float:
        return chi_square_p_value([list(outputs).index(run) for run in many_runs(context)], right)  # type: ignore[arg-type]

    assert p_value() > ALPHA
    monkeypatch.setattr(speculation, "residual_distribution", lambda p, q: p)
    assert p_value() < ALPHA
