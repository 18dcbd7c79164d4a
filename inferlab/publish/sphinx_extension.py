"""Sphinx extension of the book: refuses raw sources, loads scripts only where they are needed,
and offers the student notebook of each chapter."""

import re
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
    app.connect("html-page-context", choose_scripts)
    # After the theme, which starts its list of buttons anew for every page.
    app.connect("html-page-context", offer_student_notebook, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def choose_scripts(
    app: Sphinx, _page: str, _template: str, context: dict[str, Any], _tree: Any
) -> None:
    """Add Plotly to pages with a figure only, as it is megabytes, and drop thebe from all pages.

    Jupyter Book cannot be told to leave thebe out; its scripts name a server outside and fail.
    """
    scripts = context["script_files"]
    # In place: Sphinx holds the same list, and appends to it what add_js_file is given.
    scripts[:] = [s for s in scripts if "thebe" not in f"{s.filename} {s.attributes}"]
    if 'class="lab-figure"' in context.get("body", ""):
        for script in ("plotly.min.js", "figures.js"):
            app.add_js_file(script, loading_method="defer")


def offer_student_notebook(
    _app: Sphinx, page: str, _template: str, context: dict[str, Any], _tree: Any
) -> None:
    """Give a chapter a download button for the student's bundle.

    The theme's own button would hand out the page, which holds the outputs of the reference.
    """
    if week := re.match(r"notebooks/(week\d\d)-", page):
        context["header_buttons"].insert(
            0,
            {
                "type": "link",
                "url": context["pathto"](f"bundles/{week[1]}.zip", 1),
                "icon": "fas fa-download",
                "tooltip": "Download the student notebook and what it needs",
                "label": "download-student-notebook",
            },
        )
