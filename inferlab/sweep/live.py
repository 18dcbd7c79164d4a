"""The live view of a sweep: widgets that call the functions which the page's figures come from."""

import html
from typing import TYPE_CHECKING, Any

from IPython.display import display
from ipywidgets import (  # type: ignore[import-untyped]
    HTML,
    Button,
    Dropdown,
    HBox,
    Output,
    Play,
    SelectionSlider,
    VBox,
    jslink,
)

from inferlab.sweep.outcome import Point

if TYPE_CHECKING:
    from inferlab.sweep.sweep import Control, Sweep

FRAME_MS = 500  # as in figures.js


def live_view(sweep: "Sweep") -> Any:
    """A box with the scenarios, the controls, the point in words, and the figure."""
    widgets = {control.name: _widget(control) for control in sweep.controls}
    output, said = Output(), HTML()

    def redraw(_change: object = None) -> None:
        point = {name: widget.value for name, widget in widgets.items()}
        figure = sweep.at(**point)
        said.value = f'<p role="status">{html.escape(sweep.said_at(**point))}</p>'
        output.clear_output(wait=True)
        with output:
            display(figure)  # type: ignore[no-untyped-call]

    def choose(point: Point) -> None:
        # Each widget would redraw by itself, at points that nobody chose.
        for name, widget in widgets.items():
            widget.unobserve(redraw, names="value")
            widget.value = point[name]
            widget.observe(redraw, names="value")
        redraw()

    for widget in widgets.values():
        widget.observe(redraw, names="value")
    redraw()
    buttons = [
        _button(name, point, choose)
        for name, point in {**sweep.scenarios, "Reset": sweep.first_point}.items()
    ]
    rows = [_with_play(widgets[control.name], control) for control in sweep.controls]
    return VBox([*rows, HBox(buttons), said, output])


def _widget(control: "Control") -> Any:
    kind = Dropdown if control.is_menu else SelectionSlider
    return kind(
        options=list(control.values),
        description=control.label,
        style={"description_width": "initial"},
    )


def _with_play(widget: Any, control: "Control") -> Any:
    """The widget, beside a button that runs through its values if the control plays."""
    if not control.plays:
        return widget
    play = Play(min=0, max=len(control.values) - 1, interval=FRAME_MS)
    jslink((play, "value"), (widget, "index"))
    return HBox([play, widget])


def _button(name: str, point: Point, choose: Any) -> Any:
    button = Button(description=name, layout={"width": "auto"})
    button.on_click(lambda _: choose(point))
    return button
