from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from api_faces import drawn
from helpers import persona_error_here, persona_here
from PIL import Image, ImageFilter

import persona
from persona.api.embedding import EmbeddedFaces, embed_photos, find_photos, write_embeddings
from persona.api.grouping import group_photos
from persona.api.photos import look
from persona.gallery.grouped import enroll_groups


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photos of a face, one of none, one that is damaged; some of them in a folder below."""
    folder = tmp_path / "photos"
    (folder / "below" / "@eaDir").mkdir(parents=True)
    drawn(1).save(folder / "a.jpg", quality=95)
    drawn(2).save(folder / "below" / "b.png")
    drawn(3).save(folder / "below" / "@eaDir" / "b.png")
    Image.new("RGB", (200, 200), "grey").save(folder / "empty.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no photo")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.mark.parametrize("name", ["faces.npz", "faces.parquet"])
def test_every_face_of_a_folder_has_a_row(
    loaded: persona.Model, photos: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / name
    said = persona_here(
        "embed", str(photos), "--out", str(out), "--model", loaded.name, home=tmp_path
    )
    wanted = [str(photos / "a.jpg"), str(photos / "below" / "b.png")]
    assert (said["photos"], said["faces"], said["embedding_size"]) == (4, 2, loaded.embedding_size)
    assert said["left_out"][str(photos / "empty.jpg")] == "no face"
    assert said["left_out"][str(photos / "broken.jpg")].startswith("unreadable: ")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600  # embeddings are biometric data
    if name.endswith(".npz"):
        with np.load(out) as table:
            owners, boxes, found = (table[key] for key in ("photo", "box", "embedding"))
    else:
        rows = pyarrow.parquet.read_table(out)
        owners, boxes, found = (
            np.array(rows[key].to_pylist()) for key in ("photo", "box", "embedding")
        )
    assert list(owners) == wanted and boxes.shape == (2, 4)
    np.testing.assert_allclose(found, loaded.embed([Path(path) for path in wanted]), atol=1e-6)


@pytest.mark.parametrize("name", ["faces.npz", "faces.parquet"])
def test_a_file_name_that_is_not_utf8_is_written(tmp_path: Path, name: str) -> None:
    photos = [os.fsdecode(b"caf\xe9.jpg"), "caf\u00e9.jpg"]
    boxes, probabilities = np.zeros((2, 4), np.float32), np.ones(2, np.float32)
    faces = EmbeddedFaces(photos, boxes, probabilities, np.ones((2, 8), np.float32), {})
    write_embeddings(tmp_path / name, faces)
    if name.endswith(".npz"):
        with np.load(tmp_path / name) as table:
            found = table["photo"].tolist()
    else:
        found = pyarrow.parquet.read_table(tmp_path / name)["photo"].to_pylist()
    assert found == ["caf\\udce9.jpg", "caf\u00e9.jpg"]


@pytest.mark.parametrize("orientation", [1, 6, 3])
def test_boxes_are_those_of_the_original_where_it_is_decoded_smaller(
    loaded: persona.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int
) -> None:
    path, exif = tmp_path / "photo.jpg", Image.Exif()
    exif[0x0112] = orientation
    upright = Image.new("RGB", (903, 701), "grey")
    upright.paste(drawn(1, size_px=400), (430, 250))
    turn = {1: 0, 6: 90, 3: 180}[orientation]
    upright.rotate(turn, expand=True).save(path, quality=95, exif=exif)
    (whole,) = loaded.find(path)
    monkeypatch.setattr("persona.gallery.photos.MAX_LOOKED_AT", 300_000)  # it has 633,003
    for photo in (Image.open(path), path, path.read_bytes()):
        (face,) = loaded.find(photo)
        np.testing.assert_allclose(face.box, whole.box, atol=30)
        assert face.landmarks is not None and whole.landmarks is not None
        np.testing.assert_allclose(face.landmarks, whole.landmarks, atol=15)
    np.testing.assert_allclose(embed_photos(loaded, [path]).boxes[0], face.box, atol=0.1)
    with persona.open_gallery(tmp_path / "g.db", loaded, threshold=0.5, keep_crops=True) as people:
        state = group_photos(loaded, [path]).state
        state.name(1, "Ada")
        (done,), failed = enroll_groups(people._gallery, state)
        assert (done.added, done.refused, failed) == (1, (), {})  # its face was found again
        (seen,) = people.recognise(path)
        x, y, width, height = seen.box
        np.testing.assert_allclose((x, y, x + width, y + height), face.box, atol=0.1)


def test_why_a_face_is_refused_is_said_in_px_of_the_original(
    loaded: persona.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.jpg"
    photo = Image.new("RGB", (903, 701), "grey")
    photo.paste(drawn(1, size_px=110), (430, 250))
    photo.save(path, quality=95)
    (whole,) = loaded.find(path)
    assert whole.flaw is None
    monkeypatch.setattr("persona.gallery.photos.MAX_LOOKED_AT", 300_000)  # it has 633,003
    (face,) = loaded.find(path)
    x0, y0, x1, y1 = face.box
    side_px = min(x1 - x0, y1 - y0)
    reason = f"the face is {side_px:.0f} px, at least 80 are needed in a photo this large"
    assert 40 < side_px < 80 and face.flaw == f"too small: {reason}"
    with persona.open_gallery(tmp_path / "g.db", loaded, threshold=0.5) as people:
        assert [seen.refused for seen in people.recognise(path)] == [face.flaw]
        with pytest.raises(persona.PersonaError, match=reason):
            people.enroll("Ada", path)


@pytest.mark.parametrize("orientation", [1, 2, 5, 6, 8])
@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "webp"])
def test_an_image_of_pillow_is_looked_at_like_its_file(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    path, exif = tmp_path / f"photo.{kind}", Image.Exif()
    exif[0x0112] = orientation
    photo = Image.new("RGB", (60, 40), "red")
    photo.paste("blue", (0, 0, 30, 10))
    photo.save(path, exif=exif)
    by_path, by_image = look(path), look(Image.open(path))
    assert by_image.size == by_path.size == ((60, 40) if orientation < 5 else (40, 60))
    np.testing.assert_allclose(by_image.pixels.astype(int), by_path.pixels, atol=2)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "L", "P"])
def test_an_image_of_pillow_has_the_colours_of_its_file(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "photo.png"
    if mode == "I;16":
        photo = Image.fromarray(np.full((20, 30), 9_000, np.uint16))
        photo.putpixel((0, 0), 60_000)
    else:
        photo = Image.new("RGBA", (30, 20), (200, 100, 50, 0)).convert(mode)
    photo.save(path)
    np.testing.assert_array_equal(look(Image.open(path)).pixels, look(path).pixels)


def test_what_is_large_in_memory_is_looked_at_smaller() -> None:
    pixels = np.zeros((4000, 5000, 3), np.uint8)
    for photo in (pixels, Image.fromarray(pixels)):
        looked = look(photo)
        assert (looked.pixels.shape, looked.size) == ((2000, 2500, 3), (5000, 4000))
        assert looked.shrink == 2
    assert look(pixels[:100]).pixels.base is pixels  # and is otherwise not copied


def test_an_image_that_cannot_be_looked_at_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cut.jpg"
    drawn(1).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    damaged = "photo: unreadable: an image that is damaged"
    with Image.open(path) as photo, pytest.raises(persona.PersonaError, match=damaged):
        look(photo)
    monkeypatch.setattr("persona.data.align.decode.MOST_PIXELS", 5_000)
    with pytest.raises(persona.PersonaError, match="160 x 160 px is over the limit"):
        look(drawn(1))


def test_what_cannot_be_embedded_is_said_before_anything_is(
    loaded: persona.Model, photos: Path, tmp_path: Path
) -> None:
    def error(place: Path, out: str) -> str:
        named = ("--out", out, "--model", loaded.name)
        return persona_error_here("embed", str(place), *named, home=tmp_path)

    assert "faces.csv: name it something.npz or something.parquet" in error(photos, "faces.csv")
    assert "no photo or folder at" in error(tmp_path / "nowhere", "faces.npz")
    (tmp_path / "bare").mkdir()
    assert "bare holds no photos" in error(tmp_path / "bare", "faces.npz")
    assert find_photos(photos / "a.jpg") == [photos / "a.jpg"]


def test_two_photos_are_verified(loaded: persona.Model, photos: Path, tmp_path: Path) -> None:
    named = (str(photos / "a.jpg"), str(photos / "below" / "b.png"), "--model", loaded.name)
    verdict = persona_here("verify", *named, home=tmp_path)
    assert set(verdict) >= {"similarity", "same", "threshold", "far"}
    assert verdict["same"] is None and verdict["threshold"] is None
    low, high = (
        persona_here("verify", *named, "--threshold", str(at), home=tmp_path) for at in (-1, 1)
    )
    assert low["same"] is True and high["same"] is False
    empty = (str(photos / "empty.jpg"), *named[1:])
    assert "empty.jpg: no face was found in it" in persona_error_here(
        "verify", *empty, home=tmp_path
    )
    both = ("--threshold", "0.5", "--calibrate", "lfw")
    assert "choose one of --threshold and --calibrate" in persona_error_here(
        "verify", *named, *both, home=tmp_path
    )


def test_doubts_about_a_verdict_are_told(loaded: persona.Model, tmp_path: Path) -> None:
    face = drawn(1)
    group = Image.new("RGB", (2 * face.width, face.height), "grey")
    group.paste(face, (0, 0))
    small = drawn(2)
    group.paste(small.resize((small.width // 3, small.height // 3)), (face.width + 40, 40))
    blurred = face.filter(ImageFilter.GaussianBlur(3))
    assert persona.verify(face, face, model=loaded, threshold=0.5).notes == ()
    doubted = persona.verify(blurred, group, model=loaded, threshold=0.5).notes
    assert doubted[0].startswith("the first photo: too blurred: sharpness")
    assert doubted[1:] == ("the second photo shows 1 other face: the largest face is compared",)
    chosen = loaded.only_face(blurred)
    (told,) = persona.verify(face, chosen, model=loaded, threshold=0.5).notes
    assert told.startswith("the second photo: too blurred")

    group.save(tmp_path / "group.png")
    named = ("verify", *[str(tmp_path / "group.png")] * 2, "--threshold", "0.5")
    said = persona_here(*named, "--model", "mobilenet_v3_small", home=tmp_path)
    assert said["notes"][0] == "mobilenet_v3_small is untrained and knows nobody"
    assert said["notes"][1].startswith(f"photo {tmp_path}/group.png shows 1 other face")
    with pytest.raises(persona.PersonaError, match=r"URLs are not fetched, so download it first"):
        persona.verify("https://x.org/a.jpg", face, model=loaded)
