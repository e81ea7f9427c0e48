"""Covers a square of each photo with grey."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from persona.config import Checked, between
from persona.data.augmentations.base import Augmentation, Column, Columns, Stage

if TYPE_CHECKING:
    from torch import Tensor

SIDE = (0.1, 0.4)
"""Smallest and largest erased square, as fractions of the photo's side."""
GREY = 127.5


@dataclass(frozen=True)
class EraseConfig(Checked):
    """Options of erasing."""

    erase: float = between(0, 1, default=0.0)
    """Probability that a grey square of 0.1 to 0.4 of the side covers a random place."""


class Erase(Augmentation):
    """Fills a square of a photo with mid-grey (Zhong et al. 2020, arXiv:1708.04896)."""

    name = "erase"
    config_class, stage = EraseConfig, Stage.COVER
    columns = (  # as fractions of the side; a side of 0 erases nothing
        Column("erase_left", 0, 0, 1),
        Column("erase_top", 0, 0, 1),
        Column("erase_side", 0, 0, SIDE[1]),
    )

    def draw(self, rng: np.random.Generator, count: int) -> Columns:
        """Draws squares. A photo that keeps all its pixels has a place of a square all the same."""
        side = np.where(rng.random(count) < self.options.erase, rng.uniform(*SIDE, count), 0)
        left, top = ((1 - side)[:, None] * rng.random((count, 2))).T
        return {"erase_left": left, "erase_top": top, "erase_side": side}

    def uses(self, columns: Columns) -> npt.NDArray[np.bool_]:
        """(B,) which of the views cover a square."""
        return columns["erase_side"] > 0

    def apply(self, images_BCHW: Tensor, columns: Columns) -> Tensor:
        """Covers a square of each photo."""
        import torch

        height, width = images_BCHW.shape[2:]
        covered = []
        for name, size in (("erase_top", height), ("erase_left", width)):
            place = (np.arange(size, dtype=np.float32) + 0.5) / size
            start = columns[name][:, None]
            inside = (place >= start) & (place < start + columns["erase_side"][:, None])
            covered.append(torch.from_numpy(inside).to(images_BCHW.device))
        mask_BHW = covered[0][:, :, None] & covered[1][:, None, :]
        return images_BCHW.masked_fill(mask_BHW[:, None], GREY)
