"""Finds numbers with a unit that stand bare in the prose of a page.

The rule: a number with a unit comes from {say} or {given}, or stands in code or maths.
"""

import re
from collections.abc import Iterator

from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.colon_fence import colon_fence_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.front_matter import front_matter_plugin
from mdit_py_plugins.myst_blocks import myst_block_plugin
from mdit_py_plugins.myst_role import myst_role_plugin

from inferlab.publish.page import Page
from inferlab.publish.problems import Problem

UNIT = (
    r"%|×|bytes?|[KMGT]i?B(?:/s)?|kB(?:/s)?|Gb/s|Mb/s"
    r"|[KMGTP]?FLOPs?(?:/s|/B|/byte)?|[GT]OP/s|(?:tokens?|requests?|blocks?|steps?)/s"
    r"|ns|us|µs|μs|ms|milliseconds?|microseconds?|seconds?|[kMG]?Hz|k?W|°C"
)
# `B` and `s` need a gap, so that a model's name, "an 8B model", is no measurement.
BARE_NUMBER = re.compile(rf"(?<![\w.\-–/])\d[\d,.]*(?:[  ]?(?:{UNIT})|[  ](?:B|s))(?![\w/])")
# Directives whose content is not prose.
VERBATIM = re.compile(
    r"\{?(code|code-block|code-cell|math|raw|mermaid|literalinclude|image|toctree|bibliography)\b"
)


def bare_numbers(page: Page) -> list[Problem]:
    """One problem for every bare number with a unit, at its line."""
    return [
        page.problem(
            cell.line + line,
            f"The prose holds the bare number {match[0]!r}; compute it with say(…) and write "
            "{say}`name`, or name its source with {given}`… <key>`.",
        )
        for cell in page.cells
        if cell.kind == "markdown"
        for line, text in prose(cell.source)
        for match in BARE_NUMBER.finditer(text)
    ]


def prose(markdown: str) -> Iterator[tuple[int, str]]:
    """Line (from 0) and text of each piece of prose: no code, maths, roles, HTML, link targets."""
    parser = MarkdownIt("commonmark").enable("table")
    for plugin in (front_matter_plugin, dollarmath_plugin, myst_role_plugin, myst_block_plugin):
        parser.use(plugin)
    parser.use(colon_fence_plugin)
    for token in parser.parse(markdown):
        if token.type == "inline" and token.map:
            yield from _inline(token)
        elif token.type in ("fence", "colon_fence") and token.map:
            if not token.info.startswith("{") or VERBATIM.match(token.info):
                continue
            title = token.info.partition("}")[2]
            yield token.map[0], title
            offset = token.map[0] + 1
            yield from ((offset + line, text) for line, text in prose(token.content))


def _inline(token: Token) -> Iterator[tuple[int, str]]:
    assert token.map
    line = token.map[0]
    pending = ""
    for child in token.children or []:
        if child.type in ("softbreak", "hardbreak"):
            # Number and unit may stand on two lines; the line of the unit will do.
            yield line, pending
            pending = ""
            line += 1
        elif child.type == "text":
            pending += child.content
        else:
            line += child.content.count("\n")
            pending += "\N{OBJECT REPLACEMENT CHARACTER}" if child.content else ""
    yield line, pending
