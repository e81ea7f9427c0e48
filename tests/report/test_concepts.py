"""The script that draws the plots of the documentation's Concepts pages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_browser import need_chromium

ROOT = Path(__file__).parents[2]
PLOTS = {"scores", "roc", "temperature", "views"}


def shown(page: Path) -> set[str]:
    return set(re.findall(r"img/(\w+)\.svg", page.read_text()))


def test_each_plot_is_on_a_page() -> None:
    pages = (ROOT / "docs" / "concepts").glob("*.md")
    assert set[str]().union(*map(shown, pages)) == PLOTS
    for name in PLOTS:
        assert (ROOT / "docs" / "img" / f"{name}.svg").stat().st_size < 60_000


@pytest.mark.heavy
def test_they_are_drawn_from_drawn_faces(tmp_path: Path) -> None:
    need_chromium()
    script = ROOT / "scripts" / "draw_concepts.py"
    command = [sys.executable, str(script), "--people", "4", "--out", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    assert "4 people" in said
    for name in PLOTS:
        drawing = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        assert drawing[0].get("fill") == "#fff"
        assert len(list(drawing.iter("{http://www.w3.org/2000/svg}path"))) > 5
