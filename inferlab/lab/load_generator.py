"""The engines' own load generators, each a process that is started once and asked repeatedly."""

import json
import threading
from pathlib import Path
from typing import Any

from inferlab.lab import engines
from inferlab.lab.guarded_process import GuardedProcess
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
        self.process = GuardedProcess(
            [str(engines.interpreter()), str(SCRIPTS[engine])],
            engines.process_environment(environment),
            log,
            pipes=True,
        )

    def ask(self, task: Any) -> dict[str, Any]:
        """The result of `task`: arguments of `vllm bench`, or a task for the baseline.

        Raises:
            EngineError: if the load generator reports a failure, ends, or does not answer in time,
                as when a server has stopped answering; it is ended then.
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
        if not line:
            end = f"gave no answer within {ANSWER_LIMIT_S:.0f} s" if late.is_set() else "ended"
            raise EngineError(f"The load generator {end}.", self.process.last_lines())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(
                f"The load generator failed: {answer['error']}.", self.process.last_lines()
            )
        result: dict[str, Any] = answer["result"]
        return result

    def is_running(self) -> bool:
        return self.process.is_running()

    def stop(self) -> None:
        self.process.stop()

    def __enter__(self) -> "LoadGenerator":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
