"""`persona group`: a folder of photos grouped into people."""

from __future__ import annotations

import csv
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_faces import drawn
from helpers import persona_error_here, persona_here
from PIL import Image

import persona
from persona.api import grouping
from persona.gallery import grouped


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two equal photos of one face, one of another, one of none, one damaged."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    drawn(1).save(folder / "a.jpg", quality=95)
    shutil.copy(folder / "a.jpg", folder / "below" / "b.jpg")
    drawn(2).save(folder / "c.png")
    Image.new("RGB", (200, 200), "grey").save(folder / "empty.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no photo")
    return folder


def group(model: persona.Model, photos: Path, *more: str) -> dict[str, Any]:
    command = ("group", str(photos), "--model", model.name, "--threshold", "0.99999", *more)
    found: dict[str, Any] = persona_here(*command, home=photos.parent)
    return found


def members(found: dict[str, Any]) -> dict[int, list[str]]:
    return {g["id"]: [Path(face["photo"]).name for face in g["faces"]] for g in found["groups"]}


def test_every_face_is_in_one_group(loaded: persona.Model, photos: Path) -> None:
    found = group(loaded, photos)
    assert members(found) == {1: ["a.jpg", "b.jpg"], 2: ["c.png"]}
    assert all(len(face["box"]) == 4 for g in found["groups"] for face in g["faces"])
    assert found["left_out"][str(photos / "empty.jpg")] == "no face"
    assert found["left_out"][str(photos / "broken.jpg")].startswith("unreadable: ")


def test_a_folder_of_groups_takes_new_photos_and_keeps_its_numbers(
    loaded: persona.Model, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = photos.parent / "groups"
    first = group(loaded, photos, "--out", str(out))
    looked: list[str] = []
    find = persona.Model.find

    def noted(self: persona.Model, photo: Path) -> Any:
        looked.append(photo.name)
        return find(self, photo)

    monkeypatch.setattr(persona.Model, "find", noted)
    for n in (4, 5, 6):  # a larger group than the first
        shutil.copy(photos / "c.png", photos / f"d{n}.png")
    (photos / "below" / "b.jpg").unlink()
    second = group(loaded, photos, "--out", str(out))
    assert sorted(looked) == ["broken.jpg", "d4.png", "d5.png", "d6.png"]
    assert members(first)[1] == ["a.jpg", "b.jpg"]
    assert members(second) == {2: ["c.png", "d4.png", "d5.png", "d6.png"], 1: ["a.jpg"]}
    with (out / "groups.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["group"] for row in rows] == ["2", "2", "2", "2", "1"]
    assert "Group 2: 4 faces" in (out / "index.html").read_text()
    kept = [path for path in out.iterdir() if path.name != ".lock"]  # an empty file
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}


def test_an_interrupted_call_continues(
    loaded: persona.Model, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = photos.parent / "groups"
    monkeypatch.setattr(grouping, "KEPT_EVERY_S", 0.0)
    monkeypatch.setattr(grouping, "SHARE_OF_WRITING", 0.0)
    find = persona.Model.find

    def stops(self: persona.Model, photo: Path) -> Any:
        if photo.name == "c.png":
            raise KeyboardInterrupt
        return find(self, photo)

    monkeypatch.setattr(persona.Model, "find", stops)
    with pytest.raises(BaseException):  # noqa: B017
        group(loaded, photos, "--out", str(out))
    assert "a.jpg" in (out / grouped.TABLE).read_bytes().decode("latin-1")
    looked: list[str] = []

    def noted(self: persona.Model, photo: Path) -> Any:
        looked.append(photo.name)
        return find(self, photo)

    monkeypatch.setattr(persona.Model, "find", noted)
    assert members(group(loaded, photos, "--out", str(out)))[1] == ["a.jpg", "b.jpg"]
    assert "a.jpg" not in looked and "c.png" in looked


def test_poor_faces_are_alone_and_say_why(
    loaded: persona.Model, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persona.gallery.quality.flaw", lambda *_: "the face is blurred")
    found = group(loaded, photos)
    assert sorted(members(found).values()) == [["a.jpg"], ["b.jpg"], ["c.png"]]
    assert all(g["faces"][0]["flaw"] == "the face is blurred" for g in found["groups"])


def test_bad_tables_are_refused(loaded: persona.Model, photos: Path) -> None:
    out = photos.parent / "groups"
    group(loaded, photos, "--out", str(out))
    table = out / grouped.TABLE

    def error(*more: str) -> str:
        named = ("group", str(photos), "--model", loaded.name, "--out", str(out), *more)
        return persona_error_here(*named, home=photos.parent)

    with np.load(table) as file:
        stored = {name: file[name] for name in file.files}
    another = np.frombuffer(b"another\0", np.uint8)
    np.savez(table, **stored | {"model": another, "made_by": another})
    assert "was made by another, not by" in error()
    with zipfile.ZipFile(table, "w", zipfile.ZIP_DEFLATED) as archive:  # what unfolds
        archive.writestr("embedding.npy", bytes(1_000_000))
    assert "is damaged" in error()
    table.write_bytes(b"PK\x03\x04 nothing")
    assert "is damaged" in error()
    assert "name a folder, or something.csv" in persona_error_here(
        "group", str(photos), "--out", "groups.xlsx", home=photos.parent
    )
    assert "choose -1 to 1" in error("--threshold", "2")
