from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from helpers import decode_photo
from PIL import Image, ImageFile

from persona.data.align.decode import EncodedPhoto, as_crop, shrink_for
from persona.errors import SkipPhoto
from persona.pictures import READ_WORDS


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "P", "1"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("RGB", (40, 50), (200, 30, 40)).convert(mode)
    kind = "PNG" if mode in {"RGBA", "P", "1"} else "JPEG"
    photo = decode_photo(encode(image, kind))
    assert (photo.mode, photo.size) == ("RGB", (40, 50))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpegs_have_the_pixels_that_pillow_gives(mode: str) -> None:
    data = encode(smooth(123, 77).convert(mode))
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(decode_photo(data)), expected)


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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_decoded_smaller_a_part_looks_the_same(orientation: int, shrink: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = EncodedPhoto(encode(smooth(1003, 757), exif=exif))
    small, whole = photo.decode(shrink), photo.decode()
    assert whole.image.size == photo.size
    assert small.image.size == tuple(-(-side // shrink) for side in photo.size)
    box = (130, 61, 701, 653)
    difference = np.asarray(small.resize(box, 64), float) - np.asarray(whole.resize(box, 64), float)
    assert np.abs(difference).mean() < 1


def test_how_much_smaller() -> None:
    assert [shrink_for(w, 5000, 160) for w in (100, 639, 640, 1279, 1280, 2560, 9999)] == [
        *(1, 1, 2, 2, 4, 8, 8)
    ]
    assert shrink_for(5000, 640, 160) == 2


def test_only_jpegs_are_decoded_smaller() -> None:
    photo = EncodedPhoto(encode(smooth(640, 640), "PNG")).decode(2)
    assert (photo.image.size, photo.shrink) == ((640, 640), 1)
    assert EncodedPhoto(encode(smooth(640, 640).convert("CMYK"))).decode(2).shrink == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"not found", f"no {READ_WORDS}"),
        (b"\n<!DOCTYPE html>not found", f"HTML, which is no {READ_WORDS}"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, which is not supported: convert it to JPEG"),
        (b"8BPS\0\1", "Photoshop, which is not supported: convert it to JPEG"),
        (b"GIF89a" + bytes(100), "a GIF that is cut short"),
        (b"\0\0\0\x1cftypavif", "an AVIF that is damaged"),
    ],
)
def test_what_is_no_photo_is_skipped_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(SkipPhoto) as skipped:
        decode_photo(data)
    assert str(skipped.value) == f"unreadable: {reason}"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WebP"])
def test_a_photo_that_is_cut_short_says_so_wherever_it_is_cut(kind: str) -> None:
    whole = encode(smooth(150, 120), kind)
    for end in range(16, len(whole) - 2, len(whole) // 150):
        with pytest.raises(SkipPhoto, match=f"^unreadable: a {kind} that is cut short$"):
            decode_photo(whole[:end])


@pytest.mark.parametrize(("kind", "place"), [("JPEG", 900), ("PNG", 900), ("WebP", 24)])
def test_a_photo_that_is_damaged_says_so(kind: str, place: int) -> None:
    data = bytearray(encode(smooth(150, 120), kind))
    data[place : place + 200] = b"\xff\xd8" * 100
    with pytest.raises(SkipPhoto, match=f"^unreadable: a {kind} that is damaged$"):
        decode_photo(bytes(data))


def test_no_memory_is_no_fault_of_the_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("out of memory when reading image file")

    data = encode(smooth(20, 20), "PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", full)
    with pytest.raises(MemoryError):
        decode_photo(data)


def test_a_decompression_bomb_is_not_decoded() -> None:
    bomb = encode(Image.new("1", (11_000, 11_000)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(SkipPhoto, match="over the limit"):
        decode_photo(bomb)


def test_what_is_a_crop_already() -> None:
    image = smooth(64, 64)
    turned = Image.Exif()
    turned[0x0112] = 6
    upright = Image.Exif()
    upright[0x0112] = 1
    corrupt = bytearray(encode(image))
    corrupt[-300:-200] = b"\xff\xd8" * 50
    for data, expected in (
        (encode(image), True),
        (encode(image, quality=40, progressive=True), True),
        (encode(smooth(64, 63)), False),
        (encode(image.convert("L")), False),
        (encode(image.convert("CMYK")), False),
        (encode(image, exif=turned), False),
        (encode(image, exif=upright), True),
        (encode(image, xmp=b'<x tiff:Orientation="6"/>'), False),
        (b"", False),
        (encode(image, "PNG"), False),
        (encode(image)[:-40], False),
        (bytes(corrupt), False),
    ):
        assert (as_crop(data, 64) is not None) == expected
    assert as_crop(encode(image), 64) == encode(image)


def test_a_crop_has_no_metadata() -> None:
    facts = Image.Exif()
    facts[0x013B] = "secret"  # the artist
    told: dict[str, Any] = {"exif": facts, "comment": b"secret"}
    told |= {"xmp": b"<x>secret</x>", "icc_profile": b"secret"}
    image = smooth(64, 64)
    kinds: list[dict[str, Any]] = [{}, {"progressive": True}, {"keep_rgb": True}]
    for options in kinds:
        data = encode(image, **options, **told)
        scan = data.rindex(b"\xff\xda")
        comment = b"\xff\xfe" + (2 + len(b"secret")).to_bytes(2, "big") + b"secret"
        data = data[:scan] + comment + data[scan:] + b"secret \xff\xd9"
        crop = as_crop(data, 64)
        assert crop is not None and b"secret" not in crop and crop.endswith(b"\xff\xd9")
        assert crop == encode(image, **options)
