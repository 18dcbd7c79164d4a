"""The box: what a student's code finds there, what it can use up, and what is left of it."""

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autograder.sandbox import bubblewrap
from autograder.sandbox import control_group as control_groups
from autograder.sandbox.bubblewrap import LIMITS, NoIsolationError, boxed, require_isolation
from autograder.sandbox.control_group import NAME, ROOT, control_group
from autograder.sandbox.examine import examine
from autograder.sandbox.isolator import BubblewrapIsolator, ExaminationError, read_answer
from autograder.sandbox.kernel import MOST_REPLY_BYTES, KernelGoneError, boxed_kernel
from autograder.sandbox.task import ExerciseTask, ProbeTask, Task

REPOSITORY = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is for Linux only")
BOXES_BY_GROUP = bool(list(ROOT.glob("pids")) or (ROOT / "cgroup.controllers").exists())


def in_box(source: str, limits: bubblewrap.Limits = LIMITS) -> subprocess.CompletedProcess[str]:
    """Run Python source in a box."""
    with control_group(limits) as entering:
        return subprocess.run(
            [*entering, *boxed([sys.executable, "-c", source], limits=limits)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def test_nobody_without_rights_or_network_runs_in_a_box_of_its_own() -> None:
    source = """
import json, os, socket
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
try:
    network = socket.create_connection(("127.0.0.1", 22), 1) and "connected"
except OSError as error:
    network = type(error).__name__
print(json.dumps({
    "uid": os.getuid(), "rights": int(status["CapEff"], 16), "bounding": int(status["CapBnd"], 16),
    "new privileges": status["NoNewPrivs"].strip(), "network": network,
    "interfaces": sorted(name for _, name in socket.if_nameindex()),
    "processes": sorted(int(n) for n in os.listdir("/proc") if n.isdigit()),
    "environment": sorted(os.environ), "top": sorted(os.listdir("/")),
}))
"""
    found = json.loads(in_box(source).stdout)
    assert found["uid"] == 65534
    assert found["rights"] == found["bounding"] == 0
    assert found["new privileges"] == "1"
    assert found["network"] == "ConnectionRefusedError"
    assert found["interfaces"] == ["lo"]
    assert len(found["processes"]) <= 2
    assert not set(found["environment"]) - {
        *("HOME", "LANG", "LC_CTYPE", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PATH", "PWD"),
        *("PYTHONDONTWRITEBYTECODE", "PYTHONSAFEPATH", "USER"),
    }
    assert not {"home", "srv", "var", "sys", "boot"} & set(found["top"])


@pytest.mark.parametrize(
    "path",
    [
        "autograder/probes/week04/block_pool.py",
        "inferlab/engine/block_pool.py",
        "build/course/gradebook.db",
        "notebooks/week04-paged-attention.md",
    ],
)
def test_the_repository_is_not_there(path: str) -> None:
    assert in_box(f"import os; print(os.path.exists({str(REPOSITORY / path)!r}))").stdout == (
        "False\n"
    )


def test_what_lies_in_a_folder_that_is_shown_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    source = f"import os; print(sorted(os.listdir({str(REPOSITORY / 'autograder')!r})))"
    # As where the course is installed into the environment, and not in place.
    monkeypatch.setattr(bubblewrap, "_python", lambda: [sys.prefix, sys.base_prefix, *SHOWN])
    assert in_box(source).stdout == "[]\n"
    monkeypatch.setattr(bubblewrap, "_to_hide", list)
    assert "probes" in in_box(source).stdout, "the control"


SHOWN = [str(REPOSITORY)]


def test_nothing_that_is_written_reaches_the_disk(tmp_path: Path) -> None:
    done = in_box("open('/tmp/left', 'w').write('x'); open('/scratch/left', 'w').write('x')")
    assert done.returncode == 0
    assert not Path("/tmp/left").exists()
    assert not Path("/scratch").exists()
    assert in_box(f"open({str(tmp_path / 'left')!r}, 'w')").returncode == 1
    assert in_box("import sys; open(sys.prefix + '/left', 'w')").returncode == 1


def test_a_writable_folder_is_small() -> None:
    fill = "with open('{}/x', 'wb', buffering=0) as file: print(file.write(bytes({})))"
    half = LIMITS.scratch_bytes // 2
    for folder in bubblewrap.WRITABLE:
        assert in_box(fill.format(folder, half)).stdout == f"{half}\n"
        assert in_box(fill.format(folder, 4 * half)).stdout == f"{2 * half}\n"


def test_no_other_folder_is_writable() -> None:
    source = """
import os
found = []
for folder, below, _ in os.walk("/"):
    if folder == "/":
        below.remove("proc")
    if os.access(folder, os.W_OK):
        found.append(folder)
print(found)
"""
    found = {Path(folder) for folder in ast.literal_eval(in_box(source).stdout)}
    writable = {Path(folder) for folder in bubblewrap.WRITABLE}
    assert writable <= found
    # Python's environment may lie below one of them. A terminal is no file.
    others = {path for path in found if not writable & {path, *path.parents}}
    assert others == {Path("/dev/pts")}


FORKS = """
import os, time
count = 0
try:
    for count in range(200):
        if os.fork() == 0:
            time.sleep(60)
except OSError:
    pass
print(count, flush=True)
os._exit(0)
"""
HOARDS = """
held = bytearray(200 * 2**20)
held[::4096] = b"x" * len(held[::4096])
print("held")
"""


@pytest.mark.skipif(not BOXES_BY_GROUP, reason="no control groups here")
@pytest.mark.parametrize(
    ("source", "low", "within_low", "within_usual"),
    [
        (FORKS, LIMITS._replace(processes=10), range(5, 10), range(30, 64)),
        (HOARDS, LIMITS._replace(memory_bytes=100 * 2**20), [""], ["held"]),
    ],
)
def test_processes_and_memory_end_at_their_limit(source, low, within_low, within_usual) -> None:
    def printed(limits):
        said = in_box(source, limits).stdout.strip()
        return int(said) if said.isdigit() else said

    assert printed(low) in within_low
    assert printed(LIMITS) in within_usual, "the control: the limit is what ended it"


def test_no_group_is_left_and_abandoned_ones_are_removed() -> None:
    with control_group(LIMITS) as entering:
        if not entering:
            pytest.skip("no control groups here")
        inside = list(ROOT.glob(f"**/{NAME}{os.getpid()}-*"))
        assert inside
        ended = subprocess.run(["true"], check=True)
        assert ended.returncode == 0
        abandoned = inside[0].with_name(f"{NAME}{2**22 + 1}-x")  # above the highest process id
        abandoned.mkdir()
    with control_group(LIMITS):
        assert not abandoned.exists()
    assert not list(ROOT.glob(f"**/{NAME}{os.getpid()}-*"))


def test_without_bubblewrap_grading_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_isolation()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NoIsolationError, match="apt-get install bubblewrap"):
        require_isolation()


def test_without_user_namespaces_grading_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refuses = tmp_path / "bwrap"
    refuses.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create a namespace' >&2; exit 1\n"
    )
    refuses.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(NoIsolationError, match="sysctl"):
        require_isolation()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands for the course's package."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "given.py").write_text("ANSWER = 41\n")
    return folder


def test_a_kernel_says_what_came_of_code(package: Path) -> None:
    with boxed_kernel(package) as kernel:
        values = {"text": "'a' * 3", "number": "1", "missing": "nothing"}
        assert kernel.run("x = 1", 10, values) == ({"text": "aaa"}, "", 0)
        assert kernel.run("from given import ANSWER", 10, {"a": "str(ANSWER)"}).values == {
            "a": "41"
        }
        assert kernel.run("y = 2\nz = nothing", 10) == ({}, "NameError", 2)
        assert kernel.run("for _ in range(10**4): print('x' * 10**4)", 30).error == ""


def test_a_kernel_is_interrupted_and_goes_on(package: Path) -> None:
    with boxed_kernel(package) as kernel:
        assert kernel.run("while True: pass", 1).error == "TimeoutError"
        assert kernel.run("", 10, {"x": "'still here'"}).values == {"x": "still here"}


@pytest.mark.parametrize(
    "source",
    [
        "import os; os._exit(0)",
        "import ctypes; ctypes.string_at(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
    ],
)
def test_a_kernel_that_ends_or_is_deaf_is_given_up(source: str, package: Path) -> None:
    with boxed_kernel(package) as kernel, pytest.raises(KernelGoneError):
        kernel.run(source, 1)


def test_a_reply_may_have_only_so_many_bytes(package: Path) -> None:
    with boxed_kernel(package) as kernel:
        half = kernel.run("", 10, {"x": f"'x' * {MOST_REPLY_BYTES // 2}"})
        assert len(half.values["x"]) == MOST_REPLY_BYTES // 2
        with pytest.raises(KernelGoneError):
            kernel.run("", 2, {"x": f"'x' * {MOST_REPLY_BYTES + 1}"})


def task(package: Path, cell: str, *names: str, seconds: float = 30.0) -> Task:
    """A task with one probe for each of `names`, which calls the function of this name."""
    probes = (
        "import json\n"
        "def observations(observe, names, inputs):\n"
        "    return json.dumps([observe(names, one) for one in inputs])\n"
    ) + "".join(f"def {name}(names, given): return names[{name!r}](given)\n" for name in names)
    exercise = ExerciseTask(
        name="week04-x",
        package=str(package),
        cells=["import json", cell],
        probes=probes,
        tasks=[ProbeTask(name=name, inputs=["1", "2"]) for name in names],
    )
    return Task(
        exercises=[exercise],
        jobs=1,
        seconds_per_cell=10,
        seconds_per_probe=2,
        seconds=seconds,
    )


ENDS = """
import os
def good(given): return given
def ends(given): os._exit(1)
def hangs(given):
    while True: pass
def lies(given): return 5
def last(given): return given * 2
"""


def test_a_probe_that_ends_the_kernel_costs_no_other_probe(package: Path) -> None:
    seen = examine(task(package, ENDS, "good", "ends", "hangs", "lies", "last"))
    assert seen.exercises["week04-x"].observations == [
        ["1", "2"],
        [None, None],
        [None, None],
        [None, None],
        ["11", "22"],
    ]


def test_a_cell_that_fails_is_observed_as_far_as_it_came(package: Path) -> None:
    seen = examine(task(package, f"{ENDS}\n1 / 0", "good")).exercises["week04-x"]
    assert seen.error == "ZeroDivisionError"
    assert seen.line == len(ENDS.splitlines()) + 1
    assert seen.observations == [["1", "2"]]


def test_the_time_of_a_whole_submission_ends(package: Path) -> None:
    started = time.monotonic()
    probes = ["good", "hangs", "ends", "last"]
    seen = examine(task(package, f"{ENDS}\nends = hangs", *probes, seconds=4.0))
    assert time.monotonic() - started < 15
    assert seen.exercises["week04-x"].observations == [["1", "2"], *[[None, None]] * 3]


def test_an_examination_that_dies_is_no_verdict(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = task(package, ENDS, "good")
    isolator = BubblewrapIsolator()
    assert isolator.examine(asked).exercises["week04-x"].observations == [["1", "2"]]
    monkeypatch.setenv("PATH", "/nowhere")  # no bubblewrap: no kernel comes up
    with pytest.raises(ExaminationError, match="ended with 1"):
        isolator.examine(asked)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"exercises": {}}', b'{"exercises": {"week04-x": {"line": "1"}}}']
)
def test_what_is_no_answer_is_refused(text: bytes, package: Path) -> None:
    with pytest.raises(ExaminationError):
        read_answer(text, task(package, "", "good"))


@pytest.mark.parametrize("when", ["while it starts", "while it runs"])
def test_nothing_outlives_an_examination_that_is_killed(when: str, package: Path) -> None:
    asked = task(package, "while True: pass", "good").model_dump_json()
    command = [sys.executable, "-m", "autograder.sandbox.examine"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdin is not None
    process.stdin.write(asked)
    process.stdin.close()
    first_word = "bwrap" if when == "while it starts" else sys.executable
    below = wait_for(lambda: descendants(process.pid, first_word))
    process.kill()
    process.wait()
    if when == "while it starts":
        with control_group(LIMITS) as entering:
            if not entering:
                pytest.skip("no control groups here, and without them a box may outlive its start")
    wait_for(lambda: not [pid for pid in below if Path(f"/proc/{pid}").exists()])


def descendants(pid: int, first_word: str) -> list[int]:
    """Processes below `pid` that were started as `first_word`."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            line = Path(f"/proc/{child}/cmdline").read_text()
            found += [int(child)] if line.startswith(first_word) else []
            found += descendants(int(child), first_word)
    return found


def wait_for(condition, seconds: float = 30.0):
    """What `condition` returns as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if value := condition():
                return value
        except FileNotFoundError:
            pass
        time.sleep(0.05)
    raise AssertionError("It did not happen in time.")


@pytest.mark.skipif(not BOXES_BY_GROUP, reason="no control groups here")
def test_whoever_can_make_no_control_group_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert BubblewrapIsolator().shortfall() == "" or os.geteuid() != 0
    monkeypatch.setattr(control_groups, "ROOT", Path("/proc/sys"))  # where nobody makes a folder
    assert "memory of a box is limited for each" in BubblewrapIsolator().shortfall()
