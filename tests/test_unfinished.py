"""A reader who is stuck reaches the end; whoever makes a mistake of another kind sees it."""

import os

import nbformat
import pytest
from nbclient import NotebookClient

from inferlab.unfinished import source_key
from tests.bundle_fixture import HASH, make_sample_bundle

pytestmark = pytest.mark.slow

NEEDS_QUEUE = "queue = FreeBlockQueue([])\nqueue.popleft()\nlength = 5\nprint('not reached')"
RECORDED = {
    source_key(NEEDS_QUEUE): [
        {"kind": "text", "text": "what the reference printed\n"},
        {"kind": "html", "html": "<b>what it displayed</b>"},
        {
            "kind": "figure",
            "figure": {
                "data": [{"type": "scatter", "x": [1, 2], "y": [3, 4]}],
                "layout": {"xaxis": {"title": {"text": "x"}}, "yaxis": {"title": {"text": "y"}}},
            },
            "caption": "What it drew.",
            "badge": "computed",
        },
    ]
}
BEGIN = "from inferlab import unfinished\nunfinished.enable()"
IMPORTS = "from inferlab.engine.block_pool import BlockPool, FreeBlockQueue, hash_block_tokens"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_sample_bundle(tmp_path_factory.mktemp("unfinished"), RECORDED)


def run(bundle, *cells, **environment):
    """Run the cells in a fresh kernel in the bundle; a failing cell does not stop the others."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in (BEGIN, IMPORTS, *cells)]
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        allow_errors=True,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(bundle)}},
    )
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    client.execute(env=inherited | environment)
    return notebook.cells[2:]


def error_of(cell):
    """Name of the exception the cell shows; None if it counts as run."""
    return next((o.ename for o in cell.outputs if o.output_type == "error"), None)


def blamed(cell):
    """The exercise that the cell names instead of a traceback."""
    text = str(cell.outputs)
    if "which is not finished yet" not in text:
        return None
    return text.partition("This cell needs ")[2].partition(",")[0]


def test_the_recorded_outputs_stand_in_for_the_traceback(bundle):
    (cell,) = run(bundle, NEEDS_QUEUE)
    assert error_of(cell) is None
    assert blamed(cell) == "week04-sample-queue"
    shown = str(cell.outputs)
    for expected in ("what the reference printed", "<b>what it displayed</b>", "What it drew."):
        assert expected in shown
    assert "not reached" not in shown
    assert any("application/vnd.plotly.v1+json" in o.get("data", {}) for o in cell.outputs)


def test_an_edited_cell_still_names_the_exercise(bundle):
    (cell,) = run(bundle, NEEDS_QUEUE + "\nprint('my own line')")
    assert blamed(cell) == "week04-sample-queue"
    assert "The reference shows nothing here." in str(cell.outputs)


def test_whoever_misses_a_name_of_that_cell_falls_back_too(bundle):
    cells = run(bundle, NEEDS_QUEUE, "double = 2 * length", "print(double)", "print(lenght)")
    assert [blamed(cell) for cell in cells] == ["week04-sample-queue"] * 3 + [None]
    assert [error_of(cell) for cell in cells] == [None, None, None, "NameError"]


def test_a_value_assigned_before_the_failure_is_not_read_later(bundle):
    """Rows that a loop was to fill are as missing as names that were never bound."""
    needs = (
        "import math\nrows = []\nfor _ in range(3):\n    rows.append(FreeBlockQueue([]).popleft())"
    )
    cells = run(bundle, "rows = ['of an earlier cell']", needs, "max(rows)", "math.sqrt(4)")
    assert [blamed(cell) for cell in cells[1:]] == ["week04-sample-queue"] * 2 + [None]
    assert [error_of(cell) for cell in cells] == [None] * 4


def test_a_cell_that_succeeds_later_binds_its_names_again(bundle):
    cells = run(bundle, NEEDS_QUEUE, "length = 7", "print(length)", "del length", "print(length)")
    assert blamed(cells[2]) is None
    assert error_of(cells[4]) == "NameError"


def test_a_test_that_fails_shows_why_and_its_names_are_missed(bundle):
    failing = "# test: week04-sample-hash\nassert 1 == 2, 'the order matters'\ndigest = b''"
    cells = run(bundle, failing, "print(digest)")
    assert error_of(cells[0]) == "AssertionError"
    assert blamed(cells[0]) is None
    assert blamed(cells[1]) == "week04-sample-hash"


def test_an_exercise_cell_with_a_spelling_mistake_is_named(bundle):
    broken = "# exercise: week04-sample-hash\ndef hash_block_tokens(parent token_ids):\n    pass"
    cells = run(bundle, "del hash_block_tokens", broken, "hash_block_tokens(None, [])")
    assert error_of(cells[1]) == "SyntaxError"
    assert blamed(cells[2]) == "week04-sample-hash"


def test_a_stub_installed_is_named(bundle):
    stub = (
        "def hash_block_tokens(parent, token_ids, salt=''):\n"
        "    # YOUR CODE HERE\n    raise NotImplementedError()"
    )
    cells = run(bundle, stub, "from inferlab import install\ninstall(hash_block_tokens)")
    assert blamed(cells[1]) == "week04-sample-hash"


@pytest.mark.parametrize(
    ("name", "body", "exercise"),
    [
        ("hash_block_tokens", "raise NotImplementedError()", "week04-sample-hash"),
        ("hash_block_tokens", "raise ValueError()", None),
        ("kernel_of_my_own", "raise NotImplementedError()", None),
    ],
)
def test_a_stub_that_triton_compiles_for_a_gpu_is_named(bundle, monkeypatch, name, body, exercise):
    pytest.importorskip("triton")
    # Whichever test ran before may have asked for the interpreter, which compiles nothing.
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    source = f"""
import triton
from triton.backends.compiler import GPUTarget

@triton.jit
def {name}(values):
    # YOUR CODE HERE
    {body}

wanted = triton.compiler.ASTSource({name}, {{"values": "*fp32"}})
triton.compile(wanted, target=GPUTarget("cuda", 90, 32))
"""
    (cell,) = run(bundle, source)
    assert blamed(cell) == exercise
    assert error_of(cell) == (None if exercise else "UnsupportedLanguageConstruct")


def test_a_finished_exercise_is_run(bundle):
    cells = run(bundle, HASH, "print(list(hash_block_tokens(None, [1])))")
    assert "[1]" in str(cells[1].outputs)
    assert [blamed(cell) for cell in cells] == [None, None]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("raise NotImplementedError('of my own')", "NotImplementedError"),
        ("def mine():\n    raise NotImplementedError()\nmine()", "NotImplementedError"),
        ("print(never_defined)", "NameError"),
        ("1 / 0", "ZeroDivisionError"),
        ("def half(:", "SyntaxError"),
    ],
)
def test_any_other_error_stays_an_error(bundle, source, name):
    (cell,) = run(bundle, source)
    assert error_of(cell) == name
    assert blamed(cell) is None


def test_a_graded_notebook_fails_where_it_fails(bundle):
    (cell,) = run(bundle, NEEDS_QUEUE, NBGRADER_EXECUTION="autograde")
    assert error_of(cell) == "NotImplementedError"


def test_disabled_means_disabled(bundle):
    cells = run(bundle, "unfinished.disable()", NEEDS_QUEUE)
    assert error_of(cells[1]) == "NotImplementedError"
