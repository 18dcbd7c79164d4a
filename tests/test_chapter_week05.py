"""What week 5 says, held against the recorded results, the engine and the rubrics."""

import json
import re
import time
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autograder.rubric import load_rubrics
from inferlab import golden, lab, models
from inferlab.analysis import hit_tokens, kv_bytes_per_token, predicted_hits
from inferlab.engine import LLM, SamplingParams
from inferlab.engine.fp8 import FORMATS
from inferlab.lab.paths import ROOT
from inferlab.lab.upstream import UPSTREAM
from inferlab.models import corpus
from inferlab.publish import read_page

PAGE = read_page(ROOT, Path("notebooks/week05-prefix-caching.md"))
TEXT = " ".join(PAGE.path.read_text().split())


def answer(name: str) -> str:
    return " ".join(load_rubrics("week05")[name].model_answer.split())


def test_the_cache_helps_the_median_most_and_the_tail_least() -> None:
    table = lab.load("week05/apc-on-off")
    waits = {
        setting: np.concatenate(
            [
                repeat["ttft_us"]
                for repeat in table.samples(workload="shared-prefix", enable_prefix_caching=setting)
            ]
        )
        for setting in (True, False)
    }
    kept = {
        share: np.percentile(waits[True], share) / np.percentile(waits[False], share)
        for share in (50, 90)
    }
    assert kept[50] < 0.3
    assert 0.6 < kept[90] < 1


def test_the_two_controls_differ_in_opposite_directions() -> None:
    on_off, turns = lab.load("week05/apc-on-off"), lab.load("week05/agent-loop")

    def outputs(table: Any, workload: str) -> list[list[float]]:
        settings = ({"workload": workload, "enable_prefix_caching": on} for on in (True, False))
        return [table.repeats("output_tokens_per_s", **where) for where in settings]

    on, off = outputs(on_off, "unshared-prefix")
    assert max(on) < min(off)
    on, off = outputs(turns, "separate-turns")
    assert min(on) > max(off)
    for table, workload in ((on_off, "unshared-prefix"), (turns, "separate-turns")):
        where = {"workload": workload, "enable_prefix_caching": True}
        assert table.repeats("prefix_cache_hits_tokens", **where) == [0, 0, 0]


def test_one_prefix_lost_a_token_to_its_seam() -> None:
    data, lengths = lab.upstream_answer("week05/prefix-repetition")
    (pairs,) = (pairs for case, pairs in zip(data["cases"], lengths) if case == [512, 0])
    followers = sorted(shared for _, shared in pairs)[-40:]
    assert followers[:5] == [511] * 5
    assert followers[5] == 512, "all others share the prefix, and some by chance a token more"


def test_the_last_turn_waits_no_longer_than_the_first() -> None:
    table = lab.load("week05/agent-loop")
    medians = {}
    for setting in (True, False):
        repeats = table.samples(workload="agent-loop", enable_prefix_caching=setting)
        waits = np.array([repeat["ttft_us"] for repeat in repeats]).reshape(3, 8, 8)
        medians[setting] = np.median(waits, axis=(0, 2))
        assert [repeat["input_tokens"][::8] for repeat in repeats] == [
            [128 + 96 * turn for turn in range(8)]
        ] * 3, "all conversations have their first turn before any has its second"
    assert medians[True][-1] <= medians[True][0]
    assert medians[False][-1] > 4 * medians[True][-1]


def test_fp8_is_faster_where_memory_was_short_and_slower_where_it_was_not() -> None:
    table = lab.load("week05/fp8-kv")

    def outputs(workload: str) -> list[list[float]]:
        kinds = ({"workload": workload, "kv_cache_dtype": d} for d in ("auto", "fp8_e4m3"))
        return [table.repeats("output_tokens_per_s", **where) for where in kinds]

    full, eight = outputs("varied-lengths")
    assert min(eight) > 1.3 * max(full)
    full, eight = outputs("four-at-a-time")
    assert max(eight) < min(full)


def flips() -> dict[str, tuple[int, int]]:
    table = lab.load("week05/fp8-accuracy")
    right = {
        dtype: np.array(table.samples(kv_cache_dtype=dtype)[0]["is_right"], dtype=bool)
        for dtype in ("auto", "fp8_e4m3", "fp8_e5m2")
    }
    return {
        dtype: (
            int((right["auto"] & ~right[dtype]).sum()),
            int((right[dtype] & ~right["auto"]).sum()),
        )
        for dtype in ("fp8_e4m3", "fp8_e5m2")
    }


def test_the_model_answer_on_accuracy_has_the_recorded_flips() -> None:
    text = answer("week05-analysis-2")
    assert flips() == {"fp8_e4m3": (5, 2), "fp8_e5m2": (12, 2)}
    p = {
        n: 2 * sum(comb(n, k) for k in range(most, n + 1)) / 2**n for n, most in ((7, 5), (14, 12))
    }
    assert f"p = {p[7]:.2f}" in text
    assert f"p = {p[14]:.3f}" in text
    table = lab.load("week05/fp8-accuracy")
    for dtype in ("auto", "fp8_e5m2"):
        (row,) = table.where(kv_cache_dtype=dtype)
        low, high = (100 * row[f"accuracy_{end}_share"] for end in ("low", "high"))
        assert f"{low:.1f} to {high:.1f} %" in text
    pairs = next(n for n in range(100, 9999, 10) if 0.01 * n / (0.02 * n) ** 0.5 >= 2.8)
    assert round(pairs, -2) == 1600
    unpaired = 2 * 2.8**2 * 0.83 * 0.17 / 0.01**2
    assert round(unpaired, -3) == 22_000


def test_the_model_answer_on_block_sizes_is_the_law() -> None:
    text = answer("week05-analysis-1")
    assert (hit_tokens(410, 300, 16), hit_tokens(410, 300, 128)) == (288, 256)
    assert "288" in text
    assert "256" in text
    table = lab.load("week05/prefix-length")
    for block_size, length in ((32, 160), (32, 96), (32, 512), (128, 512)):
        where = {"block_size": block_size, "prefix_repetition_prefix_len": length}
        found = table.repeats("prefix_cache_hits_tokens", **where)
        assert f"{min(found):,.0f} to {max(found):,.0f}" in text
    where = {"block_size": 128, "prefix_repetition_prefix_len": 160}
    assert set(table.repeats("prefix_cache_hits_tokens", **where)) == {5120}


def test_the_model_answer_on_salts_is_arithmetic() -> None:
    text = answer("week05-analysis-3")
    hit = hit_tokens(1600, 1500, 16)
    assert hit == 1488
    assert round(199 * hit, -3) == 296_000
    copy = hit * kv_bytes_per_token(32, 8, 128, 2)
    assert f"{copy / 2**20:.0f} MiB, 200 copies {200 * copy / 2**30:.0f} GiB" in text
    lost = 199 * hit / (9999 * hit)
    assert 0.015 < lost < 0.025
    assert f"{100 * lost:.0f} % of the savings" in text


@pytest.mark.parametrize("name", list(golden.load("week05")["workloads"]))
def test_the_golden_savings_are_the_law(name: str) -> None:
    run = golden.load("week05")
    workload = run["workloads"][name]
    sent = [prompt for group in workload["groups"] for prompt in group]
    assert sum(predicted_hits(sent, run["block_size"], workload["answers"])) == workload["saved"]


def test_a_tenant_sees_anothers_eviction_and_not_its_text() -> None:
    """The counts behind the section on the side channel; its times are not for a test."""
    llm = LLM(models.path("tiny-chat"), num_blocks=40, block_size=16)
    params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)

    def hit(token_ids: list[int], salt: str) -> int:
        request = llm.add_request(token_ids, params)
        request.cache_salt = salt
        while not request.status.is_finished:
            llm.step()
        return request.num_cached_tokens

    own = [100 + i % 400 for i in range(480)]
    assert hit(own, "attacker") == 0
    assert hit(own, "attacker") == 464
    assert hit(own[:256], "victim") == 0, "another salt finds nothing"
    assert 0 < hit(own, "attacker") < 464, "but the victim's blocks came from somewhere"


def test_the_course_engine_leaks_what_vllm_leaks() -> None:
    """Tokens hit by each guess, in the arms as vLLM was asked; a guess is right or it is not."""
    (cell,) = (cell for cell in PAGE.cells if "def attack(" in cell.source)
    of_page: dict[str, Any] = {
        "np": np,
        "time": time,
        "corpus": corpus,
        "models": models,
        "LLM": LLM,
        "SamplingParams": SamplingParams,
    }
    exec(cell.source, of_page)
    recorded = json.loads((UPSTREAM / "week05" / "side-channel.json").read_text())["answer"]
    secret = of_page["secrets"][0]
    for name, arm in of_page["arms"].items():
        ours = of_page["attack"](secret, **arm)[:, 1].tolist()
        theirs = [hit for _, hit in recorded["arms"][name][0]]
        assert ours == theirs, name
        stands_out = [guess for guess, hit in zip(of_page["CANDIDATES"], ours) if hit > min(ours)]
        assert stands_out == ([secret] if name == "secret first, no salt" else [])


def test_every_counted_claim_of_the_page_is_computed() -> None:
    for words in (
        "in {say}`agent_met` of three repeats",
        "{say}`counter_met` of {say}`counter_all`",
    ):
        assert words in TEXT
    assert not re.search(r"(?<!\d)0\.78(?!\d)", TEXT)


def test_a_scale_makes_no_difference_between_one_and_448() -> None:
    form = FORMATS["fp8_e4m3"]
    keys = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    keys /= np.abs(keys).max()

    def error(factor: float, scale: float) -> float:
        numbers = keys * np.float32(factor)
        back = form.values[form.encode(numbers / np.float32(scale))] * np.float32(scale)
        return float(np.linalg.norm(back - numbers) / np.linalg.norm(numbers))

    fitted = error(10, 10 / 448)
    assert all(error(size, 1) < 1.1 * fitted for size in (1, 4, 30, 448))
    assert error(0.02, 1) > 2 * fitted
    assert error(2000, 1) > 3 * fitted
