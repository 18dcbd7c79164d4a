"""Where the repository, or a student's bundle, keeps what experiments read and write."""

from pathlib import Path

# In the repository and in a bundle alike, the package lies beside `results/` and `experiments/`.
ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "experiments"
RECORDED = ROOT / "results"
LIVE = ROOT / "build" / "results"
LOGS = ROOT / "build" / "logs"
PROMPTS = ROOT / "build" / "prompts"
INSPECTIONS = ROOT / "build" / "model-inspections"


def result_path(folder: Path, profile: str, experiment: str) -> Path:
    """File of one experiment's result below `folder`, which is `RECORDED` or `LIVE`."""
    return folder / profile / f"{experiment}.json"


def without_root(text: str) -> str:
    """`text` with this machine's path of the repository taken out, fit to be committed."""
    return text.replace(f"{ROOT}/", "")
