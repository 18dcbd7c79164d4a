"""The probes and the hidden cells that hold them: who gets which marks, and what nobody sees."""

import importlib
import io
import sys
from contextlib import redirect_stdout
from functools import cache

import nbformat
import pytest

from autograder.hidden_cell import Case, cases_of, hidden_cell, reference, run_cell, score
from autograder.mutants import load_mutants
from autograder.observation import encode
from autograder.probe import load, probes_of
from inferlab.publish import expand
from tests.chapters import EXERCISES, PAGES, week_of
from tests.site_fixture import REPOSITORY

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Triton has wheels for Linux only"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # poison is meant to overflow
]

each_exercise = pytest.mark.parametrize("name", EXERCISES)


@cache
def hidden(name):
    """The hidden cell of an exercise."""
    return hidden_cell(REPOSITORY, EXERCISES[name])


def cleared(cell):
    """The cell as a student gets it."""
    preprocessors = importlib.import_module("nbgrader.preprocessors")
    released = nbformat.v4.new_code_cell(cell)
    preprocessors.ClearHiddenTests()._remove_hidden_test_region(released)
    return released.source


def value_of(cell, names):
    """What a notebook whose variables are `names` shows as the value of the cell."""
    (last,) = [line for line in cell.splitlines() if line.startswith('_probes["score"](')]
    run_cell(cell.replace(last, ""), names)
    return eval(last, names)


@pytest.mark.parametrize("week", PAGES)
def test_every_probe_is_of_an_exercise_of_the_chapter(week):
    probes = load(week)
    assert {probe.exercise for probe in probes} == {x for x in EXERCISES if week_of(x) == week}
    assert len({probe.name for probe in probes}) == len(probes)


@each_exercise
def test_an_exercise_has_enough_probes_each_with_words_for_the_student(name):
    probes = probes_of(name)
    assert len(probes) >= 5
    assert len({probe.title for probe in probes}) == len(probes)
    for probe in probes:
        assert not probe.title.endswith(".")
        assert probe.message.endswith(".")


def test_an_exercise_without_probes_gets_no_cell():
    with pytest.raises(ValueError, match="There is no probe of week04-nothing"):
        probes_of("week04-nothing")


def test_inputs_depend_on_the_seed_the_probe_and_the_trial():
    first, second = probes_of("week04-free-queue")[:2]
    assert first.inputs is second.inputs
    assert first.encoded_inputs(1) == first.encoded_inputs(1)
    drawn = [*first.encoded_inputs(1), *first.encoded_inputs(2), *second.encoded_inputs(1)]
    assert len(set(drawn)) == 3 * first.trials


@each_exercise
def test_the_reference_passes_every_probe_and_the_stub_none(name, capfd):
    exercise = EXERCISES[name]
    count = len(probes_of(name))
    solved = run_cell(expand(REPOSITORY, exercise, solution=True), {})
    marks = value_of(hidden(name), solved)
    assert (type(marks), marks) == (float, exercise.points)
    printed = capfd.readouterr()
    assert [line.startswith("passed: ") for line in printed.out.splitlines()] == [True] * count
    assert printed.err == ""

    unwritten = run_cell(expand(REPOSITORY, exercise, solution=False), {})
    marks = value_of(hidden(name), unwritten)
    assert (type(marks), marks) == (float, 0.0)
    lines = capfd.readouterr().out.splitlines()
    assert [line.startswith("not passed: ") for line in lines] == [True] * count


@each_exercise
def test_the_released_cell_names_the_probes_and_nothing_else(name):
    released = cleared(hidden(name))
    assert released.startswith(f"# probes: {name}\n")
    assert run_cell(released, {"__name__": "fresh"}).keys() == {"__name__", "__builtins__"}
    for probe in probes_of(name):
        assert f"# - {probe.title}" in released
        assert probe.name not in released
        assert probe.name in hidden(name)
    assert all(line.startswith("#") for line in released.splitlines())


@each_exercise
def test_the_cell_is_small_and_stands_alone(name, monkeypatch):
    assert len(hidden(name)) < 60_000
    solved = run_cell(expand(REPOSITORY, EXERCISES[name], solution=True), {})
    for module in [module for module in sys.modules if module.startswith("autograder")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "autograder", None)
    with pytest.raises(ImportError):
        import autograder.observation  # noqa: F401
    with redirect_stdout(io.StringIO()):
        assert value_of(hidden(name), solved) == EXERCISES[name].points


def test_names_that_a_student_uses_for_something_else_do_no_harm():
    name = "week04-free-queue"
    solved = run_cell(expand(REPOSITORY, EXERCISES[name], solution=True), {})
    taken = {"sum", "list", "sorted", "equal", "links", "json", "np", "score", "refusal"}
    with redirect_stdout(io.StringIO()):
        assert value_of(hidden(name), solved | dict.fromkeys(taken, 0)) == 6.0
        assert value_of(hidden(name), solved | {"FreeBlockQueue": 0}) == 0.0


@pytest.mark.parametrize("name", [name for name in EXERCISES if "kernel" not in name])
def test_the_inputs_of_another_seed_are_no_problem_for_the_reference(name):
    code = reference(REPOSITORY, EXERCISES[name])
    again = reference(REPOSITORY, EXERCISES[name])
    for seed in range(5):
        cases = cases_of(probes_of(name), code, seed)
        with redirect_stdout(io.StringIO()):
            assert score(vars(again), cases, 1.0) == 1.0, seed


OTHER_POOL = """
def free_blocks(self, blocks):
    ids = [block.block_id for block in blocks]
    if any(ids.count(block.block_id) > block.ref_count for block in blocks):
        raise ValueError("a double free")
    hashed, empty = [], []
    for block in blocks:
        block.ref_count -= 1
        if not block.ref_count:
            (hashed if block.block_hash else empty).append(block)
    for block in hashed:
        self.free_queue.append(block)
    while empty:
        self.free_queue.prepend(empty.pop())

BlockPool.free_blocks = free_blocks
"""
OTHER_ATTENTION = """
def paged_decode_attention(queries, keys, values, tables, lengths, tile_blocks=8):
    output = np.zeros_like(queries)
    block_size, num_kv_heads, head_dim = keys.shape[1:]
    kv_heads = np.arange(queries.shape[1]) // (queries.shape[1] // num_kv_heads)
    for sequence, length in enumerate(lengths):
        state = None
        query = queries[sequence][:, None] * np.float32(head_dim**-0.5)
        num_blocks = -(-int(length) // block_size)
        for first in range(0, num_blocks, tile_blocks):
            blocks = tables[sequence, first : min(first + tile_blocks, num_blocks)]
            left = slice(int(length) - first * block_size)
            k, v = (
                cache[blocks].reshape(-1, num_kv_heads, head_dim)[left, kv_heads].swapaxes(0, 1)
                for cache in (keys, values)
            )
            tile = _attend_tile(query, k, v)
            state = tile.merge(state) if state else tile
        output[sequence] = (state.output / state.total)[:, 0]
    return output
"""


@pytest.mark.parametrize(
    ("name", "other"),
    [("week04-block-pool", OTHER_POOL), ("week04-paged-attention", OTHER_ATTENTION)],
)
def test_a_right_solution_that_is_not_the_reference_gets_full_marks(name, other):
    solved = run_cell(expand(REPOSITORY, EXERCISES[name], solution=True), {})
    with redirect_stdout(io.StringIO()) as printed:
        marks = value_of(hidden(name), run_cell(other, solved))
    assert marks == EXERCISES[name].points, printed.getvalue()


def case(observe):
    return Case(observe, "Title", "Message.", 0.0, [(encode(None), encode(3))])


class Agreeable(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


def raise_(error):
    raise error


@pytest.mark.parametrize(
    ("observe", "passes"),
    [
        (lambda code, inputs: code.answer, True),
        (lambda code, inputs: code.answer + 1, False),
        (lambda code, inputs: True, False),
        (lambda code, inputs: Agreeable(4), False),
        (lambda code, inputs: float("nan"), False),
        (lambda code, inputs: code.missing, False),
        (lambda code, inputs: raise_(AssertionError()), False),
        (lambda code, inputs: raise_(SystemExit()), False),
        (lambda code, inputs: raise_(GeneratorExit()), False),
        (lambda code, inputs: print("noise") or print("noise", file=sys.stderr) or 3, True),
    ],
)
def test_only_the_right_plain_answer_passes(observe, passes, capfd):
    marks = score({"answer": 3}, [case(observe), case(lambda code, inputs: 3)], 7)
    assert marks == (7.0 if passes else 3.5)
    first = "passed: Title" if passes else "not passed: Title. Message."
    assert capfd.readouterr() == (f"{first}\npassed: Title\n", "")


def test_an_interrupt_ends_the_cell():
    with pytest.raises(KeyboardInterrupt):
        score({}, [case(lambda code, inputs: raise_(KeyboardInterrupt()))], 7)


@pytest.mark.slow
def test_nbgrader_reads_partial_credit_from_the_executed_cell():
    nbclient = importlib.import_module("nbclient")
    utils = importlib.import_module("nbgrader.utils")
    name = "week04-free-queue"
    solved = expand(REPOSITORY, EXERCISES[name], solution=True)
    mutant = next(m for m in load_mutants("week04") if m.exercise == name)
    marks = []
    for source in (solved, mutant.of(solved), expand(REPOSITORY, EXERCISES[name], False)):
        probes = nbformat.v4.new_code_cell(hidden(name))
        probes.metadata["nbgrader"] = {"grade": True, "solution": False, "points": 6}
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source), probes])
        resources = {"metadata": {"path": str(REPOSITORY)}}
        nbclient.NotebookClient(notebook, kernel_name="python3", resources=resources).execute()
        given, most = utils.determine_grade(probes)
        assert most == 6
        marks.append(given)
    assert marks[0] == 6
    assert 0 < marks[1] < 6
    assert marks[2] == 0
