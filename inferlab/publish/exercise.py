"""Reads and checks an exercise cell: its permanent name, its members, its line budget."""

import ast
import re
from dataclasses import dataclass
from typing import Any

import pydantic

EXERCISE_LINE = re.compile(r"# exercise: (week\d\d-[a-z0-9-]+)")
FEWEST_LINES, MOST_LINES = 5, 40


class ExerciseMetadata(pydantic.BaseModel):
    """The `exercise` entry of the cell's metadata; `lines` is the reader's budget, `points` the
    marks that the hidden probes decide on."""

    model_config = pydantic.ConfigDict(extra="forbid")

    members: list[str] = pydantic.Field(min_length=1)
    lines: int = pydantic.Field(ge=FEWEST_LINES, le=MOST_LINES)
    points: int = pydantic.Field(ge=1)


@dataclass(frozen=True)
class Exercise:
    """An exercise cell, which is nothing but imports of the reference."""

    name: str
    members: list[str]
    lines: int
    points: int
    imports: list[ast.ImportFrom]

    @property
    def owners(self) -> set[str]:
        """The imported names that hold a listed member: classes, or functions themselves."""
        return {member.partition(".")[0] for member in self.members}

    @property
    def homes(self) -> dict[str, list[str]]:
        """The listed members by the module of the package that defines them."""
        home = {alias.name: node.module or "" for node in self.imports for alias in node.names}
        found: dict[str, list[str]] = {}
        for member in self.members:
            found.setdefault(home[member.partition(".")[0]], []).append(member)
        return found


def is_exercise(source: str, metadata: dict[str, Any]) -> bool:
    """Whether the cell claims to be an exercise, by its first line or by its metadata."""
    return "exercise" in metadata or source.startswith("# exercise:")


def read_exercise(source: str, metadata: dict[str, Any]) -> Exercise:
    """Raises ValueError with a full sentence when the cell is not a well-formed exercise."""
    first = EXERCISE_LINE.fullmatch(source.partition("\n")[0].rstrip())
    if not first:
        raise ValueError(
            "The first line of an exercise cell must be its name, "
            "for example `# exercise: week04-block-pool`."
        )
    name = first[1]
    try:
        listed = ExerciseMetadata.model_validate(metadata.get("exercise", {}))
    except pydantic.ValidationError as error:
        seen = error.errors()[0]
        where = ".".join(("exercise", *map(str, seen["loc"])))
        raise ValueError(f"Exercise {name}: cell metadata {where}: {seen['msg']}.") from error
    nbgrader = metadata.get("nbgrader", {})
    if nbgrader.get("grade_id") != name or nbgrader.get("solution") is not True:
        raise ValueError(
            f"Exercise {name}: the cell's nbgrader metadata must hold grade_id: {name} "
            f"and solution: true; it holds {dict(nbgrader)}."
        )
    statements = ast.parse(source).body
    imports = [node for node in statements if isinstance(node, ast.ImportFrom)]
    if len(imports) != len(statements) or not imports:
        raise ValueError(f"Exercise {name}: the cell may hold `from … import …` lines only.")
    imported = {alias.name for node in imports for alias in node.names}
    exercise = Exercise(name, listed.members, listed.lines, listed.points, imports)
    if missing := exercise.owners - imported:
        raise ValueError(
            f"Exercise {name}: the cell lists members of {', '.join(sorted(missing))} "
            "but does not import it."
        )
    return exercise
