"""What a request may ask for, and how the engine takes it in, lets it go, and scores its tokens."""

import math
from typing import Any

import numpy as np
import pytest

from inferlab import models
from inferlab.engine import LLM, RequestStatus, SamplingParams
from inferlab.engine.speculation import NgramProposer

CHECKPOINT = models.path("tiny-chat")
GREEDY = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
FLOATS = [
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", FLOATS)
def test_a_float_that_is_no_number_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; it has to be "):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": 1e-320}, "temperature is 1e-320"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"repetition_penalty": 1e-320}, "repetition_penalty is 1e-320"),
        ({"presence_penalty": 2.5}, "presence_penalty is 2.5"),
        ({"frequency_penalty": -3.0}, "frequency_penalty is -3.0"),
        ({"seed": -1}, "seed is -1"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"stop": ("a", "")}, "it has to be non-empty strings"),
        ({"stop": "abc"}, "stop is 'abc'"),
    ],
    ids=str,
)
def test_values_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**fields)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1e-5, seed=0, ignore_eos=True),
        SamplingParams(temperature=1e30, seed=0, ignore_eos=True, top_k=10**20),
        SamplingParams(repetition_penalty=100, seed=10**40, ignore_eos=True),
        SamplingParams(repetition_penalty=0.01, presence_penalty=-2, seed=0, ignore_eos=True),
    ],
    ids=str,
)
def test_the_extremes_that_are_accepted_can_be_sampled(params: SamplingParams) -> None:
    with np.errstate(all="raise", under="ignore"):
        (completion,) = LLM(CHECKPOINT).generate([[7, 8]], params)
    assert len(completion.token_ids) == 16


def test_a_duplicate_id_is_refused_and_harms_nobody() -> None:
    llm = LLM(CHECKPOINT)
    (expected,) = llm.generate([[7, 8]], GREEDY)
    first = llm.add_request([7, 8], GREEDY, request_id="1")
    llm.step()
    with pytest.raises(ValueError, match="Request '1' is in the engine already"):
        llm.add_request([9], GREEDY, request_id="1")
    others = [llm.add_request([9], GREEDY) for _ in range(3)]  # named by the engine
    assert len({request.request_id for request in (first, *others)}) == 4
    while llm.scheduler.has_unfinished_requests():
        llm.step()
    assert first.output_token_ids == expected.token_ids
    assert llm.add_request([9], GREEDY, request_id="1").request_id == "1"  # it has finished


def test_an_abort_frees_the_blocks_and_of_an_unknown_id_is_an_error() -> None:
    llm = LLM(CHECKPOINT, max_num_seqs=2)
    (expected,) = llm.generate([[7, 8]], GREEDY)
    staying = llm.add_request([7, 8], GREEDY)
    running, waiting = (llm.add_request([9] * 40, GREEDY) for _ in range(2))
    for _ in range(3):
        llm.step()
    assert (running.status, waiting.status) == (RequestStatus.RUNNING, RequestStatus.WAITING)
    for request in (running, waiting):
        assert llm.abort(request.request_id) is request
        assert request.status is RequestStatus.FINISHED_ABORTED
        with pytest.raises(ValueError, match="no unfinished request"):
            llm.abort(request.request_id)
    with pytest.raises(ValueError, match="no unfinished request 'nobody'"):
        llm.abort("nobody")
    while llm.scheduler.has_unfinished_requests():
        llm.step()
    assert staying.output_token_ids == expected.token_ids
    assert llm.scheduler.kv_cache_manager.num_free_blocks == 511
    with pytest.raises(ValueError, match="no unfinished request"):
        llm.abort(staying.request_id)


def logprobs_of(llm: LLM, prompt: list[int], params: SamplingParams) -> Any:
    request = llm.add_request(prompt, params)
    while llm.scheduler.has_unfinished_requests():
        llm.step()
    return request


def test_logprobs_are_the_same_with_speculation_and_absent_unless_asked_for() -> None:
    prompt = [20, 30, 40] * 8
    asked = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, logprobs=3)
    plain = logprobs_of(LLM(CHECKPOINT), prompt, asked)
    fast = LLM(CHECKPOINT, proposer=NgramProposer(1, 3, 4))
    speculated = logprobs_of(fast, prompt, asked)
    assert any(accepted for _, accepted in fast.verifications)
    assert speculated.output_token_ids == plain.output_token_ids
    for mine, theirs in zip(speculated.logprobs, plain.logprobs):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert [i for i, _ in mine.top] == [i for i, _ in theirs.top]
    assert len(plain.logprobs) == 40
    for token_id, entry in zip(plain.output_token_ids, plain.logprobs):
        assert entry.top[0] == (token_id, entry.logprob)
        assert 0 < sum(math.exp(logprob) for _, logprob in entry.top) <= 1 + 1e-9
    assert logprobs_of(LLM(CHECKPOINT), prompt, GREEDY).logprobs == []


def test_logprobs_are_the_models_own_whatever_the_sampling() -> None:
    """Temperature, filters and penalties change what is chosen, not what is reported."""
    plain = SamplingParams(max_tokens=1, temperature=0, logprobs=5)
    bent = SamplingParams(
        max_tokens=1, temperature=3.0, top_k=2, repetition_penalty=2, seed=1, logprobs=5
    )
    llm = LLM(CHECKPOINT, enable_prefix_caching=False)
    tops = [logprobs_of(llm, [20, 30, 40], params).logprobs[0].top for params in (plain, bent)]
    assert tops[0] == tops[1]
