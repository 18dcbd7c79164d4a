"""Makes a week's release: nbgrader's source and release versions, and the student's bundle.

`build/release/` holds what students fetch: the bundle as a folder, the same as an archive, and the
wheel of the checkpoints that all bundles share.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat

from autograder.course import prepare_course, run_nbgrader
from autograder.graded_exercises import package_folder
from autograder.hidden_cell import hidden_cell
from autograder.rubric import load_rubrics
from inferlab.publish import citations, roles
from inferlab.publish.bootstrap import bootstrap_cell
from inferlab.publish.bundle import write_bundle, write_package, zip_bundle
from inferlab.publish.editions import Parts, exercises, instructor_edition
from inferlab.publish.execute import executed
from inferlab.publish.jupyter_markdown import myst_left
from inferlab.publish.leaks import leaks
from inferlab.publish.page import Page, read_chapter
from inferlab.publish.problems import Problem, refuse_if_any
from inferlab.publish.recorded import recorded_outputs
from inferlab.publish.stage import said_in

CHECKPOINTS = Path("requirements/checkpoints")


def release(
    root: Path, week: str, course: Path, site_url: str, report: Callable[[str], None]
) -> Path:
    """Make the release of `week`; returns the folder of the bundle.

    `course` is nbgrader's course directory, and `site_url` where the book is published: the
    notebook links to it, and Colab fetches the bundle from there. Raises PublishError when a page
    cannot be published or a bundle leaks, and RuntimeError when nbgrader refuses.
    """
    page = read_chapter(root, week)
    report(f"Executing {page.path}")
    notebook, _ = executed(root, page, root / "build" / "executed")
    references = roles.References(
        said_in(notebook), roles.load_sources(root), citations.load_index(root)
    )
    found = exercises(page)
    wheel = build_checkpoints(root, root / "build" / "release" / "bundles")
    parts = Parts(
        bootstrap=bootstrap_cell(week, site_url, wheel.name),
        hidden_cells={name: hidden_cell(root, exercise) for name, (_, exercise) in found.items()},
        questions=load_rubrics(week),
        site_url=site_url,
    )
    report("Writing the instructor edition")
    prepare_course(course)
    source = course / "source" / week / f"{page.path.stem}.ipynb"
    source.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(instructor_edition(root, page, references, parts), source)
    report("Making the student edition with nbgrader")
    generate(course, week)
    bundle = course / "release" / week
    write_bundle(root, page, recorded_outputs(notebook), bundle)
    write_packages_to_grade_with(root, page, course)
    report("Looking for leaks")
    refuse_if_any(problems_of(root, page, bundle))
    published = root / "build" / "release" / week
    shutil.rmtree(published, ignore_errors=True)
    shutil.copytree(bundle, published)
    zip_bundle(published, root / "build" / "release" / "bundles" / f"{week}.zip")
    return published


def write_packages_to_grade_with(root: Path, page: Page, course: Path) -> None:
    """For each exercise a package in which it alone is unwritten, so that no mistake in another
    one costs it marks."""
    for name, (_, exercise) in exercises(page).items():
        folder = package_folder(course, page.week or "", name)
        shutil.rmtree(folder, ignore_errors=True)
        write_package(root, page, [exercise], folder)


def generate(course: Path, week: str) -> None:
    """Let nbgrader make the student's version; RuntimeError says what to do when it refuses."""
    try:
        run_nbgrader(course, "generate_assignment", week, "--force", "--create")
    except RuntimeError as error:
        if "Cannot add or remove cells" not in str(error):
            raise
        raise RuntimeError(
            f"{week} has been graded in {course} and its graded cells have changed since: marks "
            "belong to cells. Keep the released version for this class, or move that folder away "
            "and start a new one."
        ) from error


def build_checkpoints(root: Path, folder: Path) -> Path:
    """The wheel of the checkpoints in `folder`; built once, because the weights are frozen."""
    built = sorted(folder.glob("inferlab_checkpoints-*.whl"))
    if not built:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        command += ["--wheel-dir", str(folder), str(root / CHECKPOINTS)]
        subprocess.run(command, check=True, capture_output=True)
        built = sorted(folder.glob("inferlab_checkpoints-*.whl"))
    return built[-1]


def problems_of(root: Path, page: Page, bundle: Path) -> list[Problem]:
    """What may not be in a bundle: solutions, probes, answers, markup that would be shown raw."""
    found = [Problem(bundle, 1, leak) for leak in leaks(bundle, root, page.week or "")]
    notebook = nbformat.read(bundle / f"{page.path.stem}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found += [
                Problem(page.path, 1, f"The student edition still holds MyST markup: {markup!r}.")
                for markup in myst_left(cell.source)
            ]
    return found
