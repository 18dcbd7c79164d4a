"""Each physics check refuses a row that only it can refuse, and possible rows pass them all."""

from dataclasses import replace

import pytest

from inferlab.lab import physics
from inferlab.lab.paths import RECORDED
from inferlab.lab.physics import Ceilings, ceilings_of, violations
from inferlab.lab.plan import plan_experiment
from inferlab.lab.results import read_document
from inferlab.lab.upstream import UPSTREAM

CEILINGS = Ceilings(
    decode_weight_bytes=15_000_000_000,
    kv_bytes_per_token=131_072,
    bandwidth_bytes_per_s=2e12,
    memory_bytes=80_000_000_000,
    max_num_seqs=16,
    max_concurrency=32,
    tokens_per_step=1,
    is_served=True,
    exact_lengths=True,
)
# 100 requests of 100 tokens in 50 s: 16 of them decode at 10 ms a token, 8 s each.
POSSIBLE = {
    "duration_s": 50.0,
    "num_requests": 100,
    "input_max_tokens": 100,
    "output_tokens": 10_000,
    "requested_output_tokens": 10_000,
    "server_generation_tokens": 10_000,
    "requests_per_s": 2.0,
    "output_tokens_per_s": 200.0,
    "e2e_mean_ms": 9_000.0,
    "ttft_mean_ms": 1_100.0,
    "tpot_mean_ms": 79.0,
    "num_preemptions": 0,
    "num_gpu_blocks": 1_000,
    "kv_block_size_tokens": 16,
    "kv_cache_size_tokens": 16_000,
    "prefix_cache_queries_tokens": 5_000,
    "prefix_cache_hits_tokens": 1_600,
}


def test_possible_row_passes() -> None:
    assert violations(POSSIBLE, CEILINGS) == []


@pytest.mark.parametrize(
    ("check", "change"),
    [
        (physics.decode_floor, {"tpot_mean_ms": 7.4}),
        (
            physics.decode_floor,
            {"duration_s": 4.0, "requests_per_s": 25.0, "output_tokens_per_s": 2500.0}
            | {"e2e_mean_ms": 700.0, "ttft_mean_ms": 100.0},
        ),
        (physics.kv_memory, {"kv_cache_size_tokens": 600_000}),
        (physics.littles_law, {"e2e_mean_ms": 17_000.0, "ttft_mean_ms": 10_000.0}),
        (physics.littles_law, {"requests_per_s": 1.5}),
        (physics.littles_law, {"ttft_mean_ms": 500.0}),
        (physics.token_counts, {"output_tokens_per_s": 150.0}),
        (physics.token_counts, {"requested_output_tokens": 10_100}),
        (physics.token_counts, {"server_generation_tokens": 9_900}),
        (physics.prefix_hits, {"prefix_cache_hits_tokens": 5_001}),
        (physics.prefix_hits, {"input_max_tokens": 16}),
        (physics.accepted_drafts, {"drafts": 9, "draft_tokens": 9, "accepted_draft_tokens": 10}),
        (physics.accepted_drafts, {"drafts": 9, "draft_tokens": 10, "accepted_draft_tokens": 8}),
        (physics.copy_bandwidth, {"copy_gb_per_s": 2_001.0}),
    ],
)
def test_impossible_row_is_refused_by_its_check_alone(check, change) -> None:  # type: ignore[no-untyped-def]
    row = {**POSSIBLE, **change}
    refusing = [found for found in physics.CHECKS if found(row, CEILINGS)]
    assert refusing == [check]
    sentence = violations(row, CEILINGS)[0]
    assert sentence.endswith(".")
    assert any(character.isdigit() for character in sentence)


def test_every_check_is_covered() -> None:
    mark = next(m for m in test_impossible_row_is_refused_by_its_check_alone.pytestmark)
    assert {check for check, _ in mark.args[1]} == set(physics.CHECKS)


def test_speculation_gives_a_sequence_several_tokens_a_step() -> None:
    speculating = replace(CEILINGS, tokens_per_step=4)
    row = {**POSSIBLE, "drafts": 100, "draft_tokens": 300, "accepted_draft_tokens": 300}
    assert violations(row, speculating) == []
    # Reading the weights takes 7.5 ms, and a step can give four tokens.
    assert violations({**row, "tpot_mean_ms": 2.0}, speculating) == []
    assert len(violations({**row, "tpot_mean_ms": 1.8}, speculating)) == 1
    assert len(violations({**row, "draft_tokens": 301}, speculating)) == 1
    assert len(violations({**row, "accepted_draft_tokens": 301}, speculating)) == 1


def test_an_answer_of_few_steps_can_arrive_at_once() -> None:
    speculating = replace(CEILINGS, tokens_per_step=4)
    counts = dict.fromkeys(
        ("output_tokens", "requested_output_tokens", "server_generation_tokens"), 800
    )
    row = {**POSSIBLE, **counts, "output_tokens_per_s": 16.0, "tpot_mean_ms": 0.002}
    assert violations(row, speculating) == [], "8 tokens are 2 steps after the first"
    (sentence,) = violations(row, CEILINGS)
    assert "A mean TPOT of 0.002 ms" in sentence, "without drafts they are 7"


def test_a_program_that_times_no_request_is_checked_by_what_it_has() -> None:
    rates = ("duration_s", "num_requests", "output_tokens", "output_tokens_per_s")
    row = {name: POSSIBLE[name] for name in rates}
    offline = replace(CEILINGS, is_served=False)
    assert violations(row, offline) == []
    assert len(violations({**row, "output_tokens_per_s": 150.0}, offline)) == 1
    assert violations({"accuracy_share": 0.8, "num_questions": 600}, offline) == []
    with pytest.raises(KeyError):
        violations(row, CEILINGS)


def test_preemption_lets_a_request_wait_while_it_decodes() -> None:
    row = {**POSSIBLE, "ttft_mean_ms": 500.0, "num_preemptions": 3}
    assert violations(row, CEILINGS) == []


def test_recorded_results_are_possible() -> None:
    files = sorted({*RECORDED.glob("*/week*/*.json")} - {*UPSTREAM.glob("*/*.json")})
    assert len(files) >= 3
    for file in files:
        document = read_document(file)
        plan = plan_experiment(document["experiment"], document["profile"])
        memory = document["provenance"]["hardware"]["memory_bytes"]
        planned = {str(point.parameters): point for point in plan.points}
        for recorded in document["points"]:
            point = planned[str(recorded["parameters"])]
            for repeat in recorded["repeats"]:
                assert violations(repeat["metrics"], ceilings_of(plan, point, memory)) == []
