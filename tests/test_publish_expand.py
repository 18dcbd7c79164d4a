"""Expansion of exercise cells: both forms run alone, and what cannot be copied is refused."""

import importlib
import sys
import textwrap

import pytest

from inferlab.publish import expand, read_exercise
from tests.site_fixture import REPOSITORY

MODULE = '''
"""A module with everything an exercise may use."""
from __future__ import annotations

import math
import os
from collections import deque as queue, Counter

LIMIT, OTHER = 3, 4
# Why this constant is here.
TABLE = {"limit": LIMIT}
UNUSED = os.sep


def unrelated() -> int:
    return 1


def helper(value: float) -> float:
    return math.floor(value) + TABLE["limit"]


class Other:
    pass


class Meter:
    """Counts."""

    def __init__(self) -> None:
        self.values = queue(maxlen=LIMIT)

    @property
    def total(self) -> float:
        """Sum of what was added."""
        # A comment that belongs to the solution.
        total = 0.0
        for value in self.values:
            total += helper(value)

        return total

    def add(self, value: float) -> None:
        self.values.append(value)
        self.last = Other()


def top(values: list[str]) -> list[str]:
    """The two most frequent."""
    return [value for value, _ in Counter(values).most_common(2)]
'''


@pytest.fixture
def root(tmp_path):
    package = tmp_path / "parts"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "meter.py").write_text(MODULE.lstrip())
    return tmp_path


def exercise(members, imports="Meter, Other", lines=20, module="parts.meter"):
    source = f"# exercise: week04-meter\nfrom {module} import {imports}\n"
    metadata = {
        "exercise": {"members": members, "lines": lines, "points": 5},
        "nbgrader": {"grade_id": "week04-meter", "solution": True},
    }
    return read_exercise(source, metadata)


def run(source, root, monkeypatch):
    monkeypatch.syspath_prepend(str(root))
    for name in ("parts", "parts.meter"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    namespace = {"__name__": "fresh"}
    exec(compile(source, "cell", "exec"), namespace)
    return namespace


def test_the_student_form_has_stubs_and_keeps_the_rest(root):
    code = expand(root, exercise(["Meter.total"], "Meter"), solution=False)
    assert code.startswith(
        "# exercise: week04-meter\n# Write Meter.total: about 20 lines in all.\n"
    )
    assert code.count("# YOUR CODE HERE\n        raise NotImplementedError()") == 1
    assert '"""Sum of what was added."""' in code
    assert "self.values.append(value)" in code
    assert "helper(value)\n\n        return total" not in code
    assert "A comment that belongs to the solution" not in code


def test_the_instructor_form_marks_the_solution_for_nbgrader(root):
    code = expand(root, exercise(["Meter.total"], "Meter"), solution=True)
    body = code.partition("        ### BEGIN SOLUTION\n")[2].partition("        ### END SOLUTION")[
        0
    ]
    assert textwrap.dedent(body).startswith(
        "# A comment that belongs to the solution.\ntotal = 0.0"
    )
    assert body.rstrip().endswith("return total")


def test_stripping_the_marked_solution_gives_the_student_form(root):
    nbgrader = importlib.import_module("nbgrader.preprocessors")
    from nbformat.v4 import new_code_cell

    cell = new_code_cell(expand(root, exercise(["Meter.total", "Meter.add"], "Meter"), True))
    nbgrader.ClearSolutions()._replace_solution_region(cell, "python")
    assert (
        cell.source.rstrip()
        == expand(root, exercise(["Meter.total", "Meter.add"], "Meter"), False).rstrip()
    )


@pytest.mark.parametrize("solution", [True, False])
def test_only_what_the_definition_uses_comes_along(root, solution):
    code = expand(root, exercise(["Meter.total"], "Meter"), solution)
    for needed in (
        "from __future__ import annotations",
        "import math",
        "from collections import deque as queue",
        "LIMIT, OTHER = 3, 4",
        "# Why this constant is here.\nTABLE",
        "def helper",
        "class Other",
    ):
        assert code.count(needed) == 1, needed
    for unneeded in ("import os", "Counter", "UNUSED", "unrelated", "def top"):
        assert unneeded not in code


def test_a_name_imported_without_a_member_stays_an_import(root):
    code = expand(root, exercise(["Meter.total"]), solution=True)
    assert "from parts.meter import Other" in code
    assert "class Other" not in code


def test_the_expanded_cell_runs_alone(root, monkeypatch):
    solved = run(expand(root, exercise(["Meter.total"]), True), root, monkeypatch)
    meter = solved["Meter"]()
    meter.add(2.5)
    assert meter.total == 5.0

    stubbed = run(expand(root, exercise(["Meter.total"]), False), root, monkeypatch)
    meter = stubbed["Meter"]()
    meter.add(2.5)
    with pytest.raises(NotImplementedError):
        _ = meter.total


def test_a_function_is_an_exercise_too(root, monkeypatch):
    cell = exercise(["top"], "top", lines=5)
    assert run(expand(root, cell, True), root, monkeypatch)["top"](["a", "a", "b"]) == ["a", "b"]
    with pytest.raises(NotImplementedError):
        run(expand(root, cell, False), root, monkeypatch)["top"]([])


@pytest.mark.parametrize("solution", [True, False])
def test_the_real_block_pool_expands_and_runs(solution):
    cell = exercise(
        ["FreeBlockQueue.remove", "BlockPool.get_new_blocks"],
        "Block, BlockPool, FreeBlockQueue",
        lines=40,
        module="inferlab.engine.block_pool",
    )
    namespace = {"__name__": "fresh"}
    exec(compile(expand(REPOSITORY, cell, solution), "cell", "exec"), namespace)
    if solution:
        assert [block.block_id for block in namespace["BlockPool"](4).get_new_blocks(2)] == [1, 2]
    else:
        with pytest.raises(NotImplementedError):
            namespace["BlockPool"](4)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return super().total()", r"calls super\(\) without arguments"),
        ("return self.__hidden", "name-mangled name __hidden"),
    ],
)
def test_what_cannot_be_copied_is_refused(root, body, message):
    (root / "parts" / "meter.py").write_text(
        f'class Meter(dict):\n    def total(self):\n        """Sum."""\n        {body}\n'
    )
    with pytest.raises(ValueError, match=message):
        expand(root, exercise(["Meter.total"], "Meter"), solution=False)


def test_special_methods_and_super_with_arguments_are_allowed(root):
    (root / "parts" / "meter.py").write_text(
        'class Meter(dict):\n    def total(self):\n        """Sum."""\n'
        "        return super(Meter, self).__len__()\n"
    )
    assert "raise NotImplementedError()" in expand(root, exercise(["Meter.total"], "Meter"), False)


@pytest.mark.parametrize(
    ("members", "lines", "message"),
    [
        (["Meter.missing"], 20, "defines 0 functions"),
        (["Meter.total"], 5, None),
        (["Meter.total", "Meter.add"], 5, "promises about 5 lines, but the reference takes 6"),
    ],
)
def test_members_must_exist_and_fit_the_budget(root, members, lines, message):
    cell = exercise(members, "Meter", lines=lines)
    if message is None:
        expand(root, cell, solution=True)
        return
    with pytest.raises(ValueError, match=message):
        expand(root, cell, solution=True)


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        ("from a import B", {}, "first line of an exercise cell"),
        ("# exercise: week04-x\nfrom a import B", {"exercise": {"members": ["B.c"]}}, "lines"),
        (
            "# exercise: week04-x\nfrom a import B",
            {"exercise": {"members": ["B.c"], "lines": 99, "points": 5}},
            "less than or equal to 40",
        ),
        (
            "# exercise: week04-x\nfrom a import B",
            {"exercise": {"members": ["B.c"], "lines": 10}},
            "exercise.points: Field required",
        ),
        ("# exercise: week04-x\nfrom a import B", {"nbgrader": {}}, "grade_id: week04-x"),
        ("# exercise: week04-x\nfrom a import B\nx = 1", {}, "import … lines only|import …` lines"),
        ("# exercise: week04-x\nfrom a import C", {}, "members of B but does not import it"),
    ],
)
def test_a_malformed_cell_says_what_is_wrong(source, change, message):
    metadata = {
        "exercise": {"members": ["B.c"], "lines": 10, "points": 5},
        "nbgrader": {"grade_id": "week04-x", "solution": True},
    }
    with pytest.raises(ValueError, match=message):
        read_exercise(source, metadata | change)
