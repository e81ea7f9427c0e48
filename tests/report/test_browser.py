"""The page in a real headless Chromium. Without one these fail in CI and are skipped elsewhere."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import NO_ALIGN, write_lfw
from helpers import persona_here
from PIL import Image
from test_history import write_run

from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.errors import PersonaError
from persona.report.browser import find_chromium, open_browser, print_page

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module", autouse=True)
def _chromium() -> None:
    try:
        find_chromium()
    except PersonaError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_lfw(home / "data" / "raw")
    pack_photos(open_dataset("lfw", home / "data" / "raw"), home / "shards" / "lfw", NO_ALIGN)
    write_run(
        home / "runs" / "r1",
        *({"step": step, "epoch": 0, "loss": 1 / step, "test/accuracy": 0.5} for step in (1, 2)),
    )
    out = home / "report.html"
    models = ("r1", "mobilenet_v3_small", "--teacher", "mobilenet_v3_large")
    persona_here("report", *models, "--out", str(out), "-w", "0", home=home)
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


def visit(browser: Any, report: Path, **options: Any) -> tuple[Any, list[str]]:
    """The drawn page, and what went wrong or left it."""
    page = browser.new_page(**options)
    seen: list[str] = []
    page.on("console", lambda message: seen.append(message.text))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on(
        "request",
        lambda r: seen.append(r.url) if not r.url.startswith(("data:", "blob:", "file:")) else None,
    )
    page.goto(report.as_uri())
    page.wait_for_selector("body[data-drawn]", timeout=60_000)
    return page, seen


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size_px", [(390, 844), (1280, 900)], ids=["phone", "desktop"])
def test_it_is_drawn_whole(
    browser: Any, report: Path, scheme: str, size_px: tuple[int, int]
) -> None:
    viewport = {"width": size_px[0], "height": size_px[1]}
    page, seen = visit(browser, report, viewport=viewport, color_scheme=scheme)
    count = page.evaluate("figures.length")
    # ROC, DET, accuracy over cost, of two models scores and map, of the run loss and accuracy.
    assert count == 9
    assert page.evaluate(
        "[...document.querySelectorAll('.canvas')].every(c => c.querySelector('.main-svg'))"
    )
    drawn = "c => c.querySelectorAll('.trace, .point').length"
    assert all(page.evaluate(f"[...document.querySelectorAll('.canvas')].map({drawn})"))
    faces = page.evaluate("[...document.querySelectorAll('.pairs img')].map(i => i.naturalWidth)")
    assert faces and min(faces) > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= size_px[0]
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"), np.float64)
    assert shot.std() > 5
    assert (np.median(shot) < 128) == (scheme == "dark")
    assert seen == []
    page.close()


def test_the_keyboard_reaches_every_button_and_table(browser: Any, report: Path) -> None:
    page, _ = visit(browser, report)
    wanted = page.evaluate("document.querySelectorAll('button, summary, a').length")
    reached = set()
    for _ in range(wanted * 3):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(() => { const all = [...document.querySelectorAll('button, summary, a')];"
                "return all.indexOf(document.activeElement); })()"
            )
        )
        if len(reached - {-1}) == wanted:
            break
    assert len(reached - {-1}) == wanted
    page.close()


def test_a_figure_is_saved_by_its_button(browser: Any, report: Path) -> None:
    page, seen = visit(browser, report)
    with page.expect_download(timeout=60_000) as download:
        page.click("[data-save=roc]")
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
    assert seen == []
    page.close()


def test_headings_alternatives_and_contrast(browser: Any, report: Path) -> None:
    for scheme in ("light", "dark"):
        page, _ = visit(browser, report, color_scheme=scheme)
        levels = page.evaluate(
            "[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])"
        )
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        assert page.evaluate("[...document.images].every(i => i.alt)")
        assert page.evaluate("[...document.querySelectorAll('.canvas')].every(c => c.ariaLabel)")
        for name in ("--ink", "--soft", "--link"):
            colours = page.evaluate(
                f"['{name}', '--paper'].map(n => getComputedStyle(document.documentElement)"
                ".getPropertyValue(n).trim())"
            )
            assert contrast(*colours) >= 4.5
        page.close()


def contrast(first: str, second: str) -> float:
    """WCAG 2.2's contrast ratio of two #rrggbb."""

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_on_paper_all_is_open_and_nothing_waits_for_a_click(browser: Any, report: Path) -> None:
    page, _ = visit(browser, report)
    folded = "document.querySelectorAll('details:not([open])').length"
    before = page.evaluate(folded)
    assert before > 0
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(folded) == 0
    assert page.evaluate("[...document.querySelectorAll('pre')].every(p => p.offsetHeight > 0)")
    assert not page.evaluate(
        "[...document.querySelectorAll('button, nav a')].some(e => e.offsetParent)"
    )
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(folded) == before
    page.close()


def test_pdf_and_png(browser: Any, report: Path) -> None:
    html = report.read_text()
    assert print_page(browser, html, "pdf").startswith(b"%PDF")
    image = Image.open(io.BytesIO(print_page(browser, html, "png")))
    assert image.width == 1100 and image.height > 2000
