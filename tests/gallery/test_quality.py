from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image, ImageFilter

from persona.data.align.spec import FoundFace
from persona.data.synthetic import draw_identity, draw_photo
from persona.gallery.quality import flaw, several, sharpness

FACE = FoundFace((0, 0, 100, 120), 0.99)


def face(side_px: float, probability: float = 1.0) -> FoundFace:
    return FoundFace((0, 0, side_px, side_px * 1.2), probability)


def test_blur_is_seen() -> None:
    photo = draw_photo(draw_identity(0, 1), 1, 112)
    values = [sharpness(photo.filter(ImageFilter.GaussianBlur(px))) for px in (0, 1, 2, 4)]
    assert values == sorted(values, reverse=True)
    assert flaw(FACE, photo) is None
    reason = flaw(FACE, photo.filter(ImageFilter.GaussianBlur(4)))
    assert reason is not None
    assert reason.startswith("too blurred: sharpness ")
    assert flaw(FACE, Image.new("RGB", (112, 112))) is not None


def test_a_small_face() -> None:
    photo = draw_photo(draw_identity(0, 1), 1, 112)
    assert flaw(replace(FACE, box=(5, 5, 44, 90)), photo) == (
        "too small: the face is 39 px, at least 40 are needed"
    )
    assert flaw(replace(FACE, box=(5, 5, 45, 90)), photo) is None
    assert flaw(replace(FACE, box=(5, 5, 44, 90)), photo, shrink=2) == (
        "too small: the face is 78 px, at least 80 are needed in a photo this large"
    )


@pytest.mark.parametrize(
    ("faces", "unclear"),
    [
        ([face(100)], False),
        ([face(100), face(60)], True),
        ([face(60), face(100)], True),
        ([face(100), face(40)], False),
        ([face(100), face(80, 0.8)], False),
        ([], False),
    ],
)
def test_whose_photo_is_it(faces: list[FoundFace], unclear: bool) -> None:
    assert several(faces) == unclear
