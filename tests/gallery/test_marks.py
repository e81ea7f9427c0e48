"""Labels on an annotated photo: in it, over no face and no other label, readable."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from persona.gallery import marks
from persona.gallery.marks import KNOWN, UNKNOWN, Mark, draw_marks, place_labels

Rectangle = tuple[int, int, int, int]
NAMES = ("Ada Lovelace 0.83", "unknown", "Grace Brewster Murray Hopper 0.71", "Li 0.90")


def crowd(faces: int, size: tuple[int, int], seed: int, over: int = 0) -> list[Rectangle]:
    """Faces of many sizes that do not overlap, by up to `over` px outside of the photo."""
    rng = np.random.default_rng(seed)
    found: list[Rectangle] = []
    for _ in range(4000):
        side = int(rng.integers(min(size) // 30, max(min(size) // 6, 2)))
        left, top = (int(rng.integers(-over, end - side + over + 1)) for end in size)
        one = (left, top, side, int(side * 1.3))
        if top + one[3] <= size[1] + over and not any(meet(one, other, 3) for other in found):
            found.append(one)
        if len(found) == faces:
            return found
    raise AssertionError("they find no room")


def meet(a: Rectangle, b: Rectangle, room: int = 0) -> bool:
    return all(
        a[axis] < b[axis] + b[axis + 2] + room and b[axis] < a[axis] + a[axis + 2] + room
        for axis in (0, 1)
    )


def marked(boxes: list[Rectangle]) -> list[Mark]:
    names = itertools.cycle(NAMES)
    return [
        Mark(box, number, next(names), KNOWN if number % 2 else UNKNOWN)
        for number, box in enumerate(boxes, start=1)
    ]


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, Rectangle] | None]]:
    """What every call of `place_labels` answered."""
    answers: list[list[tuple[int, Rectangle] | None]] = []

    def noted(*arguments: Any) -> Any:
        answers.append(place_labels(*arguments))
        return answers[-1]

    monkeypatch.setattr(marks, "place_labels", noted)
    return answers


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("faces", "size", "over"),
    [(1, (640, 480), 0), (12, (640, 480), 10), (40, (900, 1200), 20), (60, (1600, 900), 0)],
)
def test_labels_hide_nothing(
    faces: int,
    size: tuple[int, int],
    over: int,
    seed: int,
    placed: list[list[tuple[int, Rectangle] | None]],
) -> None:
    boxes = crowd(faces, size, seed, over)
    draw_marks(np.zeros((size[1], size[0], 3), np.uint8), marked(boxes))
    found = placed[-1]
    labels = [place[1] for place in found if place is not None]
    for left, top, width, height in labels:
        assert left >= 0 and top >= 0 and left + width <= size[0] and top + height <= size[1]
    for label, box in itertools.product(labels, boxes):
        assert not meet(label, box)
    for one, other in itertools.combinations(labels, 2):
        assert not meet(one, other)
    assert len(labels) >= 0.95 * faces
    names = [place for place in found if place is not None and place[0]]
    assert len(names) >= (faces if faces == 1 else faces / 2)


@pytest.mark.parametrize("shade", [0, 128, 255])
def test_the_faces_stay_as_they_are_and_labels_show(shade: int) -> None:
    boxes = crowd(12, (640, 480), 0)
    photo = np.full((480, 640, 3), shade, np.uint8)
    drawn = np.array(draw_marks(photo, marked(boxes)))
    line = 2 + 2  # 480 px are 2 px of colour, and 2 of the dark line around it
    for left, top, width, height in boxes:
        face = drawn[top + line : top + height - line, left + line : left + width - line]
        assert (face == shade).all()
    # Each label is dark text on its colour, whatever the photo is like.
    for colour in (KNOWN, UNKNOWN):
        assert (drawn == colour).all(axis=2).sum() > 1000
    assert (photo == shade).all()


def test_a_label_is_nearest_to_its_own_face(
    placed: list[list[tuple[int, Rectangle] | None]],
) -> None:
    boxes = [(50, 50, 40, 50), (94, 50, 40, 50), (50, 160, 40, 50)]
    draw_marks(np.zeros((400, 400, 3), np.uint8), marked(boxes))
    for number, place in enumerate(placed[-1]):
        assert place is not None
        distances = [distance(place[1], box) for box in boxes]
        assert distances[number] < min(distances[:number] + distances[number + 1 :])


def distance(a: Rectangle, b: Rectangle) -> float:
    across, down = (
        max(0, a[axis] - b[axis] - b[axis + 2], b[axis] - a[axis] - a[axis + 2]) for axis in (0, 1)
    )
    return math.hypot(across, down)


def test_a_face_alone_has_its_name_below_and_at_the_lower_edge_above() -> None:
    shapes = [[(10, 12), (80, 12), (120, 20)]]
    (below,) = place_labels(np.array([[100, 100, 50, 60]]), shapes, (400, 300))
    assert below == (2, (100, 161, 120, 20))
    (above,) = place_labels(np.array([[100, 230, 50, 65]]), shapes, (400, 300))
    assert above == (2, (100, 209, 120, 20))
    (before,) = place_labels(np.array([[360, 100, 45, 60]]), shapes, (400, 300))
    assert before == (2, (239, 100, 120, 20))
    (inwards,) = place_labels(np.array([[90, 100, 220, 60]]), [[(300, 20)]], (400, 300))
    assert inwards == (0, (90, 161, 300, 20))
    (inwards,) = place_labels(np.array([[-20, 100, 410, 60]]), [[(390, 20)]], (400, 300))
    assert inwards == (0, (0, 161, 390, 20))


def test_a_hemmed_in_face_has_its_number_and_one_that_fills_the_photo_none() -> None:
    shapes = [[(10, 12), (80, 12), (120, 20)]]
    # Between it and the photo's edge there is room for the number alone.
    (number,) = place_labels(np.array([[15, 5, 285, 390]]), shapes, (300, 400))
    assert number is not None and number[0] == 0
    assert place_labels(np.array([[-5, -5, 310, 410]]), shapes, (300, 400)) == [None]
    assert place_labels(np.empty((0, 4), np.int64), [], (300, 400)) == []
    whole = draw_marks(np.zeros((40, 30, 3), np.uint8), marked([(-5, -5, 40, 50)]))
    assert whole.size == (30, 40) and isinstance(whole, Image.Image)
