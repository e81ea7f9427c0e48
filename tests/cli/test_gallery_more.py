"""`persona gallery audit` on drawn faces, with the real detector."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import onnx_files
import pytest
from helpers import persona_error_here, persona_here
from typer.testing import CliRunner

from persona.cli.app import app
from persona.data.synthetic import draw_identity, draw_photo


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A home with a network, and two photos each of Ann and Bob."""
    onnx_files.write_model(tmp_path / "net.onnx", settings=onnx_files.SETTINGS)
    for name, person in (("Ann", 0), ("Bob", 1)):
        (tmp_path / "people" / name).mkdir(parents=True)
        for photo in range(2):
            image = draw_photo(draw_identity(0, person), photo, 160).convert("RGB")
            image.save(tmp_path / "people" / name / f"{photo}.png")
    return tmp_path


def here(place: Path, *arguments: object) -> Any:
    return persona_here(*map(str, arguments), home=place)


def error(place: Path, *arguments: object) -> str:
    return persona_error_here(*map(str, arguments), home=place)


def tables(place: Path, *arguments: object) -> tuple[str, str]:
    """stdout and stderr of a command without --json."""
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"PERSONA_HOME": str(place)})
    assert result.exception is None, result.exception
    return result.stdout, result.stderr


def test_an_audit(place: Path) -> None:
    assert "no gallery at" in error(place, "gallery", "audit")
    model = ("--model", f"onnx:{place}/net.onnx", "--threshold", "0.5")
    here(place, "enroll", place / "people", *model, "--force", "--keep-crops")
    assert "has no threshold for onnx:" in error(place, "gallery", "audit")
    found = here(place, "gallery", "audit", "--threshold", "0.5")
    assert [(one["a"], one["b"]) for one in found["alike"]] == [("Ann", "Bob")]
    assert (found["far"], found["poor"]) == ([], [])
    out, notes = tables(place, "gallery", "audit", "--threshold", "1", "--out", place / "a.html")
    assert out.count("far photo") == 4
    assert "photo 2 of 2" in out
    assert "2 people, 4 photos; threshold 1.000: given by hand" in notes
    assert stat.S_IMODE((place / "a.html").stat().st_mode) == 0o600
    assert (place / "a.html").read_text().count("<img") == 4
    line = error(place, "gallery", "audit", "--threshold", "1", "--out", place / "gallery.db")
    assert "name it .html" in line
    assert "a similarity is between -1 and 1" in error(place, "gallery", "audit", "--threshold", 2)
