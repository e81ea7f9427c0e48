"""Which faces are good enough to be known by, or to be compared.

Measured on 100 photos of LFW, 50 of AT&T's and 30 drawn ones: sharp faces have a sharpness of 26 to
504 here; blurred by a Gaussian of 2 px the median LFW face (94 px wide) has 12, of 3 px 6.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from persona.data.align.spec import Face

MIN_SIDE_PX = 40
"""Of a face's box; smaller ones have too few pixels for networks of 112 to 160 px."""
MIN_SHARPNESS = 8.0
SHARPNESS_SIZE_PX = 112
"""Side that a crop is brought to before its edges are measured."""
SURE = 0.9
"""Probability from which on a second detection is taken for a face."""
SECOND = 0.5
"""A second face at least so many times as high as the first makes a photo ambiguous."""


def side_px(face: Face) -> float:
    """The shorter side of a face's box."""
    x0, y0, x1, y1 = face.box
    return min(x1 - x0, y1 - y0)


def sharpness(crop: Image.Image) -> float:
    """Variance of the Laplacian of a crop's brightness (Pech-Pacheco et al. 2000, LAPV)."""
    small = crop.convert("L").resize((SHARPNESS_SIZE_PX, SHARPNESS_SIZE_PX), Image.Resampling.BOX)
    grey = np.asarray(small, np.float32)
    edges = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1]
    edges -= grey[1:-1, :-2] + grey[1:-1, 2:]
    return float(edges.var())


def flaw(face: Face, crop: Image.Image) -> str | None:
    """Why a face cannot be used; None: it can."""
    if side_px(face) < MIN_SIDE_PX:
        return f"too small: the face is {side_px(face):.0f} px, at least {MIN_SIDE_PX} are needed"
    found = sharpness(crop)
    if found < MIN_SHARPNESS:
        return f"too blurred: sharpness {found:.1f}, at least {MIN_SHARPNESS:g} is needed"
    return None


def several(faces: Sequence[Face]) -> bool:
    """Whether it is unclear whose photo this is."""
    sides = sorted(
        (side_px(face) for face in faces if (face.probability or 0) >= SURE), reverse=True
    )
    return len(sides) > 1 and sides[1] >= SECOND * sides[0]
