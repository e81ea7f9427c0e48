"""Notebooks are committed with what they show, for who reads them without running them.

scripts/notebooks runs them, in CI too; with --write it keeps their outputs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LARGEST = 400_000


def outputs(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text())["cells"]
    return [one for cell in cells if cell["cell_type"] == "code" for one in cell["outputs"]]


def test_there_are_three() -> None:
    assert len(NOTEBOOKS) == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_was_run_once_from_top_to_bottom(path: Path) -> None:
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any("execution" in cell["metadata"] for cell in cells)  # times of a run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_shows_pictures_and_nothing_of_the_machine(path: Path) -> None:
    shown = outputs(path)
    assert {"image/jpeg", "image/png"} & {kind for one in shown for kind in one.get("data", {})}
    assert all(one["output_type"] != "error" and one.get("name") != "stderr" for one in shown)
    told = json.dumps([one.get("text", one.get("data", {}).get("text/plain")) for one in shown])
    assert not any(place in told for place in ("/tmp", "/home", "/root", "/work"))
    assert path.stat().st_size < LARGEST
