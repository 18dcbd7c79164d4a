"""SLURM: one task for points that share servers, nothing lost or measured twice, whatever ends."""

import getpass
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import submitit
import yaml

from inferlab.lab import (
    cluster,
    engines,
    measurement,
    provenance,
    runner,
    slurm,
    slurm_array,
    specification,
)
from inferlab.lab.cluster import SlurmError
from inferlab.lab.parts import PartedResult
from inferlab.lab.plan import Plan, plan_experiment
from inferlab.lab.results import read_document
from inferlab.lab.slurm import run_on_slurm
from inferlab.lab.slurm_array import groups
from inferlab.lab.table import Table
from inferlab.lab.yaml_file import SpecificationError
from tests import slurm_fixture
from tests.scratch_experiments import scratch_experiments
from tests.slurm_fixture import single_node_slurm, wait_until

IDENTIFIER = "week99/tiny"
# Three servers, two points each.
TINY = """\
week: 99
experiments:
  tiny:
    question: Does SLURM run it?
    prediction: Will it?
    metrics: [output_tokens_per_s]
    repeats: 2
    profiles: [cpu, a100]
    arms:
      - engine: vllm
        workload: [first, second]
        server: {max-num-seqs: 4, block-size: [32, 64, 128]}
"""
WORKLOAD = """\
{name}:
  description: eight short requests
  flags: {{dataset-name: random, num-prompts: 100, random-input-len: 100, random-output-len: 100,
          ignore-eos: true, temperature: 0, seed-of: {name}}}
"""
TEMPLATE = cluster.CLUSTER
POINTS = [f"vllm-{size}-{load}" for size in (32, 64, 128) for load in ("first", "second")]


@pytest.fixture(scope="module")
def cluster_of_one() -> Iterator[dict[str, str]]:
    # A socket's path may have about a hundred characters, which pytest's folders use up.
    with (
        tempfile.TemporaryDirectory(prefix="slurm") as folder,
        single_node_slurm(Path(folder)) as v,
    ):
        yield v


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A small experiment in a scratch folder; its engines are an interpreter and no more."""
    workloads = "".join(WORKLOAD.format(name=name) for name in ("first", "second"))
    scratch_experiments(tmp_path, monkeypatch, workloads=workloads, week99=TINY)
    (tmp_path / "engines" / "bin").mkdir(parents=True)
    (tmp_path / "engines" / "bin" / "python").symlink_to(sys.executable)
    template = yaml.safe_load(cluster.CLUSTER.read_text())
    template |= {"array_parallelism": 8, "setup": ["export INFERLAB_TEST_SETUP=done"]}
    (tmp_path / "cluster.yml").write_text(yaml.safe_dump(template))
    monkeypatch.setenv(engines.ENGINES_VARIABLE, str(tmp_path / "engines"))
    monkeypatch.setattr(specification, "EXPERIMENTS", tmp_path)
    monkeypatch.setattr(cluster, "CLUSTER", tmp_path / "cluster.yml")
    for module in (slurm, runner):
        monkeypatch.setattr(module, "LIVE", tmp_path / "live")
    for module in (slurm_array, runner):
        monkeypatch.setattr(module, "LOGS", tmp_path / "logs")
    return tmp_path


@pytest.fixture
def on_slurm(
    tiny: Path, cluster_of_one: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """`tiny`, submitted to a real SLURM whose tasks measure without engines."""
    for name, value in {**cluster_of_one, slurm_fixture.FOLDER: str(tiny)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slurm, "POLL_S", 0.1)
    substitute = slurm_fixture.measure_group_without_engines
    monkeypatch.setattr(slurm_array, "measure_group", substitute)
    yield tiny
    subprocess.run(["scancel", "--user", getpass.getuser()], check=True)
    command = ["squeue", "--noheader"]
    wait_until(lambda: not subprocess.check_output(command), "the end of every task")


def states(table: Table) -> dict[str, str]:
    return {f"vllm-{row['block_size']}-{row['workload']}": row["status"] for row in table.rows}


def run(**options: Any) -> Table:
    return run_on_slurm(IDENTIFIER, "cpu", record=False, **options)


def hold(folder: Path, points: list[str]) -> list[Path]:
    """Make tasks stop at these points; the files that say that they have."""
    (folder / "hold").write_text(" ".join(points))
    return [folder / f"held-{point}" for point in points]


def let_go(folder: Path) -> None:
    (folder / "hold").unlink(missing_ok=True)


def measured(folder: Path) -> Counter[str]:
    """How often each repeat of each point was measured."""
    lines = (folder / "measured").read_text().splitlines()
    return Counter(line.rpartition(" ")[0] for line in lines)


def submissions(folder: Path) -> list[int]:
    """Number of tasks of each array or job that was submitted, the first first."""
    scripts = (folder / "logs").rglob("*_submission.sh")
    ordered = sorted(scripts, key=lambda script: int(script.name.partition("_")[0]))
    tasks = (folder / "logs").rglob("*_submitted.pkl")
    count = Counter(pickle.name.split("_")[0] for pickle in tasks)
    return [count[script.name.partition("_")[0]] for script in ordered]


@pytest.mark.slow
def test_result_is_that_of_a_local_run(on_slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = hold(on_slurm, [point for point in POINTS if "second" in point])
    heard = []

    def report(message: str, done: int) -> None:
        heard.append((message, done))
        # All three tasks stand before their last point: they finish within a moment.
        if done == 6 and all(path.exists() for path in held):
            let_go(on_slurm)

    table = run(report=report)
    assert list(states(table).items()) == [(point, "ok") for point in POINTS]
    # Every task ran in SLURM, and points that share a server in the same one.
    assert submissions(on_slurm) == [3]
    jobs = {}
    for point in table.document["points"]:
        samples = point["repeats"][0]["samples"]
        assert samples["setup"] == ["done"]
        jobs.setdefault(point["parameters"]["block_size"], set()).update(samples["slurm_job"])
    assert [len(found) for found in jobs.values()] == [1, 1, 1]
    assert len(set.union(*jobs.values())) == 3
    parts = list((on_slurm / "live" / "cpu" / "week99" / "tiny.parts").iterdir())
    assert len(parts) == 3
    assert all(len(read_document(part)["points"]) == 2 for part in parts)
    assert measured(on_slurm) == {f"{point} {seed}": 1 for point in POINTS for seed in (0, 1)}
    assert ("3 running", 6) in heard
    assert heard[-1] == ("finished", 12)

    # A local run finds every point, and nothing to do.
    monkeypatch.setattr(measurement, "measure_servers", None)
    local = runner.run_experiment(IDENTIFIER, "cpu", record=False)
    assert local.document["points"] == table.document["points"]
    # So does SLURM.
    assert run().rows == table.rows
    assert submissions(on_slurm) == [3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill", "logged"),
    [
        (
            lambda task, process: subprocess.run(["scancel", task], check=True),
            "told this task to end.",
        ),
        (lambda task, process: os.kill(int(process), signal.SIGKILL), "task 0: Killed"),
    ],
    ids=["cancelled", "killed"],
)
def test_task_that_ends_costs_its_own_points_and_the_next_run_measures_those_alone(
    on_slurm: Path, kill: Callable[[str, str], Any], logged: str
) -> None:
    victim = "vllm-64-second"
    (held,) = hold(on_slurm, [victim])
    ended = []

    def end(message: str, done: int) -> None:
        if held.exists() and not ended:
            task, process = held.read_text().split()
            ended.append(task)
            kill(task, process)

    table = run(report=end)
    assert len(ended) == 1
    assert states(table) == {point: "failed" if point == victim else "ok" for point in POINTS}
    failed = table.rows[POINTS.index(victim)]
    assert failed["error"] == (
        f"The SLURM task {ended[0]} ended before it had measured this point."
    )
    assert logged in failed["log"]
    before = measured(on_slurm)
    assert before == {f"{p} {seed}": 1 for p in POINTS if p != victim for seed in (0, 1)}

    let_go(on_slurm)
    table = run()
    assert set(states(table).values()) == {"ok"}
    assert submissions(on_slurm) == [3, 1]
    assert measured(on_slurm) == before | {f"{victim} {seed}": 1 for seed in (0, 1)}


@pytest.mark.slow
def test_wait_that_is_interrupted_is_taken_up_by_the_next_run(on_slurm: Path) -> None:
    held = hold(on_slurm, ["vllm-32-first", "vllm-64-first"])

    def interrupt(message: str, done: int) -> None:
        if all(path.exists() for path in held) and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(SlurmError, match=r"go on in SLURM.*scancel --name inferlab/cpu/week99"):
        run(report=interrupt)
    path = on_slurm / "live" / "cpu" / "week99" / "tiny.json"
    assert [p["parameters"]["block_size"] for p in read_document(path)["points"]] == [128, 128]

    def report(message: str, done: int) -> None:
        if message == "2 running":
            let_go(on_slurm)

    table = run(report=report)
    assert set(states(table).values()) == {"ok"}
    assert submissions(on_slurm) == [3]
    assert measured(on_slurm) == {f"{point} {seed}": 1 for point in POINTS for seed in (0, 1)}


@pytest.mark.slow
def test_node_without_the_profiles_gpu_says_so(
    on_slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The template as it is committed is accepted, and it is the node that is looked at."""
    monkeypatch.setattr(cluster, "CLUSTER", TEMPLATE)
    table = run_on_slurm(IDENTIFIER, "a100", record=False)
    assert [row["status"] for row in table.rows] == ["failed"] * 6
    assert all("HardwareError: The profile 'a100' needs" in row["log"] for row in table.rows)
    assert not (on_slurm / "measured").exists()


@pytest.mark.slow
def test_refused_array_is_a_sentence(on_slurm: Path) -> None:
    text = cluster.CLUSTER.read_text().replace("gpu:a100:1", "gpu:h100:1")
    cluster.CLUSTER.write_text(text)
    with pytest.raises(
        SlurmError, match=r"SLURM refused the array: .*\. What it asks for stands in"
    ):
        run_on_slurm(IDENTIFIER, "a100", record=False)


def test_controller_that_does_not_answer_is_waited_for(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([SlurmError("SLURM does not answer: connect failure."), {}])
    heard = []

    def queued(plan: Plan) -> dict[str, str]:
        answer = next(answers)
        if isinstance(answer, SlurmError):
            raise answer
        return answer

    monkeypatch.setattr(slurm, "POLL_S", 0.0)
    monkeypatch.setattr(slurm, "queued_tasks", queued)
    slurm.wait([], parted(tiny), lambda message, done: heard.append(message))
    assert heard == ["SLURM does not answer: connect failure.", ""]
    assert next(answers, None) is None


def test_machine_without_slurm_is_told_where_to_go(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tiny))
    with pytest.raises(SlurmError, match="login node"):
        run()


def test_only_the_pinned_engines_are_recorded(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = []
    monkeypatch.setattr(slurm, "RECORDED", tiny / "recorded")
    monkeypatch.setattr(slurm, "tasks_on_their_way", lambda plan: [])
    monkeypatch.setattr(slurm, "submit", lambda *arguments: submitted.append(arguments) or [])
    monkeypatch.setattr(slurm, "queued_tasks", lambda plan: {})
    monkeypatch.setattr(engines, "versions", lambda: {"sglang": "0.1.2"})
    with pytest.raises(engines.EnginesMissingError, match=r"sglang 0\.1\.2 \(the lock pins"):
        run_on_slurm(IDENTIFIER, "cpu", record=True)
    assert submitted == []
    run()
    assert len(submitted) == 1, "a live run takes what there is"


def parted(folder: Path) -> PartedResult:
    return PartedResult(plan_experiment(IDENTIFIER, "cpu"), folder / "tiny.json", folder / "parts")


def measure_part(
    folder: Path, number: str, points: slice, hardware: dict[str, Any], monkeypatch: Any
) -> None:
    """A part as a task would write it on a machine of which `hardware` is different."""
    plan = plan_experiment(IDENTIFIER, "cpu")
    possible = dict(slurm_fixture.POSSIBLE)
    with monkeypatch.context() as patch:
        here = provenance.hardware()
        patch.setattr(provenance, "hardware", lambda: {**here, **hardware})
        patch.setattr(measurement, "measure_servers", lambda *_: (possible, {"machine": [number]}))
        runner.measure_missing(
            replace(plan, points=plan.points[points]),
            folder / "parts" / f"{number}.json",
            folder / "logs",
            lambda message, done: None,
        )


def test_parts_of_equal_machines_are_one_result(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = provenance.hardware()["memory_bytes"]
    measure_part(tiny, "1_0", slice(0, 2), {"memory_bytes": memory - 4096}, monkeypatch)
    measure_part(tiny, "1_1", slice(2, 5), {"memory_bytes": memory - 8192}, monkeypatch)
    result = parted(tiny)
    result.collect()
    result.save({})
    document = read_document(tiny / "tiny.json")
    assert [p["repeats"][0]["samples"]["machine"] for p in document["points"]] == [
        [number] for number in ("1_0", "1_0", "1_1", "1_1", "1_1")
    ]
    # The result alone says as much, though this machine is neither of them.
    for part in (tiny / "parts").iterdir():
        part.unlink()
    again = parted(tiny)
    again.collect()
    assert list(again.points)[:5] == sorted(again.finished, key=list(again.points).index)
    assert len(again.finished) == 5


def test_part_of_another_machine_is_kept_out_and_named(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_part(tiny, "1_0", slice(0, 2), {}, monkeypatch)
    measure_part(tiny, "1_1", slice(2, 6), {"cpu": "Some other CPU"}, monkeypatch)
    result = parted(tiny)
    result.collect()
    names = list(result.points)
    assert set(result.finished) == set(names[:2])
    task = submitit.SlurmJob(tiny / "logs", "1_1")
    failed = slurm.failure(task, names[2], result)
    assert "Some other CPU" in failed["error"]
    assert "`constraint`" in failed["error"]
    assert failed["status"] == "failed"


def test_damaged_part_is_measured_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure_part(tiny, "1_0", slice(0, 2), {}, monkeypatch)
    measure_part(tiny, "1_1", slice(2, 6), {}, monkeypatch)
    part = tiny / "parts" / "1_1.json"
    part.write_text(part.read_text()[:-100])
    result = parted(tiny)
    result.collect()
    assert set(result.finished) == set(list(result.points)[:2])


def test_other_versions_or_flags_are_not_finished(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_part(tiny, "1_0", slice(0, 6), {}, monkeypatch)
    monkeypatch.setattr(engines, "versions", lambda: {"vllm": "0"})
    result = parted(tiny)
    result.collect()
    assert result.finished == {}


def test_task_refuses_what_was_not_submitted(tiny: Path) -> None:
    with pytest.raises(SlurmError, match="not what they were"):
        slurm_array.measure_group(["no such point"], IDENTIFIER, "cpu", tiny / "parts")


def test_points_that_share_servers_are_a_group(tiny: Path) -> None:
    points = parted(tiny).points
    names = list(points)
    assert groups(points) == [names[0:2], names[2:4], names[4:6]]
    # A finished point in between parts none of those that are left.
    assert groups({name: points[name] for name in names if name != names[2]}) == [
        names[0:2],
        names[3:4],
        names[4:6],
    ]


def test_template_knows_every_profile() -> None:
    for profile in yaml.safe_load((specification.EXPERIMENTS / "profiles.yml").read_text()):
        gpu = specification.load_profile(profile).hardware.gpu
        options = cluster.sbatch_options(profile)
        assert (options["gres"] is not None) == (gpu is not None)
        assert options["srun_args"] == [f"--cpus-per-task={options['cpus_per_task']}"]


def test_template_asks_for_as_many_gpus_as_the_profile_has() -> None:
    for name in yaml.safe_load((specification.EXPERIMENTS / "profiles.yml").read_text()):
        hardware = specification.load_profile(name).hardware
        if hardware.gpu is not None:
            asked = cluster.sbatch_options(name)["gres"].rpartition(":")[2]
            assert int(asked) == hardware.devices, name


def test_no_experiment_needs_more_gpus_than_its_profile_has() -> None:
    looked_at = 0
    for identifier in specification.experiment_identifiers():
        for name in specification.load_experiment(identifier).profiles:
            hardware = specification.load_profile(name).hardware
            if hardware.gpu is None:
                continue
            for point in plan_experiment(identifier, name).points:
                each = [point.server.get(f, 1) for f in ("tensor-parallel-size", "tp-size")]
                servers = 2 if point.disaggregated else point.workers
                assert servers * max(map(int, each)) <= hardware.devices, identifier
                looked_at += 1
    assert looked_at > 0


def test_mistake_in_the_template_names_file_line_and_key(tiny: Path) -> None:
    cluster.CLUSTER.write_text(TEMPLATE.read_text().replace("    mem: 8GB", "    memory: 8GB"))
    line = 1 + cluster.CLUSTER.read_text().splitlines().index("    memory: 8GB")
    with pytest.raises(SpecificationError, match=rf"cluster.yml, line {line}: .*'memory'"):
        run()
    cluster.CLUSTER.write_text(TEMPLATE.read_text())
    with pytest.raises(SpecificationError, match=r"profile 'b100'; it knows cpu, a100, "):
        cluster.sbatch_options("b100")
