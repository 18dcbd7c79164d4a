"""Week 3 as a reader meets it: cells that run again, and prose that is true of the record."""

import json
from statistics import median

import pytest

from autograder.rubric import load_rubrics
from inferlab import lab
from inferlab.analysis.operators import BF16, StepShape, operators
from inferlab.analysis.roofline import (
    Ceilings,
    classify,
    decode_floor_ms,
    step_floor_ms,
    utilisation,
)
from inferlab.lab.paths import ROOT
from inferlab.sim.shapes import SHAPES

LLAMA_8B = SHAPES["Llama-3.1-8B"]
A100, L40S = Ceilings(312e12, 2039e9), Ceilings(362.05e12, 864e9)
ARMS = ["a layer of the model", "weights beyond a core's cache"]


# What captions and prose say of the recorded experiments.


def test_output_grows_far_faster_than_the_time_of_a_token() -> None:
    rows = lab.load("week03/engine-on-the-roofline").where()
    assert [row["max_concurrency"] for row in rows] == [1, 4, 16, 64]
    output = [row["output_tokens_per_s"] for row in rows]
    waiting = [row["tpot_mean_ms"] for row in rows]
    assert output == sorted(output)
    assert waiting == sorted(waiting)
    assert 13 < output[-1] / output[0] < 15
    assert 3.5 < waiting[-1] / waiting[0] < 4.5, "about four times as long"


def test_bandwidth_falls_to_less_than_a_third_between_2_and_32_mb() -> None:
    copies = lab.load("week03/copy-bandwidth")
    by_size = dict(zip(copies.column("megabytes"), copies.column("copy_gb_per_s"), strict=True))
    assert max(by_size[32], by_size[256]) < by_size[2] / 3
    assert by_size[32] < by_size[256], "which the page says is not explained"


def test_the_ridge_is_a_bend() -> None:
    copies, products = lab.load("week03/copy-bandwidth"), lab.load("week03/matmul-rate")
    memory = max(copies.repeats("copy_best_gb_per_s", megabytes=256))
    peak = max(
        max(products.repeats("matmul_best_gflop_per_s", arm=arm, m=m))
        for arm in ARMS
        for m in (1, 16, 64, 256, 1024)
    )
    for arm in ARMS:
        share = {row["m"]: row["matmul_gflop_per_s"] / peak for row in products.where(arm=arm)}
        (sixteen,) = products.where(arm=arm, m=16)
        assert 1.9 < sixteen["matmul_flop_per_byte"] / (peak / memory) < 2.2, "twice the ridge"
        assert share[16] < 2 / 3, "a third or more is lacking"
        assert share[1024] < share[256], "more rows buy no rate"
        (one,) = products.where(arm=arm, m=1)
        assert one["matmul_gflop_per_s"] / one["matmul_flop_per_byte"] > memory, "from a cache"


def test_the_engine_is_at_a_thirtieth_to_a_quarter_of_the_roof() -> None:
    copies, products = lab.load("week03/copy-bandwidth"), lab.load("week03/matmul-rate")
    cache = max(copies.repeats("copy_best_gb_per_s", megabytes=2))
    peak = max(
        max(products.repeats("matmul_best_gflop_per_s", arm=arm, m=m))
        for arm in ARMS
        for m in (1, 16, 64, 256, 1024)
    )
    roof = Ceilings(peak, cache)
    rows = lab.load("week03/engine-on-the-roofline").where()
    shares = [
        row["estimated_gflop_per_s"] / roof.attainable(row["estimated_flop_per_byte"])
        for row in rows
    ]
    assert shares == sorted(shares)
    assert 1 / 36 < shares[0] < 1 / 28
    assert 1 / 4.2 < shares[-1] < 1 / 3.6


# The instructor's answers.


def text_of(name: str) -> str:
    """A model answer on one line."""
    return " ".join(load_rubrics("week03")[name].model_answer.split())


def test_the_model_answer_on_chunks() -> None:
    """n² in one chunk, n²(k + 1) / 2k in k chunks."""
    for k in (2, 4, 8):
        n = 64 * k
        chunks = StepShape.of([(64, 64 * (i + 1), True) for i in range(k)])
        assert chunks.pairs == n * n * (k + 1) / (2 * k)
    assert 1536 * 2 * 32 * 8 * 128 == 100_663_296
    assert 2048 * 131_072 == 268_435_456


def test_the_model_answer_on_the_group() -> None:
    for group, panels in ((1, 65), (8, 16)):
        places = {(i % group, i // group) for i in range(64)}
        assert len({row for row, _ in places}) + len({column for _, column in places}) == panels


def test_the_model_answer_on_the_server_at_its_limit() -> None:
    found = operators(LLAMA_8B, StepShape.decode(16, 16_000), BF16)
    step = 16 / 1500
    floor = decode_floor_ms(LLAMA_8B, BF16, 2039e9, 16, 1000)
    share = utilisation(sum(one.flop for one in found), 0, step, A100)
    assert (round(1000 * step, 1), round(floor, 2)) == (10.7, 8.39)
    assert (round(100 * share.mfu, 1), round(floor / step / 10)) == (7.5, 79)
    assert round(16 / floor * 1000) == 1907
    wider = decode_floor_ms(LLAMA_8B, BF16, 2039e9, 64, 1000)
    assert (round(wider, 1), round(64 / wider * 1000)) == (11.5, 5577)
    assert set(classify(found, A100).values()) == {"memory"}
    for figure in ("8.39 ms", "MBU 79 %", "MFU 7.5 %", "1,907", "11.5 ms", "5,577"):
        assert figure in text_of("week03-analysis-1")


def test_the_model_answer_on_what_holds_the_engine_back() -> None:
    document = json.loads((ROOT / "results/cpu/week03/engine-on-the-roofline.json").read_text())
    steps, tokens, flop, moved = [], [], [], []
    for point in document["points"]:
        runs = [repeat["metrics"] for repeat in point["repeats"]]
        steps.append(median(1000 * run["duration_s"] / run["engine_steps"] for run in runs))
        tokens.append(median(run["tokens_per_step_mean"] for run in runs))
        flop.append(median(run["estimated_flop"] / run["engine_steps"] for run in runs))
        moved.append(
            median(
                (run["estimated_read_bytes"] + run["estimated_written_bytes"]) / run["engine_steps"]
                for run in runs
            )
        )
    assert [round(step, 1) for step in steps] == [5.2, 6.7, 8.5, 21.7]
    assert [round(one, 1) for one in tokens] == [1.5, 5.9, 23.3, 86.8]
    assert round(moved[0] / 1e6, 1) == 13.9
    assert round(flop[-1] / 1e6) == 578
    slope = (steps[-1] - steps[0]) / (tokens[-1] - tokens[0])
    assert slope == pytest.approx(0.19, abs=0.015)
    assert "5.2, 6.7, 8.5 and 21.7 ms" in text_of("week03-analysis-2")


def test_the_model_answer_on_two_gpus() -> None:
    prompt = operators(LLAMA_8B, StepShape.of([(4000, 4000, True)]), BF16)
    assert [round(step_floor_ms(prompt, one)) for one in (A100, L40S)] == [212, 191]
    floors = [decode_floor_ms(LLAMA_8B, BF16, one.bytes_per_s, 32, 2000) for one in (A100, L40S)]
    assert [round(one, 1) for one in floors] == [11.5, 27.1]
    assert round(floors[1] / floors[0], 2) == 2.36
    assert (round(A100.ridge), round(L40S.ridge)) == (153, 419)
    decode = operators(LLAMA_8B, StepShape.decode(32, 64_000), BF16)
    assert (
        set(classify(decode, L40S).values()) == set(classify(decode, A100).values()) == {"memory"}
    )
