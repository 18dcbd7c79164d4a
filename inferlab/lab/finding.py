"""What a check of the machine found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; where it is not ok, `detail` ends with what to do."""

    what: str
    ok: bool
    detail: str
