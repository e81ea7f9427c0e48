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

        largest_BHW = images_BCHW.amax(dim=1)
        dark_BHW = largest_BHW < DARK
        light_BHW = ~_grown(dark_BHW)
        outside_BHW = dark_BHW & (_ways_out(light_BHW) != 0).any(dim=0)
        share_B = outside_BHW.float().mean(dim=(1, 2))
        mean_B = (largest_BHW * outside_BHW).mean(dim=(1, 2)) / share_B.clamp(min=1e-6)
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

    across_BHW, down_BHW = _ways_out(light_BHW)
    beside_BHW, below_BHW = across_BHW != 0, down_BHW != 0
    found_BHW = beside_BHW | below_BHW
    sideways_BHW = beside_BHW & (~below_BHW | (across_BHW.abs() <= down_BHW.abs()))
    height, width = found_BHW.shape[1:]
    row, column = _grid(light_BHW)
    source = (row + down_BHW * ~sideways_BHW).clamp(0, height - 1).long() * width
    source += (column + across_BHW * sideways_BHW).clamp(0, width - 1)
    source = source.flatten(1)[:, None].expand(-1, images_BCHW.shape[1], -1)
    filled = images_BCHW.flatten(2).gather(2, source).reshape(images_BCHW.shape)
    return torch.where(found_BHW[:, None], filled, images_BCHW), light_BHW | found_BHW


def _ways_out(light_BHW: Tensor) -> Tensor:
    """(2, B, H, W) int16 steps that lead out of a dark run, to the right and down.

    A run begins at a border. Steps to the left and up are negative. 0 where a pixel is in no such
    run, or where the whole line is dark.
    """
    import torch

    found = []
    row, column = _grid(light_BHW)
    for dim, place in ((2, column), (1, row)):
        side = light_BHW.shape[dim]
        first = side - (light_BHW * (side - place)).amax(dim, keepdim=True)
        last = (light_BHW * (place + 1)).amax(dim, keepdim=True) - 1
        ahead = (first - place).clamp_(min=0).sub_((place - last).clamp_(min=0))
        ahead.mul_(first < side)
        found.append(ahead.add_(ahead.sign(), alpha=RIM - 1))
    return torch.stack(found)


def _grown(dark_BHW: Tensor) -> Tensor:
    """Dark pixels and their neighbours, in squares of 3 x 3."""
    grown = dark_BHW
    for dim in (1, 2):
        shorter = grown.shape[dim] - 1
        before, after = grown.narrow(dim, 0, shorter), grown.narrow(dim, 1, shorter)
        grown = grown.clone()
        grown.narrow(dim, 1, shorter).logical_or_(before)
        grown.narrow(dim, 0, shorter).logical_or_(after)
    return grown


def _grid(image_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of rows, (H, 1), and of columns, (W,), in int16."""
    import torch

    height, width = image_BHW.shape[1:]
    row = torch.arange(height, device=image_BHW.device, dtype=torch.int16)[:, None]
    return row, torch.arange(width, device=image_BHW.device, dtype=torch.int16)
