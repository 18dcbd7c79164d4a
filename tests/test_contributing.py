"""CONTRIBUTING.md: its recipes are short, name what exists, and lead where they say."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import autograder.probes
from autograder import hidden_cell as hidden
from autograder import probe_source
from autograder.mutants import Mutant
from inferlab.publish import expand, read_page
from inferlab.publish.editions import exercises
from inferlab.publish.spine import check_spine
from tests.site_fixture import CHAPTER, REPOSITORY, make_repository

TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text()
RECIPES = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))

REFERENCE = '''"""The empty slots at the end of a sequence."""


def tail_slots(length: int, block_size: int) -> int:
    """Slots that the last block of a sequence of `length` tokens leaves empty."""
    filled = length % block_size
    return block_size - filled if filled else 0
'''
CELLS = """
```{code-cell} ipython3
---
nbgrader: {grade_id: week99-tail, solution: true}
exercise: {members: [tail_slots], lines: 5, points: 10}
---
# exercise: week99-tail
from inferlab.analysis.tail import tail_slots
```

```{code-cell} ipython3
# test: week99-tail
assert tail_slots(5, 4) == 3, "the fifth token opens a block"
install(tail_slots)
```

(week04-assemble)="""
PROBE = '''"""Probes of a week that only this test has."""

from autograder.probe import probe


def lengths(random):
    return {"length": int(random.integers(1, 9)) * 16, "block_size": 16}


@probe(
    title="A sequence that fills its blocks",
    exercise="week99-tail",
    inputs=lengths,
    message="A sequence that ends with its block leaves nothing empty.",
)
def full_blocks(code, inputs):
    return code.tail_slots(**inputs)
'''


def test_there_is_a_recipe_for_each_and_none_is_longer_than_ten_steps():
    assert list(RECIPES) == ["An exercise", "A probe", "A chapter", "An experiment"]
    for steps in RECIPES.values():
        numbers = [int(number) for number in re.findall(r"^(\d+)\. ", steps, re.MULTILINE)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) <= 10


def test_every_file_a_recipe_names_exists():
    named = {word for word in re.findall(r"`([\w./-]+)`", TEXT) if "/" in word or "." in word}
    paths = {
        word.replace("NN", "04")
        .replace("week04-title", "week04-paged-attention")
        .replace("04/name.py", "04/block_pool.py")
        for word in named
    }
    commands = {".venv/bin/pre-commit", "predict.compare"}
    generated = {"build/release/week04", "build/results", "results/cpu/week04/name.json"}
    missing = {path for path in paths - commands - generated if not (REPOSITORY / path).exists()}
    assert missing == set()


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m ([\w.]+)", TEXT))))
def test_every_command_a_recipe_names_runs(module):
    subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=REPOSITORY, check=True, capture_output=True
    )


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small repository in which both recipes have been followed."""
    root = make_repository(tmp_path / "repository")
    (root / "inferlab" / "analysis" / "tail.py").write_text(REFERENCE)
    chapter = root / CHAPTER
    text = chapter.read_text().replace("  points: 20\n", "  points: 10\n")
    # A chapter holds at most six exercises; the sample has three.
    chapter.write_text(text.replace("\n(week04-assemble)=", CELLS, 1))
    package = tmp_path / "probes"
    shutil.copytree(REPOSITORY / "autograder", package / "autograder")
    probes = package / "autograder" / "probes" / "week99"
    probes.mkdir()
    (probes / "__init__.py").touch()
    (probes / "tail.py").write_text(PROBE)
    monkeypatch.setattr(probe_source, "AUTOGRADER", package)
    monkeypatch.setattr(autograder.probes, "__path__", [str(package / "autograder" / "probes")])
    for name in ("autograder.probes.week99", "autograder.probes.week99.tail"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return root


def test_an_exercise_and_its_probe_come_out_of_the_recipes(repository: Path, capsys):
    page = read_page(repository, CHAPTER)
    assert check_spine(page) == []
    _, exercise = exercises(page)["week99-tail"]
    cell = hidden.hidden_cell(repository, exercise)
    assert "# - A sequence that fills its blocks" in cell

    def marks(solution: str) -> float:
        names = hidden.run_cell(solution, {})
        setup, _, last = (
            cell.rstrip().removesuffix("### END HIDDEN TESTS").rstrip().rpartition("\n")
        )
        hidden.run_cell(setup, names)
        return eval(last, names)

    solved = expand(repository, exercise, solution=True)
    assert marks(solved) == 10
    assert marks(expand(repository, exercise, solution=False)) == 0
    mutant = Mutant(
        exercise="week99-tail",
        member="tail_slots",
        line="return block_size - filled if filled else 0",
        becomes="return block_size - filled",
        why="A full last block is counted as an empty one.",
    )
    wrong = mutant.of(solved)
    visible = SimpleNamespace(**hidden.run_cell(wrong, {}))
    assert visible.tail_slots(5, 4) == 3, "the mutant passes the visible test"
    assert marks(wrong) == 0
    assert "not passed: A sequence that fills its blocks. A sequence that ends" in (
        capsys.readouterr().out
    )
