"""The engines' own load generators, each a process that is started once and asked repeatedly."""

import json
from pathlib import Path
from typing import Any

from inferlab.lab import engines
from inferlab.lab.guarded_process import GuardedProcess
from inferlab.lab.server import EngineError

ENGINE_SIDE = Path(__file__).parent / "engine_side"
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
            EngineError: if the load generator reports a failure or ends.
        """
        try:
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            raise EngineError("The load generator ended.", self.process.last_lines())
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
