"""Puts results that a reader sends in where a pull request adds them, once they are believable.

Every reader of a chapter relies on a recorded result, so `contribution_checks` refuse more than a
run does. What passes is copied byte for byte: nothing is taken out, and the seals stay those of
the run.
"""

import shlex
import shutil
from pathlib import Path

from inferlab.lab.contribution_checks import is_upstream, problems, states
from inferlab.lab.paths import LIVE, RECORDED, result_path, without_root
from inferlab.lab.plan import plan_experiment
from inferlab.lab.provenance import git
from inferlab.lab.results import Document, ResultError, read_document
from inferlab.lab.specification import experiment_identifiers
from inferlab.lab.table import Table
from inferlab.lab.yaml_file import SpecificationError


class ContributionError(ValueError):
    """Results cannot be taken; the message holds every reason."""


def contribute(arguments: list[str], profile: str) -> str:
    """Check the results that `arguments` name, copy them to `results/`, and say how to send them.

    An argument is a file, or an experiment or a week that was measured here on `profile`. If one
    result is refused, none is copied.

    Raises:
        ContributionError: with every reason why results cannot be taken.
        SpecificationError: if there is no such experiment.
    """
    files = [file for argument in arguments for file in files_of(argument, profile)]
    reasons = {file: reasons_against(file) for file in files}
    refused = [
        "\n".join([f"{without_root(str(file))} cannot be taken:", *(f"- {line}" for line in lines)])
        for file, lines in reasons.items()
        if lines
    ]
    if refused:
        raise ContributionError("\n".join([*refused, "Nothing was copied."]))
    documents = [read_document(file) for file in files]
    targets = [result_path(RECORDED, d["profile"], d["experiment"]) for d in documents]
    notes = [replaced(target) for target in targets if target not in files and target.exists()]
    for file, target in zip(files, targets):
        if file != target:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    return "\n".join([*notes, *pull_request(documents, targets)])


def files_of(argument: str, profile: str) -> list[Path]:
    """The file `argument`, or a result of each experiment it names, live if there is one."""
    if argument.endswith(".json"):
        return [Path(argument).resolve()]
    found = []
    for identifier in experiment_identifiers(argument):
        live = result_path(LIVE, profile, identifier)
        found.append(live if live.exists() else result_path(RECORDED, profile, identifier))
    return found


def reasons_against(file: Path) -> list[str]:
    """Why the result in `file` cannot be taken; empty if it can."""
    try:
        document = read_document(file)
        plan = plan_experiment(document["experiment"], document["profile"])
        reasons = list(problems(document, plan))
    except (ResultError, SpecificationError) as error:
        return [str(error)]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return [f"A field is missing or has another type than a run gives it ({error!r})."]
    target = result_path(RECORDED, plan.profile_name, plan.identifier)
    if file != target and git("status", "--porcelain", "--", str(target)):
        reasons.append(
            f"{without_root(str(target))} holds changes that are not committed, and would be "
            f"overwritten: commit them or move the file away."
        )
    return reasons


def replaced(target: Path) -> str:
    """A sentence on the recorded result that a new one takes the place of."""
    old = Table(read_document(target), live=False).badge
    return f"This replaces {without_root(str(target))} ({old}): say in the pull request why."


def pull_request(documents: list[Document], targets: list[Path]) -> list[str]:
    """What is left to do by hand."""
    names = [f"{document['experiment']} on {document['profile']}" for document in documents]
    paths = [without_root(str(target)) for target in targets]
    branch = "results-" + "-".join([documents[0]["profile"], documents[0]["experiment"]])
    commits = {state["commit"] for document in documents for state in states(document)}
    private = sorted(commit for commit in commits if not is_upstream(commit))
    return [
        f"Ready to be sent in: {', '.join(paths)}",
        *(f"The commit {commit} is on no remote branch: push it too." for commit in private),
        shlex.join(["git", "switch", "-c", branch.replace("/", "-")]),
        shlex.join(["git", "add", *paths]),
        shlex.join(["git", "commit", "-m", f"results: {', '.join(names)}"]),
        "git push -u origin HEAD",
        "Then open a pull request from that branch"
        + (f", and name in it the commit {', '.join(private)}." if private else "."),
    ]
