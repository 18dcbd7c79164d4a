"""What a chapter's code cells say to their reader: numbers, figures and predictions.

`INFERLAB_CONTEXT=book` (set by `inferlab.publish`) selects output for the book, which has no kernel
behind it; anything else gets the output of a live notebook, in JupyterLab and in Colab alike.
"""

import html
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from types import EllipsisType
from typing import Any

SAID_KEY = "inferlab_said"
FIGURE_LIMIT_BYTES = 300 * 1024
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"

Number = int | float


@dataclass(frozen=True)
class Said:
    """A number that a cell computed for the prose."""

    name: str
    value: Number | str
    unit: str


def format_said(said: Said, spec: str = "") -> str:
    """The number as the prose prints it, unit included.

    Integers are exact and floats get three significant digits, both with thousands separators;
    `spec`, a format specification of Python, overrides that. Raises ValueError for a bad `spec`.
    """
    if spec:
        number = format(said.value, spec)
    elif isinstance(said.value, float):
        number = _three_significant_digits(said.value)
    else:
        number = f"{said.value:,}" if isinstance(said.value, int) else said.value
    gap = "" if said.unit in ("", "×") else NO_BREAK_SPACE
    return f"{number}{gap}{said.unit}"


def _three_significant_digits(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not 1e-3 <= abs(value) < 1e15:
        return f"{value:.3g}"
    rounded = float(f"{value:.3g}")
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}"


def say(name: str, value: Any, unit: str = "") -> None:
    """Print `value` with its unit and let the prose refer to it as {say}`name`.

    `value` is an integer, a float, a string, or a NumPy or torch scalar. Raises ValueError when it
    is not a single number, or when `name` could not be written inside a role.
    """
    from IPython.display import HTML, display

    if not name.isidentifier():
        raise ValueError(f"The name {name!r} is no identifier: use letters, digits and _ only.")
    said = Said(name, _plain(name, value), unit)
    number = html.escape(format_said(said))
    display(  # type: ignore[no-untyped-call]
        HTML(f'<div class="lab-said"><code>{name}</code> {number}</div>'),  # type: ignore[no-untyped-call]
        metadata={SAID_KEY: asdict(said)},
    )


def _plain(name: str, value: Any) -> Number | str:
    try:
        plain = value.item() if hasattr(value, "item") else value
    except (ValueError, RuntimeError):  # an array of NumPy, a tensor of torch, with several values
        plain = None
    if isinstance(plain, bool) or not isinstance(plain, int | float | str):
        raise ValueError(
            f"say({name!r}, …) got {type(value).__name__}: expected one integer, float or string."
        )
    return plain


def show(figure: Any, caption: str, badge: str | None = None, alt: str | None = None) -> None:
    """Display a Plotly figure or a `Sweep` with a caption that states its finding.

    `badge` names hardware, versions and date of the data; `alt` is the text for readers who do not
    see the figure, and defaults to the caption. Raises ValueError without a caption, when an axis
    has no title, or when the figure takes more than 300 KiB in the book.
    """
    from IPython.display import HTML, display

    from inferlab.sweep import Sweep, compact
    from inferlab.theme import TEMPLATE, require_axis_titles

    if not caption.strip():
        raise ValueError("A figure needs a caption that states what it shows.")
    is_sweep = isinstance(figure, Sweep)
    require_axis_titles(figure.at(**figure.first_point) if is_sweep else figure)
    if os.environ.get("INFERLAB_CONTEXT") == "book":
        payload = figure.static() if is_sweep else {"figure": compact(figure)}
        payload["template"] = TEMPLATE.to_plotly_json()
        display(HTML(figure_html(payload, caption, badge, alt or caption)))  # type: ignore[no-untyped-call]
        return
    if not is_sweep:
        figure.update_layout(template=TEMPLATE)
    display(figure.live() if is_sweep else figure)  # type: ignore[no-untyped-call]
    note = f"<br><small>{html.escape(badge)}</small>" if badge else ""
    display(HTML(f"<p>{html.escape(caption)}{note}</p>"))  # type: ignore[no-untyped-call]


def figure_html(payload: dict[str, Any], caption: str, badge: str | None, alt: str) -> str:
    """The figure as data for `figures.js`, which draws it in the colours of the reader's theme.

    Raises ValueError when it takes more than 300 KiB: a page with ten of those is unreadable.
    """
    # Written as \u003c, a "</script>" inside the data cannot end the script element.
    data = json.dumps(payload, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    size = len(data.encode())
    if size > FIGURE_LIMIT_BYTES:
        raise ValueError(
            f"The figure takes {size / 1024:,.0f} KiB and the limit is "
            f"{FIGURE_LIMIT_BYTES // 1024} KiB: plot fewer points, or round the data."
        )
    badge_html = f'<span class="lab-badge">{html.escape(badge)}</span>' if badge else ""
    return (
        '<figure class="lab-figure">'
        f'<div class="lab-plot" role="img" aria-label="{html.escape(alt)}"></div>'
        f'<script type="application/json">{data}</script>'
        f"<figcaption>{badge_html}{html.escape(caption)}</figcaption></figure>"
    )


def show_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> None:
    """Display rows of text as a table; Markdown that a cell prints is not rendered."""
    from IPython.display import HTML, display

    display(HTML(table_html(head, rows)))  # type: ignore[no-untyped-call]


def table_html(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """The table as HTML.

    Raises ValueError when a row has another number of cells than the head.
    """

    def line(tag: str, cells: Sequence[object]) -> str:
        if len(cells) != len(head):
            raise ValueError(f"A row has {len(cells)} cells and the head {len(head)}: {cells}.")
        return "".join(
            ["<tr>", *(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells), "</tr>"]
        )

    body = "".join(line("td", row) for row in rows)
    return f"<table><thead>{line('th', head)}</thead><tbody>{body}</tbody></table>"


class Predictions:
    """The reader's guesses in this kernel: made before a result, compared with it afterwards."""

    def __init__(self) -> None:
        self._guesses: dict[str, dict[str, Number | EllipsisType]] = {}

    def __call__(self, name: str, **guess: Number | EllipsisType) -> None:
        """Store a prediction, for example `predict("concurrency", requests=64)`.

        The keyword is the unit or the thing counted; `...` means not predicted yet. Raises
        ValueError without a keyword, or for a guess that is not a number.
        """
        if not guess:
            raise ValueError(f"predict({name!r}) predicts nothing: add for example requests=….")
        for quantity, value in guess.items():
            if value is not ... and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(
                    f"The prediction {quantity}={value!r} is no number; "
                    "write a number, or ... for not predicted yet."
                )
        self._guesses[name] = dict(guess)
        rows = "".join(
            f"<li>{html.escape(_words(quantity))}: <b>{_guess_text(value)}</b></li>"
            for quantity, value in guess.items()
        )
        waiting = any(value is ... for value in guess.values())
        hint = "Put your own number into the cell before you read on." if waiting else "Noted."
        _display_box(f"Predict first: {_words(name)}", f"<ul>{rows}</ul><p>{hint}</p>")

    def compare(self, name: str, **measured: Any) -> None:
        """Show prediction and result side by side.

        Raises ValueError when nothing was predicted under `name`, or for other quantities.
        """
        if name not in self._guesses:
            known = ", ".join(sorted(self._guesses)) or "none"
            raise ValueError(
                f"Nothing was predicted under the name {name!r} (predictions so far: {known}). "
                f"Run the cell with predict({name!r}, …) first."
            )
        guesses = self._guesses[name]
        if set(measured) != set(guesses):
            raise ValueError(
                f"The prediction {name!r} is about {', '.join(guesses)}, "
                f"the result about {', '.join(measured)}."
            )
        rows = [
            (
                _words(quantity),
                _guess_text(guesses[quantity]),
                format_said(Said(quantity, _plain(quantity, value), "")),
            )
            for quantity, value in measured.items()
        ]
        table = table_html(["", "predicted", "result"], rows)
        _display_box(f"Prediction and result: {_words(name)}", table)


predict = Predictions()


def _words(name: str) -> str:
    return name.replace("_", " ")


def _guess_text(value: Number | EllipsisType) -> str:
    if isinstance(value, EllipsisType):
        return "not predicted yet"
    return format_said(Said("guess", value, ""))


def _display_box(title: str, body: str) -> None:
    from IPython.display import HTML, display

    display(  # type: ignore[no-untyped-call]
        HTML(  # type: ignore[no-untyped-call]
            f'<div class="lab-predict"><p class="lab-predict-title">{html.escape(title)}</p>'
            f"{body}</div>"
        )
    )
