"""`python -m autograder.sandbox.examine`: run the exercises of a submission, say what was seen.

Whoever talks to a student's kernel has to read whatever it sends. So this is a process of its own,
with limits of its own, for one submission; it knows what the probes ask and not what they expect.
A `Task` comes as JSON on standard input, an `Answer` goes as JSON to standard output.
"""

import json
import os
import resource
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from autograder.sandbox.kernel import BoxedKernel, KernelGoneError, boxed_kernel
from autograder.sandbox.task import Answer, ExerciseTask, ProbeTask, Seen, Task

MOST_ADDRESS_BYTES = 4 * 2**30
PROBES = "_inferlab_probes"
PARENT = os.getppid()


def main() -> None:
    """Answer the task on standard input."""
    # The boxes set a limit of their own, and may not lift a hard one.
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESS_BYTES, most))
    task = Task.model_validate_json(sys.stdin.read())
    sys.stdout.write(examine(task).model_dump_json())


def examine(task: Task) -> Answer:
    """Run every exercise of the task, `task.jobs` at a time."""
    end = time.monotonic() + task.seconds
    # The last have the most setup above them. Begun last, they would be waited for alone.
    exercises = task.exercises[::-1]
    with ThreadPoolExecutor(task.jobs) as threads:
        seen = threads.map(lambda one: Examination(task, one, end).run(), exercises)
        return Answer(exercises={one.name: found for one, found in zip(exercises, seen)})


class Examination:
    """One exercise in its kernel, and in a new one whenever its code has ended or deafened one."""

    def __init__(self, task: Task, exercise: ExerciseTask, end: float) -> None:
        self.task = task
        self.exercise = exercise
        self.end = end  # of the whole submission, on the monotonic clock
        self.seen = Seen()

    def run(self) -> Seen:
        """What was seen; nothing of a probe during which the kernel ended or the time was over."""
        waiting = deque(self.exercise.tasks)
        found: dict[str, list[str | None]] = {}
        while waiting and self._has_time():
            observing = False
            try:
                with boxed_kernel(Path(self.exercise.package)) as kernel:
                    self._prepare(kernel)
                    observing = True
                    while waiting and self._has_time():
                        found[waiting[0].name] = self._observe(kernel, waiting[0])
                        waiting.popleft()
            except KernelGoneError as gone:
                if not observing:
                    self.seen.error = self.seen.error or type(gone).__name__
                    break
                waiting.popleft()
        self.seen.observations = [
            found.get(probe.name, [None] * len(probe.inputs)) for probe in self.exercise.tasks
        ]
        return self.seen

    def _prepare(self, kernel: BoxedKernel) -> None:
        """Run the setup and the student's cell, then define what observes."""
        for cell in self.exercise.cells:
            reply = kernel.run(cell, self._seconds(self.task.seconds_per_cell))
            # What the cell defined before it failed is observed all the same.
            self.seen.error, self.seen.line = reply.error, reply.line
        define = f"{PROBES} = {{}}\nexec({self.exercise.probes!r}, {PROBES})"
        kernel.run(define, self._seconds(self.task.seconds_per_cell))

    def _observe(self, kernel: BoxedKernel, probe: ProbeTask) -> list[str | None]:
        observe = f"{PROBES}['observations']({PROBES}[{probe.name!r}], globals(), {probe.inputs!r})"
        seconds = self._seconds(self.task.seconds_per_probe)
        said = kernel.run("", seconds, {"observations": observe}).values.get("observations", "")
        try:
            found = json.loads(said)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list) or len(found) != len(probe.inputs):
            return [None] * len(probe.inputs)
        return [text if isinstance(text, str) else None for text in found]

    def _has_time(self) -> bool:
        """Nobody waits for the answer any more once the grader has been killed."""
        return time.monotonic() < self.end and os.getppid() == PARENT

    def _seconds(self, most: float) -> float:
        return max(0.0, min(most, self.end - time.monotonic()))


if __name__ == "__main__":
    main()
