"""The mixture of experts equals the dense loop, and tiny-moe equals transformers' Mixtral."""

from collections import Counter
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inferlab import models
from inferlab.engine import LLM, SamplingParams, SequenceChunk, make_batch
from inferlab.engine.layers import DenseLinear, GatedMLP, Linear
from inferlab.engine.moe import (
    MixtureOfExperts,
    Routing,
    grouped_forward,
    permute,
    route,
    unpermute,
)
from tests.oracle import MARGIN, MAX_NEW_TOKENS, disagreements, prompts

CHECKPOINT = models.path("tiny-moe")
HIDDEN, INTERMEDIATE = 8, 12
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


class Counted:
    """An expert that notes the rows of each of its calls."""

    def __init__(self, expert: Linear) -> None:
        self.expert, self.calls = expert, list[int]()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.calls.append(len(x))
        return self.expert(x)


def random_experts(num_experts: int) -> list[Counted]:
    rng = np.random.default_rng(num_experts)

    def linear(*shape: int) -> DenseLinear:
        return DenseLinear(rng.standard_normal(shape).astype(np.float32))

    return [
        Counted(GatedMLP(linear(HIDDEN, 2 * INTERMEDIATE), linear(INTERMEDIATE, HIDDEN)))
        for _ in range(num_experts)
    ]


def dense_loop(x: np.ndarray, routing: Routing, experts: list[Counted]) -> np.ndarray:
    """The oracle: token by token, expert by expert."""
    output = np.zeros_like(x)
    for token, (chosen, weights) in enumerate(zip(routing.experts, routing.weights)):
        for expert, weight in zip(chosen, weights):
            output[token] += weight * experts[expert].expert(x[token : token + 1])[0]
    return output


class Case(NamedTuple):
    logits: np.ndarray  # [num_tokens, num_experts]
    top_k: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Logits of few different values, so that ties are the rule; some experts out of reach."""
    num_experts = draw(st.integers(1, 8))
    top_k = draw(st.integers(1, num_experts))
    num_tokens = draw(st.integers(1, 12))
    values = st.sampled_from([-1e4, -1.0, 0.0, 0.5, 3.0])
    row = st.lists(values, min_size=num_experts, max_size=num_experts)
    rows = draw(st.lists(row, min_size=num_tokens, max_size=num_tokens))
    return Case(np.array(rows, dtype=np.float32), top_k)


SPECIAL = {
    "all tokens on one pair": Case(np.tile(np.float32([0, 9, 0, 0, 8, 0]), (10, 1)), 2),
    "every expert": Case(np.eye(5, 4, dtype=np.float32), 4),
    "nothing but ties": Case(np.zeros((7, 5), np.float32), 2),
}


@given(cases())
@example(SPECIAL["all tokens on one pair"])
@example(SPECIAL["every expert"])
@example(SPECIAL["nothing but ties"])
def test_the_router_takes_the_most_probable_and_of_equals_the_first(case: Case) -> None:
    routing = route(case.logits, case.top_k)
    exact = np.exp(case.logits.astype(float) - case.logits.max(axis=1, keepdims=True))
    for row, chosen, weights, terms in zip(case.logits, routing.experts, routing.weights, exact):
        # Logits far below the largest are all of probability 0, and then equals.
        probabilities = np.exp(row - row.max())
        ranked = sorted(range(len(row)), key=lambda expert: (-probabilities[expert], expert))
        assert chosen.tolist() == ranked[: case.top_k]
        np.testing.assert_allclose(weights, terms[chosen] / terms[chosen].sum(), rtol=1e-5)
    np.testing.assert_allclose(routing.weights.sum(axis=1), 1, rtol=1e-6)


def test_weights_are_normalised_after_the_choice_and_not_before() -> None:
    routing = route(np.zeros((1, 8), np.float32), 2)
    assert routing.experts.tolist() == [[0, 1]]
    assert routing.weights.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("top_k", [0, 5])
def test_more_experts_than_there_are_or_none_are_refused(top_k: int) -> None:
    with pytest.raises(ValueError, match=f"top_k is {top_k}; .* between 1 and 4"):
        route(np.zeros((1, 4)), top_k)


@given(cases(), st.integers(0, 2**32))
@example(SPECIAL["all tokens on one pair"], 0)
@example(SPECIAL["every expert"], 0)
@example(SPECIAL["nothing but ties"], 0)
def test_the_grouped_forward_equals_the_dense_loop(case: Case, seed: int) -> None:
    """Each touched expert runs once, on its own tokens; the others are not called."""
    num_tokens, num_experts = case.logits.shape
    x = np.random.default_rng(seed).standard_normal((num_tokens, HIDDEN)).astype(np.float32)
    experts, seen = random_experts(num_experts), list[Routing]()
    mixture = MixtureOfExperts(lambda x: case.logits, experts, case.top_k, on_route=seen.append)
    output = mixture(x)
    (routing,) = seen
    np.testing.assert_allclose(output, dense_loop(x, routing, experts), rtol=1e-4, atol=1e-4)
    wanted = Counter(routing.experts.ravel().tolist())
    assert [expert.calls for expert in experts] == [
        [wanted[e]] if wanted[e] else [] for e in range(num_experts)
    ]
    assert sum(wanted.values()) == num_tokens * case.top_k


def test_the_special_cases_are_what_their_names_say() -> None:
    loads = {
        name: np.bincount(route(*case).experts.ravel(), minlength=case.logits.shape[1]).tolist()
        for name, case in SPECIAL.items()
    }
    assert loads == {
        "all tokens on one pair": [0, 10, 0, 0, 10, 0],
        "every expert": [5, 5, 5, 5],
        "nothing but ties": [7, 7, 0, 0, 0],
    }


@given(cases())
def test_the_permutation_sorts_by_expert_and_is_undone(case: Case) -> None:
    num_tokens, num_experts = case.logits.shape
    routing = route(case.logits, case.top_k)
    tokens = np.repeat(np.arange(num_tokens, dtype=np.float32)[:, None], HIDDEN, axis=1)
    rows, order, offsets = permute(tokens, routing.experts, num_experts)
    assert sorted(order) == list(range(num_tokens * case.top_k))
    assert (offsets[0], offsets[-1]) == (0, len(rows))
    for expert, (first, end) in enumerate(pairwise(offsets)):
        its_tokens = np.flatnonzero((routing.experts == expert).any(axis=1))
        assert rows[first:end, 0].tolist() == its_tokens.tolist()
    # Experts that change nothing leave a weighted mean of copies of the token: itself.
    np.testing.assert_allclose(unpermute(rows, order, routing.weights), tokens, rtol=1e-6)


@given(cases(), st.integers(1, 4))
def test_experts_may_live_on_several_ranks(case: Case, num_ranks: int) -> None:
    """The same three functions on rows that came from elsewhere, some ranks without a row."""
    num_tokens, num_experts = case.logits.shape
    x = np.random.default_rng(0).standard_normal((num_tokens, HIDDEN)).astype(np.float32)
    experts = random_experts(num_experts)
    routing = route(case.logits, case.top_k)
    rows, order, offsets = permute(x, routing.experts, num_experts)
    share = -(-num_experts // num_ranks)
    outputs = []
    for first in range(0, share * num_ranks, share):
        local = offsets[min(first, num_experts) : first + share + 1]
        its_rows = rows[local[0] : local[-1]]
        outputs.append(grouped_forward(its_rows, local - local[0], experts[first : first + share]))
    together = unpermute(np.concatenate(outputs), order, routing.weights)
    np.testing.assert_allclose(together, dense_loop(x, routing, experts), rtol=1e-4, atol=1e-4)


def test_neighbours_do_not_change_the_sum_of_a_tokens_experts() -> None:
    """To the last bit, as long as the experts' own products do not change."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, HIDDEN)).astype(np.float32)
    routing = route(rng.standard_normal((40, 8)).astype(np.float32), 3)

    def scaled(tokens: slice) -> np.ndarray:
        rows, order, offsets = permute(x[tokens], routing.experts[tokens], 8)
        rows = grouped_forward(rows, offsets, [partial(np.multiply, e + 0.1) for e in range(8)])
        return unpermute(rows, order, routing.weights[tokens])

    assert np.array_equal(scaled(slice(None))[7:12], scaled(slice(7, 12)))


def routings(llm: LLM, token_ids: list[int]) -> list[Routing]:
    """Each layer's routing of one sequence, in one chunk on a cache of its own."""
    seen: dict[int, Routing] = {}
    for i, layer in enumerate(llm.model.layers):
        assert isinstance(layer.mlp, MixtureOfExperts)
        layer.mlp.on_route = partial(seen.__setitem__, i)
    num_blocks = -(-len(token_ids) // 16) + 1
    chunk = SequenceChunk(token_ids, 0, range(1, num_blocks))
    llm.model.forward(make_batch([chunk], 16), llm.model.new_kv_cache(num_blocks, 16))
    return [seen[i] for i in range(len(llm.model.layers))]


@pytest.mark.slow
def test_tokens_and_routing_equal_those_of_transformers() -> None:
    """transformers reads our tokens and says at each place what it would have chosen.

    Up to the first difference that is its own greedy answer; the rule judges nothing after that.
    """
    import torch
    from transformers import AutoModelForCausalLM

    llm = LLM(CHECKPOINT, num_blocks=2048)
    asked = prompts(llm)
    assert len(asked) >= 50
    params = SamplingParams(max_tokens=MAX_NEW_TOKENS, temperature=0, ignore_eos=True)
    texts = [p + c.token_ids for p, c in zip(asked, llm.generate(asked, params))]
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    expected, chosen, near_ties = [], 0, 0
    for text in texts:
        with torch.inference_mode():
            output = model(torch.tensor([text]), output_router_logits=True)
        expected.append(output.logits[0, -1 - MAX_NEW_TOKENS : -1].argmax(-1).tolist())
        for ours, logits in zip(routings(llm, text), output.router_logits, strict=True):
            theirs = logits.numpy()
            np.testing.assert_allclose(ours.logits, theirs, atol=1e-4)
            second, third = -np.sort(-theirs, axis=1)[:, 1:3].T
            clear = second - third >= MARGIN
            near_ties += int((~clear).sum())
            chosen += int(clear.sum())
            best = np.sort(np.argsort(-theirs, axis=1)[:, :2], axis=1)
            assert np.array_equal(np.sort(ours.experts, axis=1)[clear], best[clear])
    assert disagreements(llm, asked, expected) <= 2
    assert chosen > 20_000
    assert near_ties <= 20


@pytest.fixture(scope="module")
def asked() -> list[list[int]]:
    """Twenty of the oracle's prompts, none longer than 257 tokens."""
    return [prompt for prompt in prompts(LLM(CHECKPOINT)) if len(prompt) <= 257][::3]


@pytest.fixture(scope="module")
def alone(asked: list[list[int]]) -> list[list[int]]:
    """Each prompt alone, in one chunk, with no cache: every expert sees that prompt only."""
    llm = LLM(CHECKPOINT, enable_prefix_caching=False)
    return [llm.generate([prompt], GREEDY)[0].token_ids for prompt in asked]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_size": 1, "num_blocks": 6000, "long_prefill_token_threshold": 5},
        {"max_num_batched_tokens": 16, "max_num_seqs": 3},
        {"num_blocks": 20, "enable_prefix_caching": False, "max_num_batched_tokens": 48},
    ],
    ids=str,
)
def test_tokens_do_not_depend_on_the_tokens_that_share_the_experts(
    options: dict[str, int], asked: list[list[int]], alone: list[list[int]]
) -> None:
    llm = LLM(CHECKPOINT, **options)  # type: ignore[arg-type]
    first, again = llm.generate(asked, GREEDY), llm.generate(asked, GREEDY)
    assert [completion.token_ids for completion in first] == alone
    assert [completion.token_ids for completion in again] == alone
    if options.get("num_blocks") == 20:
        assert sum(completion.num_preemptions for completion in first) > 0
    if not options:
        assert sum(completion.num_cached_tokens for completion in again) > 0


def test_swapped_experts_would_be_noticed(asked: list[list[int]], alone: list[list[int]]) -> None:
    """Control: the same weights behind other expert ids give other tokens."""
    swapped = LLM(CHECKPOINT)
    for layer in swapped.model.layers:
        assert isinstance(layer.mlp, MixtureOfExperts)
        layer.mlp.experts = layer.mlp.experts[::-1]
    assert [c.token_ids for c in swapped.generate(asked, GREEDY)] != alone
