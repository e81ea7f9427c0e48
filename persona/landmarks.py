"""Five points of a face: eyes, tip of the nose, corners of the mouth, from the left of the image.

With a crop they come as six rows, `landmarks_62`: the points in px of the crop, and how many px of
the crop a px of the photo became, across and down. A margin crop stretches a face that is taller
than wide to a square; turning it to a template has to undo that.

Pixel (0, 0) is the centre of the first pixel. Shapes: N faces.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]

TEMPLATE_SIZE = 112
TEMPLATE_52 = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
"""Where ArcFace puts them in a crop of 112 px (insightface, utils/face_align.py, arcface_dst)."""
MIRRORED = [1, 0, 2, 4, 3]
"""The order of the points in the mirror image."""


def template(size_px: int) -> Floats:
    """(5, 2) ArcFace's places in a crop of another size."""
    return (TEMPLATE_52 + 0.5) * (size_px / TEMPLATE_SIZE) - 0.5


def similarity(source_N52: npt.ArrayLike, target_52: npt.ArrayLike) -> Floats:
    """(N, 2, 3) the rotation, scale and shift that bring each face's points nearest to `target_52`.

    Least squares (Umeyama 1991, equations 40 to 42, without reflection), which in the plane is one
    complex factor: `a = Σ conj(z) w / Σ |z|²` of the centred points z and w.
    """
    source, target = np.asarray(source_N52, float), np.asarray(target_52, float)
    z_N5 = source[..., 0] + 1j * source[..., 1]
    w_5 = target[..., 0] + 1j * target[..., 1]
    z_mean, w_mean = z_N5.mean(axis=-1, keepdims=True), w_5.mean()
    z_N5, w_5 = z_N5 - z_mean, w_5 - w_mean
    spread = np.maximum((np.abs(z_N5) ** 2).sum(axis=-1), 1e-12)
    factor = (np.conj(z_N5) * w_5).sum(axis=-1) / spread
    shift = w_mean - factor * z_mean[..., 0]
    rows = (
        np.stack([factor.real, -factor.imag, shift.real], axis=-1),
        np.stack([factor.imag, factor.real, shift.imag], axis=-1),
    )
    return np.stack(rows, axis=-2)


def invert(matrix_N23: Floats) -> Floats:
    """(N, 2, 3) the transform back."""
    linear = np.linalg.inv(matrix_N23[..., :2])
    return np.concatenate([linear, -linear @ matrix_N23[..., 2:]], axis=-1)


def move(points_N52: Floats, matrix_N23: Floats) -> Floats:
    """(N, 5, 2) points where a transform takes them."""
    turned = points_N52 @ np.swapaxes(matrix_N23[..., :2], -1, -2)
    return np.asarray(turned + np.swapaxes(matrix_N23[..., 2:], -1, -2))
