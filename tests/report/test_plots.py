"""Plots for papers: labels that do not cover each other, and the three formats."""

from __future__ import annotations

import asyncio
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from test_browser import need_chromium

from persona.errors import PersonaError
from persona.report.plots import (
    LABEL_PX,
    SIZE_PX,
    Line,
    check_plot,
    line_plot,
    spread_labels,
    write_plot,
)

TEN = [Line(f"method {n}", [0, 1, 2], [0.9, 0.5, 0.3 + n / 500], "0.3 ± 0.1") for n in range(10)]


def test_labels_move_apart_no_further_than_they_must() -> None:
    assert spread_labels([10, 100, 50], 17, 400) == [10, 100, 50]
    assert spread_labels([100, 100], 20, 400) == [90, 110]
    assert spread_labels([0, 5, 390, 400], 20, 400) == [0, 20, 380, 400]
    many = spread_labels(np.linspace(200, 210, 40).tolist(), 17, 400)
    assert min(many) == pytest.approx(0) and max(many) == pytest.approx(400)


def test_ten_lines_have_ten_styles_and_ten_labels() -> None:
    figure = line_plot(
        "learning", TEN, ("experience", "accuracy"), Line("chance", [0, 2], [0.1, 0])
    )
    chance, *lines = figure.traces
    assert chance["name"] == "chance"
    styles = {(t["line"]["color"], t["line"]["dash"], t["marker"]["symbol"]) for t in lines}
    assert len(styles) == 10
    labels = figure.layout["annotations"]
    assert [label["text"] for label in labels[:2]] == [
        f"<b>method {n}</b> 0.3 ± 0.1" for n in (0, 1)
    ]
    low, high = figure.layout["yaxis"]["range"]
    height_px = SIZE_PX[1] - figure.layout["margin"]["t"] - figure.layout["margin"]["b"]
    places = sorted((e["y"] - low) / (high - low) * height_px - e["ay"] for e in labels)
    assert min(np.diff(places)) >= LABEL_PX - 1e-6


def test_what_cannot_be_drawn_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PersonaError, match=r"unknown format of a plot '\.gif'.*\.svg"):
        check_plot(Path("a.gif"))
    with pytest.raises(PersonaError, match=r"a\.svg is a folder: name a file"):
        (tmp_path / "a.svg").mkdir()
        check_plot(tmp_path / "a.svg")
    monkeypatch.setenv("PERSONA_CHROMIUM", "/nowhere/chromium")
    with pytest.raises(PersonaError, match="no program"):
        check_plot(Path("a.svg"))


@pytest.mark.heavy
@pytest.mark.parametrize("form", ["svg", "pdf", "png"])
def test_formats(tmp_path: Path, form: str) -> None:
    need_chromium()
    path = tmp_path / f"plot.{form}"
    write_plot(line_plot("learning", TEN, ("experience", "accuracy")), path)
    data = path.read_bytes()
    width, height = SIZE_PX
    if form == "png":
        image = Image.open(io.BytesIO(data))
        assert image.size == (3 * width, 3 * height)
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    elif form == "pdf":
        assert data.startswith(b"%PDF") and len(re.findall(rb"/Type /Page\b", data)) == 1
        assert b"/Font" in data  # text stays text
        box = re.search(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", data)
        assert box is not None
        assert [float(side) for side in box.groups()] == [width * 0.75, height * 0.75]
    else:
        root = ElementTree.fromstring(data)
        assert root.tag.endswith("svg") and root.get("width") == str(width)
        text = "".join(root.itertext())
        assert all(f"method {n}" in text for n in range(10))
        assert b"http" not in re.sub(rb'xmlns(:\w+)?="[^"]+"', b"", data)  # nothing is fetched


@pytest.mark.heavy
def test_a_plot_is_drawn_inside_an_event_loop_as_a_notebooks_cell_is(tmp_path: Path) -> None:
    need_chromium()

    async def cell() -> None:
        write_plot(line_plot("learning", TEN, ("experience", "accuracy")), tmp_path / "plot.png")

    asyncio.run(cell())
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
