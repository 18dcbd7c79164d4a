"""The index of cited engine source: where in the pinned wheel each cited symbol stands.

Pages build against `book/citations.json` alone, without the engines; regenerating it reads the
installed files by AST and imports none of them.
"""

import ast
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterable
from pathlib import Path

import pydantic

INDEX = Path("book/citations.json")

# Upstream repository and the folder in it that holds the package, by top-level package.
REPOSITORIES = {
    "vllm": ("https://github.com/vllm-project/vllm", ""),
    "sglang": ("https://github.com/sgl-project/sglang", "python/"),
    "lmcache": ("https://github.com/LMCache/LMCache", ""),
}


class Citation(pydantic.BaseModel):
    """Where a cited symbol stands: distribution and version, file, line, and hash of its source."""

    model_config = pydantic.ConfigDict(extra="forbid")

    distribution: str
    version: str
    file: str
    line: int
    sha256: str

    @property
    def url(self) -> str:
        """The line in the upstream repository at the tag of the pinned version."""
        repository, folder = REPOSITORIES[self.file.partition("/")[0]]
        return f"{repository}/blob/v{self.version}/{folder}{self.file}#L{self.line}"


def load_index(root: Path) -> dict[str, Citation]:
    """Read `book/citations.json`; empty when there is none yet."""
    if not (root / INDEX).exists():
        return {}
    entries = json.loads((root / INDEX).read_text(encoding="utf-8"))
    return pydantic.TypeAdapter(dict[str, Citation]).validate_python(entries)


def write_index(root: Path, index: dict[str, Citation]) -> None:
    """Write `book/citations.json`, sorted, so that a change shows as a small difference."""
    entries = {symbol: index[symbol].model_dump() for symbol in sorted(index)}
    (root / INDEX).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def engines_packages(root: Path) -> Path:
    """The site-packages folder of the engines' environment.

    Raises FileNotFoundError naming `make engines` when there is none.
    """
    environment = Path(os.environ.get("INFERLAB_ENGINES", root / ".venv-engines"))
    found = sorted(environment.glob("lib/python3.*/site-packages"))
    if not found:
        raise FileNotFoundError(
            f"There is no Python environment in {environment}: run `make engines`, "
            "or set INFERLAB_ENGINES to the folder of the engines' environment."
        )
    return found[0]


def build_index(packages: Path, symbols: Iterable[str]) -> dict[str, Citation]:
    """Look up every symbol in the installed wheels.

    A symbol is `vllm/v1/core/block_pool.py:BlockPool.get_new_blocks`, or a file alone. Raises
    LookupError naming the first symbol that does not exist.
    """
    owners = {
        top: distribution
        for distribution in importlib.metadata.distributions(path=[str(packages)])
        for top in {file.parts[0] for file in distribution.files or [] if len(file.parts) > 1}
        if top in REPOSITORIES and (packages / top / "__init__.py").exists()
    }
    index = {}
    for symbol in sorted(symbols):
        file, _, name = symbol.partition(":")
        top = file.partition("/")[0]
        if top not in owners or not (packages / file).is_file():
            raise LookupError(f"{symbol}: there is no file {file} in the engines' environment.")
        text = (packages / file).read_text(encoding="utf-8")
        line, source = _find(text, name, symbol)
        index[symbol] = Citation(
            distribution=owners[top].name,
            version=owners[top].version,
            file=file,
            line=line,
            sha256=hashlib.sha256(source.encode()).hexdigest(),
        )
    return index


def _find(text: str, name: str, symbol: str) -> tuple[int, str]:
    if not name:
        return 1, text
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        found = [child for child in ast.iter_child_nodes(node) if _binds(child, part)]
        if not found:
            raise LookupError(f"{symbol}: the installed file defines no {part!r} there.")
        node = found[0]
    assert isinstance(node, ast.stmt)
    return node.lineno, ast.get_source_segment(text, node) or ""


def _binds(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name == name
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)
