#!/usr/bin/env python
"""Takes the pictures of README and documentation, of pages that show drawn faces alone.

./scripts/draw_pictures.py [--report demo/report.html] [--out docs/img]

1. report.png: verdict and worst mistakes of a report on drawn faces, such as that of the demo or of
   the third notebook.
2. people.png: the page of `persona serve` with a gallery of drawn people, by Persona-S.
3. persona.png: teacher and student with size, time and accuracy, above curves of that report and
   the people page. The figures are read from docs/measurements.md and from Persona-S's card, so
   they are the measured ones.

It needs the extras `report` and `serve` and a Chromium, and takes about a minute.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

import persona
from persona.data.synthetic import draw_identity, draw_photo
from persona.errors import PersonaError
from persona.files import write_atomically
from persona.models.cards import find_model
from persona.report.browser import open_browser
from persona.workspace import Workspace

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "docs" / "measurements.md"
LARGEST = 150_000
"""Bytes of a picture."""
SEED = 7
"""Seed of the drawn people. Those of the demo have seed 0."""
PEOPLE = ("Ada", "Bruno", "Chiara", "Daniel", "Esra", "Femi")
PHOTOS = 4
STRANGER = 40
THRESHOLD = 0.77
"""That of FAR 1e-2 on drawn faces, as scripts/draw_concepts.py prints it."""
REPORT_PX, PEOPLE_PX, README_PX = (1160, 1165), (1160, 1225), (1200, 775)
SHOWN, THUMBNAIL = ("headline", "faces"), ("curves", "maps")
"""Sections of the report on its picture, and on that of the README, which is too small to read."""


@dataclass(frozen=True)
class Shown:
    """Figures of one model on the picture."""

    title: str
    role: str
    megabytes: float
    kept_as: str
    milliseconds: float
    accuracy: float


def measured_row(name: str) -> list[str]:
    """The cells of the model's row in the table of docs/measurements.md that names dlib.

    Raises:
        PersonaError: there is no such row.
    """
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in MEASURED.read_text(encoding="utf-8").splitlines()
        if line.startswith(f"| {name}")
    ]
    for row in rows:
        if len(row) == 7 and re.fullmatch(r"[\d.]+", row[6]):
            return row
    raise PersonaError(f"{MEASURED} has no row of {name} with its milliseconds")


def figures() -> tuple[Shown, Shown]:
    """What is told of teacher and student."""
    teacher, student = measured_row("MobileFaceNet, its teacher"), measured_row("persona-s")
    card = find_model("persona-s", Path("models"))
    accuracy = float(card.scores["accuracy"])
    if f"{accuracy:.4f}" != student[1]:
        raise PersonaError(f"the card says {accuracy:.4f}, {MEASURED} {student[1]}: measure again")
    return (
        Shown(
            "MobileFaceNet",
            "teacher",
            float(teacher[5]),
            "float32",
            float(teacher[6]),
            float(teacher[1]),
        ),
        Shown("Persona-S", "student", card.bytes / 1e6, "float16", float(student[6]), accuracy),
    )


def report_picture(browser: Any, report: Path, shown: tuple[str, ...]) -> Image.Image:
    """The first screen of the report: its header and these of its sections."""
    page = new_page(browser, REPORT_PX)
    page.goto(report.resolve().as_uri())
    page.wait_for_selector("body[data-drawn]", timeout=120_000)
    others = ":not(" + ", ".join(f"#{name}" for name in shown) + ")"
    hidden = f"main > section{others}, #headline .fold > :is(.scroll, .hint, .remark)"
    page.add_style_tag(content=f"{hidden} {{ display: none !important }}")
    return close_with_picture(page)


def people_picture(browser: Any, home: Path) -> Image.Image:
    """The page of `persona serve`, which looks at two enrolled people and a stranger."""
    place = Workspace.locate(home=home)
    model = persona.load("persona-s", workspace=place)
    store = home / "gallery.db"
    drawn = {name: draw_identity(SEED, number) for number, name in enumerate(PEOPLE)}
    with persona.open_gallery(store, model, threshold=THRESHOLD, keep_crops=True) as people:
        for number, (name, identity) in enumerate(drawn.items()):
            photos = [draw_photo(identity, number * 1000 + photo) for photo in range(PHOTOS)]
            people.enroll(name, list(photos), force=True)
    party = Image.new("RGB", (3 * 240, 240))
    faces = (drawn["Chiara"], draw_identity(SEED, STRANGER), drawn["Ada"])
    for number, identity in enumerate(faces):
        party.paste(draw_photo(identity, 9000 + number, 240), (240 * number, 0))
    buffer = io.BytesIO()
    party.save(buffer, "PNG")
    with served(store, home) as url:
        page = new_page(browser, PEOPLE_PX)
        page.goto(url)
        page.wait_for_selector("body[data-ready]")
        photo = {"name": "party.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
        page.set_input_files("#photo", photo)
        page.wait_for_selector("#faces .face:nth-child(3)")
        page.wait_for_selector(f"#people .person:nth-child({len(PEOPLE)}) img")
        print("people:", page.inner_text("#faces").replace("\n", " "))
        return close_with_picture(page)


@contextlib.contextmanager
def served(store: Path, home: Path) -> Iterator[str]:
    """The URL of `persona serve` with a gallery."""
    options = ("--store", str(store), "--threshold", str(THRESHOLD), "--keep-crops")
    command = [sys.executable, "-m", "persona", "serve", *options, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=home) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().removeprefix("Persona is at ").strip()
        finally:
            server.terminate()


def new_page(browser: Any, size_px: tuple[int, int]) -> Any:
    """An empty page in light colours."""
    width, height = size_px
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
    page.set_default_timeout(120_000)
    return page


def close_with_picture(page: Any) -> Image.Image:
    """What the page shows."""
    with contextlib.closing(page):
        return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


CARD = Template("""<div class="card $role"><h2>$title <small>$role</small></h2><dl>
<dt>size</dt><dd><i style="width: $size_width%"></i><span><b>$size MB</b> $kept</span></dd>
<dt>one core</dt><dd><i style="width: $time_width%"></i><span><b>$time ms</b> a face</span></dd>
<dt>LFW</dt><dd><i style="width: $accuracy_width%"></i><span><b>$accuracy</b> accuracy</span></dd>
</dl></div>""")
README = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))


def readme_picture(browser: Any, report: Image.Image, people: Image.Image) -> Image.Image:
    """Teacher and student above the two pages."""
    models = figures()
    most = [max(getattr(m, name) for m in models) for name in ("megabytes", "milliseconds")]
    cards = [
        CARD.substitute(
            **{"title": m.title, "role": m.role, "kept": m.kept_as},
            **{"size": f"{m.megabytes:.1f}", "size_width": 100 * m.megabytes / most[0]},
            **{"time": f"{m.milliseconds:.1f}", "time_width": 100 * m.milliseconds / most[1]},
            **{"accuracy": f"{m.accuracy:.4f}", "accuracy_width": 100 * m.accuracy},
        )
        for m in models
    ]
    page = new_page(browser, README_PX)
    page.set_content(
        README.substitute(
            **{"teacher": cards[0], "student": cards[1]},
            **{"report": as_url(report), "people": as_url(people)},
        )
    )
    page.wait_for_function("[...document.images].every(image => image.complete)")
    return close_with_picture(page)


def as_url(image: Image.Image) -> str:
    """A picture inside a page."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def keep(image: Image.Image, path: Path) -> None:
    """Writes a PNG with as many colours as its bytes allow.

    Raises:
        PersonaError: it is too large with few colours, too.
    """
    for colours in (256, 128, 64, 32):
        buffer = io.BytesIO()
        few = image.quantize(colours, dither=Image.Dither.NONE)
        few.save(buffer, "PNG", optimize=True)
        if len(buffer.getvalue()) < LARGEST:
            write_atomically(path, buffer.getvalue())
            print(f"{path}: {len(buffer.getvalue()) / 1000:.0f} kB, {colours} colours")
            return
    raise PersonaError(f"{path} would have {len(buffer.getvalue()):,} bytes: choose less of it")


def main() -> None:
    """Takes all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--report", type=Path, default=ROOT / "demo" / "report.html")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "img")
    chosen = parser.parse_args()
    with open_browser() as browser, tempfile.TemporaryDirectory() as home:
        report = report_picture(browser, chosen.report, SHOWN)
        thumbnail = report_picture(browser, chosen.report, THUMBNAIL)
        people = people_picture(browser, Path(home))
        picture = readme_picture(browser, thumbnail, people)
    keep(report, chosen.out / "report.png")
    keep(people, chosen.out / "people.png")
    keep(picture, chosen.out / "persona.png")


if __name__ == "__main__":
    main()
