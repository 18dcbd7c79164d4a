"""`Sweep`: a figure over two or more parameters, precomputed for a page or live in a kernel."""

import itertools
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inferlab.sweep.compact import compact
from inferlab.sweep.outcome import Impossible, Point, Value, outcome, outcomes

MINIMUM_CONTROLS = 2
MINIMUM_POINTS = 60
ALONE_S = 2.0  # after which other processes are worth their start
WORDS_WIDTH = 60  # characters of a line in a figure


@dataclass(frozen=True)
class Control:
    """One parameter: `name` is the keyword of `compute`, `values` what the reader can choose.

    Strings become a menu, numbers a slider. `label` is what the reader sees, with the unit. A
    slider that `plays` has a button which runs through its values: the sweep is a film then.
    """

    name: str
    label: str
    values: Sequence[Value]
    plays: bool = False

    @property
    def is_menu(self) -> bool:
        return any(isinstance(value, str) for value in self.values)


class Sweep:
    """`figure(compute(**point), **point)` for every combination of the controls' values.

    A ValueError of `compute` means that the point cannot exist, for example a model that does not
    fit; both views then say what it says, in an empty figure.

    Args:
        compute: the data of a point; a function of the controls' names.
        controls: what the reader can choose. The first value of each is where both views start.
        figure: draws what `compute` returns with Plotly, with as many traces at every point.
        words: the same in a sentence, for readers who do not see the figure.
        scenarios: points worth a name; what one leaves out is as at the start.

    Raises:
        ValueError: for fewer than two controls or sixty points, because a table then says more,
            and for a scenario that is no point.
    """

    def __init__(
        self,
        compute: Callable[..., Any],
        controls: Sequence[Control],
        figure: Callable[..., Any],
        words: Callable[..., str],
        scenarios: Mapping[str, Point] | None = None,
    ) -> None:
        self.compute = compute
        self.controls = list(controls)
        self.figure = figure
        self.words = words
        self.points: list[Point] = [
            dict(zip((control.name for control in self.controls), values))
            for values in itertools.product(*(control.values for control in self.controls))
        ]
        if len(self.controls) < MINIMUM_CONTROLS or len(self.points) < MINIMUM_POINTS:
            raise ValueError(
                f"A sweep of {len(self.controls)} controls and {len(self.points)} points is too "
                f"small: it takes at least {MINIMUM_CONTROLS} controls and {MINIMUM_POINTS} points."
            )
        self.scenarios = {
            name: {**self.first_point, **chosen} for name, chosen in (scenarios or {}).items()
        }
        for name, point in self.scenarios.items():
            if point not in self.points:
                raise ValueError(f"The scenario {name!r} is {point}, which no control can choose.")
        self._results: dict[tuple[Value, ...], Any] = {}

    @property
    def first_point(self) -> Point:
        """The point that both views show at the start."""
        return self.points[0]

    def result(self, **point: Value) -> Any:
        """What `compute` returns at a point, computed once, or `Impossible`."""
        key = self._key(point)
        if key not in self._results:
            self._results[key] = outcome(self.compute, point)
        return self._results[key]

    def at(self, **point: Value) -> Any:
        """The figure of one point: what both views show."""
        found = self.result(**point)
        return (
            self._explained(found) if isinstance(found, Impossible) else self.figure(found, **point)
        )

    def said_at(self, **point: Value) -> str:
        """The point in words: what both views say."""
        found = self.result(**point)
        return found.reason if isinstance(found, Impossible) else self.words(found, **point)

    def static(self) -> dict[str, Any]:
        """Data of the page: the first figure, and per point only what differs from it.

        `points` is in the order of `itertools.product`, so that the position of a point follows
        from the positions of its controls.
        """
        self._compute_all()
        figures = [compact(self.at(**point)) for point in self.points]
        return {
            "figure": figures[0],
            "controls": [
                {
                    "label": control.label,
                    "values": list(control.values),
                    "menu": control.is_menu,
                    "plays": control.plays,
                }
                for control in self.controls
            ],
            "points": [_difference(figures[0], figure) for figure in figures],
            "words": [self.said_at(**point) for point in self.points],
            "scenarios": [
                {
                    "name": name,
                    "positions": [
                        list(control.values).index(point[control.name]) for control in self.controls
                    ],
                }
                for name, point in self.scenarios.items()
            ],
        }

    def _compute_all(self) -> None:
        """Fill the results; in several processes if one alone would take long."""
        started = time.monotonic()
        for point in self.points:
            self.result(**point)
            if time.monotonic() - started > ALONE_S:
                break
        waiting = [point for point in self.points if self._key(point) not in self._results]
        if waiting:
            found = outcomes(self.compute, waiting)
            self._results |= {self._key(point): one for point, one in zip(waiting, found)}

    def _key(self, point: Point) -> tuple[Value, ...]:
        return tuple(point[control.name] for control in self.controls)

    def _explained(self, impossible: Impossible) -> Any:
        """The figure of a possible point without its data, and the reason in its middle."""
        from plotly.graph_objects import Figure

        possible = next(
            point for point in self.points if not isinstance(self.result(**point), Impossible)
        )
        drawn = self.at(**possible)
        empty = [
            {**trace.to_plotly_json(), **{axis: [] for axis in "xyz" if axis in trace}}
            for trace in drawn.data
        ]
        figure = Figure(empty, drawn.layout)
        figure.update_layout(annotations=[], shapes=[])
        figure.add_annotation(
            text="<br>".join(textwrap.wrap(impossible.reason, WORDS_WIDTH)),
            xref="paper",
            yref="paper",
            x=0.5,
            y=0.5,
            showarrow=False,
        )
        return figure

    def live(self) -> Any:
        """The same figure in Jupyter, with widgets."""
        from inferlab.sweep.live import live_view

        return live_view(self)


def _difference(base: dict[str, Any], figure: dict[str, Any]) -> dict[str, Any]:
    if len(base["data"]) != len(figure["data"]):
        raise ValueError(
            f"The figures of a sweep have {len(base['data'])} and {len(figure['data'])} traces: "
            "draw the same traces at every point, empty ones where there is nothing to show."
        )
    traces = [_changed(old, new) for old, new in zip(base["data"], figure["data"])]
    return {"data": traces, "layout": _changed(base["layout"], figure["layout"])}


def _changed(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Keys of `new` with another value than in `old`; None for keys that `new` lacks."""
    changed = {key: value for key, value in new.items() if key not in old or old[key] != value}
    return changed | {key: None for key in old if key not in new}
