"""Asks the engines' own classes: a small script in their interpreter, JSON in and JSON out."""

import hashlib
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inferlab.lab import engines
from inferlab.lab.json_file import write_json
from inferlab.lab.paths import RECORDED, ROOT, without_root

CALL = Path(__file__).parent / "engine_side" / "call.py"
UPSTREAM = RECORDED / "upstream"


class UpstreamError(RuntimeError):
    """The script failed in the engines' interpreter; the message ends with what it wrote."""


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
    if recorded is None:
        return ask(script, data)
    path = UPSTREAM / f"{recorded}.json"
    if not path.exists():
        return ask(script, data)
    found = json.loads(path.read_text())
    if found["question_sha256"] != question_hash(script, data):
        raise UpstreamError(
            f"{without_root(str(path))} answers another script or other data. Record it again with "
            f"inferlab.lab.upstream.record."
        )
    return found["answer"]


def record(script: str, data: Any, name: str) -> Any:
    """Ask the engines and keep the answer under `name`, with what it depends on."""
    answer = ask(script, data)
    contents = {
        "question_sha256": question_hash(script, data),
        "versions": engines.versions(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "answer": answer,
    }
    write_json(UPSTREAM / f"{name}.json", contents)
    return answer


def question_hash(script: str, data: Any) -> str:
    """SHA-256 of the script and its data."""
    return hashlib.sha256(json.dumps([script, data], sort_keys=True).encode()).hexdigest()


def ask(script: str, data: Any) -> Any:
    """Run `script` now."""
    done = subprocess.run(
        [str(engines.interpreter()), str(CALL)],
        input=json.dumps({"script": script, "data": data}, allow_nan=False),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=engines.process_environment({"HF_HUB_OFFLINE": "1"}),
        check=False,
    )
    tail = without_root("\n".join(done.stderr.splitlines()[-15:]))
    if done.returncode != 0 or not done.stdout:
        raise UpstreamError(f"The engines' interpreter ended with {done.returncode}.\n{tail}")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise UpstreamError(f"The script failed: {answer['error']}.\n{tail}")
    return answer["result"]
