"""A small book, so that tests of publishing need neither the chapters nor a clean tree."""

import shutil
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
CHAPTER = Path("notebooks/week04-sample.md")


def make_repository(root: Path) -> Path:
    """Copy the package and the site's configuration to `root`, with one chapter and a home page."""
    ignored = shutil.ignore_patterns("checkpoints", "__pycache__")
    shutil.copytree(REPOSITORY / "inferlab", root / "inferlab", ignore=ignored)
    shutil.copytree(REPOSITORY / "book" / "_static", root / "book" / "_static")
    for name in ("_config.yml", "book/sources.yml", "book/citations.json"):
        shutil.copy(REPOSITORY / name, root / name)
    (root / "notebooks").mkdir(parents=True)
    shutil.copy(REPOSITORY / "tests" / "sample_chapter.md", root / CHAPTER)
    (root / "book" / "index.md").write_text("# A small book\n\nIts home page.\n")
    (root / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nchapters:\n  - file: notebooks/week04-sample\n"
    )
    return root
