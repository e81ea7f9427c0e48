"""Kept crops may come from elsewhere."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from persona.data.align.spec import AlignSpec, Crop
from persona.errors import PersonaError
from persona.gallery.audit import poor_of
from persona.gallery.crops import is_crop, read_crop
from persona.gallery.store import StoredPhoto


def drawn(form: str, width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, form)
    return buffer.getvalue()


def claiming(side: int) -> bytes:
    """A small PNG that claims to be large."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(("form", "side"), [("JPEG", 8), ("JPEG", 1024), ("PNG", 160)])
def test_crops_are_read(form: str, side: int) -> None:
    image = read_crop(drawn(form, side, side))
    assert (image.mode, image.size) == ("RGB", (side, side))


NO_CROPS = {
    "empty": b"",
    "text": b"no image",
    "cut short": drawn("JPEG", 160, 160)[:-40],
    "oblong": drawn("JPEG", 160, 112),
    "too small": drawn("JPEG", 7, 7),
    "too large": drawn("PNG", 1025, 1025),
    "another format": drawn("GIF", 160, 160),
    "bomb": claiming(30_000),
    "bomb of a crop's size": claiming(1024),
}


@pytest.mark.parametrize("name", NO_CROPS)
def test_what_is_no_crop_is_refused(name: str) -> None:
    data = NO_CROPS[name]
    line = r"a kept face is no square JPEG or PNG of 8 to 1024 px: `persona gallery audit` names"
    with pytest.raises(PersonaError, match=line):
        read_crop(data)
    assert not is_crop(data)
    template = np.eye(1, 8, dtype=np.float32)[0]
    assert poor_of(StoredPhoto(template, data)) == "unreadable: its kept face is no image"


def test_embedding_refuses_it(tmp_path: Path) -> None:
    from persona.gallery.faces import Eyes
    from persona.models.sources import load_network

    eyes = Eyes(load_network("persona-s", tmp_path), AlignSpec())
    with pytest.raises(PersonaError, match="a kept face is no square JPEG or PNG"):
        eyes.embed([Crop(NO_CROPS["oblong"], None, None)])
