from __future__ import annotations

import io

import numpy as np
import pytest
from conftest import jpeg
from facenet_pytorch import MTCNN
from PIL import Image

from persona.data.align import (
    AlignSpec,
    Mtcnn,
    WholePhoto,
    align_photo,
    crop_face,
    decode_photo,
)
from persona.data.synthetic import draw_identity, draw_photo
from persona.errors import PersonaError, SkipPhoto


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_mtcnn_crop_equals_facenet_pytorch() -> None:
    """Parity with the reference call, within the rounding of JPEG and of float to uint8."""
    reference = MTCNN(
        image_size=160, margin=14, selection_method="center_weighted_size", post_process=False
    )
    find, spec = Mtcnn(), AlignSpec()
    found = 0
    for number in range(6):
        photo = draw_photo(draw_identity(1, number), number)
        expected = reference(photo)
        if expected is None:
            with pytest.raises(SkipPhoto, match="no face"):
                find(photo, "")
            continue
        found += 1
        face = find(photo, "")
        crop = np.asarray(crop_face(photo, face.box, spec), np.float32)
        np.testing.assert_array_equal(crop, expected.permute(1, 2, 0).numpy())
        assert face.probability is not None and 0.7 <= face.probability <= 1
    assert found >= 5


def test_of_two_faces_the_large_central_one_is_taken() -> None:
    photo = Image.new("RGB", (420, 300), "grey")
    photo.paste(draw_photo(draw_identity(1, 0), 0, 120), (0, 90))
    photo.paste(draw_photo(draw_identity(1, 3), 3, 280), (120, 10))
    x0, _, x1, _ = Mtcnn()(photo, "").box
    assert x0 > 120 and x1 - x0 > 80


def test_detector_finds_nearly_all_drawn_faces() -> None:
    find, found = Mtcnn(), 0
    for number in range(40):
        try:
            find(draw_photo(draw_identity(0, number), number), "")
            found += 1
        except SkipPhoto:
            continue
    assert found >= 37


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "P", "1"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("RGB", (40, 50), (200, 30, 40)).convert(mode)
    kind = "PNG" if mode in {"RGBA", "P", "1"} else "JPEG"
    photo = decode_photo(encode(image, kind))
    assert (photo.mode, photo.size) == ("RGB", (40, 50))


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    photo = np.asarray(decode_photo(encode(Image.fromarray(ramp), "PNG")))
    assert photo[0, 0, 0] == 0
    assert photo[-1, -1, 0] == 255
    assert 120 <= photo[32, 0, 0] <= 135


def test_exif_rotation_is_applied() -> None:
    image = Image.new("RGB", (60, 40), "black")
    image.paste("white", (0, 0, 60, 20))  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a turn of 90 degrees clockwise
    photo = decode_photo(encode(image, exif=exif))
    assert photo.size == (40, 60)
    pixels = np.asarray(photo)
    assert pixels[30, 35, 0] > 200 and pixels[30, 5, 0] < 50


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (jpeg(1, 200)[:900], "unreadable"),
        (b"<html>not found</html>", "no JPEG, PNG"),
        (b"GIF89a" + bytes(100), "no JPEG, PNG"),
    ],
)
def test_broken_photos_are_skipped_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(SkipPhoto, match=reason):
        decode_photo(data)


def test_a_decompression_bomb_is_not_decoded() -> None:
    bomb = encode(Image.new("1", (40_000, 40_000)), "PNG")
    assert len(bomb) < 1_000_000
    with pytest.raises(SkipPhoto, match="over the limit"):
        decode_photo(bomb)


def test_a_png_called_jpg_is_read_by_its_content() -> None:
    crop = align_photo(
        encode(Image.new("RGB", (50, 50)), "PNG"), "x.jpg", WholePhoto(), AlignSpec()
    )
    assert decode_photo(crop.jpeg).size == (160, 160)
    assert crop.face is None and crop.landmarks_62 is None


def test_tiny_photos_have_no_face() -> None:
    with pytest.raises(SkipPhoto, match="smaller than 20 px"):
        Mtcnn()(Image.new("RGB", (300, 12)), "")


@pytest.mark.parametrize("box", [(300, 300, 350, 350), (10, 10, 10, 40), (-50, -50, -5, -5)])
def test_boxes_outside_or_empty_are_skipped(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(SkipPhoto, match="outside the photo or is empty"):
        crop_face(Image.new("RGB", (200, 200)), box, AlignSpec())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"method": "mtcn"}, "did you mean 'mtcnn'"),
        ({"image_size": 0}, "choose 32 to 1024"),
        ({"image_size": 10**9}, "choose 32 to 1024"),
        ({"margin": -1}, "choose 0 to"),
        ({"margin": 160}, "choose 0 to"),
    ],
)
def test_absurd_settings(spec: dict[str, object], message: str) -> None:
    with pytest.raises(PersonaError, match=message):
        AlignSpec(**spec)  # type: ignore[arg-type]


def test_import_without_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, persona.cli, persona.data.align, persona.data.pack, persona.data.shards; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
