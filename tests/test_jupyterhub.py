"""A class of two on a real JupyterHub, every step a click in Chromium, and what they may read."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from autograder.gradebook import read_scores
from autograder.probe import load
from tests.browser import opened
from tests.hub_fixture import COURSE, INSTRUCTOR, PASSWORD, Hub, Person, running_hub
from tests.release_fixture import COURSE as RELEASED
from tests.release_fixture import NOTEBOOK, WEEK, reference_solutions, released_bundle

pytestmark = [
    pytest.mark.site,
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0, reason="Only root can start a server for each of several Unix users."
    ),
]
SCREENSHOTS = Path(__file__).parents[1] / "build" / "screenshots" / "hub"
# A busy machine of two cores starts servers and grades at the same time.
PATIENCE_MS = 180_000
STEM = NOTEBOOK.removesuffix(".ipynb")
EXERCISE = "week04-fragmentation"
POINTS = 5
RIGHT, WRONG, OPEN_HOME = "ada", "ben", "cleo"
# One line of `admit_paged` that goes wrong: the last block of a sequence is not counted.
LINE, MISTAKE = "num_blocks = -(-length // block_size)", "num_blocks = length // block_size"


class Desk(NamedTuple):
    """Someone at a browser of their own."""

    name: str
    page: Page
    hub: Hub

    def show(self, step: str) -> None:
        """Save a screenshot, numbered in the order of the steps."""
        number = len(list(SCREENSHOTS.glob("*.png"))) + 1
        self.page.screenshot(path=SCREENSHOTS / f"{number:02d}-{self.name}-{step}.png")


class Graded(NamedTuple):
    """The hub after the class was graded.

    Attributes:
        feedback: what each student read.
        formgrader: the instructor's tab, which is still open.
    """

    hub: Hub
    feedback: dict[str, str]
    formgrader: Desk


@contextmanager
def at_desk(browser: Browser, hub: Hub, name: str) -> Iterator[Desk]:
    """A browser in which someone has signed in."""
    with browser.new_context(viewport={"width": 1400, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(hub.address)
        page.get_by_label("Username").fill(name)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        yield Desk(name, page, hub)


def wait_for_jupyterlab(desk: Desk) -> None:
    desk.page.wait_for_url(f"**/user/{desk.name}/lab**")
    desk.page.get_by_role("menuitem", name="Nbgrader", exact=True).wait_for()
    desk.show("signed-in")


# What a student does.


def assignments(desk: Desk) -> None:
    """Open the list of assignments."""
    desk.page.get_by_role("menuitem", name="Nbgrader", exact=True).click()
    menu = desk.page.locator(".lm-Menu")
    expect(menu).to_contain_text("Assignment List")
    expect(menu).not_to_contain_text("Formgrader")
    menu.get_by_text("Assignment List", exact=True).click()
    expect(desk.page.locator("#course_list_default")).to_have_text(COURSE)


def fetch(desk: Desk) -> None:
    released = desk.page.locator("#released_assignments_list")
    expect(released).to_contain_text(WEEK)
    desk.show("released")
    released.get_by_role("button", name="Fetch").click()
    expect(desk.page.locator("#fetched_assignments_list")).to_contain_text(WEEK)
    expect(released).to_contain_text("There are no assignments to fetch.")
    desk.show("fetched")


def write_solution(desk: Desk, source: str) -> None:
    """Open the notebook from the list, and type `source` into the cell of the exercise."""
    page = desk.page
    page.locator("#fetched_assignments_list").get_by_role("button", name=WEEK).click()
    page.get_by_text(STEM, exact=True).click()
    page.get_by_text("| Idle").wait_for()
    cell = page.locator(".jp-CodeCell", has_text=f"# exercise: {EXERCISE}")
    expect(cell).to_contain_text("raise NotImplementedError()")
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(source)
    expect(cell).not_to_contain_text("raise NotImplementedError()")
    expect(cell).to_contain_text(MISTAKE if MISTAKE in source else LINE)
    desk.show("solved")
    page.keyboard.press("Control+s")
    expect(page.locator(".lm-TabBar-tab.jp-mod-dirty")).to_have_count(0)


def validate(desk: Desk) -> str:
    """Press Validate; returns what the dialog says."""
    desk.page.get_by_role("button", name="Validate").locator("visible=true").click()
    dialog = desk.page.locator(".jp-Dialog", has_text="Validation Results")
    dialog.wait_for()
    desk.show("validated")
    said = dialog.inner_text()
    dialog.get_by_role("button", name="Ok").click()
    dialog.wait_for(state="hidden")
    return said


def submit(desk: Desk) -> None:
    desk.page.get_by_role("tab", name="Assignments").click()
    submitted = desk.page.locator("#submitted_assignments_list")
    expect(submitted).to_contain_text("There are no submitted assignments.")
    desk.page.get_by_role("button", name="Submit").click()
    expect(submitted).to_contain_text("Fetch Feedback")
    expect(submitted).to_contain_text(WEEK)
    desk.show("submitted")


def read_feedback(desk: Desk) -> str:
    """Fetch the feedback and open it; returns what the page says."""
    page = desk.page
    page.locator("#refresh_assignments_list").click()
    page.get_by_role("button", name="Fetch Feedback").click()
    page.get_by_text("(view feedback)").click()
    page.locator(".jp-DirListing-item", has_text=f"{STEM}.html").dblclick()
    viewed = page.frame_locator(".jp-HTMLViewer iframe").locator("body")
    expect(viewed).to_contain_text(f"# exercise: {EXERCISE}")
    desk.show("feedback")
    return viewed.inner_text()


# What the instructor does, in a tab of its own: JupyterHub forbids to show formgrader in a frame.


def open_formgrader(desk: Desk) -> Desk:
    tab = desk.page.context.new_page()
    tab.set_default_timeout(PATIENCE_MS)
    tab.goto(f"{desk.hub.address}/user/{desk.name}/formgrader")
    in_tab = desk._replace(page=tab)
    row_of(in_tab, WEEK).wait_for()
    in_tab.show("formgrader")
    return in_tab


def row_of(desk: Desk, text: str) -> Locator:
    return desk.page.get_by_role("row").filter(has_text=text)


def press(desk: Desk, row: str, action: str) -> str:
    """Press a button of formgrader's table; returns the log that it shows after a success."""
    row_of(desk, row).locator(f".{action} a").click()
    dialog = desk.page.locator(".modal-content")
    dialog.wait_for()
    desk.show(f"{action}-{row}")
    said = dialog.inner_text()
    assert "Success" in said, f"{action} of {row} in formgrader:\n{said}"
    dialog.get_by_role("button", name="OK").click()
    expect(desk.page.locator(".modal-backdrop")).to_have_count(0)
    return said


def grade(desk: Desk) -> dict[str, float]:
    """Collect and grade all submissions; returns the scores that formgrader shows."""
    assert "Processing 2 submissions" in press(desk, WEEK, "collect")
    row_of(desk, WEEK).locator(".num-submissions a").click()
    shown = {}
    for student in (RIGHT, WRONG):
        expect(row_of(desk, student).locator(".status")).to_have_text("needs autograding")
        press(desk, student, "autograde")
        expect(row_of(desk, student).locator(".status")).to_have_text("needs manual grading")
        score = row_of(desk, student).locator(".score")
        expect(score).to_have_text(re.compile(r"^[\d.]+ / 100$"))
        shown[student] = float(score.inner_text().partition(" / ")[0])
    desk.show("graded")
    return shown


@pytest.fixture(scope="module")
def graded() -> Iterator[Graded]:
    """Week 4 released, fetched, solved, handed in, graded and given back, by clicks alone."""
    released_bundle()
    reference = reference_solutions()[EXERCISE]
    assert LINE in reference
    written = {RIGHT: reference, WRONG: reference.replace(LINE, MISTAKE)}
    shutil.rmtree(SCREENSHOTS, ignore_errors=True)
    SCREENSHOTS.mkdir(parents=True)
    expect.set_options(timeout=PATIENCE_MS)
    with ExitStack() as stack:
        hub = stack.enter_context(running_hub(RELEASED))
        browser = stack.enter_context(opened("light", 1400)).context.browser
        assert browser is not None
        lab = stack.enter_context(at_desk(browser, hub, INSTRUCTOR))
        wait_for_jupyterlab(lab)
        formgrader = open_formgrader(lab)
        expect(row_of(formgrader, WEEK).locator(".status")).to_have_text("draft")
        press(formgrader, WEEK, "release")
        expect(row_of(formgrader, WEEK).locator(".status")).to_have_text("released")
        desks = {name: stack.enter_context(at_desk(browser, hub, name)) for name in written}
        for name, desk in desks.items():
            wait_for_jupyterlab(desk)
            assignments(desk)
            fetch(desk)
            write_solution(desk, written[name])
            said = validate(desk)
            # The exercises that nobody has begun are named in both.
            assert "# test: week04-block-pool" in said
            assert (f"# test: {EXERCISE}" in said) == (name == WRONG), said
            submit(desk)
        shown = grade(formgrader)
        assert shown[RIGHT] == POINTS
        assert 0 < shown[WRONG] < POINTS
        formgrader.page.get_by_role("link", name="Manage Assignments").click()
        press(formgrader, WEEK, "generate-feedback")
        press(formgrader, WEEK, "release-feedback")
        feedback = {name: read_feedback(desk) for name, desk in desks.items()}
        yield Graded(hub, feedback, formgrader)


def test_the_gradebook_holds_full_marks_for_the_right_answer_and_fewer_for_the_wrong_one(
    graded: Graded,
) -> None:
    rows = {name: read_scores(graded.hub.course, WEEK, STEM, name) for name in (RIGHT, WRONG)}
    exercise = EXERCISE.removeprefix("week04-")
    assert rows[RIGHT].exercises[exercise] == POINTS
    assert 0 < rows[WRONG].exercises[exercise] < POINTS
    for row in rows.values():
        assert {points for name, points in row.exercises.items() if name != exercise} == {0}


def test_each_student_reads_what_was_passed_and_not_passed(graded: Graded) -> None:
    titles = [probe.title for probe in load(WEEK) if probe.exercise == EXERCISE]
    assert titles
    for title in titles:
        assert f"\npassed: {title}" in graded.feedback[RIGHT]
    missed = [title for title in titles if f"\nnot passed: {title}" in graded.feedback[WRONG]]
    assert 0 < len(missed) < len(titles)


def what_is_ben_s(hub: Hub) -> list[Path]:
    """What a student may read and write, and no other student."""
    home, handed_in = hub.people[WRONG].home, hub.submission(WRONG)
    return [home, home / WEEK, home / WEEK / NOTEBOOK, handed_in, handed_in / NOTEBOOK]


def what_is_the_instructor_s(hub: Hub) -> list[Path]:
    parts = ("", "gradebook.db", f"source/{WEEK}/{NOTEBOOK}", f"submitted/{WRONG}/{WEEK}")
    return [hub.course / part for part in parts]


def reads(person: Person, path: Path) -> bool:
    command = ("ls", "--") if path.is_dir() else ("cat", "--")
    return is_done(person.run(*command, str(path)))


def writes(person: Person, path: Path) -> bool:
    """Whether the person can change a file, or make one in a folder."""
    if path.is_dir():
        return is_done(person.run("mktemp", "-p", str(path)))
    return is_done(person.run("dd", "if=/dev/null", f"of={path}", "conv=notrunc"))


def is_done(run: subprocess.CompletedProcess[str]) -> bool:
    """Whether a command succeeded; it may fail for want of permission only."""
    assert run.returncode == 0 or "ermission denied" in run.stderr, run.stderr
    return run.returncode == 0


def test_a_student_reads_and_writes_nothing_of_another_s(graded: Graded) -> None:
    one, other = graded.hub.people[RIGHT], graded.hub.people[WRONG]
    for path in what_is_ben_s(graded.hub):
        assert reads(other, path), f"{path} is the student's own"
        assert writes(other, path), f"{path} is the student's own"
        assert not reads(one, path)
        assert not writes(one, path)


def test_a_student_reads_and_writes_nothing_of_the_instructor_s(graded: Graded) -> None:
    one, instructor = graded.hub.people[RIGHT], graded.hub.people[INSTRUCTOR]
    for path in what_is_the_instructor_s(graded.hub):
        assert reads(instructor, path), f"{path} is the instructor's own"
        assert writes(instructor, path), f"{path} is the instructor's own"
        assert not reads(one, path)
        assert not writes(one, path)


def test_the_exchange_shows_a_student_what_is_released_and_nothing_else(graded: Graded) -> None:
    one, exchange = graded.hub.people[RIGHT], graded.hub.exchange
    released = exchange / "outbound" / WEEK
    assert reads(one, released / NOTEBOOK)
    assert not writes(one, released / NOTEBOOK)
    assert not writes(one, released)
    for name in ("inbound", "feedback"):
        assert not reads(one, exchange / name), "the names in it would give everybody's away"
    for page in (exchange / "feedback").iterdir():
        assert not writes(one, page)
    moved = one.run("mv", str(graded.hub.submission(WRONG)), str(exchange / "inbound" / "gone"))
    assert "Operation not permitted" in moved.stderr
    for path in (graded.hub.folder / "state").iterdir():
        assert not reads(one, path), "with what the hub knows, one could be anybody"


def test_nobody_is_served_from_a_home_that_others_can_look_into(graded: Graded) -> None:
    hub = graded.hub
    hub.people[OPEN_HOME].home.chmod(0o755)
    browser = graded.formgrader.page.context.browser
    with at_desk(browser, hub, OPEN_HOME) as desk:
        expect(desk.page.get_by_text("is open to other users")).to_be_visible()
        desk.show("open-home")


def test_what_is_handed_in_for_another_counts_for_who_handed_it_in(graded: Graded) -> None:
    """A submission in another's name, with a link to the instructor's own notebook."""
    hub = graded.hub
    forger = hub.people[WRONG]
    before = (hub.course / "submitted" / RIGHT / WEEK / NOTEBOOK).read_bytes()
    forged = hub.exchange / "inbound" / f"{RIGHT}+{WEEK}+2100-01-01 00:00:00 UTC+forged"
    solution = hub.course / "source" / WEEK / NOTEBOOK
    assert is_done(forger.run("mkdir", str(forged)))
    assert is_done(forger.run("ln", "-s", str(solution), str(forged / NOTEBOOK)))
    assert is_done(forger.run("cp", "/etc/hostname", str(forged / "timestamp.txt")))
    assert is_done(forger.run("chmod", "-R", "755", str(forged)))
    log = press(graded.formgrader, WEEK, "collect")
    assert f"Updating submission: {WRONG}" in log
    assert f"{NOTEBOOK} was left out" in log
    submitted = hub.course / "submitted"
    assert (submitted / RIGHT / WEEK / NOTEBOOK).read_bytes() == before
    assert [path.name for path in (submitted / WRONG / WEEK).iterdir()] == ["timestamp.txt"]
