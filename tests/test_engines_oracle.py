"""Our engine beside the real vLLM: the same tokens, the same blocks."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from inferlab import models
from inferlab.engine import LLM, BlockPool
from inferlab.lab import upstream
from inferlab.models import corpus
from tests.oracle import MAX_NEW_TOKENS, disagreements, prompts

pytestmark = [pytest.mark.engines, pytest.mark.slow]
SCRIPTS = Path(__file__).parent / "upstream"
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
        "greedy": {
            "checkpoint": str(models.path("tiny-chat")),
            "dtype": "float32",
            "prompts": prompts(LLM(models.path("tiny-chat"))),
            "max_tokens": MAX_NEW_TOKENS,
            "ignore_eos": True,
        },
        "int4": {
            "checkpoint": str(int4),
            "dtype": "bfloat16",
            "prompts": [ids for task in corpus.CHECKED_TASKS for ids in chats(task)[0]],
            **answering,
        },
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


def test_greedy_tokens_equal_those_of_vllm(vllm_tokens: dict[str, list[list[int]]]) -> None:
    llm = LLM(models.path("tiny-chat"), num_blocks=2048)
    asked = prompts(llm)
    assert len(asked) >= 50
    assert disagreements(llm, asked, vllm_tokens["greedy"]) <= 2


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


def random_operations(seed: int, num_blocks: int) -> list[list[Any]]:
    """A valid sequence: only held blocks are freed, only cached ones touched."""
    rng = random.Random(seed)
    pool = BlockPool(num_blocks)
    references: list[int] = []
    operations: list[list[Any]] = []
    while len(operations) < 300:
        uncached = [i for i in references if pool.blocks[i].block_hash is None]
        cached = [block.block_id for block in pool.blocks if block.block_hash is not None]
        possible: list[list[Any]] = []
        if pool.num_free_blocks:
            possible.append(["get", rng.randint(1, min(4, pool.num_free_blocks))])
        if references:
            count = rng.randint(1, min(4, len(references)))
            possible.append(["free", rng.sample(references, count)])
        if uncached:
            possible.append(["cache", rng.choice(uncached), rng.randrange(12)])
        if cached:
            possible.append(["touch", [rng.choice(cached)]])
        operations.append(rng.choice(possible))
        references = apply_operation(pool, references, operations[-1])
    return operations


def apply_operation(pool: BlockPool, references: list[int], operation: list[Any]) -> list[int]:
    name, *arguments = operation
    if name == "get":
        return references + [block.block_id for block in pool.get_new_blocks(arguments[0])]
    if name == "cache":
        pool.cache_full_block(pool.blocks[arguments[0]], bytes([arguments[1]] * 32))
        return references
    blocks = [pool.blocks[i] for i in arguments[0]]
    if name == "touch":
        pool.touch(blocks)
        return references + arguments[0]
    pool.free_blocks(blocks)
    remaining = list(references)
    for block_id in arguments[0]:
        remaining.remove(block_id)
    return remaining


def test_the_pool_equals_vllms_after_every_operation() -> None:
    num_blocks, hashes = 24, list(range(12))
    runs = [random_operations(seed, num_blocks) for seed in range(5)]
    theirs = upstream(
        (SCRIPTS / "vllm_block_pool.py").read_text(),
        {"num_blocks": num_blocks, "runs": runs, "hashes": hashes},
    )
    revived = evicted = 0
    for operations, trace in zip(runs, theirs, strict=True):
        assert {operation[0] for operation in operations} == {"get", "free", "touch", "cache"}
        pool = BlockPool(num_blocks)
        references: list[int] = []
        for operation, expected in zip(operations, trace, strict=True):
            free_before = {block.block_id for block in pool.free_queue.blocks()}
            cached_before = sum(block.block_hash is not None for block in pool.blocks)
            references = apply_operation(pool, references, operation)
            found = {
                str(h): block.block_id
                if (block := pool.get_cached_block(bytes([h] * 32)))
                else None
                for h in hashes
            }
            free = [block.block_id for block in pool.free_queue.blocks()]
            assert {"free": free, "hits": found} == expected, f"after {operation}"
            revived += operation[0] == "touch" and operation[1][0] in free_before
            evicted += cached_before > sum(b.block_hash is not None for b in pool.blocks)
    assert revived > 0
    assert evicted > 0


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
