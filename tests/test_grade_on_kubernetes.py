"""Jobs for Kubernetes, as far as they can be checked without a cluster; none was available.

The manifests are checked against Kubernetes' own schemas, and what the container runs is run here,
with `kubectl` played by a script that starts it.
"""

import json
import os
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from autograder.sandbox.bubblewrap import NoIsolationError
from autograder.sandbox.isolator import ExaminationError
from autograder.sandbox.kernel import ISOLATED_BY
from autograder.sandbox.kubernetes import APP, KubernetesIsolator, Settings, manifest
from tests.test_sandbox import ENDS, task

REPOSITORY = Path(__file__).parents[1]
DEPLOY = REPOSITORY / "deploy" / "kubernetes"
VERSION = "1.32"
SETTINGS = Settings(
    namespace="grading", image="registry.example.org/x", packages="/p", cpu="2", memory="4Gi"
)
# Keeps what it is given as a cluster would, and runs the container's command when it is waited for.
KUBECTL = """#!{python}
import json, os, subprocess, sys
from pathlib import Path
folder, arguments = Path({folder!r}), sys.argv[3:]
with (folder / "calls").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if arguments[0] == os.environ.get("KUBECTL_REFUSES"):
    sys.exit("forbidden")
if arguments[0] == "create":
    given = json.load(sys.stdin)
    config, job = given["items"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (folder / "task.json").write_text(config["data"]["task.json"])
    command = container["args"][0].replace("/task/", f"{{folder}}/").replace("python", {python!r})
    variables = {{one["name"]: one["value"] for one in container["env"]}}
    (folder / "job.json").write_text(json.dumps([[*container["command"], command], variables]))
if arguments[0] == "wait":
    command, variables = json.loads((folder / "job.json").read_text())
    with (folder / "log").open("w") as log:
        subprocess.run(command, stdout=log, check=True, env=os.environ | variables)
if arguments[0] == "logs":
    print((folder / "log").read_text(), end="")
"""


def made() -> dict:
    """The manifest of a Job."""
    return manifest(f"{APP}-x", "{}", SETTINGS, 720.0)


def test_what_is_applied_is_valid() -> None:
    for item in made()["items"]:
        kubernetes_validate.validate(item, VERSION, strict=True)
    policy = yaml.safe_load((DEPLOY / "network-policy.yml").read_text())
    kubernetes_validate.validate(policy, VERSION, strict=True)
    broken = made()["items"][1]
    broken["spec"]["backofLimit"] = 0
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSION, strict=True)


def test_the_pod_has_no_network_and_no_rights() -> None:
    policy = yaml.safe_load((DEPLOY / "network-policy.yml").read_text())
    job = made()["items"][1]
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert not {"ingress", "egress"} & set(policy["spec"]), "no rule means no connection"
    pod = job["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"]
    (container,) = pod["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["resources"]["limits"].keys() == {"cpu", "memory"}
    assert job["spec"]["backoffLimit"] == 0


def test_the_settings_are_those_of_the_files() -> None:
    settings = KubernetesIsolator().settings
    policy = yaml.safe_load((DEPLOY / "network-policy.yml").read_text())
    assert policy["metadata"] == {"name": APP, "namespace": settings.namespace}
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert "WORKDIR /course" in dockerfile
    assert "COPY build/course/packages packages" in dockerfile
    assert settings.packages == "/course/packages"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for a cluster."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL.format(python=sys.executable, folder=str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return tmp_path


def test_what_the_container_runs_answers_the_task(cluster: Path, tmp_path: Path) -> None:
    package = tmp_path / "elsewhere" / "week04" / "week04-x"
    inside = tmp_path / "image" / "week04" / "week04-x"
    for folder in (package, inside):
        folder.mkdir(parents=True)
    (inside / "given.py").write_text("ANSWER = 41\n")
    settings = SETTINGS.model_copy(update={"packages": str(tmp_path / "image")})
    asked = task(package, f"from given import ANSWER\n{ENDS}", "good", "ends", "last")
    seen = KubernetesIsolator(settings).examine(asked).exercises["week04-x"]
    assert seen.error == ""
    assert seen.observations == [["1", "2"], [None, None], ["11", "22"]]
    _, variables = json.loads((cluster / "job.json").read_text())
    assert variables[ISOLATED_BY] == "pod"
    calls = [json.loads(line) for line in (cluster / "calls").read_text().splitlines()]
    assert [call[2] for call in calls] == ["create", "wait", "logs", "delete"]
    assert all(call[:2] == ["--namespace", "grading"] for call in calls)


def test_what_fails_is_no_verdict_and_is_tidied_up(
    cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECTL_REFUSES", "wait")
    with pytest.raises(ExaminationError, match="forbidden"):
        KubernetesIsolator(SETTINGS).examine(task(Path("/x/week04/week04-x"), "", "good"))
    assert '"delete"' in (cluster / "calls").read_text().splitlines()[-1]


def test_without_kubectl_or_the_policy_nothing_is_graded(
    cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    KubernetesIsolator(SETTINGS).require()
    monkeypatch.setenv("KUBECTL_REFUSES", "get")
    with pytest.raises(NoIsolationError, match=r"network-policy\.yml"):
        KubernetesIsolator(SETTINGS).require()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NoIsolationError, match="no kubectl"):
        KubernetesIsolator(SETTINGS).require()
