"""Roles, bare numbers and the spine: every rule is met by the sample and broken once here."""

import pytest

from inferlab.notebook import Said
from inferlab.publish.citations import load_index
from inferlab.publish.page import read_page
from inferlab.publish.problems import PublishError
from inferlab.publish.prose import bare_numbers
from inferlab.publish.roles import References, Source, load_sources, substitute
from inferlab.publish.spine import SPINE, check_spine, sections
from inferlab.publish.stage import toc_pages
from tests.site_fixture import CHAPTER, REPOSITORY

SAMPLE = (REPOSITORY / "tests" / "sample_chapter.md").read_text()
REFERENCES = References(
    {"kv": Said("kv", 131072, "B")},
    {
        "a100": Source(
            title="A100 datasheet", author="NVIDIA", year=2021, url="https://example.org/a"
        )
    },
    load_index(REPOSITORY),
)


def page_of(tmp_path, text, name="page.md"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return read_page(tmp_path, path.relative_to(tmp_path))


def chapter_of(tmp_path, text):
    return page_of(tmp_path, text, CHAPTER.as_posix())


def replaced(tmp_path, text):
    page = page_of(tmp_path, text)
    return substitute(page, page.cells[0], REFERENCES)


def test_cells_know_their_line_in_the_file(tmp_path):
    page = chapter_of(tmp_path, SAMPLE)
    lines = SAMPLE.splitlines()
    assert len(page.cells) == 19
    for cell in page.cells:
        assert lines[cell.line - 1] == cell.source.partition("\n")[0]


def test_code_cells_without_a_jupytext_header_are_refused(tmp_path):
    with pytest.raises(PublishError, match="no jupytext header"):
        page_of(tmp_path, "# A\n\n```{code-cell}\nx = 1\n```\n")


def test_say_given_and_src_become_text_and_links(tmp_path):
    text, problems = replaced(
        tmp_path,
        "{say}`kv` and {say}`kv:.2e` at {given}`2,039 GB/s <a100>`, "
        "{src}`vllm/v1/core/block_pool.py:BlockPool.get_new_blocks`",
    )
    assert not problems
    assert text.startswith("131,072\u00a0B and 1.31e+05\u00a0B at ")
    assert '[2,039 GB/s](https://example.org/a "Source: NVIDIA, A100 datasheet, 2021")' in text
    assert "(https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/core/block_pool.py#L" in text


@pytest.mark.parametrize(
    ("role", "message"),
    [
        ("{say}`unknown`", "no cell of this page calls say"),
        ("{say}`kv:zz`", "format"),
        ("{given}`2 GB/s <nowhere>`", "not in book/sources.yml"),
        ("{given}`2 GB/s`", "names no source"),
        ("{src}`vllm/gone.py:Gone`", "not in book/citations.json"),
    ],
)
def test_an_unknown_name_is_reported_at_its_line(tmp_path, role, message):
    text, problems = replaced(tmp_path, f"# Title\n\nA line.\nThen {role}.\n")
    (problem,) = problems
    assert (str(problem.path), problem.line) == ("page.md", 4)
    assert message.lower() in problem.message.lower()
    assert role in text


def test_a_page_can_show_a_role_without_meaning_it(tmp_path):
    shown = "`` {say}`nobody` `` and\n\n```md\n{say}`nobody`\n```\n"
    assert replaced(tmp_path, shown) == (shown, [])
    text, problems = replaced(tmp_path, ":::{note}\n{say}`kv`\n:::\n\n```{tip}\n{say}`kv`\n```\n")
    assert text.count("131,072") == 2
    assert not problems


def test_a_source_with_an_unknown_key_is_refused(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "sources.yml").write_text("a100:\n  titel: A\n")
    with pytest.raises(PublishError, match=r"a100\.titel"):
        load_sources(tmp_path)


@pytest.mark.parametrize(
    "prose",
    [
        "It takes 2,039 GB/s at most.",
        "It takes 12 ms.",
        "A waste of 4%.",
        "* 30 % of the marks",
        "| a | 7.4 ms |\n|---|---|\n| b | c |",
        ":::{note}\nIt takes 16 GiB.\n:::",
        "```{tip} At 5 tokens/s\nSlow.\n```",
        "Not **12** but *12 ms*.",
        "The ridge lies at 153 FLOP/B.",
        "Each token takes 131,072 bytes.",
        "A block of 8 B.",
    ],
)
def test_a_bare_number_with_a_unit_is_found(tmp_path, prose):
    (problem,) = bare_numbers(page_of(tmp_path, f"# Title\n\n{prose}\n"))
    assert "bare number" in problem.message
    assert problem.line >= 3


@pytest.mark.parametrize(
    "prose",
    [
        "{say}`x` and {given}`12 ms <a>`",
        "`--limit 12 ms` and $12\\,\\text{ms}$ and $$\n12 ms\n$$",
        "```\n12 ms\n```",
        "```{code-block} bash\n12 ms\n```",
        "Llama-3.1-8B on an A100-80GB, an 8B model",
        "In 2023 sixteen weeks, 64 requests, week 4, int8",
        "[a link](https://example.org/12ms)",
        "Version 0.32.0 is pinned.",
    ],
)
def test_code_maths_roles_and_names_are_no_bare_numbers(tmp_path, prose):
    assert not bare_numbers(page_of(tmp_path, f"# Title\n\n{prose}\n"))


def test_the_line_of_a_bare_number_is_exact(tmp_path):
    text = SAMPLE.replace("Nothing is assembled in a sample.", "One.\nTwo takes 12 ms here.")
    (problem,) = bare_numbers(chapter_of(tmp_path, text))
    assert text.splitlines()[problem.line - 1] == "Two takes 12 ms here."


def test_the_sample_chapter_is_sound(tmp_path):
    page = chapter_of(tmp_path, SAMPLE)
    assert check_spine(page) == []
    assert bare_numbers(page) == []
    assert list(sections(page)) == [tag for tag in SPINE if tag != "kernel"]


def broken(tmp_path, before, after):
    assert before in SAMPLE
    return " ".join(
        problem.message
        for problem in check_spine(chapter_of(tmp_path, SAMPLE.replace(before, after)))
    )


@pytest.mark.parametrize("tag", [tag for tag in SPINE if tag != "kernel"])
def test_a_missing_section_is_named(tmp_path, tag):
    assert f"The section {tag!r} is missing" in broken(tmp_path, f"(week04-{tag})=\n", "")


def test_a_kernel_is_expected_unless_the_front_matter_says_otherwise(tmp_path):
    assert "'kernel' is missing" in broken(tmp_path, "kernel: false", "kernel: true")


def test_sections_out_of_order_are_named(tmp_path):
    text = SAMPLE.replace("(week04-observe)=", "(week04-X)=").replace(
        "(week04-theory)=", "(week04-observe)="
    )
    text = text.replace("(week04-X)=", "(week04-theory)=")
    problems = check_spine(chapter_of(tmp_path, text))
    assert any("'observe' is out of order" in problem.message for problem in problems)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "# test: week04-sample-hash\n",
            "",
            "week04-sample-hash is not followed by its visible test",
        ),
        ('predict("concurrency", requests=...)', "pass", "call predict('concurrency'"),
        ('predict.compare("concurrency", requests=64)', "pass", "calls predict.compare(…) nowhere"),
        ("show(figure, ", "print(figure, ", "needs a figure"),
        (
            "solution: true}\nexercise: {members: [hash",
            "}\nexercise: {members: [hash",
            "solution: true",
        ),
        ("# exercise: week04-sample-hash\nfrom", "# exercise: hash\nfrom", "first line"),
        (":tags: [setup]\n", "", "carry the tag setup"),
        ("lines: 6, points: 10", "lines: 6, points: 9", "worth 39 points together, not 40"),
        ("(week04-limits)=\n## Limits", "(week04-limits)=\nLimits", "not followed by a heading"),
    ],
)
def test_what_a_section_must_hold_is_checked(tmp_path, before, after, message):
    assert message in broken(tmp_path, before, after)


def test_a_chapter_has_three_to_six_exercises(tmp_path):
    start = SAMPLE.index("The third is the pool.")
    end = SAMPLE.index("(week04-assemble)=")
    text = SAMPLE[:start] + SAMPLE[end:]
    problems = check_spine(chapter_of(tmp_path, text))
    assert any("has 2 exercises" in problem.message for problem in problems)


def test_every_page_of_the_contents_must_exist(tmp_path):
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/index\n")
    with pytest.raises(PublishError, match=r"book/index\.md does not exist"):
        toc_pages(tmp_path)
