"""Opens the pages of a built site in headless Chromium and says what is wrong with them."""

import contextlib
import functools
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import Page, TimeoutError, sync_playwright

WIDTHS = (1400, 390)
THEMES = ("light", "dark")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
READY = """() => document.readyState === "complete"
    && [...document.querySelectorAll(".lab-plot")].every((p) => p.querySelector("svg.main-svg"))
    && (!document.querySelector(".math") || document.querySelector("mjx-container"))"""
FACTS = """() => ({
    plots: document.querySelectorAll(".lab-plot").length,
    drawn: [...document.querySelectorAll(".lab-plot")].filter(
        (plot) => plot.querySelector("svg.main-svg")).length,
    formulas: document.querySelectorAll(".math").length,
    rendered: document.querySelectorAll(".math mjx-container").length,
    failed: document.querySelectorAll("mjx-merror, [data-mjx-error]").length,
    overflow: document.documentElement.scrollWidth - window.innerWidth,
    theme: document.documentElement.dataset.theme,
    errors: document.querySelectorAll(".problematic, .system-message").length,
    crossing: [...document.querySelectorAll(".lab-plot")].flatMap((plot) => {
        const titles = [...plot.querySelectorAll(".infolayer [class$='title'] text")];
        const boxes = titles.map((title) => title.getBoundingClientRect());
        return boxes.filter((a, i) => boxes.slice(i + 1).some((b) =>
            Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
            && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1));
    }).length,
})"""


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@contextlib.contextmanager
def served(html: Path) -> Iterator[str]:
    """Serve a folder on a free port of this machine; yields the address."""
    handler = functools.partial(QuietHandler, directory=str(html))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def opened(theme: str, width: int) -> Iterator[Page]:
    """A browser page of the given width whose reader has chosen the given theme."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    assert executable, "Chromium is not installed: run `apt-get install chromium`."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.add_init_script(
            f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}');"
        )
        yield page
        browser.close()


def inspect(html: Path, theme: str, width: int, screenshots: Path) -> list[str]:
    """Open every page of the site; returns one line for everything that a reader would miss."""
    found: list[str] = []
    screenshots.mkdir(parents=True, exist_ok=True)
    names = sorted(
        path.relative_to(html).as_posix()
        for folder in (html / "book", html / "notebooks")
        for path in folder.rglob("*.html")
    )
    assert names, f"There is no page below {html}: run `make book` first."
    with served(html) as address, opened(theme, width) as page:
        page.on("console", lambda m: m.type == "error" and found.append(f"{page.url}: {m.text}"))
        page.on("pageerror", lambda error: found.append(f"{page.url}: {error}"))
        page.on(
            "request",
            lambda r: (
                r.url.startswith((address, "data:", "blob:"))
                or found.append(f"{page.url}: request to {r.url}")
            ),
        )
        for name in names:
            page.goto(f"{address}/{name}", wait_until="load")
            with contextlib.suppress(TimeoutError):  # the facts below say what is missing
                page.wait_for_function(READY, timeout=20_000)
            facts = page.evaluate(FACTS)
            found += [f"{name}: {problem}" for problem in _problems(facts, theme)]
            stem = name.removesuffix(".html").replace("/", "-")
            page.screenshot(
                path=screenshots / f"{stem}-{theme}-{width}.png",
                full_page=True,
                animations="disabled",
            )
    return found


def _problems(facts: dict, theme: str) -> Iterator[str]:
    if facts["theme"] != theme:
        yield f"the theme is {facts['theme']}, not {theme}"
    if facts["drawn"] != facts["plots"]:
        yield f"{facts['plots'] - facts['drawn']} of {facts['plots']} figures are not drawn"
    if facts["rendered"] != facts["formulas"] or facts["failed"]:
        yield f"{facts['rendered']} of {facts['formulas']} formulas drawn, {facts['failed']} fail"
    if facts["overflow"] > 0:
        yield f"the page is {facts['overflow']} px wider than the window"
    if facts["crossing"]:
        yield f"{facts['crossing']} titles of axes run into another one"
    if facts["errors"]:
        yield f"{facts['errors']} Sphinx error messages stand in the text"
