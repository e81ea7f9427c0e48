"""Drawing boxes and names on a photo.

A label lies within the photo, covers no face and no other label, and is nearer to its own face than
to any other, as on the page of `persona serve` (look.js). Every face gets its number first; then
names are written where there is room. The number is that of the face in the answer.

Shapes: N faces, C places for a label. A rectangle is (left, top, width, height) in whole px.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from persona.gallery.people import Sighting
from persona.names import legible

Ints = npt.NDArray[np.int64]
Box = tuple[float, float, float, float]
"""(x, y, width, height) px."""
Rectangle = tuple[int, int, int, int]

KNOWN, UNKNOWN, REFUSED = (0, 200, 80), (255, 170, 0), (150, 150, 150)
"""RGB colours of the boxes. Black text can be read on each."""
DARK = (0, 0, 0)
"""RGB colour of the text, and of the line around boxes and labels, which shows on a light photo."""
SMALL = 0.6
"""Size of the text if the names have no room otherwise, as a share of that of large text."""
LEAST_TEXT_PX = 10


@dataclass(frozen=True)
class Mark:
    """A face as it is drawn."""

    box: Box
    number: int
    """Place of the face in the answer, from 1 on."""
    words: str
    """Its name and similarity, or why it has none."""
    colour: tuple[int, int, int]
    """RGB colour."""


def mark_of(sighting: Sighting, box: Box, number: int) -> Mark:
    """Returns how a face is drawn."""
    if sighting.refused is not None:
        return Mark(box, number, sighting.refused.partition(":")[0], REFUSED)
    if sighting.name is None:
        return Mark(box, number, "unknown", UNKNOWN)
    return Mark(box, number, f"{legible(sighting.name)} {sighting.score:.2f}", KNOWN)


def draw_marks(photo: npt.NDArray[np.uint8], marks: Sequence[Mark]) -> Image.Image:
    """Draws boxes and labels on a copy of a photo, (H, W, 3) uint8 RGB.

    The label of a face is its name, or its number where there is no room for that. The text is
    smaller if the names have no room otherwise. A face that is hemmed in by others, or fills the
    photo, has no label.
    """
    image = Image.fromarray(photo)
    draw = ImageDraw.Draw(image)
    line = max(1, round(min(image.size) / 200))
    large = max(LEAST_TEXT_PX, min(image.size) / 25)
    faces_N4 = np.array([_outer(mark.box) for mark in marks], np.int64).reshape(-1, 4)
    for mark, face in zip(marks, faces_N4.tolist(), strict=True):
        for inset, width, colour in ((0, line + 2, DARK), (1, line, mark.colour)):
            _frame(draw, face, inset, width, colour)
    texts = [(str(mark.number), mark.words) for mark in marks]
    for size in (large, max(LEAST_TEXT_PX, SMALL * large)):
        font = ImageFont.load_default(size)
        shapes = [[_shape(text, font, line + 1) for text in both] for both in texts]
        found = place_labels(faces_N4, shapes, image.size)
        if all(place is not None and place[0] for place in found):
            break  # every name has room at this size
    for mark, both, place in zip(marks, texts, found, strict=True):
        if place is None:
            continue
        variant, (left, top, width, height) = place
        corners = (left, top, left + width - 1, top + height - 1)
        draw.rectangle(corners, fill=mark.colour, outline=DARK)
        x, y = left + width / 2, top + height / 2
        draw.text((x, y), both[variant], fill=DARK, font=font, anchor="mm")
    return image


def place_labels(
    faces_N4: Ints, shapes: Sequence[Sequence[tuple[int, int]]], size: tuple[int, int]
) -> list[tuple[int, Rectangle] | None]:
    """Finds a place for a label of each face.

    Args:
        faces_N4: (N, 4) rectangles of the faces.
        shapes: width and height in px of the labels that each face may have, the shortest first. A
            face gets the last one for which there is room when all faces have the one before it.
        size: width and height of the photo in px.

    Returns:
        Place of the label in the face's `shapes` and its rectangle. None means that there is no
        room.
    """
    places: list[tuple[int, Rectangle] | None] = [None] * len(faces_N4)
    for length in range(max(map(len, shapes), default=0)):
        for number, face in enumerate(faces_N4):
            others_M4 = np.delete(faces_N4, number, axis=0)
            taken = [place[1] for n, place in enumerate(places) if place and n != number]
            taken_L4 = np.array(taken, np.int64).reshape(-1, 4)
            free = _free_place(face, shapes[number][length], others_M4, taken_L4, size)
            if free is not None:
                places[number] = (length, free)
    return places


def _free_place(
    face_4: Ints,
    shape: tuple[int, int],
    others_M4: Ints,
    taken_L4: Ints,
    size: tuple[int, int],
) -> Rectangle | None:
    """The first place beside a face, then a little further away, where its label may lie."""
    width, height = shape
    gaps = (1, height // 2, height)
    place_C2 = np.array([p for gap in gaps for p in _beside(face_4, shape, gap, size[0])], np.int64)
    place_C4 = np.concatenate([place_C2, np.full_like(place_C2, 0) + shape], axis=1)
    inside_C = (place_C2 >= 0).all(axis=1) & (place_C2 + shape <= size).all(axis=1)
    own_C = _distances(place_C4, face_4[None])[:, 0]
    free_C = inside_C & (own_C > 0)
    free_C &= (own_C[:, None] < _distances(place_C4, others_M4)).all(axis=1)
    free_C &= (_distances(place_C4, taken_L4) > 0).all(axis=1)
    if not free_C.any():
        return None
    left, top = place_C2[int(free_C.argmax())].tolist()
    return left, top, width, height


def _beside(
    face_4: Ints, shape: tuple[int, int], gap: int, photo_width: int
) -> Iterator[tuple[int, int]]:
    """Left and top of the places around a face, the best first: below, above, then the sides."""
    left, top, wide, high = face_4.tolist()
    width, height = shape
    above, below = top - height - gap, top + high + gap
    before, after = left - width - gap, left + wide + gap
    middle = left + (wide - width) // 2
    for x in (left, middle, left + wide - width):
        yield from ((x, below), (x, above))
    for y in (top, top + (high - height) // 2, top + high - height):
        yield from ((after, y), (before, y))
    for x in (before, after):
        yield from ((x, below), (x, above))
    # At the edge of the photo it is moved inwards.
    inwards = max(0, min(middle, photo_width - width))
    yield from ((inwards, below), (inwards, above))


def _distances(a_A4: Ints, b_B4: Ints) -> npt.NDArray[np.float64]:
    """(A, B) distances in px between rectangles. 0 means that they touch or overlap."""
    start_AB2 = np.maximum(a_A4[:, None, :2], b_B4[None, :, :2])
    end_AB2 = np.minimum((a_A4[:, :2] + a_A4[:, 2:])[:, None], (b_B4[:, :2] + b_B4[:, 2:])[None])
    apart_AB2 = np.maximum(start_AB2 - end_AB2, 0)
    distance_AB: npt.NDArray[np.float64] = np.hypot(apart_AB2[..., 0], apart_AB2[..., 1])
    return distance_AB


def _outer(box: Box) -> Rectangle:
    """The whole pixels that a box touches."""
    x, y, width, height = box
    left, top = int(np.floor(x)), int(np.floor(y))
    return left, top, int(np.ceil(x + width)) - left, int(np.ceil(y + height)) - top


def _shape(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, pad: int
) -> tuple[int, int]:
    """Width and height in px of a label with some space around its text."""
    left, top, right, bottom = font.getbbox(text)
    return int(np.ceil(right - left)) + 2 * pad + 2, int(np.ceil(bottom - top)) + 2 * pad + 2


def _frame(
    draw: ImageDraw.ImageDraw,
    face: Sequence[int],
    inset: int,
    width: int,
    colour: tuple[int, int, int],
) -> None:
    """Draws a line within a rectangle, so that it ends at its edge."""
    left, top, wide, high = face
    corners = (left + inset, top + inset, left + wide - 1 - inset, top + high - 1 - inset)
    if corners[0] <= corners[2] and corners[1] <= corners[3]:
        draw.rectangle(corners, outline=colour, width=width)
