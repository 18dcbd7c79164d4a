"""The engines' own load generators, each a process that is started once and asked repeatedly."""

import json
import threading
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from inferlab.lab import engines
from inferlab.lab.guarded_process import GuardedProcess
from inferlab.lab.load_answer import ANSWERS
from inferlab.lab.server import EngineError

ENGINE_SIDE = Path(__file__).parent / "engine_side"
ANSWER_LIMIT_S = 1800.0
SCRIPTS = {
    "vllm": ENGINE_SIDE / "bench_serve.py",
    "transformers": ENGINE_SIDE / "static_batches.py",
}


class LoadGenerator:
    """`vllm bench serve`, or the static-batch baseline, ready for one task after another.

    Its imports run while the server starts. Use it as a context manager.
    """

    def __init__(self, engine: str, environment: dict[str, str], log: Path) -> None:
        self.engine = engine
        self.process = GuardedProcess(
            [str(engines.interpreter()), str(SCRIPTS[engine])],
            engines.process_environment(environment),
            log,
            pipes=True,
        )

    def ask(self, task: Any) -> dict[str, Any]:
        """The result of `task`: arguments of `vllm bench`, or a task for the baseline.

        Raises:
            EngineError: if the load generator reports a failure, ends, answers something else than
                a result, or does not answer in time, as when a server has stopped answering; it is
                ended then.
        """
        late = threading.Event()

        def give_up() -> None:
            # A pipe has no timeout: ending the process ends the wait for its line.
            late.set()
            self.process.stop()

        watch = threading.Timer(ANSWER_LIMIT_S, give_up)
        watch.start()
        try:
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except (BrokenPipeError, ValueError):  # it has ended, or the watch closed its pipes
            line = ""
        finally:
            watch.cancel()
        if late.is_set():
            raise self._failure(f"gave no answer within {ANSWER_LIMIT_S:.0f} s.")
        if not line.endswith("\n"):
            self.process.stop()
            raise self._failure(f"ended.{self.process.how_it_was_killed()}")
        answer = self._read(line)
        if "error" in answer:
            raise self._failure(f"failed: {answer['error']}.")
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self, line: str) -> dict[str, Any]:
        """The answer in `line`; one that is of no use ends the load generator: what it writes next
        may belong to this task."""
        try:
            answer: dict[str, Any] = json.loads(line)
            if "error" not in answer:
                ANSWERS[self.engine].model_validate(answer["result"])
        except ValidationError as error:
            problem = error.errors()[0]
            where = " → ".join(str(part) for part in problem["loc"]) or "result"
            wrong = f"{where}: {problem['msg'].removeprefix('Value error, ')}"
        except (KeyError, TypeError, ValueError):
            wrong = f"it is {line[:80]!r}"
        else:
            return answer
        self.process.stop()
        raise self._failure(f"gave an answer that is of no use: {wrong}.")

    def _failure(self, what_happened: str) -> EngineError:
        return EngineError(f"The load generator {what_happened}", self.process.last_lines())

    def is_running(self) -> bool:
        return self.process.is_running()

    def stop(self) -> None:
        self.process.stop()

    def __enter__(self) -> "LoadGenerator":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
