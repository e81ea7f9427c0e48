"""Prints pages with a headless Chromium to PDF, PNG or SVG, also for the tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

from persona.errors import PersonaError
from persona.extras import missing

T = TypeVar("T")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VARIABLE = "PERSONA_CHROMIUM"
TIMEOUT_MS = 120_000
PNG_SCALE = 3
"""Pixels of a plot's PNG for each of its px."""
FOOTER = """<div style="width: 100%; text-align: center; font: 8px sans-serif; color: #444">
<span class="pageNumber"></span> / <span class="totalPages"></span></div>"""


def find_chromium() -> str:
    """Path of a Chromium: the one that $PERSONA_CHROMIUM names, otherwise one on the PATH.

    Raises:
        PersonaError: there is none.
    """
    named = os.environ.get(VARIABLE)
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        where = f"{VARIABLE}={named} is no program" if named else "no Chromium on the path"
        raise PersonaError(
            f"{where}: PDF, PNG and SVG need one (scripts/browser installs Debian's); a report as "
            "HTML needs none"
        )
    return found


def run_apart(work: Callable[[], T]) -> T:
    """Runs what opens a browser, in a thread of its own where this one has an event loop.

    The cells of a notebook run inside a loop, where Playwright's functions refuse to be called.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """Opens a Playwright browser and closes it at the end.

    Raises:
        PersonaError: Playwright or Chromium is missing, or Chromium does not start.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise missing(f"PDF, PNG and SVG need {error.name}", "report") from None
    program = find_chromium()
    with sync_playwright() as playwright:
        try:
            # Chromium has no sandbox for root. The page is our own and fetches nothing.
            browser = playwright.chromium.launch(
                executable_path=program, chromium_sandbox=os.getuid() != 0
            )
        except Error as error:
            reason = str(error).splitlines()[0]
            raise PersonaError(
                f"{program} does not start ({reason}); a report as HTML needs none"
            ) from None
        with contextlib.closing(browser):
            yield browser


def draw_figure(browser: Any, html: str, form: str, size_px: tuple[int, int]) -> bytes:
    """Draws a page of one figure and returns the file's bytes: `svg`, `pdf` or `png`."""
    width, height = size_px
    with opened(browser, html, size_px, scale=PNG_SCALE) as page:
        if form == "svg":
            size = {"format": "svg", "width": width, "height": height}
            url = page.evaluate(
                "size => Plotly.toImage(document.getElementById('only'), size)", size
            )
            return unquote_to_bytes(url.partition(",")[2])
        if form == "pdf":
            size = {"width": f"{width}px", "height": f"{height}px"}
            return bytes(page.pdf(**size, page_ranges="1", print_background=True))
        return bytes(page.screenshot())


@contextlib.contextmanager
def opened(
    browser: Any, html: str, size_px: tuple[int, int], *, scale: float = 1, media: str = "screen"
) -> Iterator[Any]:
    """Opens an HTML page in light colours and waits until its figures are drawn."""
    width, height = size_px
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        path.write_text(html, encoding="utf-8")
        page = browser.new_page(
            viewport={"width": width, "height": height},
            color_scheme="light",
            device_scale_factor=scale,
        )
        with contextlib.closing(page):
            page.set_default_timeout(TIMEOUT_MS)
            page.emulate_media(media=media, color_scheme="light")
            page.goto(path.as_uri())
            page.wait_for_selector("body[data-drawn]")
            yield page


def print_page(browser: Any, html: str, form: str) -> bytes:
    """Prints an HTML page and returns the file's bytes: `pdf`, or `png` as one tall image."""
    # Plots do not adapt while Chromium prints, so a PDF is drawn at the width of the paper.
    width = 703 if form == "pdf" else 1100
    with opened(browser, html, (width, 1000), media="print") as page:
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        if form == "png":
            return bytes(page.screenshot(full_page=True))
        return bytes(
            page.pdf(
                format="A4",
                margin={"top": "12mm", "right": "12mm", "bottom": "15mm", "left": "12mm"},
                print_background=True,
                tagged=True,
                outline=True,
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=FOOTER,
            )
        )
