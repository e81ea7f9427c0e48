"""Changes how bright the middle tones are, as exposures and screens differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from persona.config import Checked, between
from persona.data.augmentations.base import Augmentation, Column, Columns, Stage, per_photo

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GammaConfig(Checked):
    """Options of gamma."""

    gamma: float = between(0, 2, default=0.0)
    """The exponent is 2 to the power of -gamma to gamma, so 1 allows exponents of 0.5 to 2."""


class Gamma(Augmentation):
    """Raises pixels in [0, 1] to a power. Black and white stay."""

    name = "gamma"
    config_class, stage = GammaConfig, Stage.COLOUR
    columns = (Column("exponent", 1, 0.25, 4),)

    def draw(self, rng: np.random.Generator, count: int) -> Columns:
        """Draws exponents. A photo is as often darker as it is brighter."""
        return {"exponent": 2 ** (self.options.gamma * rng.uniform(-1, 1, count))}

    def apply(self, images_BCHW: Tensor, columns: Columns) -> Tensor:
        """Changes the middle tones of photos."""
        # Earlier stages may leave a pixel a little below 0, where a power is not a number.
        relative = images_BCHW.clamp(0, 255).div_(255)
        # Logarithm and exponential take a third of the time of torch's power on the CPU. The
        # logarithm of black is minus infinity, which becomes black again.
        exponent = per_photo(columns["exponent"], images_BCHW)
        return relative.log2_().mul_(exponent).exp2_().mul_(255)
