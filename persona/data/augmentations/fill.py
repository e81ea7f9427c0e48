"""Fills what lies outside the photo in an aligned crop, which is black otherwise.

Faces near the border of a photo, or turned, leave black corners in their crops. Where most training
photos have them, a student learns them, and the photos it is used on have none.

What is outside is found in the pixels: runs of dark pixels that begin at a border of the crop. The
inside is convex, so such a run reaches every pixel outside. Each gets the colour at the near end
of the shortest run that it lies in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from persona.config import Checked, between
from persona.data.augmentations.base import Augmentation, Column, Columns, Stage

if TYPE_CHECKING:
    from torch import Tensor

DARK = 24
"""Brightest channel of a pixel that may be outside. JPEG makes black lighter near an edge."""
BLACK = 4
"""Largest mean of the brightest channel outside. Dark hair and backgrounds are above it."""
SMALLEST = 0.02
"""Smallest share of a crop that is worth filling."""
GROWN = 3
"""Dark pixels are grown to squares of this side in px, which closes the gaps that JPEG leaves."""
OUT_OF_SIGHT = 10_000
"""More steps than any crop has pixels."""
PASSES = 2
"""In a corner both the row and the column may be dark. It sees light after the first pass."""
RIM = 2
"""Pixels beyond a run whose colour is mixed with black by the decoder or by resampling."""


@dataclass(frozen=True)
class FillConfig(Checked):
    """Options of filling."""

    fill: float = between(0, 1, default=0.0)
    """Probability that black corners outside the photo get the colours of its border."""


class Fill(Augmentation):
    """Stretches a photo's border over what lies outside it."""

    name = "fill"
    config_class, stage = FillConfig, Stage.GEOMETRY
    columns = (Column("fill", 0, 0, 1),)

    def draw(self, rng: np.random.Generator, count: int) -> Columns:
        """Draws which views are filled."""
        return {"fill": rng.random(count) < self.options.fill}

    def apply(self, images_BCHW: Tensor, columns: Columns) -> Tensor:
        """Fills photos that have black at their borders, and returns the others as they are."""
        import torch
        import torch.nn.functional as F

        largest_BHW = images_BCHW.amax(dim=1)
        dark_BHW = (largest_BHW < DARK).float()
        light_BHW = F.max_pool2d(dark_BHW, GROWN, stride=1, padding=GROWN // 2) == 0
        certain_BHW = dark_BHW * (_steps(light_BHW).amin(dim=0) < OUT_OF_SIGHT)
        share_B = certain_BHW.mean(dim=(1, 2))
        mean_B = (largest_BHW * certain_BHW).mean(dim=(1, 2)) / share_B.clamp(min=1e-6)
        rows = torch.nonzero((share_B > SMALLEST) & (mean_B < BLACK))[:, 0]
        if not len(rows):
            return images_BCHW
        images, light = images_BCHW[rows], light_BHW[rows]
        for _ in range(PASSES):
            images, light = _stretch(images, light)
        return images_BCHW.index_copy(0, rows, images)


def _stretch(images_BCHW: Tensor, light_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """Gives each pixel of a run the colour at its end; returns also what is light then."""
    import torch

    steps_BHW, side_BHW = _steps(light_BHW).min(dim=0)
    found_BHW = steps_BHW < OUT_OF_SIGHT
    height, width = found_BHW.shape[1:]
    steps = steps_BHW.long() * found_BHW
    row, column = _grid(light_BHW)
    ahead = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]], device=steps.device)[side_BHW]
    place = (row + steps * ahead[..., 0]).clamp(0, height - 1) * width
    place += (column + steps * ahead[..., 1]).clamp(0, width - 1)
    source = place.flatten(1)[:, None].expand(-1, images_BCHW.shape[1], -1)
    filled = images_BCHW.flatten(2).gather(2, source).reshape(images_BCHW.shape)
    return torch.where(found_BHW[:, None], filled, images_BCHW), light_BHW | found_BHW


def _steps(light_BHW: Tensor) -> Tensor:
    """(4, B, H, W) int16 steps to the right, left, down and up that lead out of a dark run.

    A run begins at the border behind. OUT_OF_SIGHT where a pixel is in no such run, or where the
    whole line is dark.
    """
    import torch

    found = []
    row, column = (place.to(torch.int16) for place in _grid(light_BHW))
    for dim, place in ((2, column), (1, row)):
        first = torch.where(light_BHW, place, OUT_OF_SIGHT).amin(dim, keepdim=True)
        last = torch.where(light_BHW, place, -OUT_OF_SIGHT).amax(dim, keepdim=True)
        for inside, steps in ((place < first, first - place), (place > last, place - last)):
            ends = inside & (first < OUT_OF_SIGHT)
            found.append(torch.where(ends, steps + RIM - 1, OUT_OF_SIGHT))
    return torch.stack(found)


def _grid(image_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of rows, (H, 1), and of columns, (W,)."""
    import torch

    height, width = image_BHW.shape[1:]
    row = torch.arange(height, device=image_BHW.device)[:, None]
    return row, torch.arange(width, device=image_BHW.device)
