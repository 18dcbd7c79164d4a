"""Experiments of a test, in a folder of their own, on the course's profiles and models."""

from pathlib import Path

import pytest

from inferlab.lab import specification

SHARED = ("profiles.yml", "models.yml", "workloads.yml")


def scratch_experiments(
    folder: Path, monkeypatch: pytest.MonkeyPatch, workloads: str | None = None, **weeks: str
) -> None:
    """Make `folder` the one that specifications are read from.

    It holds a file for each of `weeks`, and `workloads` in place of the course's.
    """
    texts = {file: (specification.EXPERIMENTS / file).read_text() for file in SHARED}
    if workloads is not None:
        texts["workloads.yml"] = workloads
    for name, text in (texts | {f"{week}.yml": text for week, text in weeks.items()}).items():
        (folder / name).write_text(text)
    monkeypatch.setattr(specification, "EXPERIMENTS", folder)
