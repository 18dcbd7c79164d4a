"""Nothing that a student hands in acts in the browser of whoever looks at it."""

import copy

import nbformat
import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from nbconvert import HTMLExporter

from autograder.attacks.notebooks import SCRIPT
from autograder.attacks.suite import acts
from autograder.inert import MOST_CHARACTERS, MOST_OUTPUTS, inert_output, make_inert

v4 = nbformat.v4


def released():
    hint = "<details><summary>Hint</summary>\nTry.\n</details>"
    cells = [v4.new_markdown_cell(hint), v4.new_code_cell("1"), v4.new_markdown_cell("answer")]
    notebook = v4.new_notebook(cells=cells)
    notebook.cells[0].metadata["tags"] = ["setup"]
    return notebook


def page(notebook) -> str:
    return str(HTMLExporter().from_notebook_node(notebook)[0])


def test_the_check_sees_a_script() -> None:
    """The control: what is not made inert does act."""
    hostile = released()
    hostile.cells[2].source = SCRIPT
    assert acts(page(hostile))
    make_inert(hostile, released())
    assert not acts(page(hostile))
    assert "<script>fetch" not in hostile.cells[2].source


@pytest.mark.parametrize(
    "source",
    [
        "<SCRIPT SRC=x></SCRIPT>",
        "<img src=x onerror=alert(1)>",
        "<details>\n<svg onload=alert(1)>",
        "```\n</code></pre><script>alert(1)</script>\n```",
        "<!--><script>alert(1)</script>-->",
        "[x](javascript:alert(1))",
        "[x](JavaScript\\:alert(1))",
        "[x](javascript&#58;alert(1))",
        "[x](&#106;avascript:alert(1))",
        "[x][a]\n\n[a]: javascript:alert(1)",
        "<a href='javascript:alert(1)'>x</a>",
        "<iframe srcdoc='&lt;script&gt;alert(1)&lt;/script&gt;'>",
    ],
)
def test_text_becomes_text(source: str) -> None:
    notebook = released()
    notebook.cells[2].source = source
    before = tags_of(page(released()))
    make_inert(notebook, released())
    parsed = BeautifulSoup(page(notebook), "html.parser")
    assert not parsed.find_all(onerror=True) + parsed.find_all(onload=True)
    assert not parsed.find_all(href=lambda value: value and "javascript:" in value.lower())
    found = tags_of(page(notebook))
    assert {tag: found.get(tag) for tag in ("script", "iframe", "svg", "img")} == {
        tag: before.get(tag) for tag in ("script", "iframe", "svg", "img")
    }


def tags_of(html: str) -> dict[str, int]:
    names = [tag.name for tag in BeautifulSoup(html, "html.parser").find_all(True)]
    return {name: names.count(name) for name in names}


def test_what_was_released_stays() -> None:
    notebook = released()
    make_inert(notebook, released())
    expected = released()
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in expected.cells]
    assert notebook.cells[0].metadata.tags == ["setup"]


@given(st.text())
def test_no_tag_can_begin(text: str) -> None:
    notebook = released()
    notebook.cells[2].source = text
    make_inert(notebook, released())
    assert not BeautifulSoup(notebook.cells[2].source, "html.parser").find_all(True)
    assert notebook.cells[2].source.replace("\u200b", "") == text.replace("\u200b", "")


def test_metadata_attachments_and_odd_ids_go() -> None:
    notebook = released()
    notebook.metadata.title = SCRIPT
    cell = notebook.cells[2]
    cell.metadata = nbformat.from_dict({"tags": ["x", "test"], "nbgrader": {"grade_id": "a"}})
    cell.attachments, cell.id = {"x": {"image/svg+xml": SCRIPT}}, 'x" onclick="'
    make_inert(notebook, released())
    assert notebook.metadata == released().metadata
    assert cell.metadata == {"tags": ["test"], "nbgrader": {"grade_id": "a"}}
    assert "attachments" not in cell
    assert cell.id == "cell-2"


def test_outputs_keep_text_and_pictures() -> None:
    picture = "iVBORw0KGgo=\n"
    shown = {"text/plain": "figure", "image/png": picture, "text/html": SCRIPT}
    assert inert_output(v4.new_output("display_data", data=shown)).data == {
        "text/plain": "figure",
        "image/png": picture,
    }
    odd = {"image/png": f'"/>{SCRIPT}', "application/javascript": "alert(1)"}
    assert inert_output(v4.new_output("display_data", data=odd)).data == {}
    warning = inert_output(v4.new_output("stream", name="stderr", text="old"))
    assert (warning.name, warning.text) == ("stdout", "old"), "nbgrader gives 0 for stderr"


def test_long_outputs_are_cut() -> None:
    notebook = released()
    long = v4.new_output("stream", name="stdout", text="x" * (MOST_CHARACTERS + 1))
    notebook.cells[1].outputs = [copy.deepcopy(long) for _ in range(MOST_OUTPUTS + 1)]
    make_inert(notebook, released())
    assert len(notebook.cells[1].outputs) == MOST_OUTPUTS
    assert notebook.cells[1].outputs[0].text.endswith("[The rest was cut off here.]\n")
