"""`python -m inferlab.handin NOTEBOOK`: what to run before handing in."""

import json
import sys
from pathlib import Path

import click
import nbformat
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import inferlab
from inferlab.handin.borrowed_names import borrowed_names
from inferlab.handin.notebook_file import Refused, read_notebook
from inferlab.handin.repair import repair
from inferlab.handin.validate import (
    FAILS,
    PASSES,
    UNFINISHED,
    Outcome,
    empty_answers,
    live_result_paths,
    run_exercises,
)

COLOURS = {PASSES: "green", UNFINISHED: "yellow", FAILS: "red"}
console = Console(highlight=False)


@click.command()
@click.argument("notebook", type=click.Path(path_type=Path))
@click.option("--save", type=click.Path(path_type=Path), help="Write the repaired notebook here.")
def main(notebook: Path, save: Path | None) -> None:
    """Say what would become of NOTEBOOK if it were handed in now; the file is left as it is."""
    try:
        submitted = read_notebook(notebook)
        folder = bundle_of(notebook)
        bundle = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        original = nbformat.read(folder / "original" / bundle["notebook"], as_version=4)
        repaired, notes = repair(submitted, original)
        if save and save.exists():
            raise Refused(f"{save} exists: give --save the name of a new file.")
    except Refused as error:
        console.print(f"[red]Refused.[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    if save:
        nbformat.write(repaired, save)
        notes.append(f"The repaired notebook was written to {save}: hand that in.")
    notes += borrowed_names(repaired)
    for note in notes:
        console.print(f"[yellow]Note.[/] {escape(note)}", soft_wrap=True)
    empty = empty_answers(repaired, original)
    outcomes = run_exercises(repaired, folder)
    titles = {exercise["name"]: exercise["title"] for exercise in bundle["exercises"]}
    console.print(report(outcomes, titles))
    console.print(f"Written answers still empty: {', '.join(empty) or 'none'}.", soft_wrap=True)
    paths = live_result_paths(folder, f"{bundle['week']}/*")
    found = [path.relative_to(folder).as_posix() for path in paths]
    console.print(
        f"Your own measurements: {', '.join(found) or 'none found below build/results'}.",
        soft_wrap=True,
    )
    sys.exit(any(outcome.status != PASSES for outcome in outcomes))


def bundle_of(notebook: Path) -> Path:
    """The bundle's folder: round the notebook, or round the package that runs this.

    Raises Refused when neither is a bundle.
    """
    beside_package = Path(inferlab.__file__).parents[1]
    for folder in [*notebook.resolve().parents, beside_package]:
        if (folder / "bundle.json").is_file():
            return folder
    raise Refused(
        f"There is no bundle.json beside {notebook.name}: put the notebook into the folder of the "
        "week's bundle, in which its package inferlab and its folder original lie."
    )


def report(outcomes: list[Outcome], titles: dict[str, str]) -> Table:
    """One row an exercise: its title, what became of it, and why."""
    table = Table("exercise", "visible test", "last line of the error")
    for outcome in outcomes:
        status = f"[{COLOURS[outcome.status]}]{outcome.status}[/]"
        table.add_row(
            escape(titles.get(outcome.exercise, outcome.exercise)), status, escape(outcome.detail)
        )
    return table


if __name__ == "__main__":
    main()
