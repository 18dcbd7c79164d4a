"""`python -m inferlab.publish`: build the book, or renew the indexes it is checked against."""

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from inferlab.lab.engines import EnginesMissingError
from inferlab.lab.upstream import UpstreamError
from inferlab.publish import citations, programs
from inferlab.publish.page import read_page
from inferlab.publish.problems import PublishError
from inferlab.publish.roles import cited_symbols
from inferlab.publish.site import build_site
from inferlab.publish.stage import toc_pages

ROOT = Path(__file__).parents[2]
console = Console()


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command()
@click.option("--instructor", is_flag=True, help="With solutions, model answers and rubrics.")
def book(instructor: bool) -> None:
    """Check, execute and stage every page, and build the site under build/site."""
    questions = None
    if instructor:
        # Only here: the rubrics are no part of what a reader's site is made from.
        from autograder.rubric import load_rubrics

        questions = load_rubrics
    try:
        html = build_site(
            ROOT, ROOT / "build", lambda step: console.print(f"[cyan]•[/] {step} …"), questions
        )
    except PublishError as error:
        _fail(error)
    here = html.relative_to(ROOT)
    console.print(f"[green]The book is in {here}.[/] Look at it with:")
    console.print(f"  python3 -m http.server -d {here} 8000", highlight=False)
    console.print("and open http://localhost:8000 in a browser.", highlight=False)


@main.command(name="citations")
def regenerate_citations() -> None:
    """Look up every {src} citation in the engines' environment and rewrite book/citations.json."""
    try:
        pages = [read_page(ROOT, Path(f"{name}.md")) for name in toc_pages(ROOT)]
        symbols = {symbol for page in pages for symbol in cited_symbols(page)}
        index = citations.build_index(citations.engines_packages(ROOT), symbols)
    except (PublishError, LookupError, FileNotFoundError) as error:
        _fail(error)
    citations.write_index(ROOT, index)
    console.print(f"Wrote {citations.INDEX} with {len(index)} citations.")


@main.command(name="commands")
def regenerate_commands() -> None:
    """Ask the engines' own parsers which flags they know and rewrite book/commands.json."""
    try:
        index = programs.build_index()
    except (EnginesMissingError, UpstreamError) as error:
        _fail(error)
    programs.write_index(ROOT, index)
    console.print(f"Wrote {programs.INDEX} with {len(index['programs'])} programs.")


def _fail(error: Exception) -> None:
    problems = error.problems if isinstance(error, PublishError) else [error]
    for problem in problems:
        console.print(f"[red]✗[/] {escape(str(problem))}", highlight=False, soft_wrap=True)
    console.print(f"[red]The book was not built:[/] {len(problems)} problem(s).")
    sys.exit(1)


if __name__ == "__main__":
    main()
