"""`Sweep`: a figure over two or more parameters, precomputed for a page or live in a kernel."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from inferlab.sweep.compact import compact

MINIMUM_CONTROLS = 2
MINIMUM_POINTS = 60

Value = int | float | str
Point = dict[str, Value]


@dataclass(frozen=True)
class Control:
    """One parameter: `name` is the keyword of `compute`, `values` what the reader can choose.

    Strings become a menu, numbers a slider. `label` is what the reader sees, with the unit.
    """

    name: str
    label: str
    values: Sequence[Value]

    @property
    def is_menu(self) -> bool:
        return any(isinstance(value, str) for value in self.values)


class Sweep:
    """`figure(compute(**point), **point)` for every combination of the controls' values.

    `compute` returns the data of a point and `figure` draws it as a Plotly figure; every point must
    have the same number of traces. Raises ValueError for fewer than two controls or sixty points:
    with less than that a table says more.
    """

    def __init__(
        self,
        compute: Callable[..., Any],
        controls: Sequence[Control],
        figure: Callable[..., Any],
    ) -> None:
        self.compute = compute
        self.controls = list(controls)
        self.figure = figure
        self.points: list[Point] = [
            dict(zip((control.name for control in self.controls), values))
            for values in itertools.product(*(control.values for control in self.controls))
        ]
        if len(self.controls) < MINIMUM_CONTROLS or len(self.points) < MINIMUM_POINTS:
            raise ValueError(
                f"A sweep of {len(self.controls)} controls and {len(self.points)} points is too "
                f"small: it takes at least {MINIMUM_CONTROLS} controls and {MINIMUM_POINTS} points."
            )

    @property
    def first_point(self) -> Point:
        """The point that both views show at the start."""
        return self.points[0]

    def at(self, **point: Value) -> Any:
        """The figure of one point: what both views show."""
        return self.figure(self.compute(**point), **point)

    def static(self) -> dict[str, Any]:
        """Data of the page: the first figure, and per point only what differs from it.

        `points` is in the order of `itertools.product`, so that the position of a point follows
        from the positions of its controls.
        """
        figures = [compact(self.at(**point)) for point in self.points]
        return {
            "figure": figures[0],
            "controls": [
                {"label": control.label, "values": list(control.values), "menu": control.is_menu}
                for control in self.controls
            ],
            "points": [_difference(figures[0], figure) for figure in figures],
        }

    def live(self) -> Any:
        """The same figure in Jupyter: widgets that call `at`."""
        from ipywidgets import (  # type: ignore[import-untyped]
            Dropdown,
            Output,
            SelectionSlider,
            VBox,
        )

        widgets = {}
        for control in self.controls:
            kind = Dropdown if control.is_menu else SelectionSlider
            widgets[control.name] = kind(
                options=list(control.values),
                description=control.label,
                style={"description_width": "initial"},
            )
        output = Output()

        def redraw(_change: object = None) -> None:
            from IPython.display import display

            figure = self.at(**{name: widget.value for name, widget in widgets.items()})
            output.clear_output(wait=True)
            with output:
                display(figure)  # type: ignore[no-untyped-call]

        for widget in widgets.values():
            widget.observe(redraw, names="value")
        redraw()
        return VBox([*widgets.values(), output])


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
