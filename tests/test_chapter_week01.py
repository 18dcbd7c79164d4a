"""Week 1 as a reader meets it: what the page says, and the stream cell against a real server."""

import ast
import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autograder.rubric import load_rubrics
from inferlab import lab
from inferlab.analysis import locate_saturation
from inferlab.engine import RequestStatus
from inferlab.engine.request import FINISH_REASONS
from inferlab.lab.paths import ROOT
from inferlab.lab.upstream import UPSTREAM
from inferlab.publish import read_page
from inferlab.publish.editions import exercises
from inferlab.publish.page import Cell
from tests.server_fixture import our_server

PATH = Path("notebooks/week01-first-serving.md")
PAGE, PAGE_TEXT = read_page(ROOT, PATH), (ROOT / PATH).read_text(encoding="utf-8")
CODE = [cell for cell in PAGE.cells if cell.kind == "code"]
EXERCISES = exercises(PAGE)
RATES = lab.load("week01/request-rates")


def tags(cell: Cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def cell_with(words: str) -> str:
    (found,) = [cell.source for cell in CODE if words in cell.source]
    return found


def answer_to(name: str) -> str:
    """A model answer on one line."""
    return " ".join(load_rubrics("week01")[name].model_answer.split())


def test_a_reader_who_has_written_nothing_gets_through_the_theory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unwritten(*arguments: Any, **options: Any) -> None:
        raise NotImplementedError

    monkeypatch.setenv("INFERLAB_CONTEXT", "book")
    monkeypatch.setenv("INFERLAB_SERVER", "http://127.0.0.1:9")
    for _, exercise in EXERCISES.values():
        for home, members in exercise.homes.items():
            module = import_module(home)
            for member in members:
                owner, _, method = member.rpartition(".")
                target = getattr(module, owner) if owner else module
                monkeypatch.setattr(target, method, unwritten)
    namespace: dict[str, Any] = {}
    for cell in CODE:
        exec(cell.source, namespace)
        if "exercise" in tags(cell):
            break
    shown = capsys.readouterr().out
    assert "HTML object" in shown, "figures were shown"
    assert "These answers are recorded" in shown


def test_the_recorded_streams_are_of_the_servers_that_the_page_starts() -> None:
    commands = PAGE_TEXT.replace("\\\n", " ")
    started = re.findall(r"^(vllm|sglang) serve (.*) --port 8000 (.*)$", commands, re.MULTILINE)
    tree = ast.parse(cell_with("recorded_streams ="))
    (servers,) = [
        ast.unparse(value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "servers"
    ]
    checkpoint = "inferlab/models/checkpoints/tiny-chat"
    arguments = eval(servers, {"CHECKPOINT": checkpoint})
    for engine, before, behind in started:
        words = before.split() + behind.split()
        assert sorted(words) == sorted(arguments[engine]), engine
    assert [engine for engine, _, _ in started] == list(arguments)


@pytest.mark.slow
def test_the_stream_cell_streams_from_a_server_over_both_endpoints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with our_server() as server:
        monkeypatch.setenv("INFERLAB_SERVER", server.url)
        monkeypatch.setenv("INFERLAB_CONTEXT", "book")
        namespace: dict[str, Any] = {}
        needed = (
            "import install",
            "import urllib.request",
            "recorded_streams =",
            "def stream_over",
        )
        for words in needed:
            exec(cell_with(words), namespace)
    assert "The" in capsys.readouterr().out
    completion, chat = namespace["live_rows"]
    assert len(chat.token_s) == 16
    assert 0 < len(completion.token_s) <= 16, "a special token is no text, and sends no event"
    for row in (completion, chat):
        assert row.arrived_s < row.token_s[0]
        assert row.token_s == sorted(row.token_s)


def test_what_the_captions_and_the_prose_say_of_the_recording_is_so() -> None:
    short = {row["request_rate"]: row for row in RATES.where(engine="vllm", workload="short-short")}
    for metric in ("ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms"):
        values = [short[rate][metric] for rate in (8, 32, 96)]
        assert values == sorted(values), metric
    long_calm = RATES.samples(engine="vllm", workload="long-short", request_rate=4)[0]
    arrivals = long_calm["arrival_us"]
    first_s = [sent + ttft for sent, ttft in zip(arrivals, long_calm["ttft_us"], strict=True)]
    tokens = first_s[13] + np.cumsum([0, *long_calm["itls_us"][13]])
    stall = int(np.argmax(np.diff(tokens)))
    assert stall == 0, "the second token of request 13 is the one that waits"
    assert all(arrivals[13] < arrivals[i] < first_s[13] for i in (14, 15, 16))
    assert all(abs(first_s[i] - tokens[1]) < 1000 for i in (14, 15)), "they share a step"
    assert tokens[1] < first_s[16] < tokens[2] + 1000
    calm, small = (
        lab.load("week01/kv-memory").where(request_rate=2, kv_cache_memory_bytes=size)[0]
        for size in (128 * 2**20, 8 * 2**20)
    )
    assert calm["output_tokens_per_s"] == pytest.approx(small["output_tokens_per_s"], rel=0.01)
    assert calm["ttft_p99_ms"] < small["ttft_p99_ms"]


def test_the_fit_follows_96_short_requests_on_vllm_where_the_quotient_does_not() -> None:
    points = [
        point
        for point in RATES.document["points"]
        if point["parameters"]["engine"] == "vllm"
        and point["parameters"]["workload"] == "short-short"
    ]
    rates = [float(point["parameters"]["request_rate"]) for point in points]
    for repeat in range(3):
        metrics = [point["repeats"][repeat]["metrics"] for point in points]
        found = locate_saturation(
            rates, [m["num_requests"] for m in metrics], [m["duration_s"] for m in metrics]
        )
        assert found.num_followed == 3
        assert metrics[2]["requests_per_s"] < 0.9 * 96


def test_the_golden_stop_string_straddles_two_tokens() -> None:
    golden = json.loads((ROOT / "golden" / "week01.json").read_text())
    assert golden["counters"] == [[5, 6], [6, 7], [7, 8], [8, 9]]
    assert golden["stop"] not in golden["stopped"]["text"]
    assert golden["finish_reasons"] == ["stop", "stop", "length"]
    assert FINISH_REASONS[RequestStatus.FINISHED_STOPPED] == golden["stopped"]["reason"]


def test_the_numbers_of_analysis_2_and_3_are_those_of_the_recording() -> None:
    rows = {row["request_rate"]: row for row in RATES.where(engine="vllm", workload="long-short")}
    text = answer_to("week01-analysis-2")
    for rate in (4, 8):
        p99, low, high = (rows[rate]["ttft_p99_ms" + end] for end in ("", "_min", "_max"))
        assert f"{p99:,.0f} ms ({low:,.0f} to {high:,.0f})" in text
    assert f"{rows[16]['ttft_p99_ms']:,.0f} ms at 16" in text
    closed = lab.load("week01/closed-loop")
    text = answer_to("week01-analysis-3")
    for engine in ("vllm", "sglang"):
        (row,) = closed.where(engine=engine, workload="short-short", max_concurrency=16)
        assert f"{row['output_tokens_per_s']:,.0f}" in text
        assert f"{row['itl_p99_ms']:.0f}" in text
        (row,) = RATES.where(engine=engine, workload="short-short", request_rate=96)
        assert f"{row['itl_p99_ms']:.0f}" in text


def test_the_recorded_answers_say_what_the_page_says_of_them() -> None:
    streams = json.loads((UPSTREAM / "week01" / "streamed-answer.json").read_text())["answer"]
    texts = {name: [text for _, text in pieces] for name, pieces in streams["streams"].items()}
    for endpoint in ("/v1/completions", "/v1/chat/completions"):
        assert texts[f"vllm {endpoint}"] == texts[f"sglang {endpoint}"]
    assert texts["vllm /v1/completions"] != texts["vllm /v1/chat/completions"]
    assert len(texts["vllm /v1/chat/completions"]) == 16, "a mark for each token"
    for pieces in streams["streams"].values():
        times = [at_ms for at_ms, _ in pieces]
        assert times == sorted(times)
        assert times[0] > np.median(np.diff(times)), "the first token takes longest"


def test_the_mixes_are_ordered_as_the_page_says() -> None:
    mixes = lab.load("week01/length-mixes")
    burst = {
        mix: RATES.where(engine="vllm", workload=mix)[-1] for mix in ("short-short", "long-short")
    }
    burst["short-long"] = mixes.where(engine="vllm", workload="short-long")[-1]

    def order(metric: str) -> list[str]:
        return sorted(burst, key=lambda mix: -burst[mix][metric])

    assert order("requests_per_s") == ["short-short", "short-long", "long-short"]
    assert order("output_tokens_per_s") == ["short-long", "short-short", "long-short"]
    assert order("total_tokens_per_s") == ["long-short", "short-short", "short-long"]
    cached, control = (mixes.where(engine="vllm", enable_prefix_caching=on) for on in (True, False))
    assert cached[-1]["requests_per_s_min"] > 2 * control[-1]["requests_per_s_max"]
    assert cached[0]["requests_per_s"] == pytest.approx(control[0]["requests_per_s"], rel=0.02)
    assert control[-1]["prefix_cache_hits_tokens_max"] == 0
    with_tree = mixes.where(engine="sglang", disable_radix_cache=False)
    assert with_tree[-1]["prefix_hit_share"] < with_tree[0]["prefix_hit_share"]
