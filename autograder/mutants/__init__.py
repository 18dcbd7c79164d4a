"""Wrong solutions that look right: each differs from the reference in one line.

They keep the probes honest. Each passes the chapter's visible test, and some probe catches it.
"""

from pathlib import Path

import pydantic
import yaml


class Mutant(pydantic.BaseModel):
    """`line` is a line of the reference without its indentation, `becomes` what replaces it."""

    model_config = pydantic.ConfigDict(extra="forbid")

    exercise: str
    member: str
    line: str
    becomes: str
    why: str


def load_mutants(week: str) -> list[Mutant]:
    """All mutants of a week, for example `week04`; raises FileNotFoundError when it has none."""
    text = (Path(__file__).parent / f"{week}.yml").read_text(encoding="utf-8")
    return pydantic.TypeAdapter(list[Mutant]).validate_python(yaml.safe_load(text))
