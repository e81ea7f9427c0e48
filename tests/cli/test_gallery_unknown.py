"""`--keep-unknown` and `--liveness` of `recognise`, and `persona gallery unknown`."""

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
from persona.gallery.unknown_faces import UnknownFaces


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A home with a network, Ann enrolled, and photos of Bob."""
    onnx_files.write_model(tmp_path / "net.onnx", settings=onnx_files.SETTINGS)
    for name, person in (("ann", 0), ("bob", 1)):
        (tmp_path / name).mkdir()
        for photo in range(2):
            image = draw_photo(draw_identity(0, person), photo, 160).convert("RGB")
            image.save(tmp_path / name / f"{photo}.png")
    model = ("--model", f"onnx:{tmp_path}/net.onnx", "--threshold", "0.9999999")
    here(tmp_path, "enroll", "Ann", tmp_path / "ann", *model, "--force")
    return tmp_path


def here(place: Path, *arguments: object) -> Any:
    return persona_here(*map(str, arguments), home=place)


def error(place: Path, *arguments: object) -> str:
    return persona_error_here(*map(str, arguments), home=place)


AT = ("--threshold", "0.9999999")
"""So high that the network of the tests, to which all faces look alike, knows nobody."""


def test_unknown_faces_are_kept_proposed_and_deleted(place: Path) -> None:
    file = place / "gallery.db.unknown"
    here(place, "recognise", place / "bob", *AT)
    assert not file.exists()  # nothing without the option
    seen = here(place, "recognise", place / "bob", *AT, "--keep-unknown", "24")
    assert [photo["faces"][0]["name"] for photo in seen["photos"]] == [None, None]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert b"bob" not in file.read_bytes()  # no path
    with UnknownFaces(file) as unknown:
        assert len(unknown.faces()) == 2
        assert unknown.faces()[0].crop.jpeg[:2] == b"\xff\xd8"
    assert here(place, "gallery", "unknown", *AT)["unknown"] == []  # one visit
    told = CliRunner().invoke(app, ["gallery", "unknown", *AT], env={"PERSONA_HOME": str(place)})
    assert "2 unknown faces are kept, and nobody of them came back" in told.output
    page = place / "unknown.html"
    found = here(place, "gallery", "unknown", *AT, "--visits", "1", "--out", page)["unknown"]
    assert sum(one["faces"] for one in found) == 2
    assert (found[0]["visits"], found[0]["nearest"]) == (1, "Ann")
    assert page.read_text().count("<img") == len(found)
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    first = found[0]["number"]
    options = (*AT, "--visits", "1", "--name", f"{first}=Bob")
    done = here(place, "gallery", "unknown", *options, "--force", "--keep-crops")
    assert [(one["name"], one["added"]) for one in done["enrolled"]] == [("Bob", found[0]["faces"])]
    assert here(place, "gallery", "show", "Bob")["crops"] == found[0]["faces"]
    notes = CliRunner().invoke(app, ["forget", "Ann"], env={"PERSONA_HOME": str(place)}).stderr
    assert "`persona gallery unknown --forget-all` deletes them" in notes
    left = here(place, "gallery", "unknown", "--forget-all")["deleted"]
    assert left == 2 - found[0]["faces"]
    told = CliRunner().invoke(app, ["gallery", "unknown", *AT], env={"PERSONA_HOME": str(place)})
    assert "no unknown face is kept" in told.output


def test_bad_numbers(place: Path) -> None:
    for wrong, line in (
        ("Ada", "give NUMBER=NAME, as in 12=Ada"),
        ("1=", "give NUMBER=NAME"),
        ("7=Ada", "there is no unknown person 7"),
    ):
        assert line in error(place, "gallery", "unknown", "--name", wrong, *AT)
    assert "there is no unknown person 9" in error(place, "gallery", "unknown", "--forget", 9, *AT)
    line = error(place, "gallery", "unknown", "--out", place / "gallery.db", *AT)
    assert "name it .html" in line
    line = error(place, "recognise", place / "bob", *AT, "--keep-unknown", "1000")
    assert line == "--keep-unknown 1000: choose a time of up to 720 hours"


@pytest.mark.parametrize(
    ("option", "value"), [("--name", "1=Bob"), ("--forget", "1"), ("--out", "page.html")]
)
def test_nothing_is_deleted_that_another_option_wants(place: Path, option: str, value: str) -> None:
    here(place, "recognise", place / "bob", *AT, "--keep-unknown", "24")
    line = error(place, "gallery", "unknown", *AT, option, value, "--forget-all")
    assert line == (
        f"--forget-all deletes the faces that {option} is about: run the command with {option} "
        "first, then again with --forget-all alone"
    )
    with UnknownFaces(place / "gallery.db.unknown") as unknown:
        assert len(unknown.faces()) == 2


def test_a_liveness_check_is_asked(place: Path) -> None:
    line = error(place, "recognise", place / "bob", *AT, "--liveness", "none-such")
    assert "unknown liveness check 'none-such'" in line
    line = error(place, "recognise", place / "bob", *AT, "--liveness-threshold", "0.4")
    assert "goes with --liveness" in line
    # A face network is no liveness model.
    settings = "input_size: 16\nmean: [0, 0, 0]\nstd: [1, 1, 1]\nactivation: none\n"
    (place / "net.yaml").write_text(onnx_files.SETTINGS)
    line = error(place, "recognise", place / "bob", *AT, "--liveness", place / "net.onnx")
    assert "unknown key 'alignment'" in line
    onnx_files.write_model(place / "live.onnx")
    (place / "live.yaml").write_text(settings)
    line = error(place, "recognise", place / "bob", *AT, "--liveness", place / "live.onnx")
    assert "is no liveness model of its settings: it has output out0 of shape (2, 9)" in line
    (place / "live.yaml").write_text(settings.replace("none", "softmax") + "live: 0\n")
    live = ("--liveness", place / "live.onnx", "--keep-unknown", "1")
    never = here(place, "recognise", place / "bob", *AT, *live, "--liveness-threshold", "1")
    refused = [photo["faces"][0]["refused"] for photo in never["photos"]]
    always = here(place, "recognise", place / "bob", *AT, *live, "--liveness-threshold", "0")
    assert "refused" not in always["photos"][0]["faces"][0]
    assert refused == ["not live", "not live"]
    with UnknownFaces(place / "gallery.db.unknown") as unknown:
        assert len(unknown.faces()) == 2  # those of the second call
