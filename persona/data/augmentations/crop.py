"""Crops a square of each photo and scales it to the full size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from persona.config import Checked, between
from persona.data.augmentations.base import Augmentation, Column, Columns, Stage

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CropConfig(Checked):
    """Options of the random crop."""

    crop: float = between(0, 0.5, default=0.0)
    """Largest share of the side that a random crop removes. The crop is scaled to full size."""


class RandomCrop(Augmentation):
    """Crops a random square and scales it back, by bilinear sampling."""

    name = "crop"
    config_class, stage = CropConfig, Stage.GEOMETRY
    columns = (  # as fractions of the photo's side
        Column("left", 0, 0, 0.5),
        Column("top", 0, 0, 0.5),
        Column("side", 1, 0.5, 1),
    )
    whole_batch = True
    """Kept views were made so: beside a cropped photo, whole photos are sampled too."""

    def draw(self, rng: np.random.Generator, count: int) -> Columns:
        """Draws crops of any size up to the largest, anywhere in the photo."""
        side = 1 - self.options.crop * rng.random(count)
        left, top = ((1 - side)[:, None] * rng.random((count, 2))).T
        return {"left": left, "top": top, "side": side}

    def apply(self, images_BCHW: Tensor, columns: Columns) -> Tensor:
        """Crops photos."""
        import torch
        import torch.nn.functional as F

        theta_B23 = np.zeros((len(images_BCHW), 2, 3), np.float32)
        theta_B23[:, 0, 0] = theta_B23[:, 1, 1] = columns["side"]
        theta_B23[:, 0, 2] = 2 * columns["left"] + columns["side"] - 1
        theta_B23[:, 1, 2] = 2 * columns["top"] + columns["side"] - 1
        theta = torch.from_numpy(theta_B23).to(images_BCHW.device)
        grid = F.affine_grid(theta, list(images_BCHW.shape), align_corners=False)
        return F.grid_sample(images_BCHW, grid, padding_mode="border", align_corners=False)

    def move_landmarks(self, landmarks_B62: Tensor, columns: Columns, size_px: int) -> Tensor:
        """Moves landmarks into the crops."""
        import torch

        left, top, side = (torch.from_numpy(columns[name]) for name in ("left", "top", "side"))
        corner_B12, side_B11 = torch.stack([left, top], dim=1)[:, None], side[:, None, None]
        moved = ((landmarks_B62[:, :5] + 0.5) - size_px * corner_B12) / side_B11 - 0.5
        return torch.cat([moved, landmarks_B62[:, 5:] / side_B11], dim=1)
