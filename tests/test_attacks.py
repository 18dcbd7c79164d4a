"""Every attack is graded as a class would be, and comes to nothing."""

import importlib.metadata
import json
from collections import Counter
from pathlib import Path

import pytest

from autograder.attacks.comparison import RECORDED
from autograder.attacks.suite import (
    Report,
    all_attacks,
    differences,
    learnt,
    run_attacks,
    state_of_the_machine,
)

REPOSITORY = Path(__file__).parents[1]
# What the reference calls its 15 classes, under the names of the table.
CLASSES = {
    *("hard-coding", "delegation", "reading", "introspection", "hooks", "monkeypatching"),
    *("lying-objects", "forged-results", "early-exit", "exhaustion", "network", "persistence"),
    *("side-channels", "cell-tampering", "leaks-after-grading", "files"),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """What all attacks came to, two at a time."""
    return run_attacks(all_attacks(), tmp_path_factory.mktemp("attacks"), lambda a, b: None, 2)


def test_there_are_sixty_attacks_of_all_classes_with_names_of_their_own() -> None:
    attacks = all_attacks()
    assert len(attacks) >= 60
    assert {attack.kind for attack in attacks} == CLASSES
    assert max(Counter(attack.name for attack in attacks).values()) == 1


def test_the_guides_table_is_what_was_recorded_of_these_attacks() -> None:
    record = json.loads(RECORDED.read_text())
    assert [(one["kind"], one["name"]) for one in record["attacks"]] == [
        (attack.kind, attack.name) for attack in all_attacks()
    ]
    guide = (REPOSITORY / "book" / "instructor-guide.md").read_text()
    assert f"nbgrader {record['nbgrader']}, recorded" in guide
    for kind in [*CLASSES, "all"]:
        of_kind = [one for one in record["attacks"] if kind in ("all", one["kind"])]
        counts = [sum(one[what] for one in of_kind) for what in ("marks", "secrets", "harm")]
        row = [kind.replace("-", " "), len(of_kind), *counts]
        assert f"| {' | '.join(map(str, row))} |" in guide
    assert record["nbgrader"] == importlib.metadata.version("nbgrader")


@pytest.mark.slow
def test_no_attack_gains(report: Report) -> None:
    gained = [outcome.attack.name for outcome in report.outcomes if outcome.gained]
    assert gained == []
    assert len(report.outcomes) == len(all_attacks())


@pytest.mark.slow
def test_no_attack_harms_the_honest_or_the_machine(report: Report) -> None:
    assert report.harm == []


@pytest.mark.slow
def test_an_attack_is_a_row_and_stops_nobody(report: Report) -> None:
    assert {outcome.row.status for outcome in report.outcomes} == {"graded", "refused"}
    refused = {o.attack.name for o in report.outcomes if o.row.status == "refused"}
    assert refused == {
        "a notebook that names somebody else",
        "a notebook that is no object",
        "half a notebook",
        "two hundred megabytes",
    }


def test_the_checks_see_what_they_look_for(tmp_path: Path) -> None:
    secrets = {"the reference": ["free -= blocks_needed"], "inputs": ["[1, 2, 3]"]}
    assert learnt("<p>free -= blocks_needed</p>", secrets) == ["the reference"]
    assert learnt("<script>fetch('/formgrader/api/marks')</script>", secrets) == [
        "a script that runs"
    ]
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_text("before")
    before = state_of_the_machine(tmp_path)
    assert not list(differences(before, state_of_the_machine(tmp_path)))
    (tmp_path / "source" / "a").write_text("after")
    assert len(list(differences(before, state_of_the_machine(tmp_path)))) == 1
