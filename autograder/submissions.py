"""Finds what was handed in, in the layouts that nbgrader's collect and a plain download leave."""

import re
from dataclasses import dataclass
from pathlib import Path

from inferlab.handin.notebook_file import Refused

STUDENT = re.compile(r"[\w][\w.@+-]*")


@dataclass(frozen=True)
class Submission:
    """One student's hand-in: `folder` is None where only a notebook was collected."""

    student: str
    notebooks: tuple[Path, ...]
    folder: Path | None = None

    def notebook(self, name: str) -> Path:
        """The notebook to grade. Raises Refused when it is unclear which one that is."""
        if not STUDENT.fullmatch(self.student):
            raise Refused(f"{self.student!r} cannot be a student's id: rename the submission.")
        named = [path for path in self.notebooks if self.folder and path.name == name]
        found = named or list(self.notebooks)
        if not found:
            raise Refused(f"There is no notebook: {name} is expected.")
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise Refused(f"There are several notebooks ({names}) and none is named {name}.")
        return found[0]


def find_submissions(folder: Path, week: str) -> list[Submission]:
    """Everything in `folder`: `<student>/<week>/*.ipynb` and `<student>.ipynb`, by student.

    Raises Refused when there is nothing of either kind.
    """
    found: dict[str, Submission] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix == ".ipynb":
            student, here = path.stem, Submission(path.stem, (path,))
        elif (path / week).is_dir():
            notebooks = tuple(sorted((path / week).glob("*.ipynb")))
            student, here = path.name, Submission(path.name, notebooks, path / week)
        else:
            continue
        if other := found.get(student):
            here = Submission(student, other.notebooks + here.notebooks)
        found[student] = here
    if not found:
        raise Refused(
            f"There is no submission in {folder}: <student>/{week}/*.ipynb or <student>.ipynb "
            "is expected."
        )
    return [found[student] for student in sorted(found)]
