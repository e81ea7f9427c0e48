"""Views of a photo as rows of numbers, drawn from seeds. No torch.

A view is a photo and what is done to it, written down as a row of numbers (`VIEW`). Rows are drawn
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
    "left", "top", "side",  # the crop, in shares of the photo's side
    "reduce",  # 1, or how many times the photo is reduced
    "brightness", "contrast", "saturation",  # factors
    "erase_left", "erase_top", "erase_side",  # in shares of the side; side 0: nothing
)  # fmt: skip
IDENTITY = np.array([0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0], dtype=np.float32)
MIRROR = np.array([1, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0], dtype=np.float32)
MAX_REDUCE = 4
ERASE = (0.1, 0.4)
"""Shares of the side."""
Views = npt.NDArray[np.float32]


def draw_views(config: AugmentConfig, count: int, *seeds: int) -> Views:
    """(count, V) float32 random views, decided by `config` and `seeds` alone."""
    rng = np.random.default_rng(mix_seeds(*seeds))
    views = np.tile(IDENTITY, (count, 1))
    # The coins of mirroring are tossed first: no other option changes them.
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
    """(B, 6, 2) points and scale (persona/landmarks.py) of crops, in their mirror images."""
    points = landmarks_B62[:, :5][:, MIRRORED]
    points[..., 0] = size_px - 1 - points[..., 0]
    return np.concatenate([points, landmarks_B62[:, 5:]], axis=1)


def mix_seeds(*seeds: int) -> int:
    """One 63-bit seed from several, in this order, by the mixing steps of splitmix64."""
    state = 0
    for seed in seeds:
        state = (state ^ seed) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
