"""A damaged notebook is made whole or refused; a student sees what grading will see."""

import json
import random
import textwrap
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from nbformat import NotebookNode

from inferlab.handin import validate
from inferlab.handin.__main__ import main
from inferlab.handin.borrowed_names import borrowed_names
from inferlab.handin.bounded import MOST_CHARACTERS
from inferlab.handin.cells import grade_id
from inferlab.handin.notebook_file import LARGEST_BYTES, Refused, read_notebook
from inferlab.handin.repair import check_student, repair
from inferlab.handin.validate import FAILS, PASSES, UNFINISHED, Outcome, run_exercises
from inferlab.publish import expand, read_page
from inferlab.publish.exercise import read_exercise
from tests.site_fixture import REPOSITORY
from tests.small_course import NOTEBOOK, make_bundle, solved, student_notebook


@pytest.fixture
def original():
    return student_notebook()


@pytest.fixture
def submitted():
    return solved(student_notebook())


def find(notebook: NotebookNode, text: str) -> int:
    """Position of the only cell that begins with `text`."""
    (position,) = [i for i, cell in enumerate(notebook.cells) if cell.source.startswith(text)]
    return position


def saved_and_read(folder, contents: dict) -> NotebookNode:
    path = folder / "saved.ipynb"
    path.write_text(json.dumps(contents), encoding="utf-8")
    return read_notebook(path)


def as_saved_by_colab(notebook: NotebookNode) -> dict:
    """No nbgrader metadata, no cell ids but metadata of Colab's own, lines as a list."""
    cells = [
        {
            "cell_type": cell.cell_type,
            "metadata": {"id": f"{number:012x}", "outputId": "0f3c", "colab": {}},
            "source": cell.source.splitlines(keepends=True),
            **({"outputs": [], "execution_count": None} if cell.cell_type == "code" else {}),
        }
        for number, cell in enumerate(notebook.cells)
    ]
    metadata = {"colab": {"provenance": [], "toc_visible": True}}
    return {"nbformat": 4, "nbformat_minor": 0, "metadata": metadata, "cells": cells}


def as_saved_by_vscode(notebook: NotebookNode) -> dict:
    """Metadata of its own beside nbgrader's, no ids, Windows line ends."""
    cells = json.loads(nbformat.writes(notebook))["cells"]
    for cell in cells:
        cell["metadata"]["vscode"] = {"languageId": "python"}
        cell["source"] = [line.replace("\n", "\r\n") for line in cell["source"]]
        del cell["id"]
    return {"nbformat": 4, "nbformat_minor": 2, "metadata": {}, "cells": cells}


def test_an_untouched_notebook_comes_back_as_it_is_without_a_note(original):
    assert repair(student_notebook(), original) == (original, [])


def test_only_what_a_student_writes_is_taken(original, submitted):
    notebook, notes = repair(submitted, original)
    assert notes == []
    changed = {grade_id(own) for own, new in zip(original.cells, notebook.cells) if own != new}
    assert changed == {"week04-double", "week04-square"}


@pytest.mark.parametrize("save", [as_saved_by_colab, as_saved_by_vscode])
def test_a_notebook_saved_by_another_front_end_is_rebuilt(save, original, submitted, tmp_path):
    saved = saved_and_read(tmp_path, save(submitted))
    notebook, notes = repair(saved, original)
    assert notebook == repair(submitted, original).notebook
    lost = [note for note in notes if "had lost nbgrader's metadata" in note]
    assert len(lost) == (save is as_saved_by_colab)


def test_reordered_cells_with_equal_ids_are_put_back(original, submitted):
    expected = repair(submitted, original).notebook
    random.Random(3).shuffle(submitted.cells)
    for cell in submitted.cells:
        cell.id = "same"
    notebook, notes = repair(submitted, original)
    assert notebook == expected
    assert notes == ["Cells were out of order; the original order was restored."]


def test_a_cell_of_another_type_is_turned_back(original, submitted):
    position = find(submitted, "# exercise: week04-double")
    source = submitted.cells[position].source
    metadata = submitted.cells[position].metadata
    submitted.cells[position] = nbformat.v4.new_markdown_cell(source, metadata=metadata)
    notebook, notes = repair(submitted, original)
    assert notebook.cells[position].cell_type == "code"
    assert notebook.cells[position].source == source
    assert notes == ["week04-double had become a markdown cell; it is code again."]


def test_a_deleted_exercise_is_restored_with_a_loud_note(original, submitted):
    position = find(submitted, "# exercise: week04-double")
    del submitted.cells[position]
    notebook, notes = repair(submitted, original)
    assert notebook.cells[position] == original.cells[position]
    assert notes == [
        "MISSING: the cell week04-double was not in the notebook; it was restored unanswered."
    ]


def test_locked_cells_that_were_changed_or_deleted_are_the_originals(original, submitted):
    expected = repair(submitted, original).notebook
    submitted.cells[find(submitted, "# test: week04-double")].source += "\nassert True"
    del submitted.cells[find(submitted, "# probes: week04-square")]
    notebook, notes = repair(submitted, original)
    assert notebook == expected
    assert notes == [
        "The locked cell week04-double-test was changed; the original is used.",
        "The locked cell week04-square-probes was missing and was restored.",
    ]


@pytest.mark.parametrize("copy_is_stub", [False, True])
def test_a_copy_of_an_exercise_costs_nothing(copy_is_stub, original, submitted):
    expected = repair(submitted, original).notebook
    position = find(submitted, "# exercise: week04-double")
    copied = (original if copy_is_stub else submitted).cells[position]
    submitted.cells.insert(position, copied.copy())
    notebook, notes = repair(submitted, original)
    assert notebook == expected
    number = position + 1
    assert notes == [
        f"week04-double was there 2 times (cells {number}, {number + 1}); one was taken."
    ]


def test_two_different_attempts_are_refused_with_their_places(original, submitted):
    position = find(submitted, "# exercise: week04-double")
    other = submitted.cells[position].copy()
    other.source = other.source.replace("2 * x", "x + x")
    submitted.cells.append(other)
    places = f"{position + 1} and {len(submitted.cells)}"
    with pytest.raises(Refused, match=f"The cells {places} are different answers to week04-double"):
        repair(submitted, original)


def test_a_cell_that_contradicts_its_metadata_is_refused(original, submitted):
    cell = submitted.cells[find(submitted, "# exercise: week04-double")]
    cell.source = cell.source.replace("week04-double", "week04-square")
    with pytest.raises(Refused, match="is week04-double by its metadata and week04-square by"):
        repair(submitted, original)


@pytest.mark.parametrize("metadata", ["kept", "dropped"])
def test_two_exercises_merged_into_one_cell_are_refused(metadata, original, submitted):
    first = submitted.cells[find(submitted, "# exercise: week04-double")]
    second = find(submitted, "# exercise: week04-square")
    first.source += "\n\n" + submitted.cells.pop(second).source
    if metadata == "dropped":
        first.metadata = NotebookNode()
    with pytest.raises(Refused, match="a cell of its own"):
        repair(submitted, original)


def test_a_notebook_of_another_week_is_refused(original, submitted):
    for cell in submitted.cells:
        cell.source = cell.source.replace("week04", "week07")
        if grade_id(cell):
            cell.metadata.nbgrader.grade_id = grade_id(cell).replace("week04", "week07")
    with pytest.raises(Refused, match="a notebook of week07, and week04 is expected"):
        repair(submitted, original)


def test_a_notebook_of_something_else_is_refused(original):
    other = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(1)")])
    with pytest.raises(Refused, match="holds no cell of week04"):
        repair(other, original)


def test_cells_of_the_students_own_are_kept_where_they_stood_and_marked(original, submitted):
    position = find(submitted, "# test: week04-double")
    submitted.cells.insert(position, nbformat.v4.new_code_cell("double(21)"))
    submitted.cells.insert(0, nbformat.v4.new_markdown_cell("My notes"))
    notebook, notes = repair(submitted, original)
    extras = [
        (i, c.source) for i, c in enumerate(notebook.cells) if "extra" in c.metadata.get("tags", [])
    ]
    assert extras == [(0, "My notes"), (position + 1, "double(21)")]
    assert notes == ["2 cells of the student's own were kept for reading; they never run."]
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


def test_a_written_answer_keeps_its_pictures(original, submitted):
    cell = submitted.cells[find(submitted, "<!-- answer: week04-analysis-1")]
    cell.source = "<!-- answer: week04-analysis-1 -->\n![plot](attachment:plot.png)"
    cell.attachments = {"plot.png": {"image/png": "iVBORw0KGgo="}}
    notebook, _ = repair(submitted, original)
    taken = notebook.cells[find(notebook, "<!-- answer: week04-analysis-1")]
    assert (taken.source, taken.attachments) == (cell.source, cell.attachments)


@pytest.mark.parametrize(
    ("written", "refused"), [("", False), ("alice", False), ("Alice ", False), ("bob", True)]
)
def test_another_students_name_is_refused(written, refused, submitted):
    cell = submitted.cells[find(submitted, "# hand-in:")]
    cell.source = cell.source.replace('""', f'"{written}"')
    if refused:
        with pytest.raises(Refused, match="names the student 'bob' and was handed in by 'alice'"):
            check_student(submitted, "alice")
    else:
        assert check_student(submitted, "alice") == []


def test_an_unreadable_hand_in_cell_is_noted(submitted):
    submitted.cells[find(submitted, "# hand-in:")].source = "# hand-in: week04\nSTUDENT = alice"
    assert check_student(submitted, "alice") == [
        'The hand-in cell does not say STUDENT = "…" any more.'
    ]


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"", "is empty"),
        (b'{"cells": [', "not a complete notebook"),
        (b"\xff\xfe{\x00", "not a complete notebook"),
        (b"[" * 100_000, "not a complete notebook"),
        (b"[1, 2]", "is JSON but no notebook"),
        (b'{"nbformat": 3, "worksheets": []}', "of format 3, and format 4"),
        (b'{"nbformat": 4, "cells": [{"cell_type": "code"}]}', "Cell 1 of"),
        (b'{"nbformat": 4, "cells": [{"cell_type": "code", "source": "\\ud800"}]}', "half a char"),
    ],
)
def test_a_file_that_is_no_notebook_is_refused(contents, reason, tmp_path):
    path = tmp_path / "alice.ipynb"
    path.write_bytes(contents)
    with pytest.raises(Refused, match=reason):
        read_notebook(path)


def test_a_file_that_is_too_large_is_refused_unread(tmp_path):
    path = tmp_path / "alice.ipynb"
    with path.open("wb") as file:
        file.truncate(LARGEST_BYTES + 1)
    with pytest.raises(Refused, match="clear the outputs"):
        read_notebook(path)


def test_a_link_to_a_file_elsewhere_is_refused(tmp_path, submitted):
    nbformat.write(submitted, tmp_path / "real.ipynb")
    assert read_notebook(tmp_path / "real.ipynb").cells
    (tmp_path / "alice.ipynb").symlink_to(tmp_path / "real.ipynb")
    with pytest.raises(Refused, match="a regular file is expected"):
        read_notebook(tmp_path / "alice.ipynb")


def validated(folder, *options: str):
    """Run the command on the bundle's notebook, and check that it left the file alone."""
    path = folder / NOTEBOOK
    before = path.read_bytes()
    result = CliRunner().invoke(main, [str(path), *options])
    assert path.read_bytes() == before
    return result.exit_code, " ".join(result.output.split())


def test_a_finished_notebook_is_ready(tmp_path):
    folder = make_bundle(tmp_path)
    nbformat.write(solved(student_notebook()), folder / NOTEBOOK)
    live = folder / "build/results/cpu/week04/kv-pool.json"
    live.parent.mkdir(parents=True)
    live.write_text("{}")
    code, output = validated(folder)
    assert code == 0
    assert output.count(PASSES) == 2
    assert "Written answers still empty: week04-analysis-1, week04-analysis-2." in output
    assert "Your own measurements: build/results/cpu/week04/kv-pool.json." in output


def test_what_is_unfinished_or_wrong_is_said_and_nothing_is_ready(tmp_path):
    folder = make_bundle(tmp_path)
    notebook = solved(student_notebook(), square="raise ValueError('two\\nlines')")
    position = find(notebook, "# exercise: week04-double")
    notebook.cells[position] = student_notebook().cells[position]
    nbformat.write(notebook, folder / NOTEBOOK)
    code, output = validated(folder)
    assert code == 1
    assert output.count(UNFINISHED) == 1
    assert "lines" in output
    assert "ValueError" not in output  # the last line of the message only
    assert PASSES not in output
    assert "none found below build/results" in output


def test_the_repaired_notebook_can_be_saved_once(tmp_path):
    folder = make_bundle(tmp_path)
    notebook = solved(student_notebook())
    (folder / NOTEBOOK).write_text(json.dumps(as_saved_by_colab(notebook)), encoding="utf-8")
    target = folder / "repaired.ipynb"
    assert validated(folder, "--save", str(target))[0] == 0
    assert repair(read_notebook(target), student_notebook()).notes == []
    assert validated(folder, "--save", str(target))[0] == 2


def test_a_notebook_outside_a_bundle_is_refused(tmp_path):
    nbformat.write(solved(student_notebook()), tmp_path / NOTEBOOK)
    code, output = validated(tmp_path)
    assert code == 2
    assert "There is no bundle.json beside" in output


def test_one_exercise_never_takes_another_with_it(tmp_path):
    killer = solved(student_notebook(), double="import os; os._exit(1)")
    outcomes = run_exercises(killer, make_bundle(tmp_path))
    assert outcomes == [
        Outcome("week04-double", FAILS, "DeadKernelError: The kernel ended while this cell ran."),
        Outcome("week04-square", PASSES),
    ]


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        # Deaf to the interrupt: only a new kernel helps.
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    ],
)
def test_an_endless_loop_ends(body, tmp_path):
    notebook = solved(student_notebook(), double=body)
    first, second = run_exercises(notebook, make_bundle(tmp_path), seconds=2)
    assert (first.status, second.status) == (FAILS, PASSES)
    assert first.detail in (
        "CellTimeoutError: The cell ran for more than 2 seconds.",
        "CellTimeoutError: The cell did not stop when its time was over.",
    )


def test_a_flood_of_output_is_cut_and_its_error_kept(tmp_path):
    body = "for _ in range(1000): print('x' * 10_000)\nraise ValueError('the end')"
    notebook = solved(student_notebook(), double=body)
    first, second = run_exercises(notebook, make_bundle(tmp_path))
    assert first == Outcome("week04-double", FAILS, "ValueError: the end")
    assert second.status == PASSES
    outputs = notebook.cells[find(notebook, "# test: week04-double")].outputs
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert MOST_CHARACTERS / 2 < len(text) < 2 * MOST_CHARACTERS
    assert "was cut here" in text


def test_a_setup_that_fails_explains_the_rest(tmp_path):
    notebook = solved(student_notebook())
    notebook.cells[find(notebook, "import math")].source = "import no_such_module"
    first, *rest = run_exercises(notebook, make_bundle(tmp_path))
    assert first == Outcome("setup", FAILS, "ModuleNotFoundError: No module named 'no_such_module'")
    assert len(rest) == 2


@pytest.mark.parametrize("fallback_is_off", [True, False])
def test_no_recorded_output_stands_in_for_an_exercise(fallback_is_off, tmp_path, monkeypatch):
    """With the stuck reader's fallback on, an exercise that is not there would seem to pass."""
    if not fallback_is_off:
        monkeypatch.setattr(validate, "NO_FALLBACK", "")
    folder = make_bundle(tmp_path)
    (folder / "inferlab").mkdir()
    (folder / "inferlab" / "__init__.py").touch()
    (folder / "inferlab" / "unfinished.py").write_text(
        # Hides every error, which the real one does to those of unfinished exercises only.
        textwrap.dedent("""
            def enable():
                get_ipython().showtraceback = lambda *given, **options: None
            def disable():
                del get_ipython().showtraceback
        """)
    )
    notebook = student_notebook()
    setup = notebook.cells[find(notebook, "import math")]
    setup.source += "\nfrom inferlab import unfinished; unfinished.enable()"
    expected = UNFINISHED if fallback_is_off else PASSES
    outcomes = run_exercises(notebook, folder)
    assert [outcome.status for outcome in outcomes] == [expected, expected]


def notebook_with(setup: str, exercise: str) -> NotebookNode:
    cells = [
        nbformat.v4.new_code_cell(setup, metadata={"tags": ["setup"]}),
        nbformat.v4.new_code_cell("def helper(x): return x\nother = 1"),
        nbformat.v4.new_code_cell(
            exercise, metadata={"tags": ["exercise"], "nbgrader": {"grade_id": "week04-x"}}
        ),
    ]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.mark.parametrize(
    ("exercise", "borrowed"),
    [
        ("def f(x): return helper(x)", "helper"),
        ("y = other + 1", "other"),
        ("def f(x):\n    def g(): return helper(other)\n    return g", "helper, other"),
        ("class A:\n    size = other\n    def f(self): return helper(self.size)", "helper, other"),
        ("def f(x: list[other]) -> helper: return x", "helper, other"),
        ("def helper(x): return x\ndef f(x): return helper(np.array(x))", ""),
        ("def f(x): return late(x)\ndef late(x): return len(str(x))", ""),
        ("def f(x):\n    global state\n    state = x\n    return state", ""),
        ("f = lambda x: [y for y in x if (z := y)]", ""),
        ("%timeit 1\n!ls\nf?", ""),
        ("from math import *\ndef f(x): return floor(helper(x))", ""),
        ("def f(:", ""),
        ("import inferlab.engine as e\nfor i in range(3): print(i, e, __name__)", ""),
    ],
)
def test_what_an_exercise_borrows_from_other_cells_is_named(exercise: str, borrowed: str) -> None:
    notes = borrowed_names(notebook_with("import numpy as np", exercise))
    assert [note.partition(" uses ")[2].partition(", which")[0] for note in notes] == (
        [borrowed] if borrowed else []
    )


def test_the_reference_borrows_nothing() -> None:
    page = read_page(REPOSITORY, Path("notebooks/week04-paged-attention.md"))
    cells = []
    for cell in page.cells:
        tags = cell.metadata.get("tags", [])
        source = cell.source
        if "exercise" in tags:
            exercise = read_exercise(cell.source, cell.metadata)
            source = expand(REPOSITORY, exercise, solution=True)
        cells.append(nbformat.v4.new_code_cell(source, metadata={"tags": tags}))
    assert sum("exercise" in cell.metadata.tags for cell in cells) == 6
    assert borrowed_names(nbformat.v4.new_notebook(cells=cells)) == []


def test_outputs_stay_with_their_cells_as_far_as_they_are_outputs(tmp_path, original):
    notebook = solved(student_notebook())
    for text, said in (("# test: week04-double", "6"), ("print(", "shown"), ("# exercise", "x")):
        cell = next(cell for cell in notebook.cells if cell.source.startswith(text))
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=[said, "\n"])]
    contents = json.loads(nbformat.writes(notebook))
    broken = next(c for c in contents["cells"] if "".join(c["source"]).startswith("print("))
    broken["outputs"] += [{"output_type": "stream"}, "text", {"output_type": "error", "ename": 1}]
    repaired, _ = repair(saved_and_read(tmp_path, contents), original)
    shown = [output.text for cell in repaired.cells for output in cell.get("outputs", [])]
    assert shown == ["x\n", "6\n", "shown\n"]
