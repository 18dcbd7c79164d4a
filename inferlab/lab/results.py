"""The result file: its schema, its seals, reading and writing it. Standard library only.

One JSON file an experiment and profile:

    schema, experiment, profile, question, prediction, metrics (the table's columns)
    provenance: started, commit, dirty, versions, model, hardware, environment, seeds, workloads
    points: parameters, status ("ok" or "failed"), key, measured (started, commit, dirty), commands,
        repeats: metrics (flat, the unit is the suffix), samples (per request)
        error and log (failed points only)
    seals: the hash of each of those fields, by its path

The seals make a truncated or edited file name the field that was touched. They guard against
accidents and against careless edits, not against somebody who recomputes them.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inferlab.lab.json_file import write_json
from inferlab.lab.paths import LIVE, RECORDED, result_path, without_root
from inferlab.lab.table import Table

SCHEMA = 2
Document = dict[str, Any]

DOCUMENT_FIELDS: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "experiment": str,
    "profile": str,
    "question": str,
    "prediction": str,
    "metrics": list,
    "provenance": dict,
    "points": list,
    "seals": dict,
}
PROVENANCE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "started": str,
    "commit": str,
    "dirty": bool,
    "versions": dict,
    "models": dict,
    "hardware": dict,
    "environment": dict,
    "seeds": list,
    "workloads": dict,
}
POINT_FIELDS: dict[str, type | tuple[type, ...]] = {
    "parameters": dict,
    "status": str,
    "key": str,
    "measured": dict,
    "commands": list,
    "repeats": list,
}
REPEAT_FIELDS: dict[str, type | tuple[type, ...]] = {"metrics": dict, "samples": dict}


class ResultError(ValueError):
    """A result file is missing, cut short, edited, of another schema, or cannot be written."""


def load(experiment: str, profile: str = "cpu") -> Table:
    """The recorded result of `experiment`, as a table with the badge "recorded".

    Raises:
        ResultError: if there is none, or the file is not what was recorded; names the field.
    """
    return Table(read_document(result_path(RECORDED, profile, experiment)), live=False)


def load_live(experiment: str, profile: str = "cpu") -> Table:
    """What `run` measured on this machine, finished or not.

    Raises:
        ResultError: as `load`.
    """
    return Table(read_document(result_path(LIVE, profile, experiment)), live=True)


def write_document(path: Path, document: Document) -> None:
    """Seal `document` and write it to `path` in one piece.

    Raises:
        ResultError: if the disk does not take it; what `path` held is still there.
    """
    contents = {name: value for name, value in document.items() if name != "seals"}
    # Sealed as it will be read: JSON turns tuples into lists and keys into strings.
    contents = json.loads(json.dumps(contents, allow_nan=False))
    try:
        write_json(path, {**contents, "seals": seals_of(contents)})
    except OSError as error:
        raise ResultError(
            f"{without_root(str(path))} cannot be written ({error.strerror}). What it held is "
            f"still there: make room for it, and run the same command again."
        ) from None


def read_document(path: Path) -> Document:
    """The document in `path`, refused unless every field is there and is as it was written.

    Raises:
        ResultError: naming the field and how to record the result again.
    """
    shown = without_root(str(path))
    profile, experiment = path.parent.parent.name, f"{path.parent.name}/{path.stem}"
    again = (
        f"Record it again with `python -m inferlab.lab run {experiment} --profile {profile} "
        f"--record`, or restore the file with git."
    )
    try:
        document: Document = json.loads(path.read_text())
    except FileNotFoundError:
        raise ResultError(f"There is no result {shown}. {again}") from None
    except ValueError as error:
        raise ResultError(
            f"{shown} is not complete JSON ({error}): it was cut short. {again}"
        ) from None
    problem = next(problems(document), None)
    if problem is not None:
        raise ResultError(f"{shown}: {problem} {again}")
    return document


def problems(document: Any) -> Iterator[str]:
    """What is wrong with `document`: fields first, then seals."""
    yield from field_problems(document, DOCUMENT_FIELDS, "")
    if document["schema"] != SCHEMA:
        yield f"the field 'schema' is {document['schema']}, and this version reads {SCHEMA}."
    yield from field_problems(document["provenance"], PROVENANCE_FIELDS, "provenance.")
    for number, point in enumerate(document["points"]):
        where = f"points[{number}]."
        yield from field_problems(point, POINT_FIELDS, where)
        for repeat_number, repeat in enumerate(point["repeats"]):
            yield from field_problems(repeat, REPEAT_FIELDS, f"{where}repeats[{repeat_number}].")
    actual = seals_of({name: value for name, value in document.items() if name != "seals"})
    for field in sorted(set(actual) | set(document["seals"])):
        if field not in actual:
            yield f"the field {field!r} was recorded and is missing."
        elif actual[field] != document["seals"].get(field):
            yield f"the field {field!r} is not what was recorded: it was edited."


def field_problems(
    section: Any, fields: dict[str, type | tuple[type, ...]], where: str
) -> Iterator[str]:
    """Missing fields and wrong types of one section."""
    if not isinstance(section, dict):
        yield f"{where.rstrip('.') or 'the document'!r} is not a mapping."
        return
    for name, kind in fields.items():
        if name not in section:
            yield f"the field '{where}{name}' is missing."
        elif not isinstance(section[name], kind):
            yield f"the field '{where}{name}' is of type {type(section[name]).__name__}."


def seals_of(contents: Document) -> dict[str, str]:
    """Hash of each field, by its path; metrics and samples of each repeat have their own."""
    sealed: dict[str, Any] = {name: v for name, v in contents.items() if name != "points"}
    for number, point in enumerate(contents["points"]):
        for name, value in point.items():
            if name != "repeats":
                sealed[f"points[{number}].{name}"] = value
        for repeat_number, repeat in enumerate(point["repeats"]):
            for name, value in repeat.items():
                sealed[f"points[{number}].repeats[{repeat_number}].{name}"] = value
    return {field: seal(value) for field, value in sealed.items()}


def seal(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
