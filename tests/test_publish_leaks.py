"""The leak check: a clean bundle passes, and no way of leaving a solution or a probe in it does."""

import json
import textwrap
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from inferlab.publish.exercise import read_exercise
from inferlab.publish.expand import expand, stubbed
from inferlab.publish.leaks import leaks
from inferlab.publish.module import Module
from inferlab.publish.page import read_page

METER = '''
"""A meter."""


class Meter:
    """Counts."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def total(self, limit: float = 10.0) -> float:
        """Sum of what was added, up to a limit."""
        # A comment of the reference.
        total = 0.0
        for value in self.values:
            if value > limit:
                raise ValueError(
                    f"{value} is above " f"the limit {limit!r}: add less, or raise the limit."
                )
            total += value
        return total

    def mean(self) -> float:
        """Given: the reader does not write it."""
        total = self.total()
        count = len(self.values)
        return total / count if count else 0.0


def halve(value: float) -> float:
    """Half."""
    return value / 2
'''.lstrip()

CHAPTER = """\
---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
---

# A small week

```{code-cell} ipython3
---
nbgrader: {grade_id: week04-meter, solution: true}
exercise: {members: [Meter.total, halve], lines: 20, points: 40}
---
# exercise: week04-meter
from parts.meter import Meter, halve
```
"""

PROBES = """
from autograder.probe import probe


def many_values(random):
    values = random.integers(1, 9, 7)
    values[3] = values[2]
    return {"values": values}


@probe(title="totals", exercise="week04-meter", message="The total is wrong.", inputs=many_values)
def totals_of_many(code, inputs):
    meter = code.Meter()
    meter.values = inputs["values"].tolist()
    return [meter.total(), meter.total(100.0)]
"""

RUBRIC = """
week04-why:
  model_answer: |
    The meter adds `values` up, because a running total could
    not forget a value. It costs little.
  samples:
    - answer: A running total would be faster and nobody takes a value away.
week04-execution:
  kind: automatic
"""

SOLUTION = METER[METER.index("        total = 0.0") : METER.index("    def mean")].rstrip()
PAGE = Path("notebooks/week04-small.md")
MEMBERS = ["Meter.total", "halve"]


@pytest.fixture
def root(tmp_path):
    """A repository with one module, a chapter with one exercise, and its probes."""
    for name, text in {
        "parts/meter.py": METER,
        "notebooks/week04-small.md": CHAPTER,
        "autograder/probes/week04/small.py": PROBES,
        "autograder/rubrics/week04.yml": RUBRIC,
    }.items():
        path = tmp_path / "repository" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path / "repository"


@pytest.fixture
def bundle(root, tmp_path):
    """What a student gets: a stubbed package, a notebook with stubs, and data."""
    (cell,) = [c for c in read_page(root, PAGE).cells if c.kind == "code"]
    student_code = expand(root, read_exercise(cell.source, cell.metadata), solution=False)
    folder = tmp_path / "bundle"
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / "meter.py").write_text(stubbed(Module.read(root, "parts.meter"), MEMBERS))
    notebook = new_notebook(
        cells=[
            new_markdown_cell("Write `Meter.total`: sum the values."),
            new_code_cell(student_code),
        ]
    )
    nbformat.write(notebook, folder / "week04-small.ipynb")
    (folder / "bundle.json").write_text(json.dumps({"members": MEMBERS}))
    (folder / "weights.bin").write_bytes(b"\xff\xfe\x00 not text \x80")
    return folder


def test_a_clean_bundle_passes(bundle, root):
    assert "def mean" in (bundle / "parts" / "meter.py").read_text(), "unlisted code is complete"
    assert leaks(bundle, root, "week04") == []


# The same statements as SOLUTION; no line of the code is written as it is there.
REFORMATTED = """
# Start from nothing.
total  =  (0.0)

for value in (
    self.values   # everything that was added
):
  if (value >
      limit): raise ValueError(
        f'{value} is above the limit '

        f'{limit!r}: add less, or raise the limit.',
    )

  total+=value;
return (total)
"""
BODY = textwrap.dedent(SOLUTION)
FIRST_LINES = "\n".join(BODY.splitlines()[:3])

COPIES = {
    "as it is": BODY,
    "three lines of it": FIRST_LINES,
    "indented": textwrap.indent(BODY, " " * 12),
    "reformatted": REFORMATTED,
    "with comments between": FIRST_LINES.replace("\n", "  # why\n# and how\n"),
    "commented out": textwrap.indent(BODY, "# "),
    "in a docstring": f'def hint():\n    """Do this:\n\n{textwrap.indent(BODY, "    ")}\n    """\n',
    "in a string with escapes": f"HINT = {BODY!r}\n",
}
PROBE_LINES = "values = random.integers(1,9, 7)\nvalues[3] = (values[2])\nreturn {'values':values}"


def add_module(bundle, text):
    (bundle / "parts" / "extra.py").write_text(text)


def add_code_cell(bundle, text):
    add_cell(bundle, new_code_cell(text))


def add_markdown_fence(bundle, text):
    add_cell(bundle, new_markdown_cell(f"A hint:\n\n```python\n{text}\n```\n"))


def add_quoted_prose(bundle, text):
    add_cell(bundle, new_markdown_cell(f"A hint:\n\n{textwrap.indent(text, '> ')}\n"))


def add_output(bundle, text):
    output = new_output("display_data", {"text/html": f"<p>{text}</p>"})
    add_cell(bundle, new_code_cell("hint", outputs=[output]))


def add_cell(bundle, cell):
    notebook = nbformat.read(bundle / "week04-small.ipynb", as_version=4)
    notebook.cells.append(cell)
    nbformat.write(notebook, bundle / "week04-small.ipynb")


def add_json_string(bundle, text):
    (bundle / "recorded.json").write_text(json.dumps({"abc": [{"kind": "text", "text": text}]}))


def add_json_lines(bundle, text):
    (bundle / "recorded.json").write_text(json.dumps({"source": text.splitlines()}))


def add_markdown_file(bundle, text):
    (bundle / "README.md").write_text(f"# Help\n\n{text}\n")


def add_page(bundle, text):
    code = highlight(text, PythonLexer(), HtmlFormatter())
    (bundle / "page.html").write_text(f"<html><body><p>Help</p>{code}</body></html>")


def add_text_file(bundle, text):
    (bundle / "notes.txt").write_text(text)


PLACES = [
    add_module, add_code_cell, add_markdown_fence, add_quoted_prose, add_output, add_json_string,
    add_json_lines, add_markdown_file, add_page, add_text_file,
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("copy", COPIES)
def test_a_copied_solution_is_found_in_any_form_and_place(bundle, root, place, copy):
    place(bundle, COPIES[copy])
    found = leaks(bundle, root, "week04")
    assert [leak for leak in found if "lines of Meter.total" in leak]


@pytest.mark.parametrize("place", [add_module, add_code_cell, add_markdown_fence, add_page])
def test_code_is_compared_as_code(bundle, root, place):
    place(bundle, FIRST_LINES.replace("0.0", "0_0.000") + "\n        pass")
    assert [leak for leak in leaks(bundle, root, "week04") if "lines of Meter.total" in leak]


@pytest.mark.parametrize("place", PLACES)
def test_two_lines_of_a_solution_are_no_leak(bundle, root, place):
    """The control: the files above are leaks because of what they hold, not because they exist."""
    place(bundle, "\n".join(BODY.splitlines()[:2]))
    assert leaks(bundle, root, "week04") == []


def test_a_member_with_a_body_is_named_with_its_file(bundle, root):
    (bundle / "parts" / "meter.py").write_text(METER)
    assert leaks(bundle, root, "week04") == [
        "parts/meter.py: Meter.total has a body; it must be the stub.",
        "parts/meter.py: halve has a body; it must be the stub.",
        "parts/meter.py: lines of Meter.total; "
        "solutions, probes and model answers may not be handed out.",
    ]


def test_another_module_may_use_the_name_for_a_function_of_its_own(bundle, root):
    own = "def halve(apple):\n    return apple.cut(2)\n"
    for folder in (bundle, root):
        (folder / "parts" / "kitchen.py").write_text(own)
    assert leaks(bundle, root, "week04") == []
    # Control: not if it was changed on its way into the bundle.
    (bundle / "parts" / "kitchen.py").write_text(own.replace("2", "value"))
    assert leaks(bundle, root, "week04") == [
        "parts/kitchen.py: halve has a body; it must be the stub."
    ]


@pytest.mark.parametrize("place", [add_module, add_code_cell, add_markdown_fence, add_page])
@pytest.mark.parametrize(
    "code",
    [
        "def halve(value):\n    return 0.5 * value\n",
        "async def halve(value):\n    return 0.5 * value\n",
        "def halve(value):\n    ...\n    raise NotImplementedError()\n",
        "def halve(value):\n    raise NotImplementedError\n",
        "if True:\n    class Meter:\n        def total(self): return sum(self.values)\n",
    ],
)
def test_any_body_that_is_not_the_stub_is_found(bundle, root, place, code):
    place(bundle, code)
    found = leaks(bundle, root, "week04")
    assert len(found) == 1
    assert found[0].endswith(" has a body; it must be the stub.")


def test_a_stub_may_have_a_docstring_and_a_function_of_the_same_name_elsewhere_a_body(bundle, root):
    add_module(
        bundle,
        'def halve(value):\n    """Half."""\n    # YOUR CODE HERE\n'
        "    raise NotImplementedError()\n\n"
        "class Rope:\n    def halve(self):\n        return self.length / 2\n"
        "def total():\n    return 0\n",
    )
    assert leaks(bundle, root, "week04") == []


@pytest.mark.parametrize("place", PLACES)
def test_lines_of_a_probe_are_found(bundle, root, place):
    place(bundle, PROBE_LINES)
    (found,) = {leak.partition(": ")[2] for leak in leaks(bundle, root, "week04")}
    assert found.startswith("lines of many_values; solutions, probes and model answers may not")


def test_a_probe_is_found_by_its_decorator_and_by_its_name(bundle, root):
    add_module(bundle, "@grader.probe(title='x')\ndef unheard_of(code):\n    return 1\n")
    add_markdown_file(bundle, "The grader calls `totals_of_many`.")
    assert leaks(bundle, root, "week04") == [
        "README.md: the name of the probe totals_of_many; take it out, or rename the probe if the "
        "words are innocent.",
        "parts/extra.py: unheard_of is a probe; probes stay with the grader.",
    ]


ANSWER = "The meter adds `values` up, because a running total could not forget a value."
ANSWERS = {
    "the model answer": ANSWER,
    "over two lines": ANSWER.replace(" could", "\ncould"),
    "a marked sample": "A running total would be faster and nobody takes a value away.",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_sentence_of_an_answer_is_found(bundle, root, place, answer):
    place(bundle, ANSWERS[answer])
    assert [leak for leak in leaks(bundle, root, "week04") if "an answer to week04-why" in leak]


@pytest.mark.parametrize("place", PLACES)
def test_a_short_sentence_of_an_answer_is_no_leak(bundle, root, place):
    place(bundle, "It costs little.")
    assert leaks(bundle, root, "week04") == []


@pytest.mark.parametrize("marker", ["BEGIN SOLUTION", "BEGIN HIDDEN TESTS", "BEGIN MARK SCHEME"])
@pytest.mark.parametrize("place", PLACES)
def test_what_nbgrader_should_have_removed_is_found(bundle, root, place, marker):
    place(bundle, f"### {marker}\n")
    assert all(f"the marker {marker!r}" in leak for leak in leaks(bundle, root, "week04"))
    assert leaks(bundle, root, "week04") != []


def test_compiled_code_is_found(bundle, root):
    (bundle / "parts" / "__pycache__").mkdir()
    (bundle / "parts" / "__pycache__" / "meter.cpython-311.pyc").write_bytes(b"\xff")
    assert leaks(bundle, root, "week04") == [
        "parts/__pycache__/meter.cpython-311.pyc: compiled code; leave it out."
    ]


def test_a_week_without_probes_is_searched_for_solutions(bundle, root):
    (root / "autograder" / "probes" / "week04" / "small.py").unlink()
    assert leaks(bundle, root, "week04") == []
    add_text_file(bundle, BODY)
    assert len(leaks(bundle, root, "week04")) == 1


def test_a_week_without_a_chapter_is_refused(bundle, root):
    with pytest.raises(FileNotFoundError, match=r"no chapter notebooks/week05-"):
        leaks(bundle, root, "week05")
