"""The programs of vLLM and lm_eval, run for real: what they count, and that they judge as we do."""

from pathlib import Path

import pytest

from inferlab import models
from inferlab.lab import offline, upstream
from inferlab.lab.checkpoints import model_path
from inferlab.lab.plan import plan_experiment
from inferlab.lab.point import Point
from inferlab.models import corpus
from tests.scratch_experiments import scratch_experiments

pytestmark = [pytest.mark.engines, pytest.mark.slow]

QUESTIONS_ASKED = 40
SMALL = f"""\
week: 99
experiments:
  small:
    question: Does it run?
    prediction: Will it?
    metrics: [output_tokens_per_s]
    repeats: 1
    profiles: [cpu]
    arms:
      - engine: vllm
        program: throughput
        workload: five
        server: {{enable-logging-iteration-details: true, enable-prefix-caching: false}}
      - engine: vllm
        program: accuracy
        options: {{tasks: inferlab_questions, apply_chat_template: true, limit: {QUESTIONS_ASKED}}}
"""
FIVE = """\
five:
  description: five short requests
  flags: {dataset-name: random, num-prompts: 5, random-input-len: 40, random-output-len: 12,
          random-range-ratio: 0.5, max-concurrency: 2, ignore-eos: true, temperature: 0}
"""


@pytest.fixture
def points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Point]:
    scratch_experiments(tmp_path, monkeypatch, workloads=FIVE, week99=SMALL)
    return {str(point.program): point for point in plan_experiment("week99/small", "cpu").points}


def measured(point: Point, folder: Path) -> offline.Measured:
    return offline.measure(point, model_path(point.model), folder / "out", seed=0)


def test_throughput_accounts_for_every_token_of_every_step(
    points: dict[str, Point], tmp_path: Path
) -> None:
    metrics, samples = measured(points["throughput"], tmp_path)
    assert metrics["num_requests"] == 5
    # A request's prompt is computed in one step or several; the last of them gives its first token.
    assert sum(samples["step_context_tokens"]) == metrics["input_tokens"] > 0
    assert sum(samples["step_generation_tokens"]) == metrics["output_tokens"] - 5
    assert 0 < metrics["model_time_s"] < metrics["duration_s"]


@pytest.mark.full
def test_lm_eval_on_vllm_judges_each_answer_as_the_checkpoints_card_does(
    points: dict[str, Point], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from inferlab.models.evaluate import generate

    metrics, samples = measured(points["accuracy"], tmp_path)
    assert metrics["num_questions"] == QUESTIONS_ASKED
    folder = models.path("tiny-chat")
    each = QUESTIONS_ASKED // len(corpus.CHECKED_TASKS)
    by_task = [corpus.held_out_examples(task, each) for task in corpus.CHECKED_TASKS]
    cases = [case for turn in zip(*by_task) for case in turn]
    answers = generate(
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
        [case.prompt for case in cases],
        64,
    )
    expected = [int(answer == case.answer) for answer, case in zip(answers, cases)]
    assert 0 < sum(expected) < QUESTIONS_ASKED
    assert samples["is_right"] == expected


def test_offline_and_online_requests_are_the_same() -> None:
    script = (Path(__file__).parent / "upstream" / "vllm_bench_requests.py").read_text()
    flags = "--dataset-name random --num-prompts 6 --random-input-len 40 --random-output-len 12"
    data = {
        "model": str(models.path("tiny-chat")),
        "flags": [*flags.split(), "--random-range-ratio", "0.5", "--seed", "3"],
    }
    online, at_once = upstream(script, data)
    assert len(online) == 6
    assert online == at_once
