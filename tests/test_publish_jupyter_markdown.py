"""MyST becomes Markdown that JupyterLab and Colab show; code stays verbatim; others are refused."""

import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from sphinx.util.nodes import _make_id

from inferlab.publish.jupyter_markdown import DIRECTIVES, ROLES, myst_left, to_jupyter
from inferlab.publish.page import read_page
from inferlab.publish.roles import ROLE
from tests.site_fixture import REPOSITORY

SITE = "https://book.example/course"
PAGE = "notebooks/week04-paged-attention"


def plain(markdown):
    """The plain form, after checking that nothing in it would be shown raw."""
    text = to_jupyter(markdown, SITE, PAGE)
    assert myst_left(text) == []
    return text


def rendered(markdown):
    """What nbconvert makes of the plain form: it knows no more Markdown than a notebook does."""
    return BeautifulSoup(markdown2html_mistune(plain(markdown)), "html.parser")


def test_plain_markdown_comes_back_character_for_character():
    markdown = (
        '# Title\n\nText with *stress*, `code`, $x_1$ and [a link](https://a.example "Title").\n\n'
        "$$\na = b\n$$\n\n| a | b |\n|---|---|\n| `x` | $y$ |\n\n- one\n  - two\n\n"
        "> quoted\n\n<!-- comment -->\n\n```python\nx = 1\n```\n\n[defined]: https://b.example\n"
    )
    assert plain(markdown) == markdown


def test_a_label_becomes_an_anchor_and_the_heading_stays_one():
    assert plain("(week04-theory)=\n## Theory\n") == ('<a id="week04-theory"></a>\n\n## Theory\n')
    assert rendered("(week04-theory)=\n## Theory\n").h2.get_text().startswith("Theory")


@pytest.mark.parametrize(
    "opening",
    [
        ":::{admonition} Two cores and `g++`\n:class: warning",
        "~~~{admonition} Two cores and `g++`\n---\nclass: warning\n---",
    ],
)
def test_an_admonition_becomes_a_quote_with_a_bold_title(opening):
    page = rendered(f"{opening}\n- first\n- second\n{opening[:3]}\n\nAfter.")
    assert page.blockquote.strong.get_text() == "Two cores and g++"
    assert page.blockquote.strong.code.get_text() == "g++"
    assert [item.get_text() for item in page.blockquote.find_all("li")] == ["first", "second"]
    assert "class" not in page.blockquote.get_text()
    assert "After." not in page.blockquote.get_text()


@pytest.mark.parametrize(
    ("name", "title"), [("note", "Note"), ("warning", "Warning"), ("seealso", "See also")]
)
def test_named_admonitions_are_titled_by_their_name_and_take_text_on_their_first_line(name, title):
    quote = rendered(f":::{{{name}}} Begin here,\ngo on there.\n:::").blockquote
    assert quote.strong.get_text() == title
    assert [p.get_text() for p in quote.find_all("p")] == [title, "Begin here,\ngo on there."]


def test_a_dropdown_becomes_details_in_which_markdown_is_rendered():
    page = rendered(
        ":::{dropdown} Why is `n < 2` refused for $B_1$?\n"
        "**Because** of:\n\n```python\nx = 1\n```\n\n$$\ny\n$$\n:::\n\nAfter."
    )
    assert page.details.summary.b.code.get_text() == "n < 2"
    assert "$B_1$" in page.details.summary.get_text()
    assert page.details.strong.get_text() == "Because"
    assert page.details.pre.get_text().strip() == "x = 1"
    assert "After." not in page.details.get_text()
    assert not page.details.has_attr("open")


def test_any_admonition_can_be_a_dropdown():
    page = rendered(":::{note}\n:class: tip dropdown\nHidden.\n:::")
    assert (page.details.summary.get_text(), page.blockquote) == ("Note", None)


def test_directives_nest():
    page = rendered(
        "::::{note}\nOuter.\n\n:::{dropdown} Inner\nHidden.\n:::\n\n```{code-block} bash\n"
        "ls {doc}`setup`\n```\n::::"
    )
    assert page.blockquote.details.p.get_text() == "Hidden."
    assert page.blockquote.pre.get_text().strip() == "ls {doc}`setup`"


def test_directives_in_a_list_stay_in_their_item():
    page = rendered("1. First.\n\n   :::{note}\n   Inside.\n\n   More.\n   :::\n\n2. Second.\n")
    first, second = page.find_all("li")
    assert "More." in first.blockquote.get_text()
    assert second.get_text().strip() == "Second."


def test_maths_in_a_quote_stands_on_one_line():
    """JupyterLab cuts maths out before it sees the quote, and would keep the marks of its lines."""
    text = plain(":::{note}\nThe sum $a +\nb$ is\n\n$$\nc =\nd\n$$\n:::")
    assert "$a + b$" in text
    assert "> $$c = d$$" in text


def test_a_labelled_equation_shows_its_label_where_the_text_calls_it():
    for equation in ("$$\nx = 1\n$$ (kv-bytes)", "```{math}\n:label: kv-bytes\nx = 1\n```"):
        text = plain(f"{equation}\n\nBy {{eq}}`kv-bytes` it follows.\n")
        assert '<a id="equation-kv-bytes"></a>\n\n$$\nx = 1 \\tag{kv-bytes}\n$$\n' in text
        assert f"By [(kv-bytes)]({SITE}/{PAGE}.html#equation-kv-bytes) it" in text


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("{doc}`setup`", f"[setup]({SITE}/notebooks/setup.html)"),
        ("{doc}`the setup <../book/setup>`", f"[the setup]({SITE}/book/setup.html)"),
        ("{doc}`home </book/index>`", f"[home]({SITE}/book/index.html)"),
        ("{ref}`the theory <week04-theory>`", f"[the theory]({SITE}/{PAGE}.html#week04-theory)"),
        ("{numref}`Figure %s <map>`", f"[Figure]({SITE}/{PAGE}.html#map)"),
        ("{term}`block table`", f"[block table]({SITE}/book/glossary.html#term-block-table)"),
        ("{term}`blocks <block>`", f"[blocks]({SITE}/book/glossary.html#term-block)"),
        ("{abbr}`KV (key and value)`", "KV (key and value)"),
        ("{math}`x^2`", "$x^2$"),
        ("H{sub}`2`O", "H<sub>2</sub>O"),
        ("[the setup](../book/setup.md#linux)", f"[the setup]({SITE}/book/setup.html#linux)"),
        ("[above](#week04-theory)", f"[above]({SITE}/{PAGE}.html#week04-theory)"),
        ("[{term}`slot`s](#x)", None),
        ('![A map](_static/map.svg "Title")', f'![A map]({SITE}/_images/map.svg "Title")'),
        ("![A map](https://a.example/map.svg)", "![A map](https://a.example/map.svg)"),
    ],
)
def test_references_become_links_to_the_book(markdown, expected):
    if expected is None:
        expected = f"[[slot]({SITE}/book/glossary.html#term-slot)s]({SITE}/{PAGE}.html#x)"
    assert plain(f"Before {markdown}, after.\n") == f"Before {expected}, after.\n"


@pytest.mark.parametrize("term", ["KV cache", "Little's law", "end-to-end latency", "time (s)"])
def test_the_address_of_a_term_is_the_one_that_sphinx_gives_it(term):
    assert f"glossary.html#{_make_id('term-' + term)})" in plain(f"{{term}}`{term}`")


def test_references_are_found_in_headings_tables_lists_and_quotes():
    term = "{term}`block`"
    markdown = (
        f"## A {term}\n\n| {term} | {term} |\n|---|---|\n| `{term}` | {term} |\n\n"
        f"> one\n> {term}\n\n1. x\n   {term} and\n   {term}\n"
    )
    link = f"[block]({SITE}/book/glossary.html#term-block)"
    assert plain(markdown) == markdown.replace(term, link).replace(f"`{link}`", f"`{term}`")


def test_a_role_may_break_over_two_lines():
    assert plain("> The {doc}`engine's\n> setup <setup>` says.\n") == (
        f"> The [engine's setup]({SITE}/notebooks/setup.html) says.\n"
    )


@pytest.mark.parametrize(
    "code",
    [
        "``{doc}`setup` ``",
        "```markdown\n:::{note}\n{term}`block`\n:::\n(label)=\n+++\n% comment\n```",
        "    {doc}`setup`",
        "~~~\n```{note}\n```\n~~~",
        "$\\text{doc}`x`$",
    ],
)
def test_code_and_maths_stay_verbatim(code):
    assert plain(f"Before.\n\n{code}\n\nAfter.\n") == f"Before.\n\n{code}\n\nAfter.\n"


def test_a_code_directive_becomes_a_fence_that_its_content_cannot_close():
    assert plain("```{code-block} bash\n:linenos:\nls\n```\n") == "```bash\nls\n```\n"
    assert plain("````{code} md\n```\nx\n```\n````\n") == "````md\n```\nx\n```\n````\n"


def test_a_figure_keeps_its_alternative_text_and_its_caption():
    page = rendered("```{figure} _static/map.svg\n:alt: A map of slots\n\nThe {term}`slot`s.\n```")
    assert page.img["alt"] == "A map of slots"
    assert page.img["src"] == f"{SITE}/_images/map.svg"
    assert page.find_all("p")[1].get_text() == "The slots."


def test_footnotes_become_links():
    text = plain("A claim[^1] and another[^why].\n\n[^1]: Source.\n[^why]: Two words.\n")
    assert "claim[[1]](#footnote-1) and another[[why]](#footnote-why)." in text
    assert '<a id="footnote-1"></a>[1]: Source.\n<a id="footnote-why"></a>[why]: Two' in text


def test_comments_and_block_breaks_are_dropped():
    text = plain("One.\n\n% not for readers\n+++\n\nTwo.\n")
    assert text.split() == ["One.", "Two."]


@pytest.mark.parametrize(
    ("markdown", "message"),
    [
        (":::{grid} 2\n:::", r"directive \{grid\} .* admonition, .* warning"),
        ("{cite}`kwon`", r"role \{cite\} .* abbr, .* term"),
        ("::: python\nx\n:::", "names no directive"),
        ("```{image} map.svg\n```", "'map.svg' has no alternative text"),
        ("![](map.svg)", "has no words"),
        ("[](#week04-theory)", "has no words"),
        ("{ref}`week05-theory`", "'week05-theory' is not on the page notebooks/week04"),
        ("[data](../results/a.json)", "leads to no page of the book"),
        ("| a |\n|---|\n| x \\| {term}`y` |", "instead of an escaped bar"),
    ],
)
def test_what_has_no_plain_form_is_refused(markdown, message):
    with pytest.raises(ValueError, match=message):
        to_jupyter(markdown, SITE, PAGE)


@pytest.mark.parametrize(
    ("markdown", "left"),
    [
        ("Text {term}`block` and {say}`name`.", ["{term}", "{say}"]),
        ("(week04-theory)=\n## Theory", ["(week04-theory)="]),
        (":::{note}\nText.\n:::", [":::{note}", "{note}", ":::"]),
        ("```{note}\nText.\n```", ["{note}"]),
        ("One.\n% comment\n\n+++", ["% comment", "+++"]),
        ("<details><summary>{doc}`x`</summary>\n\ny\n\n</details>", ["{doc}"]),
        ("> - {{ name }} and [^1]", ["{{ name }}", "[^1]"]),
        ("Term\n: Definition", [": Definition"]),
        ("![a](b.svg){width=50%}", []),
        ("[a](b){.button}", ["{.button}"]),
    ],
)
def test_markup_that_a_plain_renderer_would_show_is_found(markdown, left):
    found = myst_left(markdown)
    assert set(found) <= set(left)
    assert bool(found) == bool(left)


def test_code_is_no_markup_that_is_left():
    assert myst_left("`{term}` and ``{doc}`x` ``\n\n```md\n:::{note}\n```\n\n${a}$ `(x)=`") == []


def test_every_directive_and_role_that_is_offered_works():
    for name in DIRECTIVES:
        options = ":alt: words\n" if name in ("figure", "image") else ""
        assert "Body" in plain(f":::{{{name}}} Title\n{options}Body\n:::") or name == "image"
    for name in ROLES:
        assert "week04-x" in plain(f"{{{name}}}`week04-x`")


@pytest.mark.parametrize(
    ("path", "fewest"), [("notebooks/week04-paged-attention.md", 30), ("book/errata.md", 4)]
)
def test_real_pages_have_a_plain_form(path, fewest):
    page = read_page(REPOSITORY, Path(path))
    # Staging replaces these roles first, and the answer cells become cells of their own.
    sources = [
        ROLE.sub(lambda m: m["literal"] or "12", cell.source)
        for cell in page.cells
        if cell.kind == "markdown"
    ]
    texts = [re.sub(r"^:::\{answer\}.*\n:::[ ]*$", "", source, flags=re.M) for source in sources]
    assert sum(len(myst_left(text)) for text in texts) >= fewest, (
        "the page holds MyST to begin with"
    )
    assert [left for text in texts for left in myst_left(to_jupyter(text, SITE, page.name))] == []
