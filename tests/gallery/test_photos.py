"""Photos of a user's: none is decoded larger than memory wants it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from persona.errors import SkipPhoto
from persona.gallery import photos
from persona.gallery.photos import look_at, read_photo


def encoded(size: tuple[int, int], form: str = "JPEG", mode: str = "L", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, form, **options)
    return buffer.getvalue()


def test_200_megapixels_of_a_phone(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    path.write_bytes(encoded((16_320, 12_240)))
    seen = read_photo(path)
    assert seen.pixels.shape == (3060, 4080, 3)
    assert seen.size == (16_320, 12_240)
    assert seen.whole((10, 20, 30, 40)) == (40, 80, 120, 160)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_as_it_is_where_it_is_no_larger(mode: str) -> None:
    seen = look_at(encoded((4000, 4000), mode=mode))
    assert (seen.pixels.shape, seen.shrink) == ((4000, 4000, 3), 1)
    assert look_at(encoded((4000, 4001), mode=mode)).pixels.shape == (2001, 2000, 3)


def test_a_turned_photo_keeps_its_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "MAX_LOOKED_AT", 10_000)
    exif = Image.Exif()
    exif[0x0112] = 6
    seen = look_at(encoded((241, 161), exif=exif))
    assert seen.size == (161, 241)
    x, y, width, height = seen.whole((0, 0, *seen.pixels.shape[1::-1]))
    assert (x + width, y + height) == (161, 242)
    assert (x, y) == (-1, 0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            encoded((7300, 7300), "PNG"),
            "7300 x 7300 px is over the limit of 52 megapixels for what",
        ),
        (
            encoded((7300, 7300), mode="CMYK"),
            "52 megapixels for what is no RGB or grey JPEG",
        ),
    ],
)
def test_what_would_be_decoded_whole(
    data: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # its header alone is looked at
    with pytest.raises(SkipPhoto, match=reason):
        look_at(data)


def test_a_damaged_jpeg_that_only_pillow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow decodes it whole, so it must not have more pixels than what is decoded whole."""
    data = encoded((200, 100))
    damaged = data[:-2] + bytes(range(1, 9)) + data[-2:]
    assert look_at(damaged).size == (200, 100)
    monkeypatch.setattr(photos, "MAX_WHOLE", 10_000)
    assert look_at(data).size == (200, 100)
    with pytest.raises(SkipPhoto, match=r"a damaged JPEG of over 0.01 megapixels: save it anew"):
        look_at(damaged)


def test_more_than_any_phone_has() -> None:
    data = bytearray(encoded((160, 160)))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = np.array([16_000, 16_000], ">u2").tobytes()
    with pytest.raises(SkipPhoto, match="16000 x 16000 px is over the limit of 250 megapixels"):
        look_at(bytes(data))
