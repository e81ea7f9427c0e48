"""Checks a few photos of a set: are they crops, and do their faces lie on ArcFace's template?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from persona.data.align import GROUP_PIXELS
from persona.data.align.decode import EncodedPhoto
from persona.data.align.spec import RawPhoto
from persona.errors import SkipPhoto
from persona.landmarks import template

LOOKED_AT = 64
"""Photos that are checked. They take MTCNN two seconds on one core."""
FAR = 0.1
"""Largest mean distance of a face's five points from the template's, as a fraction of the side."""


LARGEST_CROP = 128
"""Largest side in px of photos that are taken for crops. Most aligned sets have 112."""


@dataclass(frozen=True)
class Look:
    """What a detector found in some photos."""

    faces: int
    """Number of photos in which a face was found."""
    distance: float
    """Mean distance of a face's five points from the template's, as a fraction of the crop's side;
    the median over the faces. Sets that were aligned by MTCNN have 0.036 to 0.082. LFW's original
    photos have 0.126."""

    @property
    def aligned(self) -> bool:
        """Whether the photos may be aligned. It is also True if no face was found."""
        return not self.faces or self.distance < FAR


def are_small_squares(photos: Sequence[RawPhoto]) -> bool:
    """Whether photos are squares of one side of at most `LARGEST_CROP` px, as crops are.

    It reads no further than to the first photo that is none.
    """
    sides = set()
    for photo in photos:
        try:
            encoded = EncodedPhoto(photo.read())
        except (SkipPhoto, OSError):
            continue
        width, height = encoded.size
        sides.add(width)
        if width != height or width > LARGEST_CROP or len(sides) > 1:
            return False
    return bool(sides)


def look_at(photos: Iterable[RawPhoto], device: str = "auto") -> Look:
    """Detects the faces in photos and compares their landmarks with the template.

    Args:
        photos: Some photos of a set, about `LOOKED_AT`. Unreadable ones are ignored.
        device: Device of MTCNN: auto, cpu or cuda.
    """
    from persona.data.align.detect import Mtcnn
    from persona.data.align.spec import MIN_FACE_PX

    detect, distances = Mtcnn(device), []
    for images in _groups(photos, MIN_FACE_PX):
        distances += [
            np.hypot(*(face.landmarks_52 - template(len(image))).T).mean() / len(image)
            for image, face in zip(images, detect(images), strict=True)
            if face is not None and face.landmarks_52 is not None
        ]
    return Look(len(distances), float(np.median(distances)) if distances else 0.0)


def _groups(photos: Iterable[RawPhoto], least_px: int) -> Iterator[list[npt.NDArray[np.uint8]]]:
    """Yields the square photos of at least `least_px` px, in groups of about GROUP_PIXELS pixels.

    Unreadable ones are left out.
    """
    group: list[npt.NDArray[np.uint8]] = []
    pixels = 0
    for photo in photos:
        try:
            image = EncodedPhoto(photo.read()).decode().image
        except (SkipPhoto, OSError):
            continue
        if image.width != image.height or image.width < least_px:
            continue
        group.append(np.asarray(image))
        pixels += image.width * image.height
        if pixels >= GROUP_PIXELS:
            yield group
            group, pixels = [], 0
    if group:
        yield group
