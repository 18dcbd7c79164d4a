"""Experiments on the real engines: run them, or replay what was recorded.

Contract: an experiment is declared in `experiments/*.yml` and named `week04/block-size`. `load`
replays the recorded result and needs the standard library only, so it works in Colab; `run`
measures live with the engines' own server and load generator; `upstream` asks the engines' own
classes, and `upstream_answer` replays what they answered. No process outlives the call that started
it. Every result carries its provenance, every sample, and a seal for every field: a file that was
cut short or edited is refused.

The command line is `python -m inferlab.lab` (`list`, `show`, `run`, `compare`, `doctor`,
`upstream`, `contribute`).
"""

from inferlab.lab.difference import ClaimError, Verdict, claim, differs
from inferlab.lab.results import ResultError, load
from inferlab.lab.table import Table
from inferlab.lab.upstream import upstream, upstream_answer, upstream_badge

__all__ = [
    "ClaimError",
    "ResultError",
    "Table",
    "Verdict",
    "claim",
    "differs",
    "load",
    "run",
    "upstream",
    "upstream_answer",
    "upstream_badge",
]


def run(experiment: str, profile: str = "cpu") -> Table:
    """Measure `experiment` on this machine now, and return its table with the badge "live".

    Finished points are kept in `build/results/<profile>/` and not measured again; recorded results
    are left alone.

    Raises:
        SpecificationError: if the experiment or the profile does not exist, or is malformed.
        EnginesMissingError: if the engines are not installed.
    """
    # The runner needs pydantic, PyYAML and httpx, which a reader who replays does not have.
    from inferlab.lab.runner import run_experiment

    return run_experiment(experiment, profile, record=False)
