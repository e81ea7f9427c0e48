"""Changes the colour temperature of the light, from lamps to a blue sky."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from persona.config import Checked, between
from persona.data.augmentations.base import LUMA, Augmentation, Column, Columns, Floats, Stage

if TYPE_CHECKING:
    from torch import Tensor

NEUTRAL_MIRED = 1e6 / 6504
"""The reciprocal temperature of daylight (D65), in mired: 10^6 / K."""
MAX_SHIFT = 100
DISPLAY_GAMMA = 2.2
XYZ_TO_RGB = np.array(
    [
        [3.2404542, -1.5371385, -0.4985314],
        [-0.9692660, 1.8760108, 0.0415560],
        [0.0556434, -0.2040259, 1.0572252],
    ]
)
"""From CIE XYZ to linear sRGB (IEC 61966-2-1, matrix of brucelindbloom.com)."""


@dataclass(frozen=True)
class TemperatureConfig(Checked):
    """Options of colour temperature."""

    temperature: float = between(0, MAX_SHIFT, default=0.0)
    """Largest shift of the light's reciprocal temperature in mired, from daylight (154 mired). A
    shift of 50 allows 4,900 to 9,600 K. Equal steps in mired look equally large."""


class Temperature(Augmentation):
    """Multiplies R, G and B by the colour of a black body's light, at the same luma."""

    name = "temperature"
    config_class, stage = TemperatureConfig, Stage.COLOUR
    columns = (Column("mired", 0, -MAX_SHIFT, MAX_SHIFT),)  # above 0 is warmer

    def draw(self, rng: np.random.Generator, count: int) -> Columns:
        """Draws shifts of the reciprocal temperature."""
        return {"mired": self.options.temperature * rng.uniform(-1, 1, count)}

    def apply(self, images_BCHW: Tensor, columns: Columns) -> Tensor:
        """Changes the light of photos."""
        import torch

        gains = torch.from_numpy(light(columns["mired"])).to(images_BCHW.device)
        changed: Tensor = (images_BCHW * gains[:, :, None, None]).clamp(0, 255)
        return changed


def light(mired_B: Floats) -> Floats:
    """(B, 3) float32 factors of R, G and B, as stored in a photo, for shifts from daylight."""
    shift_B = np.append(mired_B.astype(float), 0)
    linear_B3 = _black_body(1e6 / (NEUTRAL_MIRED + shift_B))
    factor_B3 = (linear_B3[:-1] / linear_B3[-1]) ** (1 / DISPLAY_GAMMA)
    factor_B3 /= factor_B3 @ np.array(LUMA)[:, None]
    return np.asarray(factor_B3, np.float32)


def _black_body(kelvin_B: Floats) -> Floats:
    """(B, 3) linear sRGB of a black body's light at a luminance of 1.

    The chromaticity is the cubic fit of Kim et al. 2002 (US patent 7024034) for 4,000 to 25,000 K,
    and for less than 4,000 K.
    """
    t = 1e3 / kelvin_B
    hot = ((-3.0258469 * t + 2.1070379) * t + 0.2226347) * t + 0.240390
    warm = ((-0.2661239 * t - 0.2343589) * t + 0.8776956) * t + 0.179910
    x = np.where(kelvin_B >= 4000, hot, warm)
    hot = ((3.0817580 * x - 5.87338670) * x + 3.75112997) * x - 0.37001483
    warm = ((-0.9549476 * x - 1.37418593) * x + 2.09137015) * x - 0.16748867
    y = np.where(kelvin_B >= 4000, hot, warm)
    xyz_B3 = np.stack([x / y, np.ones_like(x), (1 - x - y) / y], axis=1)
    return np.asarray(np.maximum(xyz_B3 @ XYZ_TO_RGB.T, 1e-3))
