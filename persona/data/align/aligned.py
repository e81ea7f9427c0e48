"""Checks a few photos that should be aligned: do their faces lie on ArcFace's template?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from persona.data.align.decode import EncodedPhoto
from persona.data.align.spec import RawPhoto
from persona.errors import SkipPhoto
from persona.landmarks import template

LOOKED_AT = 64
"""Photos that are checked. They take MTCNN two seconds on one core."""
FAR = 0.1
"""Largest mean distance of a face's five points from the template's, as a fraction of the side."""


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


def look_at(photos: Iterable[RawPhoto], device: str = "auto") -> Look:
    """Detects the faces in photos and compares their landmarks with the template.

    Args:
        photos: Some photos of a set, about `LOOKED_AT`. Unreadable ones are ignored.
        device: Device of MTCNN: auto, cpu or cuda.
    """
    from persona.data.align.detect import Mtcnn
    from persona.data.align.spec import MIN_FACE_PX

    images = []
    for photo in photos:
        try:
            image = EncodedPhoto(photo.read()).decode().image
        except (SkipPhoto, OSError):
            continue
        if min(image.size) >= MIN_FACE_PX and image.width == image.height:
            images.append(np.asarray(image))
    distances = [
        np.hypot(*(face.landmarks_52 - template(len(image))).T).mean() / len(image)
        for image, face in zip(images, Mtcnn(device)(images), strict=True)
        if face is not None and face.landmarks_52 is not None
    ]
    return Look(len(distances), float(np.median(distances)) if distances else 0.0)
