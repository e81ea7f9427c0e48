"""Applies a view to each photo of a batch on the device, and normalises the pixels.

A view is a row of numbers (persona/data/views.py). Rows are applied in batches on any device. The
same row always gives the same pixels, so a teacher's embedding can be kept beside its row.

1. crop a square and scale it back, 2. mirror, 3. reduce and enlarge, 4. brightness, contrast,
saturation, grey, 5. erase a square

Shapes: B batch, V numbers of a view, C channel (3, RGB), H W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from persona.data.views import PIXEL_MEAN, PIXEL_SCALE, VIEW, Views
from persona.landmarks import MIRRORED

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in the grey value (ITU-R BT.601)."""


def normalise(images_BCHW: Tensor) -> Tensor:
    """`(pixel - 127.5) / 128`: (B, 3, H, W) uint8 or float to float32 in [-0.997, 0.997]."""
    # Dividing first and in place takes half the time. 128 is a power of two: the result is equal.
    images = images_BCHW.to(torch.float32, copy=True)
    return images.div_(PIXEL_SCALE).sub_(PIXEL_MEAN / PIXEL_SCALE)


def apply_views(images_BCHW: Tensor, views_BV: Views) -> Tensor:
    """Applies views: (B, 3, H, W) uint8 photos to float32 in [0, 255], on the same device."""
    images = images_BCHW.float()
    column = dict(zip(VIEW, views_BV.T, strict=True))
    if (column["side"] != 1).any():
        images = _crop(images, column)
    if column["flip"].any():
        flip_B = torch.from_numpy(column["flip"] == 1).to(images.device)
        images = torch.where(flip_B[:, None, None, None], images.flip(3), images)
    for times in np.unique(column["reduce"]).tolist():
        if times != 1:
            rows = torch.from_numpy(np.flatnonzero(column["reduce"] == times)).to(images.device)
            images = images.index_copy(0, rows, _reduce(images[rows], int(times)))
    factors = np.stack([column[name] for name in ("brightness", "contrast", "saturation")])
    if (factors != 1).any():
        images = _colour(images, torch.from_numpy(factors).to(images.device))
    if column["erase_side"].any():
        images = _erase(images, column)
    return images


def _crop(images: Tensor, column: dict[str, Any]) -> Tensor:
    """Crops the square of each view and scales it to the full size, by bilinear sampling."""
    theta_B23 = np.zeros((len(images), 2, 3), np.float32)
    theta_B23[:, 0, 0] = theta_B23[:, 1, 1] = column["side"]
    theta_B23[:, 0, 2] = 2 * column["left"] + column["side"] - 1
    theta_B23[:, 1, 2] = 2 * column["top"] + column["side"] - 1
    theta = torch.from_numpy(theta_B23).to(images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _reduce(images: Tensor, times: int) -> Tensor:
    height, width = images.shape[2:]
    small = F.interpolate(images, (height // times, width // times), mode="area")
    return F.interpolate(small, (height, width), mode="bilinear", align_corners=False)


def _colour(images: Tensor, factors_3B: Tensor) -> Tensor:
    """Changes brightness, contrast about the mean grey, and saturation about each pixel's grey.

    The blending is torchvision's (transforms/_functional_tensor.py).
    """
    brightness, contrast, saturation = factors_3B[:, :, None, None, None]
    images = (images * brightness).clamp(0, 255)
    luma = torch.tensor(LUMA, device=images.device)[None, :, None, None]
    mean = (images * luma).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    images = (mean + contrast * (images - mean)).clamp(0, 255)
    grey = (images * luma).sum(dim=1, keepdim=True)
    coloured: Tensor = grey + saturation * (images - grey)
    return coloured.clamp(0, 255)


def _erase(images: Tensor, column: dict[str, Any]) -> Tensor:
    """Fills a square of each photo with mid-grey."""
    height, width = images.shape[2:]
    covered = []
    for name, size in (("erase_top", height), ("erase_left", width)):
        place = (np.arange(size, dtype=np.float32) + 0.5) / size
        start = column[name][:, None]
        inside = (place >= start) & (place < start + column["erase_side"][:, None])
        covered.append(torch.from_numpy(inside).to(images.device))
    mask_BHW = covered[0][:, :, None] & covered[1][:, None, :]
    return images.masked_fill(mask_BHW[:, None], PIXEL_MEAN)


def view_landmarks(landmarks_B62: Tensor, views_BV: Views, size_px: int) -> Tensor:
    """Landmarks in the views: (B, 6, 2) points and scale (persona/landmarks.py) of each photo."""
    column = dict(zip(VIEW, torch.from_numpy(views_BV).T, strict=True))
    corner_B2 = torch.stack([column["left"], column["top"]], dim=1)
    side_B11 = column["side"][:, None, None]
    landmarks_B52, scale_B12 = landmarks_B62[:, :5], landmarks_B62[:, 5:]
    moved = ((landmarks_B52 + 0.5) - size_px * corner_B2[:, None]) / side_B11 - 0.5
    mirrored = moved[:, MIRRORED]
    mirrored[..., 0] = size_px - 1 - mirrored[..., 0]
    points = torch.where(column["flip"][:, None, None] == 1, mirrored, moved)
    return torch.cat([points, scale_B12 / side_B11], dim=1)
