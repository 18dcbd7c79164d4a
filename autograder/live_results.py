"""Decides whether a student's own measurements earn the points for running the experiments.

The same rules that refuse a careless result in the course: complete, sealed, physically possible.
A file that holds the course's recorded numbers is a replay and earns nothing.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from inferlab.handin.validate import live_result_paths
from inferlab.lab import physics, results
from inferlab.lab.paths import RECORDED, result_path
from inferlab.lab.plan import Plan, plan_experiment
from inferlab.lab.specification import experiment_identifiers, load_experiment
from inferlab.lab.yaml_file import SpecificationError

LARGEST_BYTES = 20_000_000
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)


def live_results(folder: Path, week: str) -> dict[str, str]:
    """For each experiment of the week what is wrong with the live files in `folder`; empty if one
    is valid.

    `folder` holds `build/results/<profile>/<week>/<experiment>.json`, as a bundle does. An
    experiment that only a GPU can run counts where a result of it was handed in, and is otherwise
    left out: a student without a GPU loses nothing.
    """
    verdicts = {}
    for identifier in experiment_identifiers(week):
        paths = live_result_paths(folder, identifier)
        if not paths and "cpu" not in load_experiment(identifier).profiles:
            continue
        problems = [_problem(path, identifier) for path in paths]
        missing = "No live result file was handed in."
        verdicts[identifier] = "" if "" in problems else " ".join(problems) or missing
    return verdicts


def shared_results(folders: dict[str, Path], week: str) -> dict[str, list[str]]:
    """For each student a sentence on every experiment whose samples somebody else handed in too.

    No mark depends on it: whether two may measure together is for the instructor to say.
    """
    holders: dict[tuple[str, str], set[str]] = {}
    for student, folder in folders.items():
        for identifier in experiment_identifiers(week):
            for path in live_result_paths(folder, identifier):
                # What is no result file has its sentence from `live_results` already.
                with suppress(*MALFORMED):
                    for seal in _measured(_read(path)):
                        holders.setdefault((identifier, seal), set()).add(student)
    notes: dict[str, list[str]] = {student: [] for student in folders}
    for (identifier, _), students in sorted(holders.items()):
        for student in students:
            if others := ", ".join(sorted(students - {student})):
                notes[student].append(f"{identifier}: the same measurements as {others}.")
    return {student: list(dict.fromkeys(found)) for student, found in notes.items()}


def _problem(path: Path, identifier: str) -> str:
    """The first reason why the file earns nothing; empty for a valid one."""
    profile = path.parent.parent.name
    try:
        document = _read(path)
        if (document["experiment"], document["profile"]) != (identifier, profile):
            return f"{profile}: the file is of {document['experiment']} on {document['profile']}."
        if _is_recorded(document, result_path(RECORDED, profile, identifier)):
            return f"{profile}: the file holds the course's recorded numbers."
        return next(_impossible(document, plan_experiment(identifier, profile)), "")
    except (ValueError, SpecificationError, RecursionError) as error:
        return f"{profile}: {error}"
    except MALFORMED as error:
        return f"{profile}: the file lacks or mistypes {error}."


def _read(path: Path) -> results.Document:
    """Raises ValueError for what is no sealed result file."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"a regular file of at most {LARGEST_BYTES:,} bytes is expected.")
    document: results.Document = json.loads(path.read_text(encoding="utf-8"))
    if problem := next(results.problems(document), ""):
        raise ValueError(problem)
    return document


def _is_recorded(document: results.Document, recorded: Path) -> bool:
    """Whether any repeat is one of the recording: two machines never measure the same samples."""
    if not recorded.exists():
        return False
    return bool(_measured(document) & _measured(json.loads(recorded.read_text(encoding="utf-8"))))


def _measured(document: results.Document) -> set[str]:
    """A seal for each repeat's samples."""
    return {
        results.seal(repeat["samples"])
        for point in document["points"]
        for repeat in point["repeats"]
    }


def _impossible(document: results.Document, plan: Plan) -> Any:
    """What is missing from the plan's points, and what no machine can have measured."""
    profile = plan.profile_name
    memory = document["provenance"]["hardware"]["memory_bytes"]
    for point in plan.points:
        found = [p for p in document["points"] if p["parameters"] == point.parameters]
        if len(found) != 1 or found[0]["status"] != "ok":
            yield f"{profile}: the point {point.parameters} was not measured."
            return
        if len(found[0]["repeats"]) != plan.experiment.repeats:
            yield f"{profile}: the point {point.parameters} lacks repeats."
        ceilings = physics.ceilings_of(plan, point, memory)
        for repeat in found[0]["repeats"]:
            for sentence in physics.violations(repeat["metrics"], ceilings):
                yield f"{profile}: {sentence}"
