"""Prints the page with a headless Chromium to PDF or PNG, also for the tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from persona.errors import PersonaError
from persona.extras import missing

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VARIABLE = "PERSONA_CHROMIUM"
TIMEOUT_MS = 120_000
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
            f"{where}: PDF and PNG need one (scripts/browser installs Debian's), or choose "
            "--format html"
        )
    return found


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """Opens a Playwright browser and closes it at the end.

    Raises:
        PersonaError: Playwright or Chromium is missing, or Chromium does not start.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise missing(f"PDF and PNG need {error.name}", "report") from None
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
                f"{program} does not start ({reason}): choose --format html"
            ) from None
        with contextlib.closing(browser):
            yield browser


def print_page(browser: Any, html: str, form: str) -> bytes:
    """Prints an HTML page and returns the file's bytes: `pdf`, or `png` as one tall image."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        path.write_text(html, encoding="utf-8")
        # Plots do not adapt while Chromium prints, so a PDF is drawn at the width of the paper.
        width = 703 if form == "pdf" else 1100
        page = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme="light")
        page.set_default_timeout(TIMEOUT_MS)
        page.emulate_media(media="print", color_scheme="light")
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-drawn]")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        if form == "pdf":
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
        return bytes(page.screenshot(full_page=True))
