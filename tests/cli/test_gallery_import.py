"""`persona gallery audit` and `import` on drawn faces, with the real detector."""

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
from persona.gallery.store import open_store


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


def list_of(place: Path, *more: str) -> Path:
    rows = [f"{name},people/{name}/{photo}.png" for name in ("Ann", "Bob") for photo in (0, 1)]
    path = place / "people.csv"
    path.write_text("\n".join(["name,photo", *rows, *more]) + "\n")
    return path


def test_an_import_is_enrolling(place: Path) -> None:
    path = list_of(place)
    model = ("--model", f"onnx:{place}/net.onnx", "--threshold", "0.5", "--force")
    found = here(place, "gallery", "import", path, *model, "--workers", 2, "--keep-crops")
    assert (found["people"], found["added"], found["refused"], found["failed"]) == (2, 4, [], {})
    assert (found["threshold"], found["model"]) == (0.5, f"onnx:{place}/net.onnx")
    store = ("--store", place / "one.db")
    here(place, "enroll", place / "people", *model, *store, "--keep-crops")
    with open_store(place / "gallery.db") as many, open_store(place / "one.db") as one:
        for (a, _, left), (b, _, right) in zip(many.photos(), one.photos(), strict=True):
            assert a == b
            assert left.crop == right.crop
            assert left.template @ right.template == pytest.approx(1, abs=1e-5)
    found = here(place, "gallery", "import", path, *model)
    assert (found["people"], found["added"], found["already"]) == (2, 0, 4)


def test_what_an_import_refuses(place: Path) -> None:
    path = list_of(place, ",people/Ann/0.png", "Cy,none.png")
    model = ("--model", f"onnx:{place}/net.onnx", "--threshold", "0.5", "--force")
    refused = place / "refused.csv"
    command = ["gallery", "import", path, *model, "--refused", refused, "--workers", 0]
    result = CliRunner().invoke(app, [*map(str, command)], env={"PERSONA_HOME": str(place)})
    assert str(result.exception) == "1 of 3 people are not enrolled"
    assert "photos refused" in result.stdout
    assert f"written: {refused}, with 2 refused photos" in result.stderr
    assert refused.read_text().splitlines()[0] == "row,name,photo,reason"
    assert stat.S_IMODE(refused.stat().st_mode) == 0o600
    result = CliRunner().invoke(app, [*map(str, command[:-4])], env={"PERSONA_HOME": str(place)})
    assert "refused: row 7: Cy: none.png: unreadable: no file" in result.stderr
    assert "is the list itself" in error(place, *command[:-3], path)


def test_exported_files_are_still_imported(place: Path) -> None:
    model = ("--model", f"onnx:{place}/net.onnx", "--threshold", "0.5", "--force")
    here(place, "enroll", place / "people", *model)
    tables(place, "gallery", "export", place / "g.safetensors")
    command = ("gallery", "import", place / "g.safetensors", "--store", place / "other.db")
    line = error(place, *command, "--refused", place / "r.csv")
    assert "--refused goes with a list of photos, or with the address of a server" in line
    for workers in (2, 0):
        line = error(place, *command, "--workers", workers)
        assert "--workers goes with a list (.csv or .parquet) of photos" in line
    line = error(place, *command, "--threshold", 0)
    assert "--threshold goes with a list of photos, or with" in line
    line = error(place, *command, "--token-file", place / "token")
    assert "--token-file goes with the address of a server" in line
    assert here(place, *command) == {"people": 2, "added": 4}
    assert "there is no such file" in error(place, "gallery", "import", place / "none.csv")
