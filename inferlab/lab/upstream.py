"""Asks the engines' own classes: a small script in their interpreter, JSON in and JSON out.

What a chapter shows is recorded under a name such as `week04/block-pool`. Most of these questions
are in `experiments/upstream/questions.py`; a page may also put one together itself.
"""

import hashlib
import json
import runpy
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from inferlab.lab import engines
from inferlab.lab.json_file import write_json
from inferlab.lab.paths import EXPERIMENTS, RECORDED, ROOT, without_root
from inferlab.lab.table import version_of, with_version

CALL = Path(__file__).parent / "engine_side" / "call.py"
UPSTREAM = RECORDED / "upstream"
SCRIPTS = EXPERIMENTS / "upstream"


class UpstreamError(RuntimeError):
    """The script failed in the engines' interpreter; the message ends with what it wrote."""


class Question(NamedTuple):
    """Python source that defines `main(data)`, and its data."""

    script: str
    data: Any


def upstream(script: str, data: Any, recorded: str | None = None) -> Any:
    """What `main(data)` of `script` returns in the engines' interpreter.

    Args:
        script: Python source that defines `main(data)`; it may import vLLM, SGLang or LMCache.
        data: anything JSON holds; the answer is too.
        recorded: name of a recorded answer, for example `week04/block-pool`. It is replayed, so
            that a page builds without the engines.

    Raises:
        EnginesMissingError: if nothing is recorded under that name and the engines are missing.
        UpstreamError: if the script fails, or the answer was recorded for another script or data.
    """
    question = Question(script, data)
    if recorded is None:
        return ask([question])[0]
    path = UPSTREAM / f"{recorded}.json"
    if not path.exists():
        return ask([question])[0]
    found = json.loads(path.read_text())
    if found["question_sha256"] != question_hash(question):
        raise UpstreamError(
            f"{without_root(str(path))} answers another script or other data. Record it again with "
            f"`python -m inferlab.lab upstream --record`, or with inferlab.lab.upstream.record if "
            f"a page puts the question together."
        )
    return found["answer"]


def upstream_answer(name: str) -> tuple[Any, Any]:
    """The data of a question of the course, and what the engine answered when it was recorded.

    Args:
        name: as in `experiments/upstream/questions.py`, for example `week07/scheduler-steps`.

    Raises:
        UpstreamError: if there is no such question; otherwise as `upstream`.
    """
    known = questions()
    if name not in known:
        raise UpstreamError(f"There is no question {name!r}. There are: {', '.join(known)}.")
    question = known[name]
    return question.data, upstream(*question, recorded=name)


def upstream_badge(name: str, *asked: str) -> str:
    """Where a figure of the recorded answer `name` comes from: machine, engines and day.

    Args:
        name: of a recorded answer that holds its `hardware`.
        asked: the engines that gave it, for example "vllm".
    """
    found = json.loads((UPSTREAM / f"{name}.json").read_text())
    hardware = found["answer"]["hardware"]
    named = ", ".join(with_version(one, version_of(one, found["versions"])) for one in asked)
    return (
        f"recorded · cpu: {hardware['cpu']}, {hardware['cores']} cores · {named} · "
        f"{found['started'][:10]}"
    )


def questions() -> dict[str, Question]:
    """The questions of the course whose answers are recorded, by name."""
    named = runpy.run_path(str(SCRIPTS / "questions.py"))["QUESTIONS"]
    return {
        name: Question((SCRIPTS / f"{script}.py").read_text(), data)
        for name, (script, data) in named.items()
    }


def record(named: dict[str, Question]) -> None:
    """Ask the engines and keep each answer under its name, with what it depends on."""
    answers = ask(list(named.values()))
    for (name, question), answer in zip(named.items(), answers):
        contents = {
            "question_sha256": question_hash(question),
            "versions": engines.versions(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "answer": answer,
        }
        write_json(UPSTREAM / f"{name}.json", contents)


def question_hash(question: Question) -> str:
    """SHA-256 of the script and its data."""
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()


def ask(questions: Sequence[Question]) -> list[Any]:
    """Run the scripts now, in turn in one process, since importing the engines takes longest."""
    lines = [json.dumps(question._asdict(), allow_nan=False) for question in questions]
    done = subprocess.run(
        [str(engines.interpreter()), str(CALL)],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        cwd=ROOT,
        # LMCache's keys come from Python's own hash, which otherwise differs in every process.
        env=engines.process_environment({"HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}),
        check=False,
    )
    tail = without_root("\n".join(done.stderr.splitlines()[-15:]))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for answer in answers:
        if "error" in answer:
            raise UpstreamError(f"The script failed: {answer['error']}.\n{tail}")
    if done.returncode != 0 or len(answers) < len(questions):
        raise UpstreamError(f"The engines' interpreter ended with {done.returncode}.\n{tail}")
    return [answer["result"] for answer in answers]
