"""Week 4 as a reader meets it: cells that can be run again, replays that need no engine."""

import ast
from collections.abc import Callable
from pathlib import Path
from string import ascii_uppercase
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inferlab import lab
from inferlab.engine import BlockPool
from inferlab.explore import block_sizes, memory_map
from inferlab.kernels import INTERPRETED
from inferlab.lab.engines import ENGINES_VARIABLE
from inferlab.lab.paths import ROOT
from inferlab.lab.pool_replay import count_events, first_difference, random_operations, replay
from inferlab.lab.specification import load_experiment, load_workload
from inferlab.publish import read_page

PAGE = read_page(ROOT, Path("notebooks/week04-paged-attention.md"))
CODE = [cell for cell in PAGE.cells if cell.kind == "code"]


@pytest.fixture
def no_engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ENGINES_VARIABLE, str(tmp_path))


# What vLLM was asked, and what the page says of it.


def test_our_pool_agrees_with_the_recorded_one_after_every_operation(no_engines: None) -> None:
    asked, trace = lab.upstream_answer("week04/block-pool")
    operations = asked["operations"]
    assert len(trace) == len(operations) == 600
    assert first_difference(replay(BlockPool(asked["num_blocks"]), operations), trace) is None
    events = count_events(operations, trace)
    assert events == {"revived": 26, "shared": 52, "evicted": 45, "refused": 42}
    (control,) = (cell for cell in CODE if cell.source.startswith("class EmptyBlocksToTheBack"))
    found = {
        "BlockPool": BlockPool,
        "NUM_BLOCKS": asked["num_blocks"],
        "operations": operations,
        "vllm_trace": trace,
        "first_difference": first_difference,
        "replay": replay,
        "say": lambda *_: None,
        "predict": SimpleNamespace(compare=lambda *_, **__: None),
    }
    exec(control.source, found)
    assert found["control_at"] == 2, "the third operation"


def test_the_prose_on_start_up_says_what_vllm_reported(no_engines: None) -> None:
    asked, answers = lab.upstream_answer("week04/start-up")
    sizes = [(case.get("num_gpu_blocks_override"), case["num_requests"]) for case in asked["cases"]]
    default, *found = zip(sizes, answers, strict=True)
    assert "32,768 tokens" in default[1]["report"]
    refused = {size: answer["refused"] for size, answer in found if "refused" in answer}
    assert set(refused) == {(6, 1), (16, 1)}
    assert refused[16, 1].endswith(", the estimated maximum model length is 480"), "15 blocks of 32"
    preemptions = {size: a["preemptions"] for size, a in found if "preemptions" in a}
    assert preemptions == {(17, 1): 0, (18, 2): 1, (32, 2): 1, (33, 2): 0}
    reports = {size: answer.get("report", "") for size, answer in found}
    assert "2.00x" in reports[32, 2], "the promise that the null block breaks"


# What captions and prose say of the recorded experiments.


def medians(experiment: str, metric: str, **at: Any) -> list[float]:
    return [row[metric] for row in lab.load(f"week04/{experiment}").where(**at)]


def test_a_small_pool_costs_a_crowd_and_nobody_else() -> None:
    crowd = medians("kv-pool", "output_tokens_per_s", workload="varied-lengths")
    assert crowd == sorted(crowd, reverse=True), "from 1,024 blocks to 64"
    assert medians("kv-pool", "num_preemptions", workload="varied-lengths") == [0, 30, 33]
    assert medians("kv-pool", "num_preemptions", workload="four-at-a-time") == [0, 0, 0]
    pauses = medians("kv-pool", "itl_max_ms", workload="varied-lengths")
    assert pauses[1] > 8 * pauses[0], "a pause of somebody who was preempted"
    four = lab.load("week04/kv-pool").where(workload="four-at-a-time")
    lowest = max(row["output_tokens_per_s_min"] for row in four)
    assert lowest < min(row["output_tokens_per_s_max"] for row in four), "ranges overlap"


def test_padding_explains_less_than_half_of_the_gap_to_vllm() -> None:
    batching = lab.load("week04/batching-against-hf")
    one, sixteen, sixty_four = batching.where(engine="transformers")
    best = max(row["output_tokens_per_s"] for row in batching.where(engine="vllm"))
    rates = [row["output_tokens_per_s"] for row in (sixty_four, one, sixteen)]
    assert rates == sorted(rates), "64 at once are slower than one at a time"
    ratio, without_padding = best / rates[-1], 1 / (1 - sixteen["padding_share"])
    assert without_padding < ratio / 2
    assert sixty_four["padding_share"] - sixteen["padding_share"] < 0.04


def test_one_sequence_at_a_time_vllm_is_the_slower_and_four_are_enough_to_overtake() -> None:
    batching = lab.load("week04/batching-against-hf")
    static, continuous = (batching.where(engine=one) for one in ("transformers", "vllm"))
    assert [row["max_num_seqs"] for row in continuous] == [1, 4, 16, 64]
    assert continuous[0]["output_tokens_per_s_max"] < static[0]["output_tokens_per_s_min"]
    assert continuous[1]["output_tokens_per_s_min"] > max(
        row["output_tokens_per_s_max"] for row in static
    )


def test_smaller_blocks_save_steps_and_blocks_of_64_are_the_fastest() -> None:
    small, medium, large = lab.load("week04/block-size").where()
    sizes = [row["block_size"] for row in (small, medium, large)]
    assert sizes == [32, 64, 128]
    running = [row["num_requests_running_peak"] for row in (small, medium, large)]
    steps = [row["engine_steps"] for row in (small, medium, large)]
    assert running == sorted(running, reverse=True)
    assert steps == sorted(steps)
    assert medium["output_tokens_per_s_min"] > small["output_tokens_per_s_max"]
    assert medium["output_tokens_per_s_min"] > large["output_tokens_per_s_max"]
    per_step = [row["duration_s"] / row["engine_steps"] for row in (small, medium)]
    assert per_step[0] / per_step[1] > 1.1 * running[0] / running[1], "more than its requests"


# What the kernel reads.


def page_functions(marker: str) -> dict[str, Any]:
    """The imports and functions of the page's cell that holds `marker`, without what it shows."""
    (cell,) = (cell for cell in CODE if marker in cell.source)
    body = [
        node
        for node in ast.parse(cell.source).body
        if isinstance(node, ast.FunctionDef | ast.ImportFrom)
    ]
    found: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module(body, []), "page", "exec"), found)
    return found


@pytest.mark.skipif(not INTERPRETED, reason="only the interpreter sees single elements")
@settings(max_examples=12)
@given(
    length=st.integers(1, 70),
    block_size=st.sampled_from([8, 16, 32]),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    head_dim=st.sampled_from([8, 16]),
)
def test_the_kernel_loads_what_the_formula_of_the_page_says(
    length: int, block_size: int, kv_heads: int, group: int, head_dim: int
) -> None:
    page = page_functions("def loaded_elements")
    heads = kv_heads * group
    loaded, stored = page["count_loads"](length, block_size, heads, kv_heads, head_dim)
    assert loaded == page["loaded_elements"]([length], block_size, heads, head_dim)
    assert stored == heads * head_dim
    least = page["necessary_elements"]([length], block_size, heads, kv_heads, head_dim)
    assert least <= loaded <= group * kv_heads * least


# The film of the memory.


@pytest.mark.parametrize("answers", memory_map.ANSWERS)
@pytest.mark.parametrize(
    "way", [memory_map.LONGEST_LENGTH, memory_map.OWN_LIMIT, memory_map.BLOCKS]
)
def test_every_frame_of_the_film_is_a_possible_memory(way: str, answers: str) -> None:
    for now in memory_map.history(way, answers):
        assert now.holding + now.empty + now.free == memory_map.SLOTS
        assert len(now.running) + now.waiting + now.finished == len(ascii_uppercase)
        owners = {name.upper() for name in now.names if name}
        assert owners == set(now.running)
        if way == memory_map.BLOCKS:
            blocks = np.reshape(now.names, (-1, memory_map.BLOCK))
            assert all(len({name.upper() for name in block}) == 1 for block in blocks)
            assert now.empty <= memory_map.BLOCK + (memory_map.BLOCK - 1) * len(now.running)
        else:
            assert now.preemptions == 0
            places = [
                [i for i, n in enumerate(now.names) if n.upper() == one] for one in now.running
            ]
            assert all(own == list(range(own[0], own[-1] + 1)) for own in places), "adjacent"


def test_the_film_shows_both_kinds_of_fragmentation_and_the_price_of_blocks() -> None:
    film = memory_map.sweep()
    for name, point in film.scenarios.items():
        now = film.result(**point)["moment"]
        if name == "A gap that is no use":
            assert now.largest_gap < now.needed < now.free, "external fragmentation"
            assert "side by side" in film.said_at(**point)
    ways = (memory_map.LONGEST_LENGTH, memory_map.OWN_LIMIT, memory_map.BLOCKS)
    shares = [film.result(**film.first_point | {"way": way})["mean_share"] for way in ways]
    assert shares == sorted(shares)
    assert shares[0] < 0.6, "internal fragmentation"
    done = [memory_map.history(way, memory_map.OF_ALL_LENGTHS)[-1].finished for way in ways]
    assert done == sorted(done)
    full = memory_map.history(memory_map.BLOCKS, memory_map.AS_ALLOWED)[-1]
    assert full.preemptions > 20


# The sweep and the estimate.


def test_a_reservation_is_the_block_of_the_longest_length() -> None:
    found = block_sizes.by_block_size("long tail", 512, 2)
    assert found["running"] == sorted(found["running"], reverse=True)
    assert found["empty_share"] == sorted(found["empty_share"])
    assert found["entries"][-1] == 1
    assert found["preemptions"][-1] == 0, "it never grows"
    assert found["running"][-1] <= block_sizes.slots(2) // block_sizes.LONGEST


def test_the_estimate_for_an_a100_is_of_the_experiment_that_the_page_names() -> None:
    (arm,) = load_experiment("week04/block-size").arms
    asked = arm.profiles["a100"].server
    assert asked["kv-cache-memory-bytes"] == 4 * 2**30 == 32768 * block_sizes.KV_TOKEN
    assert asked["max-num-seqs"] == block_sizes.MAX_NUM_SEQS
    assert tuple(asked["block-size"]) == block_sizes.EXPERIMENT_SIZES
    flags = load_workload(arm.workload).on("a100").flags
    around = flags["random-input-len"], flags["random-output-len"], flags["random-range-ratio"]
    low, high = block_sizes.EXPERIMENT_LENGTHS
    assert around == ((low + high) / 2, (low + high) / 2, (high - low) / (high + low))
    assert flags["num-prompts"] == block_sizes.EXPERIMENT_REQUESTS


def forget_to_evict(pool: BlockPool) -> None:
    pool._evict = lambda block: None  # type: ignore[method-assign]


def free_in_reverse(pool: BlockPool) -> None:
    free = pool.free_blocks
    pool.free_blocks = lambda blocks: free(blocks[::-1])  # type: ignore[method-assign]


@pytest.mark.parametrize("spoil", [forget_to_evict, free_in_reverse])
def test_the_replay_tells_a_wrong_pool_from_a_right_one(spoil: Callable[[BlockPool], None]) -> None:
    operations = random_operations(seed=4, num_operations=600)
    right, again, wrong = BlockPool(24), BlockPool(24), BlockPool(24)
    spoil(wrong)
    expected = replay(right, operations)
    assert first_difference(replay(again, operations), expected) is None
    assert first_difference(replay(wrong, operations), expected) is not None


def test_the_operations_depend_on_the_seed_alone() -> None:
    assert random_operations(4, 50) == random_operations(4, 50)
    assert random_operations(4, 50) != random_operations(5, 50)
