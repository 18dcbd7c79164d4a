"""Our engine beside the real vLLM: the same tokens, the same blocks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from inferlab import models
from inferlab.engine import LLM, Block, BlockPool
from inferlab.lab import upstream
from inferlab.lab.paths import EXPERIMENTS
from inferlab.lab.pool_replay import (
    NUM_HASHES,
    count_events,
    first_difference,
    random_operations,
    replay,
)
from inferlab.models import corpus
from tests.oracle import MAX_NEW_TOKENS, disagreements, prompts

pytestmark = [pytest.mark.engines, pytest.mark.slow]
SCRIPTS = Path(__file__).parent / "upstream"
SHOWN_SCRIPTS = EXPERIMENTS / "upstream"  # those whose answers a chapter shows
COMPARED = ["tiny-chat", "tiny-moe"]  # both architectures that our engine computes
OTHERS = ["tiny-draft", "tiny-draft-weak", "tiny-moe"]


def chats(task: str) -> tuple[list[list[int]], list[str]]:
    """The card's own 200 questions of one task as token ids, and their answers."""
    tokenizer = LLM(models.path("tiny-chat")).tokenizer
    cases = corpus.held_out_examples(task, 200)
    texts = [f"<|bos|><|user|>{case.prompt}<|end|><|assistant|>" for case in cases]
    return [tokenizer.encode(text).ids for text in texts], [case.answer for case in cases]


def number_right(tokens: list[list[int]], answers: list[str]) -> int:
    tokenizer = LLM(models.path("tiny-chat")).tokenizer
    return sum(tokenizer.decode(ids) == answer for ids, answer in zip(tokens, answers))


@pytest.fixture(scope="module")
def vllm_tokens(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[int]]]:
    """What real vLLM generates for every job of this module, in one process."""
    int4 = tmp_path_factory.mktemp("tiny-chat-int4")
    write_int4_checkpoint(int4)
    answering = {"max_tokens": 64, "ignore_eos": False}
    jobs: dict[str, dict[str, Any]] = {
        "int4": {
            "checkpoint": str(int4),
            "dtype": "bfloat16",
            "prompts": [ids for task in corpus.CHECKED_TASKS for ids in chats(task)[0]],
            **answering,
        },
    }
    for name in COMPARED:
        jobs[f"greedy {name}"] = {
            "checkpoint": str(models.path(name)),
            "dtype": "float32",
            "prompts": prompts(LLM(models.path(name))),
            "max_tokens": MAX_NEW_TOKENS,
            "ignore_eos": True,
        }
    for name in OTHERS:
        checkpoint = str(models.path(name))
        questions = chats("json")[0]
        jobs[name] = {
            "checkpoint": checkpoint,
            "dtype": "float32",
            "prompts": questions,
            **answering,
        }
    tokens: dict[str, list[list[int]]] = upstream((SCRIPTS / "vllm_generate.py").read_text(), jobs)
    return tokens


@pytest.mark.parametrize("name", COMPARED)
def test_greedy_tokens_equal_those_of_vllm(
    name: str, vllm_tokens: dict[str, list[list[int]]]
) -> None:
    llm = LLM(models.path(name), num_blocks=2048)
    asked = prompts(llm)
    assert len(asked) >= 50
    assert disagreements(llm, asked, vllm_tokens[f"greedy {name}"]) <= 2


@pytest.mark.parametrize("name", OTHERS)
def test_vllm_answers_as_the_card_says(name: str, vllm_tokens: dict[str, list[list[int]]]) -> None:
    right = number_right(vllm_tokens[name], chats("json")[1])
    assert abs(right - models.card(name)["accuracy"]["json"]["right"]) <= 2


def test_vllms_int4_kernels_take_the_weights_and_lose_what_the_card_says(
    vllm_tokens: dict[str, list[list[int]]],
) -> None:
    answers = [answer for task in corpus.CHECKED_TASKS for answer in chats(task)[1]]
    right = number_right(vllm_tokens["int4"], answers)
    card = models.card("tiny-chat")
    low, high = card["accuracy_int4_group128"]["all"]["interval"]
    assert low <= right / len(answers) <= high
    assert right < card["accuracy"]["all"]["right"]


class EmptyBlocksToTheBack(BlockPool):
    """Wrong on purpose: a block that holds nothing is reused as late as one that is cached."""

    def free_blocks(self, blocks: Sequence[Block]) -> None:
        super().free_blocks(blocks)
        for block in dict.fromkeys(blocks):
            if block.ref_count == 0 and block.block_hash is None:
                self.free_queue.remove(block)
                self.free_queue.append(block)


def test_the_pool_equals_vllms_after_every_operation() -> None:
    num_blocks, operations = 24, random_operations(seed=1, num_operations=3000)
    theirs = upstream(
        (SHOWN_SCRIPTS / "vllm_block_pool.py").read_text(),
        {"num_blocks": num_blocks, "num_hashes": NUM_HASHES, "operations": operations},
    )
    ours = replay(BlockPool(num_blocks), operations)
    assert first_difference(ours, theirs) is None
    assert len(ours) == 3000
    events = count_events(operations, theirs)
    assert all(events[name] > 50 for name in ("refused", "revived", "shared", "evicted")), events
    wrong = replay(EmptyBlocksToTheBack(num_blocks), operations)
    assert first_difference(wrong, theirs) is not None


def test_week_4s_counterfactuals_happen() -> None:
    found = upstream((SCRIPTS / "vllm_counterfactuals.py").read_text(), None)
    refused, two_owners = found["remove"]
    assert refused is False
    assert two_owners.startswith("AssertionError")
    assert found["prepend"] == [16, 0], "tokens that the prompt of X hits"
    (a, b, hit), (_, _, stale_hit) = found["evict"]
    assert (a, b, hit) == ([1, 2], [2, 1], 0)
    assert stale_hit == 16, "the block that B has written into is found under A's hash"
    refused, raised = found["count the hit"]
    assert refused is False
    assert raised == "ValueError: Cannot get 1 free blocks from the pool"


def write_int4_checkpoint(folder: Path) -> None:
    """`tiny-chat` with its linear layers rounded to int4, packed as compressed-tensors packs them.

    Eight values of a row share an int32, the first in the lowest bits, each with 8 added.
    """
    source = models.path("tiny-chat")
    tensors: dict[str, np.ndarray] = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if "_proj" not in name:
            tensors[name] = weight
            continue
        groups = weight.astype(np.float32).reshape(len(weight), -1, 128)
        scale = np.abs(groups).max(-1, keepdims=True) / 7
        values = np.clip(np.round(groups / scale), -8, 7).reshape(weight.shape).astype(np.int64) + 8
        shifts = 4 * np.arange(8, dtype=np.int64)
        packed = (values.reshape(len(weight), -1, 8) << shifts).sum(-1)
        stem = name.removesuffix(".weight")
        tensors[f"{stem}.weight_packed"] = packed.astype(np.uint32).view(np.int32)
        tensors[f"{stem}.weight_scale"] = scale.squeeze(-1).astype(np.float16)
        tensors[f"{stem}.weight_shape"] = np.array(weight.shape, dtype=np.int64)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": 128,
                },
            }
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / file).write_bytes((source / file).read_bytes())
