"""What the reference printed and drew, in a form that a student's notebook can show again.

The book's outputs cannot be copied as they are: its figures are drawn by a script that only the
site has.
"""

import html
import json
import re
from typing import Any

from nbformat import NotebookNode

from inferlab.unfinished import source_key

FIGURE = re.compile(
    r'<script type="application/json">(?P<payload>.*?)</script>'
    r'<figcaption>(?:<span class="lab-badge">(?P<badge>.*?)</span>)?(?P<caption>.*?)</figcaption>',
    re.DOTALL,
)


def recorded_outputs(notebook: NotebookNode) -> dict[str, list[dict[str, Any]]]:
    """Outputs by `source_key`, for every code cell of the executed chapter that has any."""
    return {
        source_key(cell.source): [_portable(output) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.outputs
    }


def _portable(output: NotebookNode) -> dict[str, Any]:
    if output.output_type == "stream":
        return {"kind": "text", "text": output.text}
    data = output.data
    if "text/html" not in data:
        return {"kind": "text", "text": data.get("text/plain", "") + "\n"}
    figure = FIGURE.search(data["text/html"])
    if not figure:
        return {"kind": "html", "html": data["text/html"]}
    # A sweep is shown at its first point: its controls need the script of the site.
    payload = json.loads(figure["payload"])
    return {
        "kind": "figure",
        "figure": payload["figure"],
        "caption": html.unescape(figure["caption"]),
        "badge": html.unescape(figure["badge"]) if figure["badge"] else None,
    }
