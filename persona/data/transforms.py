"""Applies a view to each photo of a batch on the device, and normalises the pixels.

A view is a row of numbers (persona/data/views.py). Rows are applied in batches on any device. The
same row always gives the same pixels, so a teacher's embedding can be kept beside its row.

The augmentations (persona/data/augmentations/) are applied in the order of their stages, and of
their names within a stage. One that no photo of the batch uses costs nothing.

Shapes: B batch, V numbers of a view, C channel (3, RGB), H W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from persona.config import AugmentConfig
from persona.data.augmentations import Augmentation
from persona.data.augmentations.base import Columns
from persona.data.views import FLIP_ONLY, PIXEL_MEAN, PIXEL_SCALE, Views, split_views


def normalise(images_BCHW: Tensor) -> Tensor:
    """`(pixel - 127.5) / 128`: (B, 3, H, W) uint8 or float to float32 in [-0.997, 0.997]."""
    # Dividing first and in place takes half the time. 128 is a power of two: the result is equal.
    images = images_BCHW.to(torch.float32, copy=True)
    return images.div_(PIXEL_SCALE).sub_(PIXEL_MEAN / PIXEL_SCALE)


def apply_views(images_BCHW: Tensor, views_BV: Views, augment: AugmentConfig = FLIP_ONLY) -> Tensor:
    """Applies views: (B, 3, H, W) uint8 photos to float32 in [0, 255], on the same device.

    `augment` is the config that drew the views. The default stands for the standard columns alone.
    """
    images = images_BCHW.float()
    for one, columns in _in_order(views_BV, augment):
        used = one.uses(columns)
        if not used.any():
            continue
        if one.whole_batch or used.all():
            images = one.apply(images, columns)
        else:
            chosen = np.flatnonzero(used)
            rows = torch.from_numpy(chosen).to(images.device)
            some = {name: column[chosen] for name, column in columns.items()}
            images = images.index_copy(0, rows, one.apply(images[rows], some))
    return images


def view_landmarks(
    landmarks_B62: Tensor, views_BV: Views, size_px: int, augment: AugmentConfig = FLIP_ONLY
) -> Tensor:
    """Landmarks in the views: (B, 6, 2) points and scale (persona/landmarks.py) of each photo.

    `augment` is the config that drew the views. The default stands for the standard columns alone.
    """
    for one, columns in _in_order(views_BV, augment):
        landmarks_B62 = one.move_landmarks(landmarks_B62, columns, size_px)
    return landmarks_B62


def _in_order(views_BV: Views, augment: AugmentConfig) -> list[tuple[Augmentation, Columns]]:
    """The augmentations in the order in which they are applied, each with its columns."""
    return sorted(split_views(views_BV, augment), key=lambda one: (one[0].stage, one[0].name))
