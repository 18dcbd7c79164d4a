"""The golden files are what the reference engine gives today."""

import importlib.util
from pathlib import Path

import pytest

from inferlab import golden

SPEC = importlib.util.spec_from_file_location("generate", golden.FOLDER / "generate.py")
assert SPEC is not None
assert SPEC.loader is not None
generate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate)


@pytest.mark.parametrize("week", sorted(generate.WEEKS))
def test_golden_values_are_regenerated_to_the_letter(week: str) -> None:
    assert golden.load(week) == generate.WEEKS[week]()


def test_every_golden_file_has_a_generator() -> None:
    assert {path.stem for path in Path(golden.FOLDER).glob("*.json")} == set(generate.WEEKS)
