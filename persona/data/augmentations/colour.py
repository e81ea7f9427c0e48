"""Changes brightness, contrast and saturation, and turns photos to greyscale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from persona.config import Checked, between
from persona.data.augmentations.base import LUMA, Augmentation, Column, Columns, Stage, per_photo

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ColourConfig(Checked):
    """Options of colour."""

    grey: float = between(0, 1, default=0.0)
    """Probability that a photo is turned to greyscale."""
    jitter: float = between(0, 1, default=0.0)
    """Brightness, contrast and saturation are each multiplied by 1 - jitter to 1 + jitter."""


class Colour(Augmentation):
    """Changes brightness, contrast about the mean grey, and saturation about each pixel's grey.

    The blending is torchvision's (transforms/_functional_tensor.py).
    """

    name = "colour"
    config_class, stage = ColourConfig, Stage.COLOUR
    columns = tuple(Column(name, 1, 0, 2) for name in ("brightness", "contrast", "saturation"))
    whole_batch = True
    """Kept views were made so: a factor of 1 changes the last bit of a pixel."""

    def draw(self, rng: np.random.Generator, count: int) -> Columns:
        """Draws the three factors. A grey photo has a saturation of 0."""
        factors = (1 + self.options.jitter * rng.uniform(-1, 1, (count, 3))).T
        brightness, contrast, saturation = factors
        grey = rng.random(count) < self.options.grey
        saturation = np.where(grey, 0, saturation)
        return {"brightness": brightness, "contrast": contrast, "saturation": saturation}

    def apply(self, images_BCHW: Tensor, columns: Columns) -> Tensor:
        """Changes the colours of photos."""
        import torch

        names = (column.name for column in self.columns)
        brightness, contrast, saturation = (per_photo(columns[n], images_BCHW) for n in names)
        images = (images_BCHW * brightness).clamp_(0, 255)
        luma = torch.tensor(LUMA, device=images.device)[None, :, None, None]
        mean = (images * luma).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
        images = images.sub_(mean).mul_(contrast).add_(mean).clamp_(0, 255)
        grey = (images * luma).sum(dim=1, keepdim=True)
        return images.sub_(grey).mul_(saturation).add_(grey).clamp_(0, 255)
