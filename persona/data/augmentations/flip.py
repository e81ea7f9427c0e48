"""Mirrors photos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from persona.config import Checked
from persona.data.augmentations.base import Augmentation, Column, Columns, Stage
from persona.landmarks import MIRRORED

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FlipConfig(Checked):
    """Options of mirroring. It is the only augmentation that is on by default."""

    flip: bool = True
    """Whether a photo is mirrored with probability 1/2."""


class Flip(Augmentation):
    """Mirrors a photo left to right."""

    name = "flip"
    config_class, stage = FlipConfig, Stage.GEOMETRY
    columns = (Column("flip", 0, 0, 1),)

    def draw(self, rng: np.random.Generator, count: int) -> Columns:
        """Draws which views are mirrored."""
        flip = rng.random(count) < 0.5
        return {"flip": flip.astype(np.float32) if self.options.flip else np.zeros(count)}

    def apply(self, images_BCHW: Tensor, columns: Columns) -> Tensor:
        """Mirrors photos."""
        return images_BCHW.flip(3)

    def move_landmarks(self, landmarks_B62: Tensor, columns: Columns, size_px: int) -> Tensor:
        """Mirrors landmarks. What was the left eye in the image is then the right one."""
        import torch

        points, scale = landmarks_B62[:, :5], landmarks_B62[:, 5:]
        mirrored = points[:, MIRRORED]
        mirrored[..., 0] = size_px - 1 - mirrored[..., 0]
        flip_B = torch.from_numpy(columns["flip"] == 1)
        return torch.cat([torch.where(flip_B[:, None, None], mirrored, points), scale], dim=1)
