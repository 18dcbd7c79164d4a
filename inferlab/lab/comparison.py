"""Results side by side: the same points of two or more, and which one is larger where."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

from inferlab.lab.difference import Verdict, differs
from inferlab.lab.paths import LIVE, RECORDED, result_path
from inferlab.lab.results import ResultError, read_document
from inferlab.lab.specification import load_experiment
from inferlab.lab.table import Table, aligned, cell, header, row, varied

Point = dict[str, Any]


def compare(arguments: list[str]) -> str:
    """The comparison of all results that `arguments` name, each a file or an experiment.

    Raises:
        SpecificationError: if an argument is neither.
        ResultError: if a result was cut short or edited, there are fewer than two, or they are of
            different experiments.
    """
    files = list(dict.fromkeys(file for argument in arguments for file in results_of(argument)))
    tables = [Table(read_document(file), live=RECORDED not in file.parents) for file in files]
    if len(tables) < 2:
        raise ResultError(
            f"A comparison needs two results, and {' '.join(arguments)} names {len(tables)}. Name "
            f"two files, or an experiment that was measured twice: on two profiles, or recorded "
            f"and live."
        )
    experiments = sorted({table.document["experiment"] for table in tables})
    if len(experiments) > 1:
        raise ResultError(
            f"The results are of different experiments ({', '.join(experiments)}), whose points "
            f"have nothing in common. Compare results of one."
        )
    return side_by_side({chr(ord("A") + n): table for n, table in enumerate(tables)})


def results_of(argument: str) -> list[Path]:
    """The file `argument`, or every result of the experiment `argument`: recorded, then live."""
    if argument.endswith(".json"):
        return [Path(argument).resolve()]
    profiles = load_experiment(argument).profiles
    paths = [
        result_path(folder, profile, argument)
        for folder in (RECORDED, LIVE)
        for profile in profiles
    ]
    return [path for path in paths if path.exists()]


def side_by_side(tables: dict[str, Table]) -> str:
    """A table a metric: a row a point, a column a result, and a verdict on each two of them."""
    points = {
        name: {
            json.dumps(point["parameters"], sort_keys=True): point
            for point in table.document["points"]
        }
        for name, table in tables.items()
    }
    parameters = {
        key: point["parameters"] for found in points.values() for key, point in found.items()
    }
    shown = varied(list(parameters.values()))
    pairs = list(combinations(tables, 2))
    lines = [f"{name}  {table.badge}" for name, table in tables.items()]
    lines += other_workloads(tables)
    verdicts: list[Verdict] = []
    for metric in dict.fromkeys(m for table in tables.values() for m in table.document["metrics"]):
        cells = [[*shown, *tables, *(f"{first} against {second}" for first, second in pairs)]]
        for key, found in parameters.items():
            here = {name: points[name].get(key) for name in tables}
            judged = [verdict(here[first], here[second], metric) for first, second in pairs]
            verdicts += [each for each in judged if each]
            cells.append(
                [
                    *(str(found.get(name, "–")) for name in shown),
                    *(cell(row(point), metric) if point else "–" for point in here.values()),
                    *(str(each or "–") for each in judged),
                ]
            )
        lines += ["", header(metric), aligned(cells)]
    return "\n".join([*lines, "", summary(verdicts)])


def verdict(first: Point | None, second: Point | None, metric: str) -> Verdict | None:
    """What the repeats of two points say; None where one of them has no such metric."""
    sides = [
        [repeat["metrics"].get(metric) for repeat in point["repeats"]] if point else []
        for point in (first, second)
    ]
    if not all(sides) or None in (*sides[0], *sides[1]):
        return None
    return differs(*sides)


def other_workloads(tables: dict[str, Table]) -> list[str]:
    """A sentence for each workload that is not the same requests in all results."""
    hashes: dict[str, set[str]] = {}
    for table in tables.values():
        for name, found in table.provenance["workloads"].items():
            hashes.setdefault(name, set()).add(found)
    return [
        f"The workload {name} is not the same in all of them."
        for name, found in hashes.items()
        if len(found) > 1
    ]


def summary(verdicts: list[Verdict]) -> str:
    """How many differences were found, and how many chance alone would make."""
    found = sum(each.outcome in ("larger", "smaller") for each in verdicts)
    by_chance = sum(each.error_rate for each in verdicts)
    return (
        f"{found} of {len(verdicts)} comparisons show a difference. If there were none, about "
        f"{by_chance:.1f} would."
    )
