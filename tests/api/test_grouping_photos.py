"""`persona group`: a folder of photos grouped into people."""

from __future__ import annotations

import csv
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_faces import drawn
from helpers import environment, persona_error_here, persona_here
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
    found: dict[str, Any] = persona_here(*command, home=photos.resolve().parent)
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


def test_groups_are_named_and_enrolled(loaded: persona.Model, photos: Path) -> None:
    out, gallery = photos.parent / "groups", photos.parent / "gallery.db"
    found = group(loaded, photos, "--out", str(out))
    copies = {Path(one["photo"]).name: one for one in found["duplicates"]}
    assert copies["b.jpg"]["of"] == str(photos / "a.jpg")
    assert copies["b.jpg"]["similarity"] == 1.0
    with (out / "groups.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["duplicate_of"]).name for row in rows][:2] == ["", "a.jpg"]
    named = ("--out", str(out), "--name", "1=Ada", "--name", "2=Eve", "--enroll")
    more = (*named, "--store", str(gallery))
    found = group(loaded, photos, *more)
    assert [g.get("name") for g in found["groups"]] == ["Ada", "Eve"]
    enrolled = {one["name"]: (one["added"], one["already"]) for one in found["enrolled"]}
    assert enrolled == {"Ada": (1, 1), "Eve": (1, 0)}
    again = group(loaded, photos, "--out", str(out), "--enroll", "--store", str(gallery))
    assert {one["name"]: one["added"] for one in again["enrolled"]} == {"Ada": 0, "Eve": 0}

    # With the same name they are one group, which looks like two people.
    model = ("--model", loaded.name, "--threshold", "0.99999")
    split = ("group", str(photos), *model, "--out", str(out), "--name", "2=")
    persona_here(*split, home=photos.parent)
    other = ("--name", "2=Ada", "--enroll", "--store", str(photos.parent / "other.db"))
    error = persona_error_here(*split[:-2], *other, home=photos.parent)
    assert "1 of 1 people are not enrolled" in error
    (joined,) = members(group(loaded, photos, "--out", str(out))).values()
    assert sorted(joined) == ["a.jpg", "b.jpg", "c.png"]
    shutil.move(photos / "below", photos.parent / "elsewhere")
    kept = ("--out", str(out), "--model", loaded.name)
    home = photos.parent
    error = persona_error_here("group", str(home / "elsewhere"), *kept, home=home)
    assert "changes groups of other photos, such as" in error


@pytest.mark.parametrize(
    ("options", "far"),
    [(("--far", "1e-4"), 1e-4), (("--far", "1e-2"), 1e-2), ((), None)],
)
def test_people_are_enrolled_at_the_threshold_that_groups(
    photos: Path, options: tuple[str, ...], far: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate chooses from the model's card. Without one, the gallery has its own threshold."""
    given: list[float | None] = []

    def opened(*arguments: Any, **_: Any) -> None:
        given.append(arguments[2])
        raise persona.PersonaError("the gallery is opened")

    monkeypatch.setattr("persona.cli.group.open_people", opened)
    command = ("group", str(photos), "--model", "persona-s", "--out", str(photos.parent / "g"))
    error = persona_error_here(*command, "--enroll", *options, home=photos.parent)
    assert error == "the gallery is opened"
    model = persona.load("persona-s")
    assert given == [None if far is None else model.calibrate(far=far).value]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--name", "1=Ada"), "--name and --enroll take the groups of a folder"),
        (("--enroll", "--out", "g.csv"), "--name and --enroll take the groups of a folder"),
        (("--out", "g", "--name", "Ada"), "give the number of a group and a name, as in 3=Ada"),
        (("--out", "g", "--name", "0=Ada"), "give the number of a group and a name, as in 3=Ada"),
        (("--out", "g", "--name", "7=Ada"), "has no group 7"),
        (("--store", "g.db"), "--store is about a gallery: give --enroll too"),
        (("--force",), "--force is about a gallery: give --enroll too"),
    ],
)
def test_options_that_do_not_fit(
    loaded: persona.Model,
    photos: Path,
    options: tuple[str, ...],
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(photos.parent)
    given = ("group", str(photos), "--model", loaded.name, *options)
    assert problem in persona_error_here(*given, home=photos.parent)


def test_many_unreadable_photos(loaded: persona.Model, photos: Path) -> None:
    for number in range(300):
        (photos / f"x{number}.jpg").write_bytes(b"" if number % 2 else b"\xff\xd8\xff nothing")
    (photos / "secret.jpg").mkdir()
    found = group(loaded, photos, "--out", str(photos.parent / "groups"))
    assert members(found) == {1: ["a.jpg", "b.jpg"], 2: ["c.png"]}
    assert len(found["left_out"]) == 302


def test_a_photo_elsewhere_is_the_same_photo(
    loaded: persona.Model, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that is spelled in another way finds its faces and its group's name again."""
    out = photos.parent / "groups"
    group(loaded, photos, "--out", str(out))
    group(loaded, photos, "--out", str(out), "--name", "1=Ada")
    monkeypatch.chdir(photos)
    monkeypatch.setattr(persona.Model, "find", None)
    (photos / "broken.jpg").unlink()
    found = group(loaded, Path("../photos"), "--out", str(out))
    assert found["groups"][0]["name"] == "Ada"
    assert found["groups"][0]["faces"][0]["photo"] == "../photos/a.jpg"


def test_no_name_is_lost_with_its_photo(loaded: persona.Model, photos: Path) -> None:
    out, home = photos.parent / "groups", photos.parent
    group(loaded, photos, "--out", str(out))
    group(loaded, photos, "--out", str(out), "--name", "1=Ada", "--name", "2=Bob")
    kept = (out / "groups.csv").read_text()
    moved = photos.rename(home / "moved")

    def error() -> str:
        named = ("group", str(moved), "--model", loaded.name, "--out", str(out))
        return persona_error_here(*named, home=home)

    assert f"groups of other photos, such as {photos}/a.jpg (3 in all): name a folder" in error()
    assert (out / "groups.csv").read_text() == kept
    (out / "groups.csv").write_text(kept.replace(str(photos), str(moved)))
    found = group(loaded, moved, "--out", str(out))
    assert [g.get("name") for g in found["groups"]] == ["Ada", "Bob"]
    kept = (out / "groups.csv").read_text()
    Image.new("RGB", (200, 200), "grey").save(moved / "c.png")
    assert f"that are not found now, such as one in {moved}/c.png (1 in all)" in error()
    assert (out / "groups.csv").read_text() == kept


def test_what_is_edited_while_photos_are_looked_at_stays(
    loaded: persona.Model, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = photos.parent / "groups"
    group(loaded, photos, "--out", str(out))
    find = persona.Model.find

    def edited(self: persona.Model, photo: Path) -> Any:
        if photo.name == "d.png":
            kept = (out / "groups.csv").read_text()
            (out / "groups.csv").write_text(kept.replace("1,,", "1,Ada,", 1))
        return find(self, photo)

    monkeypatch.setattr(persona.Model, "find", edited)
    shutil.copy(photos / "c.png", photos / "d.png")
    found = group(loaded, photos, "--out", str(out))
    names = {
        g["name"]: [Path(face["photo"]).name for face in g["faces"]]
        for g in found["groups"]
        if "name" in g
    }
    assert names == {"Ada": ["a.jpg", "b.jpg"]}
    assert ",Ada," in (out / "groups.csv").read_text()


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


@pytest.mark.heavy
def test_killed_and_run_again(loaded: persona.Model, photos: Path) -> None:
    """Killed at many moments, it leaves whole files, and ends as a run that was not killed."""
    for number in range(40):
        drawn(number % 5, 1 + number // 5).save(photos / f"many{number:02d}.jpg", quality=95)
    home, out = photos.parent, photos.parent / "groups"
    command = ("group", str(photos), "--model", loaded.name, "--threshold", "0.99", "--json")
    alone: dict[str, Any] = persona_here(*command[:-1], "--out", str(home / "alone"), home=home)
    script = (
        "import sys; from persona.api import grouping; grouping.KEPT_EVERY_S = 0.0; "
        "grouping.SHARE_OF_WRITING = 0.0; from persona.cli import main; main()"
    )
    killed, patience_s = 0, 1.0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", script, *command, "--out", str(out)],
            env=environment(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            _, errors = process.communicate(timeout=patience_s)
            assert process.returncode == 0, errors
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed, patience_s = killed + 1, patience_s + 0.4
            if (out / grouped.TABLE).exists():
                with np.load(out / grouped.TABLE) as file:
                    assert len(file["embedding"]) > 0
    assert killed > 1
    found = group(loaded, photos, "--threshold", "0.99", "--out", str(out))
    assert found["groups"] == alone["groups"]
    assert found["duplicates"] == alone["duplicates"]
    assert not list(out.glob(".*.partial"))
