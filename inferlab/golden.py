"""Reference tokens and exact counts that the assembly cells of the chapters compare with."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "golden"


def load(week: str) -> dict[str, Any]:
    """The golden values of a chapter, for example `load("week04")`."""
    values: dict[str, Any] = json.loads((FOLDER / f"{week}.json").read_text())
    return values
