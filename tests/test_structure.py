"""What the repository promises about its own shape: sizes, dependencies, what may not be in git."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "inferlab"
ENGINE_FILES = sorted((PACKAGE / "engine").glob("*.py"))

# What each package of inferlab may import of ours. `publish` sits on top and is not listed.
MAY_IMPORT = {
    "engine": set(),
    "analysis": set(),
    "sweep": set(),
    "kernels": {"engine"},
    "models": {"engine"},
    "sim": {"engine", "analysis"},
    "explore": {"engine", "analysis", "sim", "sweep"},
    "lab": {"engine", "analysis", "models"},
    "handin": set(),
}


def files_of_the_repository():
    """Files in git or about to be: everything that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def text_files():
    for path in files_of_the_repository():
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def our_imports(path):
    """Names of the packages of inferlab that the file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            # `from inferlab import lab` names the package only in the list.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("inferlab.")}
    return found


@pytest.mark.parametrize("path", ENGINE_FILES, ids=lambda path: path.name)
def test_engine_file_can_be_read_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 260


def test_engine_files_were_found():
    assert {"block_pool.py", "scheduler.py", "model.py"} <= {path.name for path in ENGINE_FILES}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_dependencies_point_one_way(package):
    files = sorted((PACKAGE / package).rglob("*.py"))
    assert files
    allowed = MAY_IMPORT[package] | {package}
    wrong = {
        f"{path.relative_to(ROOT)} imports inferlab.{name}"
        for path in files
        for name in our_imports(path) - allowed
        if (PACKAGE / name).is_dir()
    }
    assert not wrong


def modules_loaded_by(statement):
    """Top-level modules beyond the standard library that a fresh interpreter loads for it."""
    code = (
        "import json, sys; before = set(sys.modules)\n"
        f"{statement}\n"
        "loaded = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(json.dumps(sorted(loaded - sys.stdlib_module_names)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(run.stdout))


def test_engine_imports_numpy_and_nothing_else():
    loaded = modules_loaded_by("import inferlab.engine")
    assert loaded - modules_loaded_by("import numpy.random") == {"inferlab"}


def test_inferlab_itself_imports_nothing():
    assert modules_loaded_by("import inferlab") == {"inferlab"}


def test_check_of_loaded_modules_would_see_a_package():
    assert "yaml" in modules_loaded_by("import yaml")


def test_no_generated_notebook_is_in_git():
    assert [path for path in files_of_the_repository() if path.suffix == ".ipynb"] == []


def test_no_file_names_a_path_of_one_machine_or_a_package_index():
    machine_path = re.compile(r"(?<![\w.~>])/(?:home|root|work|farm|Users)/\w")
    index_host = re.compile(r"download\.pytorch\.org|\bpypi\.org|pythonhosted\.org|anaconda\.org")
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path, text in text_files()
        if path != Path(__file__).resolve()
        for match in [machine_path.search(text) or index_host.search(text)]
        if match
    ]
    assert found == []


def makefile_targets():
    text = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))


def test_readme_and_makefile_name_the_same_targets():
    readme = (ROOT / "README.md").read_text()
    table = set(re.findall(r"^\| `make ([a-z-]+)", readme, re.MULTILINE))
    assert table == makefile_targets()


@pytest.mark.parametrize("path", sorted((ROOT / "book").glob("*.md")), ids=lambda path: path.name)
def test_every_make_target_a_page_names_exists(path):
    named = re.findall(r"(?:`|^|\$ )make ([a-z-]+)", path.read_text(), re.MULTILINE)
    assert set(named) <= makefile_targets()


def pages(entry):
    """Every page that an entry of `_toc.yml` or its children name."""
    if isinstance(entry, list):
        return [page for child in entry for page in pages(child)]
    if isinstance(entry, dict):
        named = [entry[key] for key in ("root", "file") if key in entry]
        return named + pages([child for child in entry.values() if isinstance(child, list)])
    return []


def test_table_of_contents_and_pages_name_each_other():
    listed = pages(yaml.safe_load((ROOT / "_toc.yml").read_text()))
    assert [page for page in listed if not (ROOT / f"{page}.md").is_file()] == []
    written = [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.md")]
    names = {path.relative_to(ROOT).with_suffix("").as_posix() for path in written}
    assert names - set(listed) == set()


def test_roadmap_has_sixteen_weeks_and_links_only_written_ones():
    rows = re.findall(
        r"^\| (\d+) \|(.*)$", (ROOT / "book" / "roadmap.md").read_text(), re.MULTILINE
    )
    assert [int(week) for week, _ in rows] == list(range(1, 17))
    for week, row in rows:
        chapters = list((ROOT / "notebooks").glob(f"week{int(week):02d}-*.md"))
        assert ("{doc}" in row) == ("| written |" in row) == bool(chapters)
        assert ("*planned*" in row) == (not chapters)


def test_ci_calls_the_test_command_of_the_readme():
    script = ROOT / ".ci" / "run"
    assert script.read_text().rstrip().endswith("make test")
    assert script.stat().st_mode & 0o111
