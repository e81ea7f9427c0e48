"""Five-point landmarks: eyes, tip of the nose, corners of the mouth, from the left of the image.

A crop stores them as six rows, `landmarks_62`: the points in px of the crop, then the scale in px
of the crop per px of the photo, across and down. A margin crop stretches a face that is taller than
wide to a square. A warp to a template has to undo that.

Pixel (0, 0) is the centre of the first pixel. Shapes: N faces, C channel, P output pixels.
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
"""ArcFace's template in px of a 112 px crop (insightface, utils/face_align.py, arcface_dst)."""
SAME_PX = 0.05
"""Crops whose points are this close to the template, in px, are not warped again."""
MIRRORED = [1, 0, 2, 4, 3]
"""Order of the points in the mirror image."""


def template(size_px: int) -> Floats:
    """(5, 2) ArcFace's template in px of a crop of side `size_px`."""
    return (TEMPLATE_52 + 0.5) * (size_px / TEMPLATE_SIZE) - 0.5


def similarity(source_N52: npt.ArrayLike, target_52: npt.ArrayLike) -> Floats:
    """(N, 2, 3) similarity transforms that bring each face's points nearest to `target_52`.

    This is the least-squares solution (Umeyama 1991, equations 40 to 42, without reflection). In
    the plane it is one complex factor: `a = Σ conj(z) w / Σ |z|²` of the centred points z and w.
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
    """(N, 2, 3) inverse of affine transforms."""
    linear = np.linalg.inv(matrix_N23[..., :2])
    return np.concatenate([linear, -linear @ matrix_N23[..., 2:]], axis=-1)


def move(points_N52: Floats, matrix_N23: Floats) -> Floats:
    """(N, 5, 2) points after affine transforms."""
    turned = points_N52 @ np.swapaxes(matrix_N23[..., :2], -1, -2)
    return np.asarray(turned + np.swapaxes(matrix_N23[..., 2:], -1, -2))


def crop_to_template(landmarks_N62: Floats, size_px: int) -> Floats:
    """(N, 2, 3) transforms from px of a crop on ArcFace's template to px of each given crop."""
    # The fit is in px of the photo, where a face has its own proportions.
    scale_N12 = landmarks_N62[:, 5:]
    there_N23 = similarity(landmarks_N62[:, :5] / scale_N12, template(size_px))
    return np.asarray(invert(there_N23) * scale_N12.transpose(0, 2, 1))


def aligned(side_px: int, landmarks_N62: Floats, size_px: int) -> npt.NDArray[np.bool_]:
    """(N,) which crops of this side have their points on ArcFace's template of `size_px`."""
    if side_px != size_px:
        return np.zeros(len(landmarks_N62), dtype=bool)
    points_N52 = landmarks_N62[:, :5] / landmarks_N62[:, 5:]
    there_N23 = similarity(points_N52, template(size_px))
    off_N52 = np.abs(landmarks_N62[:, :5] - move(points_N52, there_N23))
    return np.asarray((off_N52 <= SAME_PX).all(axis=(1, 2)))


def warp(pixels_NCHW: Floats, landmarks_N62: Floats, size_px: int) -> Floats:
    """Warps crops so that their points lie on ArcFace's template: (N, C, size, size) float32.

    Sampling is bilinear. Beyond the edge of a crop its last pixel is repeated. A crop whose points
    lie there already keeps its pixels.
    """
    height, width = pixels_NCHW.shape[2:]
    done_N = aligned(height, landmarks_N62, size_px)
    if done_N.all():
        return pixels_NCHW.astype(np.float32, copy=False)
    if done_N.any():
        found = pixels_NCHW.astype(np.float32)
        found[~done_N] = warp(found[~done_N], landmarks_N62[~done_N], size_px)
        return found
    back_N23 = crop_to_template(landmarks_N62, size_px)
    y, x = np.mgrid[:size_px, :size_px].reshape(2, -1)
    places_N2P = back_N23 @ np.stack([x, y, np.ones_like(x)])
    x_NP = places_N2P[:, 0].clip(0, width - 1)
    y_NP = places_N2P[:, 1].clip(0, height - 1)
    left, top = np.floor(x_NP).astype(int), np.floor(y_NP).astype(int)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    across, down = (x_NP - left)[:, None], (y_NP - top)[:, None]
    flat = pixels_NCHW.reshape(*pixels_NCHW.shape[:2], -1)

    def at(row: Floats, column: Floats) -> Floats:
        return np.take_along_axis(flat, (row * width + column)[:, None], axis=2)

    above = at(top, left) * (1 - across) + at(top, right) * across
    below = at(bottom, left) * (1 - across) + at(bottom, right) * across
    found = (above * (1 - down) + below * down).astype(np.float32)
    return np.asarray(found.reshape(*found.shape[:2], size_px, size_px))


def resize(pixels_NCHW: Floats, size_px: int) -> Floats:
    """Resizes square crops to (N, C, size, size) float32: bilinear, antialiased as in torch."""
    side = pixels_NCHW.shape[2]
    if side == size_px:
        return pixels_NCHW
    scale = side / size_px
    reach = max(scale, 1.0)
    centre = (np.arange(size_px)[:, None] + 0.5) * scale
    weight = np.maximum(0, 1 - np.abs(np.arange(side) + 0.5 - centre) / reach)
    weight = (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
    return np.asarray(weight @ pixels_NCHW.astype(np.float32) @ weight.T)


def unit(vectors_NE: Floats) -> Floats:
    """Normalises embeddings to unit length, (N, E) float32. A zero vector stays zero."""
    length_N1 = np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    return np.asarray(vectors_NE / np.maximum(length_N1, 1e-12), np.float32)
