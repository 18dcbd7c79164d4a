"""Text that is read piece by piece equals the decode of the whole, and no stop string gets out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from inferlab import models
from inferlab.engine import LLM, Request, RequestStatus, SamplingParams
from inferlab.engine.detokenizer import Detokenizer, find_stop_string, num_held_back
from inferlab.lab import upstream

SCRIPTS = Path(__file__).parent / "upstream"
CHECKPOINT = models.path("tiny-chat")
TOKENIZER = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
VOCAB_SIZE = TOKENIZER.get_vocab_size()
PARTS = [i for i in range(VOCAB_SIZE) if "\ufffd" in TOKENIZER.decode([i])]
"""Tokens that hold part of a character: 128 single bytes."""

tokens = st.lists(
    st.integers(0, VOCAB_SIZE - 1) | st.sampled_from(PARTS) | st.sampled_from([0, 2]), max_size=120
)
# Longer than the window without a point where no character is cut; ids 0 and 2 have no bytes.
garbage = st.lists(st.sampled_from([*PARTS, 0, 2]), min_size=40, max_size=120)
# Characters of one to four bytes, and the replacement character itself, which is no sign of error.
texts = st.text(alphabet="ab é€\u05d0\u4e2d\U0001f600\ufffd\U0010ffff", max_size=40)


def pieces(token_ids: Sequence[int], stop: Sequence[str] = ()) -> list[str]:
    """What is read after each token, and at the end."""
    detokenizer = Detokenizer(TOKENIZER, stop)
    read = []
    for token_id in token_ids:
        detokenizer.add(token_id)
        read.append(detokenizer.read())
    return [*read, detokenizer.read(finished=True)]


@given(tokens | garbage)
@example([PARTS[0]] * 100)
def test_the_pieces_of_any_tokens_are_the_decode_of_the_whole(token_ids: list[int]) -> None:
    assert "".join(pieces(token_ids)) == TOKENIZER.decode(token_ids)


@given(texts)
def test_no_piece_holds_a_broken_character(text: str) -> None:
    token_ids = TOKENIZER.encode(text).ids
    read = pieces(token_ids)
    assert "".join(read) == text
    assert sum(piece.count("\ufffd") for piece in read) == text.count("\ufffd")


@given(tokens, st.lists(st.booleans(), min_size=120, max_size=120))
def test_it_does_not_matter_when_the_text_is_read(token_ids: list[int], when: list[bool]) -> None:
    detokenizer, text = Detokenizer(TOKENIZER), ""
    for token_id, is_read in zip(token_ids, when):
        detokenizer.add(token_id)
        text += detokenizer.read() if is_read else ""
    assert text + detokenizer.read(finished=True) == TOKENIZER.decode(token_ids)


def test_a_character_is_held_back_until_its_last_byte() -> None:
    token_ids = TOKENIZER.encode("a\U0001f600b").ids
    assert len(token_ids) == 6
    assert pieces(token_ids) == ["a", "", "", "", "\U0001f600", "b", ""]
    assert pieces(token_ids[:4]) == ["a", "", "", "", "\ufffd"]
    silent = [0] * 50  # special tokens are no text, and part no character
    assert "".join(pieces(token_ids[:2] + silent + token_ids[2:])) == "a\U0001f600b"


class CountingTokenizer:
    """The real tokenizer, which notes how many tokens it is given to decode."""

    def __init__(self) -> None:
        self.num_decoded = 0

    def decode(self, token_ids: list[int]) -> str:
        self.num_decoded += len(token_ids)
        text: str = TOKENIZER.decode(token_ids)
        return text

    def __getattr__(self, name: str) -> Any:
        return getattr(TOKENIZER, name)


@pytest.mark.parametrize("token_ids", [[500, 501, 7], [PARTS[0]], [PARTS[70], PARTS[0], 2]])
def test_a_token_costs_the_same_however_long_the_output_is(token_ids: list[int]) -> None:
    costs = []
    for length in (1000, 4000):
        tokenizer: Any = CountingTokenizer()
        detokenizer = Detokenizer(tokenizer)
        for i in range(length):
            detokenizer.add(token_ids[i % len(token_ids)])
            detokenizer.read()
        costs.append(tokenizer.num_decoded / length)
    assert costs[1] <= costs[0] * 1.05
    assert max(costs) < 40


def expected_text(text: str, stop: Sequence[str]) -> str:
    """`text` read character by character up to the first stop string: slow and plain."""
    for end in range(len(text) + 1):
        for string in stop:
            if text[:end].endswith(string):
                return text[: end - len(string)]
    return text


stop_strings = st.lists(st.text(alphabet="ab€", min_size=1, max_size=5), max_size=3)


@given(st.text(alphabet="ab€", max_size=30), stop_strings)
def test_stop_strings_cut_the_text_and_are_never_leaked(text: str, stop: list[str]) -> None:
    token_ids = TOKENIZER.encode(text).ids
    read = pieces(token_ids, stop)
    assert "".join(read) == expected_text(text, stop)
    for i in range(len(read)):
        assert expected_text(text, stop).startswith("".join(read[:i]))


@given(st.text(alphabet="ab", max_size=12), stop_strings)
def test_no_more_is_held_back_than_may_become_a_stop_string(text: str, stop: list[str]) -> None:
    """Control of the test above, which holding everything back would pass."""
    if find_stop_string(text, stop) is None:
        starts = range(len(text))
        begins = (i for i in starts if any(string.startswith(text[i:]) for string in stop))
        assert len(text) - num_held_back(text, stop) == next(begins, len(text))


def test_one_stop_string_may_begin_where_another_ends_first() -> None:
    assert find_stop_string("abcd", ["bcd", "c"]) == 2  # "c" is complete before "bcd" is
    assert find_stop_string("abcd", ["c", "bc"]) == 2
    assert find_stop_string("abcd", ["bc", "c"]) == 1  # both are complete at once: the first listed
    assert find_stop_string("abcd", ["x"]) is None


def test_a_false_beginning_is_sent_once_it_is_refuted() -> None:
    read = pieces(TOKENIZER.encode("aaab").ids, ["aab", "aaac"])
    assert "".join(read) == "a"
    detokenizer = Detokenizer(TOKENIZER, ["abx"])
    for character, sent in (("a", ""), ("b", ""), ("a", "ab"), ("b", ""), ("c", "abc")):
        detokenizer.add(TOKENIZER.token_to_id(character))
        assert detokenizer.read() == sent
    detokenizer.add(TOKENIZER.token_to_id("a"))
    assert detokenizer.read(finished=True) == "a"
    assert not detokenizer.stopped


def test_a_request_ends_at_the_token_that_completes_a_stop_string() -> None:
    """Also in the middle of the tokens of one step, which speculation gives."""
    params = SamplingParams(max_tokens=5, stop=("cd",))
    request = Request("0", [7], params, detokenizer=Detokenizer(TOKENIZER, params.stop))
    for character in "abcde":
        request.append_output_token(TOKENIZER.token_to_id(character))
        if request.status.is_finished:
            break
    assert request.status is RequestStatus.FINISHED_STOPPED
    assert request.num_output_tokens == 4
    assert request.detokenizer is not None
    assert request.detokenizer.read(finished=True) == "ab"


@pytest.mark.parametrize(("max_tokens", "reason"), [(3, "length"), (4, "stop"), (5, "stop")])
def test_a_stop_string_on_the_length_boundary_reports_stop(max_tokens: int, reason: str) -> None:
    params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    llm = LLM(CHECKPOINT)
    prompt = "<|bos|><|user|>Tell me a story<|end|><|assistant|>"
    (free,) = llm.generate([prompt], params)
    full = TOKENIZER.decode(llm.generate([prompt], SamplingParams(4, 0.0))[0].token_ids)
    before = TOKENIZER.decode(free.token_ids[:3])
    assert len(full) > len(before) > 1
    stop = full[len(before) - 1 :]  # begins in the third token and ends in the fourth
    assert stop not in before
    (stopped,) = llm.generate([prompt], SamplingParams(max_tokens, 0.0, stop=(stop,)))
    assert stopped.finish_reason == reason
    assert stopped.text == (before if reason == "length" else before[:-1])
    assert len(stopped.token_ids) == min(max_tokens, 4)
    assert llm.scheduler.kv_cache_manager.num_free_blocks == 511


def test_the_text_leaves_out_the_token_that_stopped_the_request() -> None:
    """As vLLM does without `include_stop_str_in_output`; the tokens keep it."""
    prompt = "<|bos|><|user|>What is 12 + 34?<|end|><|assistant|>"
    llm = LLM(CHECKPOINT)
    six = TOKENIZER.token_to_id("6")
    params = SamplingParams(max_tokens=9, temperature=0, stop_token_ids=(six,))
    (completion,) = llm.generate([prompt], params)
    assert (completion.text, completion.token_ids[-1]) == ("4", six)


@pytest.mark.engines
@pytest.mark.slow
def test_stop_strings_cut_where_vllm_cuts() -> None:
    rng = np.random.default_rng(0)

    def word(longest: int) -> str:
        return "".join(rng.choice(list("ab"), size=rng.integers(1, longest + 1)))

    cases = [
        {"pieces": [word(4) for _ in range(6)], "stop": [word(5) for _ in range(3)]}
        for _ in range(400)
    ]
    theirs = upstream((SCRIPTS / "vllm_stop_strings.py").read_text(), cases)
    ours = []
    for case in cases:
        start, text = None, ""
        for piece in case["pieces"]:
            text += piece
            start = find_stop_string(text, case["stop"])
            if start is not None:
                break
        ours.append(text[:start])
    assert ours == theirs
    # Control: the cut before the stop string that begins first is another one.
    texts_ = ["".join(case["pieces"]) for case in cases]
    first = [
        t[: min((t.find(s) for s in case["stop"] if s in t), default=None)]
        for t, case in zip(texts_, cases)
    ]
    assert first != theirs
