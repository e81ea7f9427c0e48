"""Random views of photos, as rows of numbers drawn from seeds. No torch.

A view is an augmentation of one photo. Its parameters are a row of numbers (`VIEW`). Rows are drawn
on the CPU and applied in batches on any device (persona/data/transforms.py).

Shapes: B batch, V numbers of a view.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from persona.config import AugmentConfig
from persona.landmarks import MIRRORED, Floats

PIXEL_MEAN = 127.5
PIXEL_SCALE = 128.0
"""FaceNet's "fixed image standardization" (facenet-pytorch 2.5.3, models/mtcnn.py)."""

VIEW = (
    "flip",  # 0 or 1
    "left", "top", "side",  # the crop, as fractions of the photo's side
    "reduce",  # factor by which the photo is reduced; 1 keeps it
    "brightness", "contrast", "saturation",  # factors
    "erase_left", "erase_top", "erase_side",  # as fractions of the side; side 0 erases nothing
)  # fmt: skip
IDENTITY = np.array([0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0], dtype=np.float32)
MIRROR = np.array([1, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0], dtype=np.float32)
MAX_REDUCE = 4
ERASE = (0.1, 0.4)
"""Smallest and largest erased square, as fractions of the photo's side."""
Views = npt.NDArray[np.float32]


def draw_views(config: AugmentConfig, count: int, *seeds: int) -> Views:
    """(count, V) float32 random views. They depend on `config` and `seeds` alone."""
    rng = np.random.default_rng(mix_seeds(*seeds))
    views = np.tile(IDENTITY, (count, 1))
    # Mirroring is drawn first, so that no other option changes it.
    flip = rng.random(count) < 0.5
    if config.flip:
        views[:, VIEW.index("flip")] = flip
    if not config.beyond_flip:
        return views
    side = 1 - config.crop * rng.random(count)
    views[:, 3] = side
    views[:, 1:3] = (1 - side)[:, None] * rng.random((count, 2))
    low = rng.random(count) < config.low_resolution
    views[:, 4] = np.where(low, rng.integers(2, MAX_REDUCE + 1, count), 1)
    views[:, 5:8] = 1 + config.jitter * rng.uniform(-1, 1, (count, 3))
    grey = rng.random(count) < config.grey
    views[:, 7] = np.where(grey, 0, views[:, 7])
    erase_side = np.where(rng.random(count) < config.erase, rng.uniform(*ERASE, count), 0)
    views[:, 10] = erase_side
    views[:, 8:10] = (1 - erase_side)[:, None] * rng.random((count, 2))
    return views


def mirror_landmarks(landmarks_B62: Floats, size_px: int) -> Floats:
    """Landmarks of the mirror images: (B, 6, 2) points and scale (persona/landmarks.py)."""
    points = landmarks_B62[:, :5][:, MIRRORED]
    points[..., 0] = size_px - 1 - points[..., 0]
    return np.concatenate([points, landmarks_B62[:, 5:]], axis=1)


def mix_seeds(*seeds: int) -> int:
    """Mixes several seeds, in this order, into one 63-bit seed, by the steps of splitmix64."""
    state = 0
    for seed in seeds:
        state = (state ^ seed) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
