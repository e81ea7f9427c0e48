"""Which faces are good enough to be enrolled or compared.

The limits come from 100 photos of LFW, 50 of AT&T's faces and 30 drawn ones. Sharp faces have a
sharpness of 26 to 504. The median LFW face (94 px wide) has 12 after a Gaussian blur of 2 px, and 6
after one of 3 px.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from persona.data.align.spec import FoundFace

MIN_SIDE_PX = 40
"""Shortest side in px of a face's box in the decoded photo. Smaller faces have too few pixels for
networks of 112 to 160 px."""
MIN_SHARPNESS = 8.0
"""Least sharpness of a face, see `sharpness`."""
SHARPNESS_SIZE_PX = 112
"""Side in px to which a crop is resized before its sharpness is measured."""
SURE = 0.9
"""Probability of a detection from which it counts as a face of the photo."""
SECOND = 0.5
"""Share of the largest face's side from which a second face makes a photo ambiguous."""


def side_px(face: FoundFace) -> float:
    """Returns the shorter side of a face's box in px."""
    x0, y0, x1, y1 = face.box
    return min(x1 - x0, y1 - y0)


def sharpness(crop: Image.Image) -> float:
    """Returns the variance of the Laplacian of a crop's grey values.

    This is the measure LAPV of Pech-Pacheco et al. 2000.
    """
    small = crop.convert("L").resize((SHARPNESS_SIZE_PX, SHARPNESS_SIZE_PX), Image.Resampling.BOX)
    grey = np.asarray(small, np.float32)
    edges = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1]
    edges -= grey[1:-1, :-2] + grey[1:-1, 2:]
    return float(edges.var())


def flaw(face: FoundFace, crop: Image.Image, shrink: int = 1) -> str | None:
    """Returns why a face is too poor to be used, or None if it is good enough.

    Args:
        face: the face, in px of the decoded photo.
        crop: its crop.
        shrink: factor by which the photo was decoded smaller. The reason gives sizes in px of the
            original photo.
    """
    if side_px(face) < MIN_SIDE_PX:
        return (
            f"too small: the face is {side_px(face) * shrink:.0f} px, at least "
            f"{MIN_SIDE_PX * shrink} are needed{' in a photo this large' if shrink > 1 else ''}"
        )
    found = sharpness(crop)
    if found < MIN_SHARPNESS:
        return f"too blurred: sharpness {found:.1f}, at least {MIN_SHARPNESS:g} is needed"
    return None


def several(faces: Sequence[FoundFace]) -> bool:
    """Whether a photo shows several faces of similar size, so that it is unclear whose it is."""
    sides = sorted(
        (side_px(face) for face in faces if (face.probability or 0) >= SURE), reverse=True
    )
    return len(sides) > 1 and sides[1] >= SECOND * sides[0]
