"""Rubrics of the written answers: what is asked, how it is marked, and answers that were marked.

Two markers agree once both have read the samples, so every written question has at least three of
them: a strong answer, a middling one, and one that reads well and says little.
"""

from pathlib import Path
from typing import Literal, Self

import pydantic
import yaml

RUBRICS = Path(__file__).parent / "rubrics"
FEWEST_SAMPLES = 3
STRONG, WEAK = 0.8, 0.5  # shares of the points that the samples have to span


class Strict(pydantic.BaseModel):
    """An unknown key is a spelling mistake."""

    model_config = pydantic.ConfigDict(extra="forbid")


class Criterion(Strict):
    """What a part of the points is given for."""

    name: str
    points: float = pydantic.Field(gt=0)
    full: str
    half: str
    none: str


class Sample(Strict):
    """An answer as a student might write it, with its marks by criterion and the reason."""

    answer: str
    marks: dict[str, float]
    why: str

    @property
    def points(self) -> float:
        """All marks together."""
        return sum(self.marks.values())


class Rubric(Strict):
    """One question. `written` ones are marked by a person; `automatic` ones by the grader from
    result files; `presentation` is marked on the whole notebook."""

    kind: Literal["written", "automatic", "presentation"]
    points: int = pydantic.Field(ge=1)
    prompt: str
    model_answer: str = ""
    criteria: list[Criterion] = []
    samples: list[Sample] = []

    @property
    def is_written(self) -> bool:
        """Whether the student writes into the cell."""
        return self.kind == "written"

    @pydantic.model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.kind == "automatic":
            return self
        available = {criterion.name: criterion.points for criterion in self.criteria}
        if sum(available.values()) != self.points:
            raise ValueError(
                f"the criteria are worth {sum(available.values()):g} points together and the "
                f"question {self.points}"
            )
        if not self.is_written:
            return self
        for sample in self.samples:
            if sample.marks.keys() != available.keys():
                raise ValueError(
                    f"a sample is marked on {', '.join(sample.marks)} and the criteria are "
                    f"{', '.join(available)}"
                )
            if any(not 0 <= mark <= available[name] for name, mark in sample.marks.items()):
                raise ValueError(f"a sample has more marks than its criterion: {sample.marks}")
        shares = [sample.points / self.points for sample in self.samples]
        if len(shares) < FEWEST_SAMPLES or max(shares) < STRONG or min(shares) >= WEAK:
            raise ValueError(
                f"the samples earn {', '.join(f'{share:.0%}' for share in shares) or 'nothing'}; "
                f"at least {FEWEST_SAMPLES} are needed, one with {STRONG:.0%} or more and one "
                f"below {WEAK:.0%}"
            )
        if not self.model_answer:
            raise ValueError("a written question needs a model answer")
        return self

    def for_instructors(self) -> str:
        """Markdown with model answer, rubric and marked samples."""
        if self.kind == "automatic":
            return "`make grade` gives these points."
        rows = [
            f"| {c.name} | {c.points:g} | {c.full} | {c.half} | {c.none} |" for c in self.criteria
        ]
        parts = [self.model_answer.strip()] if self.model_answer else []
        head = ["| criterion | points | full | half | none |", "|---|---|---|---|---|"]
        parts.append("\n".join([*head, *rows]))
        for sample in self.samples:
            marks = ", ".join(f"{name} {mark:g}" for name, mark in sample.marks.items())
            quoted = "\n".join(f"> {line}".rstrip() for line in sample.answer.strip().splitlines())
            parts.append(f"**{sample.points:g} of {self.points}** ({marks}). {sample.why}")
            parts.append(quoted)
        return "\n\n".join(parts)


def load_rubrics(week: str) -> dict[str, Rubric]:
    """The rubrics of a week by the name of the answer cell; none for a week without a file.

    Raises ValueError naming the file and the entry that is wrong.
    """
    path = RUBRICS / f"{week}.yml"
    if not path.exists():
        return {}
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        return pydantic.TypeAdapter(dict[str, Rubric]).validate_python(entries)
    except yaml.YAMLError as error:
        raise ValueError(f"autograder/rubrics/{path.name} is not YAML: {error}") from error
    except pydantic.ValidationError as error:
        seen = error.errors()[0]
        where = ".".join(map(str, seen["loc"]))
        raise ValueError(f"autograder/rubrics/{path.name}: {where}: {seen['msg']}.") from error
