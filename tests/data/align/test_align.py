from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from conftest import jpeg
from PIL import Image

from persona.data import align as align_package
from persona.data.align import AlignSpec, Box, Crop, RawPhoto, build_aligner
from persona.data.synthetic import draw_identity, draw_photo
from persona.errors import PersonaError, SkipPhoto


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def align(
    *photos: bytes, method: str = "none", size: int = 160, margin: int = 14, box: Box | None = None
) -> list[Crop | SkipPhoto]:
    aligner = build_aligner(AlignSpec(method, size, margin), "cpu")
    return list(aligner(RawPhoto(lambda data=data: data, box) for data in photos))  # type: ignore[misc]


def crop_of(result: Crop | SkipPhoto) -> Image.Image:
    assert isinstance(result, Crop), result
    return Image.open(io.BytesIO(result.jpeg))


def test_a_png_called_jpg_is_read_by_its_content() -> None:
    (crop,) = align(encode(Image.new("RGB", (50, 50)), "PNG"))
    assert isinstance(crop, Crop) and crop.face is None and crop.landmarks_62 is None
    assert crop_of(crop).size == (160, 160)


def test_a_face_of_the_wanted_size_keeps_its_bytes() -> None:
    face = jpeg(1, 160)
    other = encode(Image.open(io.BytesIO(face)), "PNG")
    kept, made, resized = align(face, other, jpeg(1, 150))
    assert isinstance(kept, Crop) and kept.jpeg == face
    for crop in (made, resized):
        assert isinstance(crop, Crop) and crop.jpeg != face
        assert crop_of(crop).size == (160, 160)


def test_boxes_of_large_photos_are_decoded_smaller() -> None:
    photo = draw_photo(draw_identity(0, 1), 1, 1400)
    box = (300, 200, 1000, 1100)
    (small,) = align(encode(photo, quality=95), method="boxes", box=box)
    (whole,) = align(encode(photo, "PNG"), method="boxes", box=box)
    difference = np.asarray(crop_of(small), float) - np.asarray(crop_of(whole), float)
    assert 0 < np.abs(difference).mean() < 1.5
    assert isinstance(small, Crop) and small.face is not None and small.face.box == box


@pytest.mark.parametrize(
    "box",
    [
        (300, 300, 350, 350),
        (10, 10, 10, 40),
        (-50, -50, -5, -5),
        (40, 40, 10, 10),
        (float("nan"), 0, 10, 10),
    ],
)
def test_boxes_outside_or_empty_are_skipped(box: Box) -> None:
    (result,) = align(jpeg(1, 200), method="boxes", box=box)
    assert str(result) == "no face: its box lies outside the photo or is empty"


def test_a_photo_without_a_box_is_skipped() -> None:
    (result,) = align(jpeg(1, 200), method="boxes")
    assert str(result) == "no face: the box file does not name this photo"


@pytest.mark.parametrize("method", ["mtcnn", "landmarks"])
def test_photos_and_faults_keep_their_order(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = [encode(draw_photo(draw_identity(1, n), n, 150)) for n in range(4)]
    tiny = encode(Image.new("RGB", (300, 12)))
    grey = encode(Image.new("RGB", (100, 100), "grey"))
    mixed = [photos[0], b"", photos[1], tiny, photos[2], grey, photos[3][:700], photos[3]]
    found = align(*mixed, method=method)
    reasons = {n: str(result) for n, result in enumerate(found) if isinstance(result, SkipPhoto)}
    assert reasons.pop(6).startswith("unreadable")
    assert reasons == {
        1: "unreadable: empty file",
        3: "no face: the photo is smaller than 20 px",
        5: "no face",
    }
    # In groups of two, and one by one: the same bytes.
    monkeypatch.setattr(align_package, "GROUP_PIXELS", 40_000)
    grouped = align(*mixed, method=method)
    alone = [align(photo, method=method)[0] for photo in mixed]
    for a, b, c in zip(found, grouped, alone, strict=True):
        if isinstance(a, Crop):
            assert isinstance(b, Crop) and isinstance(c, Crop)
            assert a.jpeg == b.jpeg == c.jpeg
            assert a.landmarks_62 is not None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"method": "mtcn"}, "did you mean 'mtcnn'"),
        ({"image_size": 0}, "choose 32 to 1024"),
        ({"image_size": 10**9}, "choose 32 to 1024"),
        ({"margin": -1}, "choose 0 to"),
        ({"margin": 160}, "choose 0 to"),
        ({"min_face": 11}, "smallest face 11 px: choose 12 to 1000"),
        ({"method": "boxes", "min_face": 40}, "--align boxes detects none"),
    ],
)
def test_absurd_settings(spec: dict[str, object], message: str) -> None:
    with pytest.raises(PersonaError, match=message):
        AlignSpec(**spec)  # type: ignore[arg-type]


def test_a_smallest_face_is_part_of_the_spec() -> None:
    aligner = build_aligner(AlignSpec(min_face=60), "cpu")
    small = jpeg(1, 50)
    (reason,) = aligner([RawPhoto(lambda: small)])
    assert str(reason) == "no face: the photo is smaller than 60 px"
    assert AlignSpec(min_face=60) != AlignSpec()
    assert AlignSpec(**AlignSpec(min_face=60).facts) == AlignSpec(min_face=60)  # type: ignore[arg-type]
    # As it was written before there was a choice.
    assert AlignSpec().facts == {"method": "mtcnn", "image_size": 160, "margin": 14}


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (AlignSpec(), "--align mtcnn --image-size 160"),
        (AlignSpec("mtcnn", 112, 0), "--align mtcnn --image-size 112 --margin 0"),
        (AlignSpec("template", 112), "--align landmarks --image-size 112"),
        (
            AlignSpec("landmarks", 112, 0, min_face=60),
            "--align landmarks --image-size 112 --min-face 60",
        ),
    ],
)
def test_the_options_that_make_such_crops_of_photos(spec: AlignSpec, options: str) -> None:
    assert spec.options == options


def test_import_without_torch() -> None:
    code = (
        "import sys, persona.cli, persona.data.align, persona.data.pack, persona.data.shards; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
