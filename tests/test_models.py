"""The committed checkpoints are the ones the results were recorded with, and mean what they say."""

import json
from typing import Any

import pytest

from inferlab import models
from inferlab.engine import LLM, SamplingParams
from inferlab.models import corpus

NAMES = ["tiny-chat", "tiny-draft", "tiny-draft-weak", "tiny-moe"]


def test_the_committed_checkpoints_are_these() -> None:
    assert models.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_frozen(name: str) -> None:
    assert models.weights_hash(name) == models.card(name)["weights_sha256"]


def test_an_unknown_checkpoint_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match="tiny-chat, tiny-draft"):
        models.path("tiny-chatt")


@pytest.mark.parametrize("name", NAMES)
def test_shapes_suit_every_engine(name: str) -> None:
    """vLLM's int4 kernels want multiples of 128, its CPU attention one of a few head sizes."""
    config = json.loads((models.path(name) / "config.json").read_text())
    assert config["head_dim"] == 64
    assert config["hidden_size"] % 128 == config["intermediate_size"] % 128 == 0
    assert config["max_position_embeddings"] == 8192
    assert config["dtype"] == "float32"


def test_all_checkpoints_share_one_tokenizer() -> None:
    texts = {(models.path(name) / "tokenizer.json").read_text() for name in NAMES}
    assert len(texts) == 1


def test_tiny_chat_is_neither_perfect_nor_poor() -> None:
    accuracy = models.card("tiny-chat")["accuracy"]
    assert 0.75 <= accuracy["all"]["share"] <= 0.95


def test_four_bit_rounding_costs_at_least_three_points_beyond_its_interval() -> None:
    card = models.card("tiny-chat")
    full, rounded = card["accuracy"]["all"], card["accuracy_int4_group128"]["all"]
    assert full["share"] - rounded["share"] >= 0.03
    assert rounded["interval"][1] < full["share"]


@pytest.mark.parametrize("name", ["tiny-draft", "tiny-draft-weak"])
def test_drafters_are_accepted_often_but_not_always(name: str) -> None:
    assert 0.4 <= models.card(name)["acceptance_free_text"] <= 0.8


def test_the_two_drafters_differ() -> None:
    good, weak = (models.card(name)["acceptance_free_text"] for name in NAMES[1:3])
    assert good - weak >= 0.1


def test_the_busiest_expert_is_busy() -> None:
    assert models.card("tiny-moe")["busiest_expert"] >= 1.5


def test_the_engine_answers_as_often_as_the_card_says() -> None:
    """The NumPy engine answers the card's own questions, and is right as often."""
    llm = LLM(models.path("tiny-chat"), num_blocks=4096)
    for task in ("addition", "copy"):
        cases = corpus.held_out_examples(task, 200)
        prompts = [f"<|bos|><|user|>{case.prompt}<|end|><|assistant|>" for case in cases]
        answers = llm.generate(prompts, SamplingParams(max_tokens=64, temperature=0))
        right = sum(a.text.removesuffix("<|end|>") == c.answer for a, c in zip(answers, cases))
        assert abs(right - models.card("tiny-chat")["accuracy"][task]["right"]) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_it_and_scores_what_the_card_says(name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from inferlab.models.evaluate import generate

    tokenizer = AutoTokenizer.from_pretrained(models.path(name))
    model = AutoModelForCausalLM.from_pretrained(models.path(name)).eval()
    assert model.dtype == torch.float32
    for task in ("recall", "json"):
        cases = corpus.held_out_examples(task, 200)
        answers = generate(model, tokenizer, [case.prompt for case in cases], 64)
        right = sum(answer == case.answer for answer, case in zip(answers, cases))
        assert abs(right - models.card(name)["accuracy"][task]["right"]) <= 1


def chat(content: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def test_the_chat_template_is_the_one_trained_with() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.path("tiny-chat"))
    text = tokenizer.apply_chat_template(chat("Hi"), tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|><|user|>Hi<|end|><|assistant|>"
