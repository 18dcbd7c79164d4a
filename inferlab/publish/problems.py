"""Problems found in a page: where they are, what was seen, what to do."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """One sentence about one line (counted from 1) of a source file."""

    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


class PublishError(Exception):
    """The book cannot be built from these sources; `problems` says why, all of them at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def refuse_if_any(problems: Iterable[Problem]) -> None:
    """Raise PublishError when there is at least one problem."""
    found = list(problems)
    if found:
        raise PublishError(found)
