"""The instructor's notebook, the bundle round the student's, and the book with answers."""

import json
import zipfile
from dataclasses import dataclass

import nbformat
import pytest

from inferlab.publish import PublishError, read_page
from inferlab.publish.answers import with_answers, without_answers
from inferlab.publish.bundle import write_bundle, zip_bundle
from inferlab.publish.citations import load_index
from inferlab.publish.editions import Parts, exercises, instructor_edition
from inferlab.publish.execute import executed
from inferlab.publish.recorded import recorded_outputs
from inferlab.publish.roles import References, load_sources
from inferlab.publish.stage import said_in
from inferlab.unfinished import source_key
from tests.release_fixture import released_bundle
from tests.site_fixture import CHAPTER, make_repository

QUEUE, HASH, POOL = "week04-sample-queue", "week04-sample-hash", "week04-sample-pool"


@dataclass
class Essay:
    """A rubric as publishing needs it."""

    points: int = 6
    prompt: str = "Your paragraph"
    model_answer: str = "The model answer."
    is_written: bool = True

    def for_instructors(self) -> str:
        return f"{self.model_answer}\n\nThe rubric."


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("editions") / "repository")


@pytest.fixture(scope="module")
def page(repository):
    return read_page(repository, CHAPTER)


@pytest.fixture(scope="module")
def run(repository, page):
    """The executed chapter."""
    return executed(repository, page, repository / "build" / "executed")[0]


def edition(repository, page, run, questions=None):
    references = References(said_in(run), load_sources(repository), load_index(repository))
    parts = Parts(
        bootstrap="# setup: course",
        hidden_cells={
            name: f"# probes: {name}\n### BEGIN HIDDEN TESTS\n0.0\n### END HIDDEN TESTS"
            for name in exercises(page)
        },
        questions={"week04-sample-essay": Essay()} if questions is None else questions,
        site_url="http://book.example",
    )
    return instructor_edition(repository, page, references, parts)


@pytest.fixture(scope="module")
def notebook(repository, page, run):
    return edition(repository, page, run)


def named(notebook):
    """The cells that nbgrader knows, by their names, in order."""
    return {
        cell.metadata.nbgrader.grade_id: cell
        for cell in notebook.cells
        if "nbgrader" in cell.metadata
    }


@pytest.mark.slow
def test_every_exercise_has_its_cells_in_order(notebook):
    assert list(named(notebook)) == [
        "week04-setup-course",
        "week04-setup",
        *(f"{name}{part}" for name in (QUEUE, HASH, POOL) for part in ("", "-test", "-probes")),
        "week04-sample-essay",
    ]


@pytest.mark.slow
def test_the_first_line_of_a_graded_cell_names_it(notebook):
    cells = named(notebook)
    assert cells[HASH].source.startswith(f"# exercise: {HASH}\n")
    assert cells[f"{HASH}-test"].source.startswith(f"# test: {HASH}\n")
    assert cells[f"{HASH}-probes"].source.startswith(f"# probes: {HASH}\n")
    assert cells["week04-sample-essay"].source.startswith("<!-- answer: week04-sample-essay -->\n")


@pytest.mark.slow
def test_points_and_locks_are_what_nbgrader_needs(notebook):
    cells = named(notebook)
    points = {name: cell.metadata.nbgrader.get("points", 0) for name, cell in cells.items()}
    assert {name: value for name, value in points.items() if value} == {
        f"{QUEUE}-probes": 20,
        f"{HASH}-probes": 10,
        f"{POOL}-probes": 10,
        "week04-sample-essay": 6,
    }
    unlocked = {name for name, cell in cells.items() if not cell.metadata.nbgrader.locked}
    assert unlocked == {QUEUE, HASH, POOL, "week04-sample-essay"}


@pytest.mark.slow
def test_the_solutions_and_the_model_answer_are_marked_for_removal(notebook):
    for name in (QUEUE, HASH, POOL, "week04-sample-essay"):
        source = named(notebook)[name].source
        assert source.count("### BEGIN SOLUTION") == source.count("### END SOLUTION") > 0


@pytest.mark.slow
def test_the_prose_holds_values_and_plain_markdown(notebook):
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "131,072" in prose
    assert "<details><summary>" in prose
    for markup in (":::", "{say}", "{given}", "{src}", "(week04-theory)="):
        assert markup not in prose


@pytest.mark.slow
def test_an_answer_without_a_rubric_is_refused(repository, page, run):
    with pytest.raises(PublishError, match="week04-sample-essay' has no rubric"):
        edition(repository, page, run, questions={})


@pytest.mark.slow
def test_only_marks_and_nothing_to_write_is_a_task(repository, page, run):
    questions = {"week04-sample-essay": Essay(is_written=False)}
    made = named(edition(repository, page, run, questions))["week04-sample-essay"]
    assert made.metadata.nbgrader.task
    assert "model answer" not in made.source


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, repository, page, run):
    folder = tmp_path_factory.mktemp("bundle") / "week04"
    folder.mkdir()
    nbformat.write(nbformat.v4.new_notebook(), folder / "week04-sample.ipynb")
    (repository / "golden").mkdir(exist_ok=True)
    (repository / "golden" / "week04.json").write_text("{}")
    (repository / "golden" / "week05.json").write_text("{}")
    write_bundle(repository, page, recorded_outputs(run), folder)
    return folder


@pytest.mark.slow
def test_the_bundle_holds_stubs_for_the_week_and_the_rest_whole(repository, bundle):
    theirs = (bundle / "inferlab" / "engine" / "block_pool.py").read_text()
    ours = (repository / "inferlab" / "engine" / "block_pool.py").read_text()
    assert theirs.count("raise NotImplementedError()") == 4
    assert "def touch" in theirs
    assert "block.ref_count += 1" in theirs, "a member that is not listed stays as it is"
    assert "self.num_free_blocks -= 1" in ours
    assert "self.num_free_blocks -= 1" not in theirs
    untouched = "inferlab/engine/scheduler.py"
    assert (bundle / untouched).read_bytes() == (repository / untouched).read_bytes()


@pytest.mark.slow
def test_the_bundle_leaves_out_what_a_student_does_not_need(bundle):
    packed = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*")}
    assert "golden/week04.json" in packed
    assert "golden/week05.json" not in packed
    assert not {"inferlab/publish", "inferlab/models/checkpoints"} & packed
    assert "original/week04-sample.ipynb" in packed


@pytest.mark.slow
def test_the_bundle_holds_the_kernels_of_its_chapter_and_no_others():
    """Split-KV decode repeats the loop that week 4 asks for."""
    kernels = {path.name for path in (released_bundle() / "inferlab" / "kernels").glob("*.py")}
    assert kernels == {"__init__.py", "counted_traffic.py", "paged_decode.py"}


@pytest.mark.slow
def test_the_manifest_names_exercises_and_members(bundle):
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert manifest["week"] == "week04"
    assert manifest["exercises"][0]["name"] == QUEUE
    assert manifest["exercises"][2]["members"] == [
        "inferlab.engine.block_pool:BlockPool.get_new_blocks"
    ]


@pytest.mark.slow
def test_outputs_are_found_by_the_source_of_their_cell(page, bundle):
    recorded = json.loads((bundle / "recorded.json").read_text())
    (test,) = [cell for cell in page.cells if cell.source.startswith(f"# test: {QUEUE}")]
    (output,) = recorded[source_key(f"\n{test.source}\n")]
    assert output == {
        "kind": "text",
        "text": "FreeBlockQueue.remove: the links close up behind a removed block.\n",
    }
    figures = [o for outputs in recorded.values() for o in outputs if o["kind"] == "figure"]
    assert [figure["badge"] for figure in figures] == ["computed", "simulated"]
    assert all(figure["figure"]["data"] for figure in figures)
    assert figures[0]["caption"].startswith("The cache of one sequence grows")


@pytest.mark.slow
def test_the_same_bundle_is_the_same_archive(bundle, tmp_path):
    first, second = tmp_path / "a.zip", tmp_path / "b.zip"
    zip_bundle(bundle, first)
    (bundle / "bundle.json").touch()
    zip_bundle(bundle, second)
    assert first.read_bytes() == second.read_bytes()
    assert "inferlab/engine/llm.py" in zipfile.ZipFile(first).namelist()


DIRECTIVE = "Before.\n\n:::{answer} week04-sample-essay\n:::\n\nAfter."


def test_readers_see_no_answer_and_instructors_do():
    assert without_answers(DIRECTIVE).split() == ["Before.", "After."]
    shown = with_answers(DIRECTIVE, {"week04-sample-essay": Essay()})
    assert "The model answer." in shown
    assert "The rubric." in shown
    assert "(6 points)" in shown
    with pytest.raises(ValueError, match="has no rubric; the rubrics are: none"):
        with_answers(DIRECTIVE, {})
