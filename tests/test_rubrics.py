"""The rubrics of week 4: true of vLLM's source and of the recording."""

import re
from pathlib import Path

import pytest
import yaml

from autograder import rubric
from autograder.rubric import load_rubrics
from inferlab import lab
from inferlab.lab import engines
from tests.chapters import PAGES

WEEK = "week04"
LINES: dict[str, dict[str, dict[int, str]]] = yaml.safe_load(
    (Path(__file__).parent / "rubric_lines.yml").read_text()
)


def text_of(name: str) -> str:
    """A model answer on one line."""
    return " ".join(load_rubrics(WEEK)[name].model_answer.split())


@pytest.mark.parametrize("week", PAGES)
def test_every_line_that_a_model_answer_names_is_checked(week: str) -> None:
    named = set()
    for found in load_rubrics(week).values():
        file = ""
        # A line without a file belongs to the file that was named last.
        for match in re.finditer(
            r"`(\w+\.py)`|lines? (\d+)(?: (?:to|and) (\d+))?", found.model_answer
        ):
            file = match[1] or file
            named |= {(file, int(line)) for line in match.groups()[1:] if line}
    checked = {(Path(path).name, line) for path, lines in LINES[week].items() for line in lines}
    assert named == checked


@pytest.mark.engines
@pytest.mark.parametrize("week", PAGES)
def test_the_lines_hold_what_the_model_answers_say(week: str) -> None:
    (packages,) = engines.environment_folder().glob("lib/python3*/site-packages")
    for path, lines in LINES[week].items():
        source = (packages / path).read_text().splitlines()
        for line, words in lines.items():
            assert words in source[line - 1], f"{path}:{line}"


def test_the_numbers_of_analysis_2_are_those_of_the_recording() -> None:
    answer = text_of("week04-analysis-2")
    table = lab.load("week04/kv-pool")
    rows = {row["num_gpu_blocks_override"]: row for row in table.where(workload="varied-lengths")}
    roomy, middle, cramped = rows[1024], rows[256], rows[64]
    lost = roomy["input_tokens"] / 64 + roomy["output_tokens"] / 64 / 2
    needed = roomy["input_tokens"] + roomy["output_tokens"]
    redone = cramped["num_preemptions"] * lost / needed
    assert f"preempt {cramped['num_preemptions']:.0f} times" in answer
    assert (
        f"({cramped['num_preemptions_min']:.0f} to {cramped['num_preemptions_max']:.0f})" in answer
    )
    assert f"{roomy['input_tokens'] / 64:.0f} prompt tokens on average" in answer
    assert f"an answer of {roomy['output_tokens'] / 64:.0f}" in answer
    assert f"{redone:.0%}".replace("%", " % more work") in answer
    ratio = cramped["output_tokens_per_s"] / roomy["output_tokens_per_s"]
    assert f"falls to {ratio:.2f}" in answer
    assert f"leaves 1 / {1 + redone:.2f} = {1 / (1 + redone):.2f}" in answer
    assert f"the rest, {ratio * (1 + redone):.2f}, is the batch" in answer
    assert f"{cramped['engine_steps']:,.0f} steps instead of {roomy['engine_steps']:.0f}" in answer
    kept = middle["output_tokens_per_s"] / roomy["output_tokens_per_s"]
    assert f"({middle['num_preemptions']:.0f})" in answer
    assert f"keeps {kept:.2f}" in answer


def test_the_step_counter_leaves_recomputed_tokens_out_as_analysis_2_says() -> None:
    counted = {}
    for point in lab.load("week04/kv-pool").document["points"]:
        if point["parameters"]["workload"] == "varied-lengths":
            metrics = point["repeats"][0]["metrics"]
            blocks = point["parameters"]["num_gpu_blocks_override"]
            counted[blocks] = round(metrics["tokens_per_step_mean"] * metrics["engine_steps"])
            assert counted[blocks] == metrics["input_tokens"] + metrics["output_tokens"]
    assert counted == {1024: 22471, 256: 22471, 64: 22471}
    assert "22,471 in repeat 0" in text_of("week04-analysis-2")


ESSAY = {
    "kind": "written",
    "points": 2,
    "prompt": "Why?",
    "model_answer": "Because.",
    "criteria": [{"name": "reason", "points": 2, "full": "one", "half": "some", "none": "none"}],
    "samples": [
        {"answer": str(mark), "marks": {"reason": mark}, "why": "so"} for mark in (2, 1, 0)
    ],
}
WRONG = {
    "criteria that do not add up": ({"points": 3}, "worth 2 points together and the question 3"),
    "a mark above its criterion": (
        {"samples": [{"answer": "a", "marks": {"reason": 2.5}, "why": "so"}]},
        "more marks than its criterion",
    ),
    "an unknown criterion": (
        {"samples": [{"answer": "a", "marks": {"style": 1}, "why": "so"}]},
        "marked on style and the criteria are reason",
    ),
    "two samples": ({"samples": ESSAY["samples"][:2]}, "at least 3 are needed"),
    "no weak sample": (
        {"samples": [ESSAY["samples"][0]] * 3},
        "one with 80% or more and one below 50%",
    ),
    "no model answer": ({"model_answer": ""}, "needs a model answer"),
    "a misspelt key": ({"modelanswer": "Because."}, "modelanswer"),
}


def load(folder: Path, monkeypatch: pytest.MonkeyPatch, entry: object) -> dict[str, rubric.Rubric]:
    (folder / "week99.yml").write_text(yaml.safe_dump({"week99-why": entry}))
    monkeypatch.setattr(rubric, "RUBRICS", folder)
    return load_rubrics("week99")


def test_a_sound_rubric_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(tmp_path, monkeypatch, ESSAY)["week99-why"].points == ESSAY["points"]


@pytest.mark.parametrize("what", WRONG)
def test_an_unsound_rubric_is_refused(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = WRONG[what]
    with pytest.raises(ValueError, match=f"week99.yml: week99-why.*{re.escape(message)}"):
        load(tmp_path, monkeypatch, ESSAY | change)


def test_a_week_without_rubrics_has_none() -> None:
    assert load_rubrics("week00") == {}
