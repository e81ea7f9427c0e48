"""Random views of photos, as rows of numbers drawn from seeds. No torch.

A view is an augmentation of one photo. Its parameters are a row of numbers: the columns of the
standard augmentations, then those of each other augmentation in use (persona/data/augmentations/).
Rows are drawn on the CPU and applied in batches on any device (persona/data/transforms.py).

Shapes: B batch, V numbers of a view.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from persona.config import STANDARD, AugmentConfig
from persona.data.augmentations import Augmentation, Column
from persona.data.augmentations.base import Columns
from persona.landmarks import MIRRORED, Floats

PIXEL_MEAN = 127.5
PIXEL_SCALE = 128.0
"""FaceNet's "fixed image standardization" (facenet-pytorch 2.5.3, models/mtcnn.py)."""

FLIP_ONLY = AugmentConfig()
"""Mirroring alone, whose views have the standard columns."""
Views = npt.NDArray[np.float32]


def view_columns(augment: AugmentConfig) -> list[Column]:
    """The V columns of the views that `augment` draws."""
    return [column for one in augment.augmentations for column in one.columns]


def identity_view(augment: AugmentConfig) -> Views:
    """(V,) float32: the view that leaves a photo as it is."""
    return np.array([column.identity for column in view_columns(augment)], dtype=np.float32)


def mirror_view(augment: AugmentConfig) -> Views:
    """(V,) float32: the view that only mirrors."""
    row = identity_view(augment)
    row[VIEW.index("flip")] = 1
    return row


def draw_views(augment: AugmentConfig, count: int, *seeds: int) -> Views:
    """(count, V) float32 random views. They depend on `augment` and `seeds` alone."""
    views = np.tile(identity_view(augment), (count, 1))
    # The standard augmentations share a stream. Mirroring is drawn first, so that no option changes
    # it. The rest are drawn together or not at all: the draws of one move those of the next.
    shared = np.random.default_rng(mix_seeds(*seeds))
    rest_in_use = any(one.in_use for one in augment.augmentations[1 : len(STANDARD)])
    for one, columns in split_views(views, augment):
        if one.name not in STANDARD:
            drawn = one.draw(own_stream(one.name, *seeds), count)
        elif one.name == "flip" or rest_in_use:
            drawn = one.draw(shared, count)
        else:
            continue
        for name, column in columns.items():
            column[:] = drawn[name]
    return views


def split_views(views_BV: Views, augment: AugmentConfig) -> Iterator[tuple[Augmentation, Columns]]:
    """Yields each augmentation with its columns, which are views of the array."""
    columns = iter(views_BV.T)
    for one in augment.augmentations:
        yield one, {column.name: next(columns) for column in one.columns}


def sound_views(views_BV: Views, augment: AugmentConfig) -> npt.NDArray[np.bool_]:
    """(B,) whether all numbers of a view are within the bounds of their columns."""
    low, high = (
        np.array([getattr(column, bound) for column in view_columns(augment)], dtype=np.float32)
        for bound in ("low", "high")
    )
    return np.asarray(((views_BV >= low) & (views_BV <= high)).all(axis=1))


def own_stream(name: str, *seeds: int) -> np.random.Generator:
    """A stream of random numbers that depends on a name and on `seeds`."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    return np.random.default_rng(mix_seeds(*seeds, seed))


VIEW = tuple(column.name for column in view_columns(FLIP_ONLY))
"""Names of the standard columns."""
IDENTITY = identity_view(FLIP_ONLY)
MIRROR = mirror_view(FLIP_ONLY)


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
