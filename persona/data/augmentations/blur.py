"""Blurs photos, as a lens that is out of focus does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from persona.config import Checked, between
from persona.data.augmentations.base import Augmentation, Column, Columns, Floats, Stage

if TYPE_CHECKING:
    from torch import Tensor

SIGMA = (0.003, 0.02)
"""Smallest and largest standard deviation, as fractions of the side: 0.3 to 2.2 px of 112 px."""
TRUNCATE = 4.0
"""Standard deviations after which the Gaussian ends, as in scipy.ndimage.gaussian_filter."""


@dataclass(frozen=True)
class BlurConfig(Checked):
    """Options of blur."""

    blur: float = between(0, 1, default=0.0)
    """Probability that a photo is blurred by a Gaussian of 0.003 to 0.02 of the side."""


class Blur(Augmentation):
    """Blurs a photo by a Gaussian. What lies outside a photo is its border, stretched outwards."""

    name = "blur"
    config_class, stage = BlurConfig, Stage.OPTICS
    columns = (Column("sigma", 0, 0, SIGMA[1]),)  # as a fraction of the side

    def draw(self, rng: np.random.Generator, count: int) -> Columns:
        """Draws which photos are blurred, and how much."""
        blurred = rng.random(count) < self.options.blur
        return {"sigma": np.where(blurred, rng.uniform(*SIGMA, count), 0)}

    def apply(self, images_BCHW: Tensor, columns: Columns) -> Tensor:
        """Blurs photos along their columns and then along their rows."""
        import torch

        # Each photo has its own kernel. As matrices they are one product for the whole batch.
        height, width = images_BCHW.shape[2:]
        down_BHH, across_BWW = (
            torch.from_numpy(gaussian(columns["sigma"] * size, size)).to(images_BCHW.device)
            for size in (height, width)
        )
        blurred: Tensor = down_BHH[:, None] @ images_BCHW @ across_BWW[:, None].transpose(2, 3)
        return blurred


def gaussian(sigma_px_B: Floats, size_px: int) -> Floats:
    """(B, N, N) float32 matrices that blur N pixels in a line, whose ends are repeated."""
    reach = int(TRUNCATE * float(sigma_px_B.max()) + 0.5)
    offset_K = np.arange(-reach, reach + 1)
    sigma_B1 = np.maximum(sigma_px_B.astype(float), 1e-6)[:, None]
    weight_BK = np.exp(-0.5 * (offset_K / sigma_B1) ** 2)
    weight_BK[np.abs(offset_K) > np.floor(TRUNCATE * sigma_B1 + 0.5)] = 0
    weight_BK /= weight_BK.sum(axis=1, keepdims=True)
    place_N = np.arange(size_px)
    matrix_BNN = np.zeros((len(sigma_px_B), size_px, size_px), np.float32)
    for number, offset in enumerate(offset_K.tolist()):
        seen_N = np.clip(place_N + offset, 0, size_px - 1)
        matrix_BNN[:, place_N, seen_N] += weight_BK[:, number, None].astype(np.float32)
    return matrix_BNN
