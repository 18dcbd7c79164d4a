"""`python -m inferlab.lab`: list the experiments, show one, run it, check this machine."""

import sys
from functools import partial

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from inferlab.lab import doctor as machine
from inferlab.lab.engines import EnginesMissingError
from inferlab.lab.plan import plan_experiment
from inferlab.lab.results import ResultError
from inferlab.lab.runner import HardwareError, run_experiment
from inferlab.lab.specification import experiment_identifiers, load_experiment
from inferlab.lab.yaml_file import SpecificationError

console = Console(highlight=False)
profile_option = click.option("--profile", default="cpu", show_default=True)


@click.group()
def main() -> None:
    """Experiments on the real engines."""


@main.command("list")
def list_experiments() -> None:
    """Name and question of every experiment."""
    for identifier in experiment_identifiers():
        console.print(f"[bold]{identifier}[/bold]  {load_experiment(identifier).question}")


@main.command()
@click.argument("experiment")
@profile_option
def show(experiment: str, profile: str) -> None:
    """Question, prediction and the commands of every point; nothing is run."""
    for identifier in experiment_identifiers(experiment):
        plan = plan_experiment(identifier, profile)
        console.print(f"[bold]{identifier}[/bold] on {profile} ({plan.profile.hardware.name})")
        console.print(f"Question: {plan.experiment.question}")
        console.print(f"Predict first: {plan.experiment.prediction}")
        for point in plan.points:
            console.print(f"\n# {point.parameters}", markup=False)
            for command in plan.commands(point):
                click.echo(command)


@main.command()
@click.argument("experiment")
@profile_option
@click.option("--record", is_flag=True, help="Write to results/, which is committed.")
def run(experiment: str, profile: str, record: bool) -> None:
    """Measure EXPERIMENT (week04/block-size), or all of a week (week04), and print the tables."""
    failed = 0
    for identifier in experiment_identifiers(experiment):
        plan = plan_experiment(identifier, profile)
        total = len(plan.points) * plan.experiment.repeats
        columns = (
            TextColumn(identifier),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("starting", total=total)
            table = run_experiment(
                identifier,
                profile,
                record=record,
                report=partial(update, progress, task),
            )
        click.echo(f"{table!r}\n")
        for row in table.rows:
            if row["status"] == "failed":
                failed += 1
                click.echo(f"{row['error']}\n{row['log']}\n", err=True)
    if failed:
        raise click.ClickException(f"{failed} points failed; the others are saved.")


def update(progress: Progress, task: TaskID, message: str, done: int) -> None:
    progress.update(task, description=message, completed=done)


@main.command()
def doctor() -> None:
    """Check that this machine can run the experiments."""
    findings = machine.findings()
    for finding in findings:
        mark = "ok     " if finding.ok else "MISSING"
        click.echo(f"{mark} {finding.what}: {finding.detail}")
    if not all(finding.ok for finding in findings):
        sys.exit(1)


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except (SpecificationError, EnginesMissingError, HardwareError, ResultError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped; finished points are saved and the engines have ended.", err=True)
        sys.exit(130)
