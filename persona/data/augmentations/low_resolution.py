"""Reduces photos and enlarges them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from persona.config import Checked, between
from persona.data.augmentations.base import Augmentation, Column, Columns, Stage

if TYPE_CHECKING:
    from torch import Tensor

MAX_REDUCE = 4


@dataclass(frozen=True)
class LowResolutionConfig(Checked):
    """Options of low resolution."""

    low_resolution: float = between(0, 1, default=0.0)
    """Probability that a photo is reduced by a factor of 2 to 4 and enlarged again."""


class LowResolution(Augmentation):
    """Reduces a photo by area averages and enlarges it by bilinear sampling."""

    name = "low_resolution"
    config_class, stage = LowResolutionConfig, Stage.OPTICS
    columns = (Column("reduce", 1, 1, MAX_REDUCE),)

    def draw(self, rng: np.random.Generator, count: int) -> Columns:
        """Draws the factors by which photos are reduced."""
        low = rng.random(count) < self.options.low_resolution
        return {"reduce": np.where(low, rng.integers(2, MAX_REDUCE + 1, count), 1)}

    def apply(self, images_BCHW: Tensor, columns: Columns) -> Tensor:
        """Reduces and enlarges photos."""
        import torch
        import torch.nn.functional as F

        height, width = images_BCHW.shape[2:]
        result = images_BCHW
        for times in np.unique(columns["reduce"]).tolist():
            rows = torch.from_numpy(np.flatnonzero(columns["reduce"] == times)).to(result.device)
            size = (height // int(times), width // int(times))
            small = F.interpolate(images_BCHW[rows], size, mode="area")
            large = F.interpolate(small, (height, width), mode="bilinear", align_corners=False)
            result = result.index_copy(0, rows, large)
        return result
