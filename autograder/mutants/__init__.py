"""Wrong solutions that look right: each differs from the reference in one line.

They keep the probes honest. Each passes the chapter's visible test, and some probe catches it.
"""

from pathlib import Path

import pydantic
import yaml

from inferlab.publish.module import Module


class Mutant(pydantic.BaseModel):
    """`line` is a line of the reference without its indentation, `becomes` what replaces it."""

    model_config = pydantic.ConfigDict(extra="forbid")

    exercise: str
    member: str
    line: str
    becomes: str
    why: str

    def of(self, source: str) -> str:
        """The solved exercise cell `source` with the one line replaced.

        Raises ValueError unless the member holds the line exactly once.
        """
        module = Module(self.exercise, source)
        first, last = module.body_span(module.function(self.member))
        places = [i for i in range(first - 1, last) if module.lines[i].strip() == self.line]
        if len(places) != 1:
            raise ValueError(
                f"{self.member} holds the line {self.line!r} {len(places)} times; a mutant "
                "replaces one line of the reference."
            )
        lines = list(module.lines)
        old = lines[places[0]]
        lines[places[0]] = old[: len(old) - len(old.lstrip())] + self.becomes
        return "\n".join(lines) + "\n"


def load_mutants(week: str) -> list[Mutant]:
    """All mutants of a week, for example `week04`; raises FileNotFoundError when it has none."""
    text = (Path(__file__).parent / f"{week}.yml").read_text(encoding="utf-8")
    return pydantic.TypeAdapter(list[Mutant]).validate_python(yaml.safe_load(text))
