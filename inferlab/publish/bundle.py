"""The folder that a student gets: notebook, data, and a package in which the week is unwritten.

Kernels import the package beside the notebook before any installed one. Weights are left out: all
bundles share one installed distribution, `inferlab-checkpoints`.
"""

import json
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import inferlab
from inferlab.publish.editions import exercises
from inferlab.publish.exercise import Exercise
from inferlab.publish.expand import stubbed
from inferlab.publish.module import Module
from inferlab.publish.page import Page

# What a student's kernel never imports: publishing, training, and the weights.
LEFT_OUT = ("publish", "checkpoints", "train.py", "evaluate.py", "__pycache__")


def write_bundle(
    root: Path, page: Page, recorded: Mapping[str, list[dict[str, Any]]], folder: Path
) -> None:
    """Complete `folder`, which holds the released notebook, to the bundle of the chapter."""
    notebook = f"{page.path.stem}.ipynb"
    found = exercises(page)
    (folder / "original").mkdir(exist_ok=True)
    shutil.copy(folder / notebook, folder / "original" / notebook)
    write_package(root, page, [exercise for _, exercise in found.values()], folder)
    for path in _data(root, page.week or ""):
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    manifest = {
        "week": page.week,
        "notebook": notebook,
        "version": inferlab.__version__,
        "exercises": [
            {
                "name": name,
                "title": title,
                "members": [
                    f"{module}:{member}"
                    for module, members in exercise.homes.items()
                    for member in members
                ],
            }
            for name, (title, exercise) in found.items()
        ],
    }
    (folder / "bundle.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    (folder / "recorded.json").write_text(json.dumps(recorded) + "\n", encoding="utf-8")


def write_package(root: Path, page: Page, unwritten: Iterable[Exercise], folder: Path) -> None:
    """Write `folder/inferlab`, the package in which the exercises `unwritten` are stubs."""
    left_out = shutil.ignore_patterns(*LEFT_OUT, *_other_kernels(root, page))
    shutil.copytree(root / "inferlab", folder / "inferlab", ignore=left_out)
    members: dict[str, list[str]] = {}
    for exercise in unwritten:
        for module, names in exercise.homes.items():
            members.setdefault(module, []).extend(names)
    for module, names in members.items():
        path = folder.joinpath(*module.split(".")).with_suffix(".py")
        path.write_text(stubbed(Module.read(root, module), names), encoding="utf-8")


def _other_kernels(root: Path, page: Page) -> list[str]:
    """Files of the kernels that the chapter does not import: they may solve its exercise.

    Split-KV decode, for one, repeats the loop of paged decode.
    """
    cells = "\n".join(cell.source for cell in page.cells)
    kernels = sorted((root / "inferlab" / "kernels").glob("[!_]*.py"))
    return [path.name for path in kernels if f"inferlab.kernels.{path.stem}" not in cells]


def _data(root: Path, week: str) -> list[Path]:
    """Files of `results/`, `golden/` and `experiments/` that the week's notebook reads."""
    patterns = (
        f"results/*/{week}/*.json",
        f"golden/{week}.json",
        f"experiments/{week}.yml",
        "experiments/models.yml",
        "experiments/profiles.yml",
        "experiments/workloads.yml",
        "experiments/upstream/*.py",
    )
    return sorted(path for pattern in patterns for path in root.glob(pattern))


def zip_bundle(folder: Path, archive: Path) -> None:
    """Write every file of the bundle to `archive`, paths relative to the bundle.

    Times are left at the format's epoch, so that the same bundle is the same file.
    """
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            entry.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(entry, path.read_bytes())
