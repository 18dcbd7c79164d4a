"""The chapters of the repository: their pages by week, and their exercises by name."""

from inferlab.publish import read_page
from inferlab.publish.editions import exercises
from inferlab.publish.exercise import Exercise
from inferlab.publish.page import Page
from tests.site_fixture import REPOSITORY

PAGES: dict[str, Page] = {
    path.name.partition("-")[0]: read_page(REPOSITORY, path.relative_to(REPOSITORY))
    for path in sorted((REPOSITORY / "notebooks").glob("week*.md"))
}
EXERCISES: dict[str, Exercise] = {
    name: exercise for page in PAGES.values() for name, (_, exercise) in exercises(page).items()
}


def week_of(exercise: str) -> str:
    """The week of an exercise, for example `week04` of `week04-block-pool`."""
    return exercise.partition("-")[0]
