"""Parses MyST and says where in the source each piece stands, so that it can be rewritten there.

markdown-it gives the lines of a block only: neither the column of a link inside a paragraph, nor
what the containers around a block (lists, quotes) put in front of each of its lines.
"""

import re
from collections.abc import Callable

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from mdit_py_plugins.colon_fence import colon_fence_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.front_matter import front_matter_plugin
from mdit_py_plugins.myst_blocks import myst_block_plugin
from mdit_py_plugins.myst_role import myst_role_plugin

FOOTNOTE = re.compile(r"\[\^([^\]\s]+)\](:?)")
CONTAINER = re.compile(r"[\s>]*(?:(?:[-*+]|\d+[.)])\s+)*[\s>]*")

InlineRule = Callable[[StateInline, bool], bool]


def myst_parser() -> MarkdownIt:
    """A parser whose links, images, maths, roles and footnotes say where they stand.

    Their `meta["span"]` is where they begin and end in the content of their inline token.
    """
    made = MarkdownIt("commonmark").enable("table")
    for plugin in (front_matter_plugin, dollarmath_plugin, myst_role_plugin, myst_block_plugin):
        made.use(plugin)
    made.use(colon_fence_plugin)
    # A footnote of one word would be taken for the address of a link.
    made.disable("reference")
    made.inline.ruler.before("link", "footnote", _footnote_rule)
    for rule in made.inline.ruler.__rules__:
        if rule.name in ("footnote", "image", "link", "math_inline", "myst_role"):
            made.inline.ruler.at(rule.name, _with_position(rule.fn))
    return made


def _with_position(rule: InlineRule) -> InlineRule:
    def positioned(state: StateInline, silent: bool) -> bool:
        start = state.pos
        # Text that is still pending becomes a token of its own before the rule's first.
        index = len(state.tokens) + bool(state.pending)
        matched = rule(state, silent)
        if matched and not silent:
            state.tokens[index].meta["span"] = start, state.pos
        return matched

    return positioned


def _footnote_rule(state: StateInline, silent: bool) -> bool:
    match = FOOTNOTE.match(state.src, state.pos)
    if not match:
        return False
    begins_line = state.pos == 0 or state.src[state.pos - 1] == "\n"
    if not silent:
        token = state.push("footnote", "", 0)
        token.content = match[1]
        token.meta["is_definition"] = begins_line and bool(match[2])
    state.pos = match.end() if begins_line else match.end(1) + 1
    return True


def offsets_of(markdown: str, content: str, cursor: int) -> list[int]:
    """Where each character of an inline token's content stands in the source, and where it ends.

    The content lacks what the containers of the block put in front of each line. Raises ValueError
    for a line that is not in `markdown` after `cursor`.
    """
    offsets: list[int] = []
    for line in content.split("\n"):
        found = markdown.find(line, cursor)
        if found < 0:
            raise ValueError(
                f"The line {line!r} cannot be found in its source; in a table write \\vert "
                "instead of an escaped bar."
            )
        cursor = found + len(line)
        offsets += range(found, cursor + 1)
    return offsets


def nested(text: str, opening: str) -> str:
    """Indent the lines of a block as its first line is, inside lists and quotes."""
    container = CONTAINER.match(opening)
    assert container
    first = container[0].rstrip("\n")
    later = re.sub(r"[^\s>]", " ", first)
    return "\n".join(
        ((later if number else first) + line).rstrip()
        for number, line in enumerate(text.split("\n"))
    )
