"""Joins the parts of a result that several machines measure at once.

No file has two writers: each machine writes a part of its own, an ordinary result document of some
of the points, and only the process that waits for them writes the result. Parts are kept: a result
that was lost, or written by two who waited, is whole again after the next look at them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from inferlab.lab import provenance
from inferlab.lab.plan import Plan
from inferlab.lab.point import Point
from inferlab.lab.results import Document, ResultError, read_document, write_document
from inferlab.lab.runner import new_document


def points_by_name(plan: Plan) -> dict[str, Point]:
    """The points of `plan`, each under a name that is the same on every machine.

    The key of a measured point holds the hardware, which the machine that waits does not share.
    """
    context = provenance.context(plan) | {"hardware": "any"}
    return {point.key(context): point for point in plan.points}


class PartedResult:
    """The result in `path`, put together from what it holds and from the parts in `folder`."""

    def __init__(self, plan: Plan, path: Path, folder: Path) -> None:
        self.plan, self.path, self.folder = plan, path, folder
        self.points = points_by_name(plan)
        self.finished: dict[str, Document] = {}
        self._context = provenance.context(plan)
        self._source: Document | None = None

    def collect(self) -> None:
        """Take in every finished point that the result and the parts hold by now.

        Raises:
            ResultError: if the result was cut short or edited.
        """
        for document in self._documents():
            source = document["provenance"]
            for name, point in self.points_of(document).items():
                if point["status"] != "ok" or name in self.finished:
                    continue
                if self._source and kind_of_machine(source) != kind_of_machine(self._source):
                    # A table compares points, and would compare machines.
                    continue
                self.finished[name] = point
                if self._source is None or source["started"] > self._source["started"]:
                    self._source = source

    def points_of(self, document: Document) -> dict[str, Document]:
        """The points of `document` that were measured as they would be measured now."""
        recorded = {point["key"]: point for point in document["points"]}
        keys = {name: self._key(name, document["provenance"]) for name in self.points}
        return {name: recorded[key] for name, key in keys.items() if key in recorded}

    def save(self, failed: Mapping[str, Document]) -> None:
        """Write the result in the order of the grid; `failed` stands in for what is unfinished."""
        document = new_document(self.plan)
        if self._source is not None:
            document["provenance"] |= {
                field: self._source[field] for field in ("started", "commit", "dirty", "hardware")
            }
        # The memory of equal machines differs by some pages, which a key would show.
        finished = {
            name: {**point, "key": self._key(name, document["provenance"])}
            for name, point in self.finished.items()
        }
        found = {**failed, **finished}
        document["points"] = [found[name] for name in self.points if name in found]
        write_document(self.path, document)

    def _key(self, name: str, source: Document) -> str:
        """Key under which a machine with the provenance `source` saves a point."""
        return self.points[name].key(self._context | {"hardware": source["hardware"]})

    def part(self, number: str) -> Document | None:
        """The part of task `number`; None if it saved none, or one that cannot be read now.

        What is damaged or of another schema counts as not measured.
        """
        try:
            return read_document(self.folder / f"{number}.json")
        except ResultError:
            return None

    def _documents(self) -> Iterator[Document]:
        if self.path.exists():
            yield read_document(self.path)
        for path in sorted(self.folder.glob("*.json")):
            if (document := self.part(path.stem)) is not None:
                yield document


def kind_of_machine(source: Document) -> str:
    """What the rows of one table have in common, from the provenance `source`."""
    hardware = source["hardware"]
    gpu = f", {hardware['gpu']}, driver {hardware['driver']}" if hardware["gpu"] else ""
    return f"{hardware['cpu']}, {hardware['cores']} cores{gpu}"
