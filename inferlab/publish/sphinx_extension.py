"""Sphinx extension of the book: refuses raw sources, loads Plotly only where a figure is."""

from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx; raises ExtensionError unless the folder is one that `make book` staged."""
    if not (app.srcdir / "vendor" / "plotly.min.js").exists():
        raise ExtensionError(
            f"{app.srcdir} holds the sources of the book, which only `make book` can publish: "
            "run make book."
        )
    app.connect("html-page-context", add_plotly)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def add_plotly(
    app: Sphinx, _page: str, _template: str, context: dict[str, Any], _tree: Any
) -> None:
    """Plotly is several megabytes: only a page with a figure may make its reader wait."""
    if 'class="lab-figure"' in context.get("body", ""):
        for script in ("plotly.min.js", "figures.js"):
            app.add_js_file(script, loading_method="defer")
