"""The page in a real headless Chromium. Without one these fail in CI and are skipped elsewhere."""

from __future__ import annotations

import io
import itertools
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe import find_faults
from conftest import NO_ALIGN, write_lfw
from helpers import persona_here
from PIL import Image
from test_history import write_run

from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.errors import PersonaError
from persona.report.browser import find_chromium, open_browser, opened, print_page

pytestmark = pytest.mark.heavy


def wait_until(page: Any, expression: str) -> None:
    """Waits until an expression is true on the page.

    Playwright's own wait polls from inside the page, where the page's policy allows no `eval`: it
    fails if the expression is not true at once.
    """
    until_s = time.monotonic() + 20
    while not page.evaluate(expression):
        assert time.monotonic() < until_s, f"never true: {expression}"
        page.wait_for_timeout(50)


def need_chromium() -> None:
    """Fails in CI and skips elsewhere if there is no Chromium."""
    try:
        find_chromium()
    except PersonaError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="module", autouse=True)
def _chromium() -> None:
    need_chromium()


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


WIDER = """[...document.querySelectorAll('body, body *')].filter((e) => (
  e.getBoundingClientRect().right > innerWidth + 1 && e.checkVisibility()
  && (e === document.body || !e.parentElement.closest('.scroll, svg, .skip'))))
  .map((e) => e.outerHTML)
  .concat(document.documentElement.scrollWidth > innerWidth ? ['the page'] : [])"""
"""Elements that reach beyond the page, but for what a scrolled table holds."""


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
    # ROC, DET, accuracy over cost, of two models scores and map, of all runs loss and accuracy.
    assert count == 9
    assert page.evaluate(
        "[...document.querySelectorAll('.canvas')].every(c => c.querySelector('.main-svg'))"
    )
    drawn = "c => c.querySelectorAll('.trace, .point').length"
    assert all(page.evaluate(f"[...document.querySelectorAll('.canvas')].map({drawn})"))
    faces = page.evaluate("[...document.querySelectorAll('.pairs img')].map(i => i.naturalWidth)")
    assert faces and min(faces) > 0
    assert page.evaluate(WIDER) == []
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    wait_until(page, "[...document.querySelectorAll('.main-svg')].every(s => s.clientWidth)")
    assert page.evaluate(WIDER) == []
    page.evaluate("scrollTo(0, 0)")
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"), np.float64)
    assert shot.std() > 5
    assert (np.median(shot) < 128) == (scheme == "dark")
    assert seen == []
    page.close()


def test_a_narrow_page_is_folded_and_what_is_cut_says_so(browser: Any, report: Path) -> None:
    page, seen = visit(browser, report, viewport={"width": 390, "height": 844})
    opened = "[...document.querySelectorAll('details.fold')].map(d => d.open)"
    assert page.evaluate(opened)[0] and not any(page.evaluate(opened)[1:])
    page.click("nav a[href='#maps']")
    wait_until(page, "document.querySelector('#maps details').open")
    assert sum(page.evaluate(opened)) == 2
    # A figure is as wide as its canvas, though it was drawn while its section was closed.
    wait_until(
        page,
        "(() => { const c = document.querySelector('[data-figure=map-0]');"
        "return Math.abs(c.querySelector('.main-svg').clientWidth - c.clientWidth) < 2; })()",
    )
    table = page.locator("#headline .scroll")
    hint = page.locator("#headline .hint")
    assert table.evaluate("t => t.scrollWidth > t.clientWidth") and hint.is_visible()
    table.evaluate("t => { t.scrollLeft = t.scrollWidth; }")
    wait_until(page, "!document.querySelector('#headline .scroll').matches('.cut')")
    assert not hint.is_visible()
    assert seen == []
    page.close()


def test_a_wide_page_has_all_sections_open_and_no_hint(browser: Any, report: Path) -> None:
    page, _ = visit(browser, report, viewport={"width": 1280, "height": 900})
    assert page.locator("details.fold:not([open])").count() == 0
    assert not page.locator("#headline .hint").is_visible()
    page.close()


def test_a_map_shows_the_face_under_the_pointer_and_the_pairs_of_a_chosen_photo(
    browser: Any, report: Path
) -> None:
    page, seen = visit(browser, report, viewport={"width": 1280, "height": 900})
    page.locator("[data-figure=map-0]").scroll_into_view_if_needed()
    point = page.locator("[data-figure=map-0] .point").first.bounding_box()
    at = (point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    page.mouse.move(at[0] - 30, at[1])
    page.mouse.move(*at, steps=5)
    page.wait_for_selector("#tip img", state="visible")
    shown = page.locator("#tip span").inner_text()
    assert re.fullmatch(r"person \d, photo \d+", shown)
    assert page.locator("#tip img").evaluate("i => i.naturalWidth") > 0
    page.mouse.click(*at)
    page.wait_for_selector("#chosen p img")
    person, _, photo = shown.partition(", ")
    assert page.locator("#chosen p").inner_text().startswith(f"{photo.capitalize()}, {person}: ")
    # Rings in the maps of both models, and below them what both say of each pair.
    assert page.evaluate("maps.every(m => canvas(m.id).data.at(-1).x.length === 1)")
    pairs = page.locator("#chosen .pairs > li").count()
    assert page.locator("#chosen .says li").count() == 2 * pairs
    page.click("text=Next photo")
    assert not page.locator("#chosen p").inner_text().startswith(f"{photo.capitalize()}, ")
    assert page.locator("#maps .legend li").count() == 6
    assert page.evaluate("maps.every(m => m.layout.showlegend === false)")
    assert seen == []
    page.close()


def test_a_model_has_one_colour_everywhere(browser: Any, report: Path) -> None:
    page, _ = visit(browser, report)
    found = page.evaluate(
        "data.models.map(m => figures.flatMap(f => f.traces).filter(t => t.name === m.name)"
        ".map(t => t.marker.color === m.colour))"
    )
    assert len(found) == 2 and all(all(own) and len(own) >= 3 for own in found)
    html = report.read_text()
    visible = html.partition('<script type="application/json"')[0]
    assert visible.count("<code>mobilenet_v3_large</code>") == 1
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width_px", [390, 1280])
def test_axe_finds_nothing_grave(browser: Any, report: Path, scheme: str, width_px: int) -> None:
    size = {"width": width_px, "height": 900}
    page, _ = visit(browser, report, viewport=size, color_scheme=scheme)
    assert find_faults(page) == []
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    wait_until(page, "[...document.querySelectorAll('.main-svg')].every(s => s.clientWidth)")
    page.click("text=Next photo")
    page.wait_for_selector("#chosen p img")
    assert find_faults(page) == []
    page.close()


def test_axe_finds_what_is_planted(browser: Any, report: Path) -> None:
    page, _ = visit(browser, report)
    page.evaluate("document.querySelector('.pairs img').removeAttribute('alt')")
    page.evaluate("document.querySelector('.remark').style.color = 'var(--line)'")
    kinds = [fault.split(": ")[:2] for fault in find_faults(page)]
    assert kinds == [["serious", "color-contrast"], ["critical", "image-alt"]]
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


def test_paper_has_no_scrollbar_and_no_figure_over_two_pages(browser: Any, report: Path) -> None:
    with opened(browser, report.read_text(), (703, 1000), media="print") as page:
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        scrolls = (
            "e => getComputedStyle(e).overflowX !== 'visible' || e.scrollWidth > e.clientWidth"
        )
        boxes = "[...document.querySelectorAll('.scroll, pre')]"
        assert page.evaluate(f"{boxes}.filter({scrolls}).map(e => e.outerHTML)") == []
        plots = page.evaluate(
            "[...document.querySelectorAll('.plot')].map((p) => [getComputedStyle(p).breakInside,"
            "getComputedStyle(p.parentElement).display, p.offsetHeight, p.offsetWidth])"
        )
        assert len(plots) == 9
        for inside, outside, height, width in plots:
            assert (inside, outside) == ("avoid", "block")  # Chromium breaks grids anywhere
            assert height < 340 and width > 600
        legends = page.evaluate(
            "[...document.querySelectorAll('.canvas')].map(c => [c.querySelector('.legend'),"
            "c.querySelector('.xtick')]).filter(([l]) => l).map(([l, p]) => "
            "l.getBoundingClientRect().top - p.getBoundingClientRect().bottom)"
        )
        assert legends and min(legends) > 0  # below the axis


def test_pdf_and_png(browser: Any, report: Path) -> None:
    html = report.read_text()
    pdf = print_page(browser, html, "pdf")
    assert pdf.startswith(b"%PDF")
    # Nine figures, at most three on a page, and pages for table, mistakes and config.
    assert 6 <= len(re.findall(rb"/Type /Page\b", pdf)) <= 20
    image = Image.open(io.BytesIO(print_page(browser, html, "png")))
    assert image.width == 1100 and image.height > 2000
