#!/usr/bin/env python
"""Takes the pictures of README and documentation, of pages that show drawn faces alone.

./scripts/draw_pictures.py [--report demo/report.html] [--out docs/img]

1. report.png: verdict and worst mistakes of a report on drawn faces, such as that of the demo or of
   the third notebook.
2. people.png: the page of `persona serve` with a gallery of drawn people, by Persona-S.
3. persona.png: teacher and student with size, time and accuracy, above the two pages. The figures
   are read from docs/measurements.md and from Persona-S's card, so they are the measured ones.

It needs the extras `report` and `serve` and a Chromium, and takes about a minute.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
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
"""Of the drawn people. Those of the demo have seed 0."""
PEOPLE = ("Ada", "Bruno", "Chiara", "Daniel", "Esra", "Femi")
PHOTOS = 4
STRANGER = 40
THRESHOLD = 0.73
"""That of FAR 1e-2 on drawn faces, as scripts/draw_concepts.py prints it."""
REPORT_PX, PEOPLE_PX, README_PX = (1160, 1165), (1160, 1165), (1200, 830)
SHOWN = ("headline", "mistakes")
"""Sections of the report on its picture."""


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
        Shown("MobileFaceNet", "teacher", float(teacher[5]), "float32", float(teacher[6]),
              float(teacher[1])),
        Shown("Persona-S", "student", card.bytes / 1e6, "float16", float(student[6]), accuracy),
    )


def report_picture(browser: Any, report: Path) -> Image.Image:
    """The report's first screen: header, verdict and worst mistakes."""
    page = new_page(browser, REPORT_PX)
    page.goto(report.resolve().as_uri())
    page.wait_for_selector("body[data-drawn]", timeout=120_000)
    others = ":not(" + ", ".join(f"#{name}" for name in SHOWN) + ")"
    page.add_style_tag(content=f"main > section{others}, #headline .scroll, #headline .remark "
                               "{ display: none }")
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
    command = [sys.executable, "-m", "persona", "serve", *options, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=home) as server:
        assert server.stdout is not None
        try:
            yield str(json.loads(server.stdout.readline())["url"])
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
<dt>size</dt><dd><i style="width: $size_width%"></i><b>$size MB</b> $kept</dd>
<dt>one core</dt><dd><i style="width: $time_width%"></i><b>$time ms</b> a face</dd>
<dt>LFW</dt><dd><i style="width: $accuracy_width%"></i><b>$accuracy</b> accuracy</dd>
</dl></div>""")
README = Template("""<!doctype html><meta charset="utf-8"><style>
* { box-sizing: border-box; margin: 0; }
body { width: 1200px; height: 830px; padding: 20px; background: #fff; color: #1b1f24; font: 21px "DejaVu Sans", sans-serif; }
.row { display: flex; gap: 24px; align-items: stretch; justify-content: space-between; }
.card { flex: 1; background: #f6f8fa; border: 1px solid #d0d7de; border-radius: 12px; padding: 16px 22px 18px; }
h2 { font-size: 28px; margin-bottom: 10px; } small { font-weight: 400; font-size: 19px; color: #57606a; }
dl { display: grid; grid-template-columns: 7.2rem 1fr; gap: 10px 0; align-items: center; } dt { color: #57606a; }
dd { position: relative; padding: 2px 10px; height: 36px; line-height: 32px; white-space: nowrap; }
dd b { position: relative; font-size: 23px; } dd { color: #1b1f24; }
i { position: absolute; left: 0; top: 0; bottom: 0; border-radius: 6px; background: #9cc7e8; }
.teacher i { background: #cbd2d9; }
.arrow { align-self: center; text-align: center; width: 170px; color: #57606a; font-size: 18px; line-height: 1.35; }
.arrow svg { display: block; margin: 0 auto 8px; }
figure { flex: 1; min-width: 0; margin-top: 20px; } figcaption { font-size: 20px; margin-top: 8px; color: #57606a; }
figcaption b { color: #1b1f24; } figure div { height: 470px; overflow: hidden; border: 1px solid #d0d7de; border-radius: 12px; }
figure img { width: 100%; display: block; }
</style><div class="row">$teacher<div class="arrow"><svg width="130" height="34" viewBox="0 0 130 34"><path d="M2 17H118M104 4l15 13-15 13"
fill="none" stroke="#0072B2" stroke-width="5"/></svg>distilled from photos without names</div>$student</div>
<div class="row"><figure><div><img src="$report"></div><figcaption><b>persona report</b> compares models</figcaption></figure>
<figure><div><img src="$people"></div><figcaption><b>persona serve</b> recognises people</figcaption></figure></div>""")


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
        report = report_picture(browser, chosen.report)
        people = people_picture(browser, Path(home))
        picture = readme_picture(browser, report, people)
    keep(report, chosen.out / "report.png")
    keep(people, chosen.out / "people.png")
    keep(picture, chosen.out / "persona.png")


if __name__ == "__main__":
    main()
