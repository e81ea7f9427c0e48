"""`persona enroll`, `recognise`, `forget` and `gallery` on drawn faces, with the real detector."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnx_files
import pytest
from helpers import persona_error, persona_error_here, persona_here, run
from PIL import Image, ImageFilter
from typer.testing import CliRunner

from persona.cli.app import app
from persona.cli.gallery import nobody_enrolled
from persona.data.synthetic import draw_identity, draw_photo
from persona.gallery import crypt
from persona.gallery.store import open_store

EXACTLY = ("--threshold", "0.99999")
"""Photos themselves alone: the network of these tests sees colours."""

HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(99)


def drawn(person: int, photo: int) -> Image.Image:
    return draw_photo(draw_identity(0, person), photo, 160).convert("RGB")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A home with a network, and photos of Ann and Bob."""
    onnx_files.write_model(tmp_path / "net.onnx", settings=onnx_files.SETTINGS)
    for name, person in (("Ann", 0), ("Bob", 1)):
        (tmp_path / "people" / name).mkdir(parents=True)
        for photo in range(2):
            drawn(person, photo).save(tmp_path / "people" / name / f"{photo}.png")
    return tmp_path


def here(place: Path, *arguments: object) -> Any:
    return persona_here(*map(str, arguments), home=place)


def error(place: Path, *arguments: object) -> str:
    return persona_error_here(*map(str, arguments), home=place)


def test_from_enrolling_to_forgetting(place: Path) -> None:
    model = ("--model", f"onnx:{place}/net.onnx")
    people = place / "people"
    assert "has no threshold" in error(place, "enroll", "Ann", people / "Ann", *model)
    found = here(place, "gallery", "calibrate", "--threshold", 0.99999, *model)
    assert found == {"threshold": 0.99999, "threshold_source": "set by hand"}
    done = here(place, "enroll", "Ann", people / "Ann" / "0.png", "--keep-crops")
    (enrolled,) = done["enrolled"]
    assert (enrolled["name"], enrolled["added"], enrolled["already"]) == ("Ann", 1, 0)
    assert (enrolled["refused"], enrolled["looks_like"], enrolled["similarity"]) == ([], None, None)
    assert done["threshold"] == 0.99999
    line = error(place, "enroll", "Ann", people / "Bob")
    assert line.startswith("these do not look like 'Ann' as enrolled (similarity below 1.000): 0.p")
    done = here(place, "enroll", people, "--force", "--keep-crops")
    assert [(one["name"], one["added"]) for one in done["enrolled"]] == [("Ann", 1), ("Bob", 2)]
    assert [one["already"] for one in done["enrolled"]] == [1, 0]
    assert done["enrolled"][0]["refused"] == []

    seen = here(place, "recognise", people / "Bob", "--match", "max", "--annotate", place / "out")
    assert [face["name"] for one in seen["photos"] for face in one["faces"]] == ["Bob", "Bob"]
    assert (seen["model"], seen["threshold_source"]) == (f"onnx:{place}/net.onnx", "set by hand")
    assert sorted(path.name for path in (place / "out").iterdir()) == ["0.png", "1.png"]
    drawn(5, 5).save(place / "stranger.jpg", quality=95)
    (one,) = here(place, "recognise", place / "stranger.jpg", "--match", "max")["photos"]
    (face,) = one["faces"]
    assert (face["name"], "score" in face, "nearest" in face) == (None, False, False)
    (one,) = here(place, "recognise", place / "stranger.jpg", "--nearest")["photos"]
    assert one["faces"][0]["nearest"] in {"Ann", "Bob"}
    assert 0.5 < one["faces"][0]["score"] < 0.99999

    listed = here(place, "gallery", "list")
    assert [(p["name"], p["photos"]) for p in listed["people"]] == [("Ann", 2), ("Bob", 2)]
    shown = here(place, "gallery", "show", "Bob")
    assert (shown["photos"], shown["crops"]) == (2, 2)
    assert shown["least_similarity"] < 1

    other = onnx_files.write_model(place / "o.onnx", width=12, settings=onnx_files.SETTINGS)
    line = error(place, "recognise", people / "Ann", "--model", f"onnx:{other}")
    assert "made by another network" in line
    assert "persona gallery rebuild --model NAME" in line
    CliRunner().invoke(app, ["gallery", "rebuild", "--model", f"onnx:{other}"], env=env(place))
    assert "has no threshold" in error(place, "recognise", people / "Ann")
    seen = here(place, "recognise", people / "Ann", *EXACTLY, "--match", "max")
    assert [face["name"] for one in seen["photos"] for face in one["faces"]] == ["Ann", "Ann"]

    assert here(place, "forget", "Ann") == {"forgotten": "Ann", "templates": 2}
    assert "nobody named 'Ann'" in error(place, "forget", "Ann")
    assert "nobody named 'Ann'" in error(place, "gallery", "show", "Ann")


def env(place: Path) -> dict[str, str]:
    return {"PERSONA_HOME": str(place)}


def tables(place: Path, *arguments: object) -> tuple[str, str]:
    """stdout and stderr of a command without --json."""
    result = CliRunner().invoke(app, [*map(str, arguments)], env=env(place))
    assert result.exception is None, result.exception
    return result.stdout, result.stderr


def test_rename_and_merge(place: Path) -> None:
    model = ("--model", f"onnx:{place}/net.onnx")
    here(place, "enroll", place / "people", *model, *EXACTLY, "--force")
    out, _ = tables(place, "gallery", "rename", "Ann", "Zoë")
    assert out == "Ann is Zoë now: 2 photos\n"
    assert here(place, "gallery", "rename", "Zoë", "Eve") == {"name": "Eve", "photos": 2}
    line = error(place, "gallery", "rename", "Eve", "Bob")
    assert "has somebody named 'Bob' already: choose another name, or merge the two" in line
    assert "nobody named 'Ann'" in error(place, "gallery", "rename", "Ann", "Cy")

    line = error(place, "gallery", "merge", "Eve", "Bob")
    assert "has no threshold to compare the two with: give --threshold X, or --force" in line
    line = error(place, "gallery", "merge", "Eve", "Bob", "--threshold", 1.5)
    assert "threshold 1.5: a similarity is between -1 and 1" in line
    line = error(place, "gallery", "merge", "Eve", "Bob", *EXACTLY)
    assert " of 2 photos of 'Eve' do not look like 'Bob' (similarity below 1.000); leave" in line
    listed = here(place, "gallery", "list")["people"]
    assert [(one["name"], one["photos"]) for one in listed] == [("Bob", 2), ("Eve", 2)]
    assert here(place, "gallery", "merge", "Eve", "Bob", "--threshold", -1) == {
        "name": "Bob",
        "photos": 2,
    }
    here(place, "enroll", "Ann", place / "people" / "Ann", *EXACTLY, "--force")
    out, _ = tables(place, "gallery", "merge", "Ann", "Bob", "--force")
    assert out == "Bob has 2 photos of Ann now\n"
    (one,) = here(place, "gallery", "list")["people"]
    assert (one["name"], one["photos"]) == ("Bob", 6)


def test_merging_two_who_differ_is_asked_about(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ("--model", f"onnx:{place}/net.onnx")
    here(place, "enroll", place / "people", *model, *EXACTLY, "--force")
    monkeypatch.setattr("persona.cli.gallery.sys", type("", (), {"stdin": Terminal()}))
    for answer, names in (("n", ["Ann", "Bob"]), ("y", ["Bob"])):
        result = CliRunner().invoke(
            app, ["gallery", "merge", "Ann", "Bob", *EXACTLY], env=env(place), input=f"{answer}\n"
        )
        assert "Merge Ann into Bob?" in result.stderr
        assert (result.exception is None) == (answer == "y")
        assert [one["name"] for one in here(place, "gallery", "list")["people"]] == names


def test_what_a_person_reads(place: Path) -> None:
    model = ("--model", f"onnx:{place}/net.onnx")
    drawn(0, 0).filter(ImageFilter.GaussianBlur(5)).save(place / "people" / "Ann" / "2.png")
    (place / "people" / "Ann" / "3.jpg").write_text("hello")
    out, notes = tables(place, "enroll", place / "people", *model, *EXACTLY, "--force")
    assert "Ann" in out
    assert "refused: Ann: 3.jpg: unreadable: no JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF" in notes
    assert "refused: Ann: 2.png: " in notes
    out, notes = tables(place, "recognise", place / "people" / "Ann", *EXACTLY, "--match", "max")
    assert "unreadable: no JPEG" in out
    assert "threshold 1.000: given by hand" in notes
    (place / "people" / "Ann" / "more").mkdir()
    _, notes = tables(place, "recognise", place / "people" / "Ann", *EXACTLY)
    assert f"note: {place}/people/Ann is looked into, 1 folder(s) in it are not" in notes
    out, notes = tables(place, "gallery", "list")
    assert "Bob" in out
    assert "threshold none yet" in notes
    out, notes = tables(place, "forget", "Bob")
    assert out == "Bob is forgotten: 2 templates were removed; a second look found none\n"
    out, _ = tables(place, "gallery", "show", "Ann")
    assert "mean similarity" in out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_second_time_is_one_line(place: Path) -> None:
    model = ("--model", f"onnx:{place}/net.onnx", *EXACTLY, "--force")
    tables(place, "enroll", place / "people", *model)
    drawn(1, 5).save(place / "people" / "Bob" / "new.png")
    out, notes = tables(place, "enroll", place / "people", *model)
    assert "Ann" not in out
    assert "Bob" in out
    assert notes.splitlines() == [
        "enrolled already: 4 photos of 2 people",
        "`persona recognise PHOTO|FOLDER|VIDEO` tells who is on a photo",
    ]


@pytest.mark.parametrize("keep", [True, False])
def test_a_new_gallery_asks_once_whether_faces_are_kept(
    place: Path, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enroll(name: str, photo: int, *more: str) -> None:
        model = ("--model", f"onnx:{place}/net.onnx", "--threshold", "-1", "--force", *more)
        tables(place, "enroll", name, place / "people" / "Ann" / f"{photo}.png", *model)

    def crops() -> list[bool]:
        with open_store(place / "gallery.db") as store:
            return [photo.crop is not None for _, _, photo in store.photos()]

    asked: list[str] = []

    def answer(question: str, **_: Any) -> bool:
        asked.append(question)
        return keep

    monkeypatch.setattr("typer.confirm", answer)
    with monkeypatch.context() as patched:
        patched.setattr("persona.cli.gallery.sys", type("", (), {"stdin": Terminal()}))
        enroll("Ann", 0)
        assert asked == ["Keep the faces of this gallery's photos?"]
        enroll("Bob", 1)
        assert (len(asked), crops()) == (1, [keep] * 2)
    # Every command does as was answered, unless it says otherwise.
    for name, photo, more in (("Ann", 1, ()), ("Bob", 0, ("--no-keep-crops",))):
        enroll(name, photo, *more)
    assert crops() == [keep] * 3 + [False]
    with open_store(place / "gallery.db") as store:  # a new network changes nothing
        facts = store.facts()
    assert facts is not None
    assert replace(facts, digest="other", keeps_crops=None).after(facts).keeps_crops is keep


def test_what_comes_next_is_told(place: Path) -> None:
    photo = place / "people" / "Ann" / "0.png"
    store = ("--store", f"{place}/my people.db")
    model = ("--model", f"onnx:{place}/net.onnx", *EXACTLY)
    _, notes = tables(place, "enroll", "Ann", photo, *store, *model)
    assert notes.splitlines()[-1] == (
        f"`persona recognise PHOTO|FOLDER|VIDEO --store '{place}/my people.db'` tells who is on a "
        "photo"
    )
    tables(place, "forget", "Ann", *store)
    arguments = ["recognise", str(photo), *store, *model, "--json"]
    result = CliRunner().invoke(app, arguments, env=env(place))
    assert json.loads(result.stdout)["photos"][0]["faces"][0]["name"] is None
    assert result.stderr.splitlines()[-1] == (
        f"nobody is enrolled: `persona enroll NAME PHOTO... --store '{place}/my people.db'` enrols "
        "somebody"
    )
    assert nobody_enrolled("postgresql://me:secret@there/db").count("secret") == 0


def test_an_imported_gallery_learns_where_its_network_is(place: Path) -> None:
    model = ("--model", f"onnx:{place}/net.onnx")
    here(place, "enroll", "Ann", place / "people" / "Ann" / "0.png", *model, *EXACTLY)
    tables(place, "gallery", "export", place / "g.safetensors")
    there = place / "there"
    (there / "networks").mkdir(parents=True)
    for name in ("net.onnx", "net.yaml"):
        if (place / name).is_file():
            (place / name).rename(there / "networks" / name)
    tables(there, "gallery", "import", place / "g.safetensors")
    photo, moved = place / "people" / "Ann" / "0.png", f"onnx:{there}/networks/net.onnx"
    assert "net.onnx" in error(there, "recognise", photo, *EXACTLY)
    other = onnx_files.write_model(place / "o.onnx", width=12, settings=onnx_files.SETTINGS)
    assert "another network" in error(
        there, "recognise", photo, *EXACTLY, "--model", f"onnx:{other}"
    )
    assert here(there, "gallery", "list")["model"] == "onnx:net.onnx"
    here(there, "recognise", photo, *EXACTLY, "--model", moved)
    assert here(there, "gallery", "list")["model"] == moved
    (one,) = here(there, "recognise", photo, *EXACTLY)["photos"]
    assert one["faces"][0]["name"] == "Ann"
    # Another name of it is not kept where the first leads to it still.
    copy = there / "copy.onnx"
    shutil.copy(there / "networks" / "net.onnx", copy)
    here(there, "recognise", photo, *EXACTLY, "--model", f"onnx:{copy}")
    assert here(there, "gallery", "list")["model"] == moved


def test_somebody_who_is_there_is_asked_about(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ("--threshold", "0.5", "--model", f"onnx:{place}/net.onnx")
    photos = place / "people" / "Ann"
    here(place, "enroll", "Ann", photos, *model)
    line = error(place, "enroll", "Anna", photos, *model)
    assert line.startswith("'Anna' looks like 'Ann', who is enrolled (similarity 1.000); enrol the")
    assert line.endswith("or --force if they are two people")
    runner = CliRunner()
    monkeypatch.setattr("persona.cli.gallery.sys", type("", (), {"stdin": Terminal()}))
    arguments = ["enroll", "Anna", str(photos), *model]
    result = runner.invoke(app, arguments, env=env(place), input="n\n")
    assert str(result.exception) == "'Anna' is not enrolled"
    assert "who is enrolled (similarity 1.000)\nIs Anna somebody else? [y/N]" in result.stderr
    assert result.exception is not None
    result = runner.invoke(app, arguments, env=env(place), input="y\n")
    assert result.exception is None
    assert "note: Anna looks like Ann (similarity 1.000)" in result.stderr
    # Of a folder each is asked about, when all have been looked at.
    (place / "people").rename(place / "more")
    for name, other in (("Ann", "Hanna"), ("Bob", "Joanna")):
        (place / "more" / name).rename(place / "more" / other)
    result = runner.invoke(
        app, ["enroll", str(place / "more"), *model], env=env(place), input="y\nn\n"
    )
    assert str(result.exception) == "1 of 2 people are not enrolled"
    assert "not enrolled: Joanna: 'Joanna' is not enrolled" in result.stderr
    with open_store(place / "gallery.db") as store:
        assert [person.name for person in store.people()] == ["Ann", "Anna", "Hanna"]


def test_two_people_are_asked_about(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["enroll", "Ann", str(place / "people" / "Ann"), *EXACTLY, "--model"]
    arguments.append(f"onnx:{place}/net.onnx")
    runner = CliRunner()
    monkeypatch.setattr("persona.cli.gallery.sys", type("", (), {"stdin": Terminal()}))
    result = runner.invoke(app, arguments, env=env(place), input="n\nn\n")
    assert str(result.exception) == "'Ann' is not enrolled"
    assert "do not look like the other photos" in result.stderr
    result = runner.invoke(app, arguments, env=env(place), input="y\n")
    assert result.exception is None
    with open_store(place / "gallery.db") as store:
        assert store.person("Ann").photos == 2


def test_a_video(place: Path) -> None:
    model = ("--model", f"onnx:{place}/net.onnx")
    here(place, "enroll", "Ann", place / "people" / "Ann" / "0.png", *model, *EXACTLY)
    with av.open(str(place / "v.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=2)
        stream.width = stream.height = 160
        stream.pix_fmt = "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_image(drawn(0, 0))))
        container.mux(stream.encode(None))
    arguments = ("recognise", place / "v.mp4", "--threshold", 0.99, "--annotate", place / "c.mp4")
    seen = here(place, *arguments, "--every", 0.5)
    assert (seen["frames"], seen["cut_off"]) == (4, False)
    (track,) = seen["tracks"]
    assert (track["name"], track["from_s"], track["to_s"], track["frames"]) == ("Ann", 0, 1.5, 4)
    assert (place / "c.mp4").is_file()
    out, _ = tables(place, *arguments)
    assert "Ann" in out


def test_a_picture_is_never_a_video(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever its name is; but an animated GIF is."""
    model = ("--model", f"onnx:{place}/net.onnx", *EXACTLY)
    here(place, "enroll", "Ann", place / "people" / "Ann" / "0.png", *model)
    frames = [drawn(0, 0), drawn(1, 0)]
    for name in ("still.gif", "still.tiff", "still.avif", "still.jfif", "still", "still.mp4"):
        form = {"still": "WEBP", "still.mp4": "PNG"}.get(name)
        frames[0].save(place / name, form)
        (one,) = here(place, "recognise", place / name, *model)["photos"]
        assert len(one["faces"]) == 1, name
    frames[0].save(place / "moving.gif", save_all=True, append_images=frames[1:], duration=500)
    assert here(place, "recognise", place / "moving.gif", *model)["frames"] == 2
    for name, data, kind in (
        ("a.heic", HEIC, "HEIC"),
        ("a", HEIC, "HEIC"),
        ("a.mov", b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    ):
        (place / name).write_bytes(data)
        line = error(place, "recognise", place / name, *model)
        assert line.endswith(
            f"{name}: unreadable: {kind}, which is not supported: convert it to JPEG"
        )
    jpeg = io.BytesIO()
    frames[0].save(jpeg, "JPEG")
    (place / "mended.jpg").write_bytes(jpeg.getvalue()[:-2])
    assert here(place, "recognise", place / "mended.jpg", *model)["photos"][0]["faces"]
    assert "mended.jpg is mended: a JPEG without its end mark" in caplog.messages


def test_pictures_of_every_name_in_a_folder(place: Path) -> None:
    model = ("--model", f"onnx:{place}/net.onnx", *EXACTLY)
    for suffix in ("jpe", "jfif", "tif", "gif", "avif", "dib"):
        form = {"jpe": "JPEG", "jfif": "JPEG", "dib": "BMP"}.get(suffix)
        drawn(0, 0).save(place / "people" / "Ann" / f"x.{suffix}", form)
    (place / "people" / "Ann" / "x.HEIC").write_bytes(HEIC)
    done = here(place, "enroll", place / "people", *model, "--force")["enrolled"]
    reason = "x.HEIC: unreadable: HEIC, which is not supported: convert it to JPEG"
    assert reason in done[0]["refused"]
    out = place / "out"
    seen = here(place, "recognise", place / "people" / "Ann", *model, "--annotate", out)["photos"]
    unreadable = [Path(one["photo"]).name for one in seen if "unreadable" in one]
    assert (len(seen), unreadable) == (9, ["x.HEIC"])
    assert {path.name for path in out.iterdir()} == {Path(one["photo"]).name for one in seen} - {
        "x.HEIC"
    }


def test_export_and_import(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(crypt.SCRYPT, "n", 2**10)  # it is slow by design
    model = ("--model", f"onnx:{place}/net.onnx")
    (place / "word").write_text("open sesame\n")
    sealed = ("--passphrase-file", place / "word", "--store", place / "sealed.db")
    here(place, "enroll", place / "people", *model, *EXACTLY, "--force", *sealed)
    _, notes = tables(place, "gallery", "export", place / "x.safetensors", *sealed)
    assert "4 templates, which are biometric data, and is not encrypted" in notes
    _, notes = tables(place, "gallery", "import", place / "x.safetensors")
    assert notes == "2 people with 4 templates are added\n"
    assert "already" in error(place, "gallery", "import", place / "x.safetensors")
    shown = here(place, "gallery", "list")
    assert (len(shown["people"]), shown["threshold"]) == (2, None)
    assert "encrypted: give --passphrase-file" in error(
        place, "gallery", "show", "Ann", "--store", place / "sealed.db"
    )
    for content, message in ((None, "No such file"), ("\n", "its first line is empty")):
        if content is not None:
            (place / "none").write_text(content)
        line = error(place, "gallery", "show", "Ann", "--passphrase-file", place / "none")
        assert message in line


def test_bad_photos(place: Path) -> None:
    model = ("--model", f"onnx:{place}/net.onnx", *EXACTLY)
    bad = place / "bad"
    bad.mkdir()
    whole = io.BytesIO()
    drawn(0, 0).save(whole, "JPEG")
    (bad / "cut.jpg").write_bytes(whole.getvalue()[:2000])
    (bad / "empty.jpg").write_bytes(b"")
    (bad / "text.jpg").write_text("no photo")
    (bad / "phone.heic").write_bytes(HEIC)
    Image.new("1", (12_000, 12_000)).save(bad / "bomb.png")
    Image.new("RGB", (200, 200), "grey").save(bad / "nobody.png")
    Image.new("RGB", (4, 4)).save(bad / "tiny.png")
    both = Image.new("RGB", (320, 160))
    both.paste(drawn(0, 0), (0, 0))
    both.paste(drawn(1, 0), (160, 0))
    both.save(bad / "both.png")
    line = error(place, "enroll", "Ann", bad, *model)
    for reason in (
        "cut.jpg: unreadable",
        "empty.jpg: unreadable: empty file",
        "text.jpg: unreadable: no JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF",
        "phone.heic: unreadable: HEIC, which is not supported: convert it to JPEG",
        "bomb.png: unreadable: 12000 x 12000 px is over the limit of 52 megapixels for what is",
        "nobody.png: no face",
        "tiny.png: no face",
        "both.png: two faces: cut out the one you mean",
    ):
        assert reason in line, line
    seen = here(place, "recognise", bad, *model)
    kinds = {Path(one["photo"]).name: one for one in seen["photos"]}
    assert "unreadable" in kinds["bomb.png"]
    assert kinds["nobody.png"]["faces"] == []
    assert len(kinds["both.png"]["faces"]) == 2
    assert "cut.jpg: unreadable" in error(place, "recognise", bad / "cut.jpg", *EXACTLY)
    # A grey, a 16-bit, a CMYK and a turned photo are photos.
    grey = np.asarray(drawn(0, 0).convert("L"))
    Image.fromarray(grey).save(place / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(place / "deep.png")
    drawn(0, 0).convert("CMYK").save(place / "ink.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn(0, 0).transpose(Image.Transpose.ROTATE_90).save(place / "turned.jpg", exif=exif)
    for name in ("grey.png", "deep.png", "ink.jpg", "turned.jpg"):
        (one,) = here(place, "recognise", place / name, *EXACTLY)["photos"]
        assert len(one["faces"]) == 1, name


def test_what_cannot_be_meant(place: Path) -> None:
    people = place / "people"
    model = ("--model", f"onnx:{place}/net.onnx", *EXACTLY)
    (place / "none").mkdir()
    for arguments, message in (
        (("enroll", people / "Ann" / "0.png", people), "is a file: whose photo is it? Give a name"),
        (("enroll", "Ann"), "'Ann': give a name and photos (NAME PHOTO...)"),
        (("enroll", place / "none"), "give a name and photos"),
        (
            ("enroll", "Ann", place / "none"),
            "holds no photos: JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF",
        ),
        (("enroll", "Ann", people), f"`persona enroll {people}` enrols its folders as people"),
        (("enroll", "x" * 10_000, people / "Ann"), "a name of 10000 characters"),
        (("enroll", "Ann", place / "0.jpg", *model), "no photo or folder at"),
        (("recognise", place / "x.jpg"), "no photo, folder or video at"),
        (("recognise", people / "Ann"), "no gallery at"),
        (("recognise", place / "none"), "holds no photos: JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF"),
        (("recognise", people), "holds no photos: it holds 2 folder(s), name one of them"),
        (
            ("recognise", people / "Ann", "--annotate", people / "Ann"),
            "would overwrite what it shows",
        ),
        (("gallery", "list"), "no gallery at"),
        (("gallery", "calibrate"), "give one of --set SET (with --far), --far R alone, and"),
        (("gallery", "calibrate", "--set", "none"), "none"),
        (("enroll", "Ann", people / "Ann", "--model", "mobilenet_v3_small"), "is untrained"),
        (("enroll", "Ann", people / "Ann", "--threshold", "2", *model[:2]), "between -1 and 1"),
    ):
        assert message in error(place, *arguments), arguments
    here(place, "enroll", "Ann", people / "Ann" / "0.png", *model)
    line = error(place, "recognise", people / "Ann", "--match", "median", *model)
    assert line.startswith("unknown match 'median'")
    (place / "sound.mp3").write_bytes(b"ID3" + bytes(1000))
    assert "is no photo or video" in error(place, "recognise", place / "sound.mp3", *EXACTLY)
    line = error(
        place, "recognise", people / "Ann" / "0.png", "--annotate", place / "a.b", *EXACTLY
    )
    assert "name it .png or .jpg" in line


def test_folders_that_are_no_names(place: Path) -> None:
    people = place / "people"
    for folder in ("line\nbreak", "Ann ", "\u202eevil"):
        (people / folder).mkdir()
    # The same person as "Ann": neither of the folders is lost.
    drawn(0, 1).save(people / "Ann " / "more\x1b[31m.png")
    (people / "Ann" / "1.png").unlink()
    model = ("--model", f"onnx:{place}/net.onnx", *EXACTLY, "--force")
    result = CliRunner().invoke(app, ["enroll", str(people), *model, "--json"], env=env(place))
    assert str(result.exception) == "2 of 4 people are not enrolled"
    value = json.loads(result.stdout)
    assert [(one["name"], one["added"]) for one in value["enrolled"]] == [("Ann", 2), ("Bob", 2)]
    assert set(value["failed"]) == {"line\nbreak", "\u202eevil"}
    for arguments in (("forget",), ("gallery", "show")):
        assert "no Unicode text" in error(place, *arguments, os.fsdecode(b"bad\xff"))
    out, _ = tables(place, "recognise", people / "Ann ", *EXACTLY, "--match", "max")
    assert "more\\x1b[31m.png" in out
    assert "\x1b" not in out
    assert here(place, "gallery", "show", " Ann ")["photos"] == 2
    assert here(place, "forget", " Ann ")["templates"] == 2


def test_what_is_no_photo_is_not_waited_for(place: Path) -> None:
    model = ("--model", f"onnx:{place}/net.onnx", *EXACTLY)
    photos = place / "people" / "Ann"
    os.mkfifo(photos / "pipe.jpg")
    os.mkfifo(place / "pipe.mp4")
    (photos / "endless.jpg").symlink_to("/dev/zero")
    (photos / "gone.jpg").symlink_to(place / "nowhere.jpg")
    (photos / "folder.jpg").mkdir()
    (one,) = here(place, "enroll", "Ann", photos, *model, "--force")["enrolled"]
    assert one["added"] == 2
    kinds = {"endless": "a device", "folder": "a folder", "gone": "a link to nothing"}
    kinds["pipe"] = "a pipe"
    assert one["refused"] == [f"{n}.jpg: unreadable: it is {kind}" for n, kind in kinds.items()]
    for path in (photos / "pipe.jpg", place / "pipe.mp4"):
        assert error(place, "recognise", path, *EXACTLY) == f"{path}: unreadable: it is a pipe"
    line = error(place, "gallery", "show", "Ann", "--passphrase-file", "/dev/zero")
    assert line == "--passphrase-file /dev/zero: its first line is over 4096 bytes"


def test_nothing_is_overwritten(place: Path) -> None:
    model = ("--model", f"onnx:{place}/net.onnx", *EXACTLY)
    photo, gallery = place / "people" / "Ann" / "0.png", place / "gallery.db"
    here(place, "enroll", "Ann", photo, *model)
    kept = {path: path.read_bytes() for path in (photo, gallery)}
    shown = ("recognise", photo, *EXACTLY, "--annotate")
    assert "would overwrite what it shows" in error(place, *shown, photo)
    assert "name it .png or .jpg" in error(place, *shown, gallery)
    assert "name it .safetensors" in error(place, "gallery", "export", gallery)
    (place / "v.mkv").write_bytes(b"no photo")
    film = ("recognise", place / "v.mkv", *EXACTLY, "--annotate", gallery)
    assert "name it .mp4" in error(place, *film)
    assert {path: path.read_bytes() for path in kept} == kept
    # Photos that differ by their suffix alone have a copy each.
    drawn(1, 0).save(photo.with_suffix(".jpg"))
    here(place, "recognise", photo.parent, *EXACTLY, "--annotate", place / "out")
    copies = {path.name: path.read_bytes()[:3] for path in (place / "out").iterdir()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (place / "out").iterdir()} == {0o600}
    assert copies == {"0.png": b"\x89PN", "0.jpg": b"\xff\xd8\xff", "1.png": b"\x89PN"}


def test_as_a_process(place: Path) -> None:
    model = ("--model", f"onnx:{place}/net.onnx", *EXACTLY)
    here(place, "enroll", "Zoë 李", place / "people" / "Ann" / "0.png", *model)
    listed = run("persona", "gallery", "list", home=place, PYTHONIOENCODING="ascii").stdout
    assert r"Zo\xeb \u674e" in listed
    (place / "gallery.db").unlink()
    assert persona_error("gallery", "list", home=place).startswith("error: no gallery at")
