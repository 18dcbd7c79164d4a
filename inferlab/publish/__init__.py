"""From text notebook to page of the book.

Sources are the pages of `_toc.yml`; everything generated lies under `build/`: `executed/` holds
notebooks with outputs, `pages/` what Jupyter Book reads, `site/` the finished pages. A page that
breaks a rule (spine, bare numbers, unknown names, failing cells, warnings) stops the build with
`PublishError`, which names file, line and remedy.
"""

from inferlab.publish.exercise import Exercise, is_exercise, read_exercise
from inferlab.publish.expand import expand
from inferlab.publish.page import Page, read_page
from inferlab.publish.problems import Problem, PublishError
from inferlab.publish.site import build_site

__all__ = [
    "Exercise",
    "Page",
    "Problem",
    "PublishError",
    "build_site",
    "expand",
    "is_exercise",
    "read_exercise",
    "read_page",
]
