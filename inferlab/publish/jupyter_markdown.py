"""From MyST to the Markdown that JupyterLab and Colab show: same words, plainer dress.

| MyST | plain |
|---|---|
| admonition, note, warning, … | blockquote with a bold title |
| dropdown, or any of them with `:class: dropdown` | `<details>` |
| label, reference, term, page | anchor, and links to the published book |
| figure, image | image on the site (Colab shows no attachments), with its alternative text |
| labelled equation | equation that shows its label as tag |
| comment, block break | nothing |

Numbers and citations of source code are plain links already: `roles.substitute` comes first.
Code is never looked into. Other MyST is refused here, or found by `myst_left`, so that nothing is
shown raw.
"""

import posixpath
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin

from inferlab.publish.markdown_positions import myst_parser, nested, offsets_of

ADMONITIONS = (
    "admonition attention caution danger error hint important note seealso tip warning".split()
)
CODE = ("code", "code-block", "sourcecode")
DIRECTIVES = (*ADMONITIONS, *CODE, "dropdown", "figure", "image", "math")
ROLES = ("abbr", "doc", "eq", "math", "numref", "ref", "sub", "sup", "term")
GLOSSARY = "/book/glossary"

DIRECTIVE = re.compile(r"\{([^{}\s]+)\}[ ]*(.*)", re.DOTALL)
OPTION = re.compile(r":([\w-]+):[ ]*(.*)")
WORDS_AND_TARGET = re.compile(r"(.+?)\s*<([^<>]+)>", re.DOTALL)
DESTINATION = re.compile(r"\s*<?([^\s<>)]*)")
# What MyST understands and others print as it stands.
RAW_MARKUP = re.compile(
    r"\{[a-zA-Z][\w:+-]*\}|\{\{.*?\}\}|\{[.#][^}\n]*\}|\[\^[^\]\s]+\]"
    r"|^\(\S+\)=$|^:{3,}.*$|^\+\+\+.*$|^% .*$|^: .*$|^:[\w-]+:(?: .*)?$",
    re.MULTILINE,
)


class Edit(NamedTuple):
    """Characters `start` to `end` of a text become `text`."""

    start: int
    end: int
    text: str


class Place(NamedTuple):
    """Where the text stands, which decides how its links and its maths are written."""

    site_url: str
    page: str
    in_quote: bool = False

    def page_url(self, target: str) -> str:
        """Address of a page, named relative to this one or, with a slash first, to the root."""
        path, _, fragment = target.partition("#")
        path = posixpath.normpath(posixpath.join("/", posixpath.dirname(self.page), path))
        url = f"{self.site_url.rstrip('/')}{path.removesuffix('.md')}.html"
        return f"{url}#{fragment}" if fragment else url

    def label_url(self, label: str) -> str:
        """Address of a label of this page; ValueError for one that another chapter must hold."""
        week = re.match(r"week\d\d-", label)
        if week and week[0] not in self.page:
            raise ValueError(
                f"The label {label!r} is not on the page {self.page}, and its own page is not "
                f"known here: write a link to the page, [words](page.md#{label})."
            )
        return self.page_url(f"/{self.page}#{re.sub(r'[^a-z0-9]+', '-', label.lower())}")

    def link_url(self, target: str) -> str:
        """Address that a Markdown link leads to; ValueError when the book does not publish it."""
        if re.match(r"[a-zA-Z][\w+.-]*:|//", target):
            return target
        if target.startswith("#"):
            return self.label_url(target[1:])
        path = target.partition("#")[0]
        if posixpath.splitext(path)[1] not in ("", ".md"):
            raise ValueError(
                f"The link to {target!r} leads to no page of the book: give a page, or an address "
                "that begins with https://."
            )
        return self.page_url(target)

    def image_url(self, path: str) -> str:
        """Address of an image; Sphinx publishes those of all pages in one folder."""
        if re.match(r"[a-zA-Z][\w+.-]*:", path):
            return path
        return f"{self.site_url.rstrip('/')}/_images/{posixpath.basename(path)}"


def to_jupyter(markdown: str, site_url: str, page: str) -> str:
    """The plain form of one Markdown cell.

    `site_url` is where the book is published, `page` the name of the page as in `_toc.yml`. Raises
    ValueError naming a directive or role that has no plain form, and those that have.
    """
    return _plain(markdown, Place(site_url, page))


def myst_left(markdown: str) -> list[str]:
    """Every piece of MyST outside code and maths that a plain renderer would show raw."""
    found: list[str] = []
    parser = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin)
    for token in parser.parse(markdown):
        if token.type == "fence" and token.info.startswith("{"):
            found.append(token.info)
        elif token.type == "html_block":
            found += RAW_MARKUP.findall(token.content)
        elif token.type == "inline":
            text = "".join(_shown(child) for child in token.children or [])
            found += RAW_MARKUP.findall(text)
    return found


def _shown(child: Token) -> str:
    if child.type in ("softbreak", "hardbreak"):
        return "\n"
    if child.type in ("text", "html_inline"):
        return child.content
    # Code and maths leave a mark: without it the text before and after would meet.
    return "\N{OBJECT REPLACEMENT CHARACTER}" if child.content else ""


def _plain(markdown: str, place: Place) -> str:
    starts = [0]
    for line in markdown.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    edits: list[Edit] = []
    cursor = 0
    for token in myst_parser().parse(markdown):
        if token.map is None:
            continue
        first, last = token.map
        if token.type == "inline":
            # Cells of a table share their line, so each is looked for after the one before.
            cursor = max(cursor, starts[first])
            offsets = offsets_of(markdown, token.content, cursor)
            cursor = offsets[-1]
            edits += [
                Edit(offsets[edit.start], offsets[edit.end - 1] + 1, edit.text)
                for edit in _inline_edits(token, place)
            ]
        elif (text := _block(token, place)) is not None:
            opening = markdown[starts[first] : starts[first + 1]]
            edits.append(Edit(starts[first], starts[last], nested(text, opening) + "\n"))
    result = ""
    position = 0
    for edit in sorted(edits):
        result += markdown[position : edit.start] + edit.text
        position = edit.end
    result += markdown[position:]
    return result if markdown.endswith("\n") else result.removesuffix("\n")


def _inline_edits(token: Token, place: Place) -> Iterator[Edit]:
    children = token.children or []
    for child, following in zip(children, [*children[1:], None]):
        if "span" not in child.meta:
            continue
        start, end = child.meta["span"]
        if child.type == "myst_role":
            yield Edit(start, end, _role(child.meta["name"], child.content, place))
        elif child.type == "footnote":
            yield Edit(start, end, _footnote(child))
        elif child.type == "math_inline" and place.in_quote:
            yield Edit(start, end, f"${_on_one_line(child.content)}$")
        elif child.type in ("link_open", "image"):
            words = child.content if child.type == "image" else following
            if not words or (isinstance(words, Token) and words.type == "link_close"):
                raise ValueError(
                    f"The link or image {token.content[start:end]!r} has no words: write them "
                    "between the square brackets."
                )
            bracket = token.content.rindex("](", start, end) + 2
            target = DESTINATION.match(token.content, bracket, end)
            assert target
            url = place.image_url if child.type == "image" else place.link_url
            if target[1]:
                yield Edit(*target.span(1), url(target[1]))


def _footnote(child: Token) -> str:
    anchor = f"footnote-{child.content}"
    if child.meta["is_definition"]:
        return f'<a id="{anchor}"></a>[{child.content}]:'
    return f"[[{child.content}]](#{anchor})"


def _role(name: str, text: str, place: Place) -> str:
    named = WORDS_AND_TARGET.fullmatch(text)
    words, target = named.groups() if named else (text, text)
    match name:
        case "doc":
            return f"[{words}]({place.page_url(target)})"
        case "ref" | "numref":
            return f"[{words.replace('%s', '').strip()}]({place.label_url(target)})"
        case "term":
            term = re.sub(r"[^a-zA-Z0-9._]+", "-", target).strip("-")
            return f"[{words}]({place.page_url(GLOSSARY)}#term-{term})"
        case "eq":
            return f"[({text})]({place.page_url('/' + place.page)}#equation-{text})"
        case "math":
            return f"${_on_one_line(text)}$"
        case "sub" | "sup":
            return f"<{name}>{escapeHtml(text)}</{name}>"
        case "abbr":
            return text
    raise ValueError(
        f"The role {{{name}}} has no form in a student's notebook; those that have are "
        f"{', '.join(ROLES)}."
    )


def _block(token: Token, place: Place) -> str | None:
    """The plain form of a block; None for one that is plain already."""
    match token.type:
        case "myst_target":
            return f'<a id="{token.content}"></a>\n'
        case "myst_line_comment" | "myst_block_break" | "front_matter":
            return ""
        case "math_block_label":
            return _equation(token.content, token.info, place)
        case "math_block" if place.in_quote:
            return _equation(token.content, "", place)
        case "fence" | "colon_fence":
            directive = DIRECTIVE.fullmatch(token.info.strip())
            if directive:
                return _directive(directive[1], directive[2], token.content, place)
            if token.type == "colon_fence":
                raise ValueError(
                    f"The fence :::{token.info} names no directive; write for example :::{{note}}."
                )
    return None


def _directive(name: str, argument: str, content: str, place: Place) -> str:
    if name not in DIRECTIVES:
        raise ValueError(
            f"The directive {{{name}}} has no form in a student's notebook; those that have are "
            f"{', '.join(sorted(DIRECTIVES))}."
        )
    options, body = _options(content)
    anchor = f'<a id="{options["name"]}"></a>\n\n' if "name" in options else ""
    if name in CODE:
        fence = max(re.findall(r"`{3,}", body), key=len, default="``") + "`"
        caption = f"*{options['caption']}*\n\n" if "caption" in options else ""
        return f"{anchor}{caption}{fence}{argument}\n{body}\n{fence}"
    if name == "math":
        return _equation(f"{argument}\n{body}", options.get("label", ""), place)
    if name in ("figure", "image"):
        return anchor + _figure(argument, options, _plain(body, place), place)
    if name in ("admonition", "dropdown"):
        title = argument
    else:
        title = "See also" if name == "seealso" else name.capitalize()
        body = f"{argument}\n{body}".strip("\n")
    title = _plain(title, place)
    if name == "dropdown" or "dropdown" in options.get("class", "").split():
        opened = " open" if "open" in options else ""
        summary = f"<summary><b>{_inline_html(title)}</b></summary>"
        return f"{anchor}<details{opened}>{summary}\n\n{_plain(body, place)}\n\n</details>"
    body = _plain(body, place._replace(in_quote=True))
    quote = "\n".join(f"> {line}".rstrip() for line in f"**{title}**\n\n{body}".split("\n"))
    return anchor + quote


def _options(content: str) -> tuple[dict[str, str], str]:
    """A directive's options, in either of MyST's two forms, and what follows them."""
    lines = content.split("\n")
    count = 0
    options: dict[str, Any] = {}
    if lines[0].rstrip() == "---" and "---" in lines[1:]:
        count = lines.index("---", 1) + 1
        options = yaml.safe_load("\n".join(lines[1 : count - 1])) or {}
    else:
        while option := OPTION.fullmatch(lines[count]):
            options[option[1]] = option[2]
            count += 1
    body = "\n".join(lines[count:]).strip("\n")
    return {key: str(value or "") for key, value in options.items()}, body


def _equation(latex: str, label: str, place: Place) -> str:
    """Display maths; a label becomes an anchor and the tag by which the text calls the equation.

    Inside a quote JupyterLab would take the mark of each line for a part of the formula.
    """
    tag = f" \\tag{{{label}}}" if label else ""
    anchor = f'<a id="equation-{label}"></a>\n\n' if label else ""
    if place.in_quote:
        return f"{anchor}$${_on_one_line(latex)}{tag}$$"
    return f"{anchor}$$\n{latex.strip()}{tag}\n$$"


def _figure(path: str, options: dict[str, str], caption: str, place: Place) -> str:
    if not options.get("alt"):
        raise ValueError(
            f"The figure {path!r} has no alternative text: say with :alt: what it shows."
        )
    image = f"![{options['alt']}]({place.image_url(path)})"
    return f"{image}\n\n{caption}".rstrip()


def _on_one_line(latex: str) -> str:
    return " ".join(latex.split())


def _inline_html(markdown: str) -> str:
    """HTML of a title: where it stands, Markdown is not rendered, but maths is."""
    parser = MarkdownIt("commonmark").use(dollarmath_plugin)
    parser.add_render_rule(
        "math_inline",
        lambda _self, tokens, index, _options, _env: f"${escapeHtml(tokens[index].content)}$",
    )
    return str(parser.renderInline(markdown))
