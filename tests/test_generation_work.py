"""Work counts: the two loops give the same tokens, and the formulas are what they compute."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab import models
from inferlab.analysis import (
    generate_with_cache,
    generate_without_cache,
    positions_with_cache,
    positions_without_cache,
)
from inferlab.engine import LLM, SamplingParams


class Meter:
    """A model whose next token depends on every key and value, and which counts positions."""

    def __init__(self):
        self.computed = 0

    def __call__(self, token_ids, kv):
        for token_id in token_ids:
            kv.append((len(kv) + 1) * (token_id + 7))
            self.computed += 1
        return sum(kv) % 97


prompts = st.lists(st.integers(0, 96), min_size=1, max_size=20)


@given(prompts, st.integers(1, 25))
def test_same_tokens_and_the_work_of_the_formulas(prompt, num_new):
    without, cached = Meter(), Meter()
    before = list(prompt)
    expected = generate_without_cache(without, prompt, num_new)
    assert generate_with_cache(cached, prompt, num_new) == expected
    assert len(expected) == num_new
    assert prompt == before
    assert without.computed == positions_without_cache(len(prompt), num_new)
    assert without.computed == sum(len(prompt) + i for i in range(num_new))
    assert cached.computed == positions_with_cache(len(prompt), num_new)


def test_five_tokens_and_ten_new_ones():
    assert positions_without_cache(5, 10) == 95
    assert positions_with_cache(5, 10) == 14


def test_the_engine_computes_as_many_positions_as_the_formula_says():
    computed = []
    llm = LLM(
        models.path("tiny-chat"),
        enable_prefix_caching=False,
        on_schedule=lambda output: computed.append(output.total_num_scheduled_tokens),
    )
    llm.generate([[5, 6, 7, 8, 9]], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
    assert computed == [5, 1, 1, 1]
    assert sum(computed) == positions_with_cache(5, 4)


@pytest.mark.parametrize(("num_prompt", "num_new"), [(0, 1), (1, 0), (-1, 3)])
def test_nothing_to_compute_is_refused(num_prompt, num_new):
    meter = Meter()
    for call in (
        lambda: positions_with_cache(num_prompt, num_new),
        lambda: positions_without_cache(num_prompt, num_new),
        lambda: generate_with_cache(meter, [1] * num_prompt, num_new),
        lambda: generate_without_cache(meter, [1] * num_prompt, num_new),
    ):
        with pytest.raises(ValueError, match="at least 1"):
            call()
    assert meter.computed == 0
