"""Install with pip into the environment that runs this script, and say how far it has got.

pip's own output is hundreds of lines long, or nothing at all with --quiet. This keeps what a
reader needs: a count while it works and, if it fails, pip's last lines and one sentence.
"""

import subprocess
import sys
from collections import deque

LINES_SHOWN_ON_FAILURE = 15
NETWORK_SIGNS = ("NewConnectionError", "NameResolutionError", "ConnectTimeout", "Max retries")


def failure_sentence(log: str) -> str:
    """Say in one sentence what pip's output `log` says went wrong, and what to do."""
    if "No space left on device" in log:
        return "The disk is full: free some space, then run make again."
    if any(sign in log for sign in NETWORK_SIGNS):
        return (
            "pip could not reach its package index: check the network connection or pip's "
            "configuration (pip config list), then run make again."
        )
    return "pip failed for the reason it gives above; nothing was marked as installed."


def install(arguments: list[str]) -> int:
    """Run `pip install` with `arguments`; return its exit status."""
    # pip compiles what it installs. Where PYTHONDONTWRITEBYTECODE is set, nothing else ever would,
    # and an engine would spend half a minute of every start on it.
    pip = subprocess.Popen(
        [sys.executable, "-m", "pip", "install", "--no-input", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert pip.stdout is not None
    recent: deque[str] = deque(maxlen=200)
    found = 0
    for line in pip.stdout:
        if line.startswith("WARNING: Location ") and "is ignored" in line:
            continue
        recent.append(line)
        if line.startswith(("Collecting ", "Processing ")):  # from an index, from a folder
            found += 1
            if found % 25 == 0:
                print(f"  {found} packages fetched …", flush=True)
        elif line.startswith("Installing collected packages") and found > 1:
            print(f"  {found} packages fetched, unpacking them …", flush=True)
    status = pip.wait()
    if status:
        log = "".join(recent)
        sys.stderr.writelines(list(recent)[-LINES_SHOWN_ON_FAILURE:])
        sys.stderr.write(failure_sentence(log) + "\n")
    return status


if __name__ == "__main__":
    try:
        sys.exit(install(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("Interrupted: nothing was marked as installed, so make will start again.")
