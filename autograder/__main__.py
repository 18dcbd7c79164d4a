"""`python -m autograder release 04` makes a week's release, `grade 04 FOLDER` grades it."""

import shutil
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from autograder.grade import grade
from autograder.release import release
from inferlab.publish import PublishError
from inferlab.publish.page import written_weeks

ROOT = Path(__file__).parents[1]
console = Console()


@click.group(help=__doc__)
def main() -> None:
    pass


main.add_command(grade)


@main.command(name="release")
@click.argument("week", required=False)
@click.option("--course-url", default="http://localhost:8000", help="Where the book is published.")
@click.option("--into", type=click.Path(path_type=Path), help="Copy bundles to a reader's folder.")
def make_release(week: str | None, course_url: str, into: Path | None) -> None:
    """Make the student bundle of WEEK, or of every written week, and offer it on the site.

    A WEEK is released in the class's course directory, build/course. Without one, bundles are made
    in a directory of their own, so that a class's marks never stand in the way of a new text.
    """
    course = ROOT / "build" / ("course" if week else "course-without-class")
    if not week:
        shutil.rmtree(course, ignore_errors=True)
    try:
        for name in [f"week{int(week):02d}"] if week else written_weeks(ROOT):
            bundle = release(ROOT, name, course, course_url.rstrip("/"), report)
            report(f"The student bundle is in {bundle.relative_to(ROOT)}")
            if into:
                _copy_unless_there(bundle, into / name)
    except (PublishError, FileNotFoundError, RuntimeError, ValueError) as error:
        problems = error.problems if isinstance(error, PublishError) else [error]
        for problem in problems:
            console.print(f"[red]✗[/] {escape(str(problem))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    site = ROOT / "build" / "site" / "_build" / "html"
    if site.exists():
        shutil.copytree(
            ROOT / "build" / "release" / "bundles", site / "bundles", dirs_exist_ok=True
        )


def _copy_unless_there(bundle: Path, target: Path) -> None:
    if target.exists():
        report(f"Kept {target}: it holds your work. Move it away to get a fresh copy")
        return
    shutil.copytree(bundle, target)


def report(step: str) -> None:
    console.print(f"[cyan]•[/] {escape(step)} …", highlight=False)


if __name__ == "__main__":
    main()
