"""Submissions on Kubernetes, where bubblewrap is refused: one Job without network for each.

The pod is the box: nothing in it is secret, and it ends with the submission. Its kernels run beside
the examination, so a student's code can put any answer into its mouth, but no right one that it
has not computed.
"""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from pydantic import Field

from autograder.sandbox.bubblewrap import LIMITS, NoIsolationError
from autograder.sandbox.isolator import START_AND_END_S, ExaminationError, Isolator, read_answer
from autograder.sandbox.kernel import ISOLATED_BY
from autograder.sandbox.task import Answer, Task
from inferlab.lab.yaml_file import Section, read_model

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ROOT / "deploy" / "kubernetes" / "grading.yml"
APP = "inferlab-grading"
TASK_FOLDER = "/task"
TASK_FILE = "task.json"
GRACE_S = 30


class Settings(Section):
    """The file `deploy/kubernetes/grading.yml`."""

    namespace: str
    image: str = Field(description="built from deploy/kubernetes/Dockerfile")
    packages: str = Field(description="folder of the released packages in the image")
    cpu: str
    memory: str


class KubernetesIsolator(Isolator):
    """A Job for each submission, through `kubectl`.

    `examine` needs the right to make Jobs and ConfigMaps in the namespace, and no other.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or read_model(SETTINGS, Settings)

    def require(self) -> None:
        """Ask for the right to make Jobs, and for the policy that cuts their network."""
        if shutil.which("kubectl") is None:
            raise NoIsolationError(
                "Nothing was graded: there is no kubectl on this machine. Install it, or grade "
                "with bubblewrap."
            )
        try:
            self._kubectl("auth", "can-i", "create", "jobs")
            self._kubectl("get", "networkpolicy", APP)
        except ExaminationError as error:
            raise NoIsolationError(
                f"Nothing was graded: {error} Apply deploy/kubernetes/network-policy.yml, and make "
                "sure that your account may create Jobs in the namespace."
            ) from error

    def examine(self, task: Task) -> Answer:
        """Run `autograder.sandbox.examine` in a Job, and read what it printed."""
        text = self._with_packages_of_the_image(task).model_dump_json()
        name = f"{APP}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        limit = task.seconds + START_AND_END_S
        try:
            self._kubectl(
                "create", "-f", "-", given=json.dumps(manifest(name, text, self.settings, limit))
            )
            waits = f"--timeout={limit + GRACE_S:.0f}s"
            self._kubectl("wait", "--for=condition=complete", f"job/{name}", waits)
            return read_answer(self._kubectl("logs", f"job/{name}"), task)
        finally:
            self._kubectl("delete", "job,configmap", name, "--ignore-not-found", "--wait=false")

    def _with_packages_of_the_image(self, task: Task) -> Task:
        moved = []
        for exercise in task.exercises:
            folder = Path(exercise.package)
            inside = Path(self.settings.packages) / folder.parent.name / folder.name
            moved.append(exercise.model_copy(update={"package": str(inside)}))
        return task.model_copy(update={"exercises": moved})

    def _kubectl(self, *arguments: str, given: str = "") -> bytes:
        done = subprocess.run(
            ["kubectl", "--namespace", self.settings.namespace, *arguments],
            input=given.encode(),
            capture_output=True,
            check=False,
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise ExaminationError(f"kubectl {' '.join(arguments)} failed: {said}.")
        return done.stdout


def manifest(name: str, task: str, settings: Settings, seconds: float) -> dict[str, Any]:
    """A ConfigMap with the task, and the Job that answers it.

    A ConfigMap holds a million bytes at most; a week's task takes about a tenth of that.
    """
    labels = {"app": APP}
    metadata = {"name": name, "namespace": settings.namespace, "labels": labels}
    resources = {"cpu": settings.cpu, "memory": settings.memory}
    container = {
        "name": "examination",
        "image": settings.image,
        "command": ["/bin/sh", "-c"],
        "args": [f"exec python -m autograder.sandbox.examine < {TASK_FOLDER}/{TASK_FILE}"],
        "env": [{"name": ISOLATED_BY, "value": "pod"}, {"name": "HOME", "value": "/tmp"}],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "task", "mountPath": TASK_FOLDER, "readOnly": True},
            {"name": "scratch", "mountPath": "/tmp"},
        ],
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65534,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "task", "configMap": {"name": name}},
            {"name": "scratch", "emptyDir": {"sizeLimit": str(LIMITS.scratch_bytes)}},
        ],
    }
    job = {
        "backoffLimit": 0,
        "activeDeadlineSeconds": int(seconds),
        "ttlSecondsAfterFinished": 600,
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    return {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": metadata,
                "data": {TASK_FILE: task},
            },
            {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job},
        ],
    }
