"""`python -m autograder.attacks`: try every attack, print a table and `N tried, 0 gained`."""

import os
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from autograder.attacks.suite import Report, all_attacks, run_attacks


@click.command()
@click.option("--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, show_default=True)
@click.option("--kind", help="Only the attacks of one class.")
def main(jobs: int, kind: str | None) -> None:
    """Grade hostile submissions, and say what they gained: nothing, or this fails."""
    console = Console(highlight=False)
    attacks = [attack for attack in all_attacks() if kind in (None, attack.kind)]
    columns = (TextColumn("Attacking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with tempfile.TemporaryDirectory() as folder, Progress(*columns, console=console) as progress:
        bar = progress.add_task("Attacking")
        report = run_attacks(
            attacks,
            Path(folder),
            lambda done, total: progress.update(bar, completed=done, total=total),
            jobs,
        )
    show(report, console)
    sys.exit(bool(report.harm) or any(outcome.gained for outcome in report.outcomes))


def show(report: Report, console: Console) -> None:
    """Print the outcome of each attack, and the counts."""
    table = Table("class", "attack", "points", "learnt", "status")
    for attack, row, leaked in report.outcomes:
        points = f"{row.exercise_points:g}" if row.status == "graded" else ""
        table.add_row(attack.kind, attack.name, points, ", ".join(leaked), row.status)
    console.print(table)
    for sentence in report.harm:
        console.print(f"[red]harm[/] {sentence}")
    gained = sum(outcome.gained for outcome in report.outcomes)
    console.print(f"attacks: {len(report.outcomes)} tried, {gained} gained")


if __name__ == "__main__":
    main()
