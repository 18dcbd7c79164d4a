"""`python -m inferlab.lab`: what can be done with the experiments from a command line."""

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

from inferlab.lab import comparison
from inferlab.lab.cluster import SlurmError
from inferlab.lab.contribute import ContributionError, contribute
from inferlab.lab.engines import EnginesMissingError
from inferlab.lab.plan import Plan, plan_experiment
from inferlab.lab.results import ResultError
from inferlab.lab.runner import HardwareError, run_experiment
from inferlab.lab.specification import experiment_identifiers, load_experiment
from inferlab.lab.upstream import UpstreamError, questions
from inferlab.lab.upstream import record as record_answers
from inferlab.lab.yaml_file import SpecificationError

console = Console(highlight=False)
SHOWN_APART = ("status", "error", "log")
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
    """Question, prediction and the commands of every point; nothing is run.

    The files of prompts that the commands name are written.
    """
    for plan in plans(experiment, profile):
        console.print(f"[bold]{plan.identifier}[/bold] on {profile} ({plan.profile.hardware.name})")
        console.print(f"Question: {plan.experiment.question}")
        console.print(f"Predict first: {plan.experiment.prediction}")
        for point in plan.points:
            console.print(f"\n# {point.parameters}", markup=False)
            plan.write_prompts(point, seed=0)
            for command in plan.commands(point):
                click.echo(command)


@main.command()
@click.argument("experiment")
@profile_option
@click.option(
    "--record/--live",
    help="Write to results/, which is committed, or to build/results/ (the default).",
)
@click.option(
    "--launcher",
    type=click.Choice(["local", "slurm"]),
    default="local",
    show_default=True,
    help="Measure on this machine, or in tasks of a SLURM array.",
)
def run(experiment: str, profile: str, record: bool, launcher: str) -> None:
    """Measure EXPERIMENT (week04/block-size), or all of a week (week04), and print the tables."""
    measure = run_experiment
    if launcher == "slurm":
        # submitit takes a moment to load, and only this needs it.
        from inferlab.lab.slurm import run_on_slurm as measure
    failed = 0
    for plan in plans(experiment, profile):
        total = len(plan.points) * plan.experiment.repeats
        columns = (
            TextColumn(plan.identifier),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("starting", total=total)
            table = measure(
                plan.identifier,
                profile,
                record=record,
                report=partial(update, progress, task),
            )
        click.echo(f"{table!r}\n")
        for row in table.rows:
            if row["status"] == "failed":
                failed += 1
                parameters = {name: row[name] for name in row if name not in SHOWN_APART}
                click.echo(f"{parameters}: {row['error']}\n{row['log']}\n", err=True)
    if failed:
        raise click.ClickException(f"{failed} points failed; the others are saved.")


def plans(chosen: str, profile: str) -> list[Plan]:
    """The plan of an experiment, or those of a week's experiments that run on the profile.

    Raises:
        SpecificationError: if there is none.
    """
    identifiers = experiment_identifiers(chosen)
    on_profile = [name for name in identifiers if profile in load_experiment(name).profiles]
    return [plan_experiment(name, profile) for name in on_profile or identifiers]


def update(progress: Progress, task: TaskID, message: str, done: int) -> None:
    progress.update(task, description=message, completed=done)


@main.command()
@profile_option
def doctor(profile: str) -> None:
    """Check that this machine can run the experiments of a profile."""
    # Only this command asks Hugging Face's library, which not everybody has.
    from inferlab.lab.doctor import findings as look

    findings = look(profile)
    for finding in findings:
        mark = "ok     " if finding.ok else "PROBLEM"
        click.echo(f"{mark} {finding.what}: {finding.detail}")
    if not all(finding.ok for finding in findings):
        sys.exit(1)


@main.command()
@click.argument("results", nargs=-1, required=True)
def compare(results: tuple[str, ...]) -> None:
    """Show RESULTS side by side: files, or experiments, which stand for all their results."""
    click.echo(comparison.compare(list(results)))


@main.command("upstream")
@click.option("--record", is_flag=True, help="Ask the engines again, and write to results/.")
def list_questions(record: bool) -> None:
    """List the questions to the engines' own classes whose answers the chapters replay."""
    named = questions()
    if record:
        record_answers(named)
    for name in named:
        click.echo(name)


@main.command("contribute")
@click.argument("results", nargs=-1, required=True)
@profile_option
def send_in(results: tuple[str, ...], profile: str) -> None:
    """Check RESULTS (files, experiments or weeks) and make them ready for a pull request."""
    click.echo(contribute(list(results), profile))


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except (
        SpecificationError,
        EnginesMissingError,
        HardwareError,
        ResultError,
        ContributionError,
        SlurmError,
        UpstreamError,
        # A disk that is full before anything starts.
        OSError,
    ) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped; finished points are saved and the engines have ended.", err=True)
        sys.exit(130)
