"""Rotates, scales and shifts photos. The border of a photo is stretched outwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from persona.config import Checked, between
from persona.data.augmentations.base import Augmentation, Column, Columns, Floats, Stage

if TYPE_CHECKING:
    from torch import Tensor

MAX_ROTATION = 90
MAX_SCALE = 0.5
MAX_SHIFT = 0.5


@dataclass(frozen=True)
class AffineConfig(Checked):
    """Options of rotation, scale and shift."""

    rotation: float = between(0, MAX_ROTATION, default=0.0)
    """Largest rotation in degrees, in either direction."""
    scale: float = between(0, MAX_SCALE, default=0.0)
    """A photo is scaled by a factor of 1 - scale to 1 + scale about its centre."""
    shift: float = between(0, MAX_SHIFT, default=0.0)
    """Largest shift to the right or left, and up or down, as a fraction of the side."""


class Affine(Augmentation):
    """Rotates and scales a photo about its centre, then shifts it, by bilinear sampling."""

    name = "affine"
    config_class, stage = AffineConfig, Stage.GEOMETRY
    columns = (
        Column("angle", 0, -MAX_ROTATION, MAX_ROTATION),  # degrees, clockwise
        Column("factor", 1, 1 - MAX_SCALE, 1 + MAX_SCALE),
        Column("right", 0, -MAX_SHIFT, MAX_SHIFT),  # as fractions of the side
        Column("down", 0, -MAX_SHIFT, MAX_SHIFT),
    )

    def draw(self, rng: np.random.Generator, count: int) -> Columns:
        """Draws angle, factor and shift, each uniformly."""
        angle, factor, right, down = rng.uniform(-1, 1, (4, count))
        return {
            "angle": self.options.rotation * angle,
            "factor": 1 + self.options.scale * factor,
            "right": self.options.shift * right,
            "down": self.options.shift * down,
        }

    def apply(self, images_BCHW: Tensor, columns: Columns) -> Tensor:
        """Moves the pixels of photos."""
        import torch
        import torch.nn.functional as F

        # For each pixel of the result, the grid says where in the photo to look: the inverse map,
        # in units of half a side from the centre.
        back_B22 = np.linalg.inv(_linear(columns))
        shift_B2 = 2 * np.stack([columns["right"], columns["down"]], axis=1)
        theta_B23 = np.concatenate([back_B22, -back_B22 @ shift_B2[..., None]], axis=2)
        theta = torch.from_numpy(theta_B23.astype(np.float32)).to(images_BCHW.device)
        grid = _grid(theta, images_BCHW)
        return F.grid_sample(images_BCHW, grid, padding_mode="border", align_corners=False)

    def move_landmarks(self, landmarks_B62: Tensor, columns: Columns, size_px: int) -> Tensor:
        """Moves landmarks, and scales the two factors of the crop's stretch.

        Rotating a crop that is stretched also shears the face a little, which the two factors do
        not describe.
        """
        import torch

        linear_B22 = torch.from_numpy(_linear(columns)).to(landmarks_B62.dtype)
        shift_B2 = torch.from_numpy(np.stack([columns["right"], columns["down"]], axis=1))
        factor_B11 = torch.from_numpy(np.ascontiguousarray(columns["factor"]))[:, None, None]
        centre_px = (size_px - 1) / 2
        points = (landmarks_B62[:, :5] - centre_px) @ linear_B22.transpose(1, 2)
        points = points + centre_px + size_px * shift_B2[:, None]
        return torch.cat([points, landmarks_B62[:, 5:] * factor_B11], dim=1)


def _grid(theta_B23: Tensor, images_BCHW: Tensor) -> Tensor:
    """Computes torch's `affine_grid`, (B, H, W, 2), in less time on the CPU."""
    import torch

    height, width = images_BCHW.shape[2:]
    x, y = (
        (torch.arange(side, device=images_BCHW.device) * 2 + 1) / side - 1
        for side in (width, height)
    )
    grid = images_BCHW.new_empty(len(theta_B23), height, width, 2)
    for axis, (along_x, along_y, shift) in enumerate(theta_B23.permute(1, 2, 0)[..., None, None]):
        torch.add(along_x * x, along_y * y[:, None] + shift, out=grid[..., axis])
    return grid


def _linear(columns: Columns) -> Floats:
    """(B, 2, 2) matrices that rotate and scale vectors (x, y), where y points down."""
    angle, factor = np.radians(columns["angle"].astype(float)), columns["factor"]
    cosine, sine = factor * np.cos(angle), factor * np.sin(angle)
    rows = [np.stack([cosine, -sine], axis=1), np.stack([sine, cosine], axis=1)]
    return np.stack(rows, axis=1)
