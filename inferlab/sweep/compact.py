"""Turns a Plotly figure into the smallest plain data that draws the same picture."""

import math
from typing import Any


def compact(figure: Any) -> dict[str, Any]:
    """`{"data": [...], "layout": {...}}` of a Plotly figure, numbers to four significant digits.

    Four digits are below a pixel on any screen. NaN and infinity become None, which Plotly draws as
    a gap. The template is left out: a page draws all its figures with one.
    """
    # The parts and not `figure.to_dict()`, which packs arrays as base64 at full precision.
    layout = _plain(figure.layout.to_plotly_json())
    layout.pop("template", None)
    return {"data": [_plain(trace.to_plotly_json()) for trace in figure.data], "layout": layout}


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        rounded = float(f"{value:.4g}")
        return int(rounded) if rounded.is_integer() else rounded
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
