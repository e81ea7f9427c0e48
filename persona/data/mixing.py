"""Mixes each photo of a batch with another one, so that a student sees images between two faces.

Two kinds, drawn from seeds as views are:

- mixup (Zhang et al. 2018, arXiv:1710.09412): the two photos are blended
- cutmix (Yun et al. 2019, arXiv:1905.04899): a rectangle of one is pasted onto the other

There is no mixed target. The teacher looks at the mixed image (Beyer et al. 2022, arXiv:2106.05237,
section 3.1): its embedding of that is not the mean of its embeddings of the two photos
(docs/experiments.md, 2026-11-29).

Shapes: B batch, C channel (3, RGB), H W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from persona.config import MixConfig
from persona.data.views import Views, own_stream


class Mix(NamedTuple):
    """How each photo of a batch is mixed."""

    partner: npt.NDArray[np.int64]
    """(B,) the photo of the batch that it is mixed with, perhaps itself."""
    share: Views
    """(B,) its own share of each pixel outside the rectangle, 0.5 to 1."""
    box: Views
    """(B, 4) the partner's rectangle: left, top, right, bottom, as fractions of the side."""


def draw_mix(config: MixConfig, count: int, *seeds: int) -> Mix | None:
    """Draws how a batch is mixed, from `seeds` alone. None means that the config mixes nothing.

    A photo keeps at least half of itself, so that its landmarks remain those of the image.
    """
    if not config.in_use:
        return None
    rng = own_stream("mix", *seeds)
    partner_B = rng.permutation(count)
    cut_B = rng.random(count) < (0 if config.cutmix is None else 1 if config.mixup is None else 0.5)
    share_B = _shares(rng, config.mixup or 1, count)
    side_B = np.sqrt(1 - _shares(rng, config.cutmix or 1, count)) * cut_B
    corner_B2 = (1 - side_B)[:, None] * rng.random((count, 2))
    return Mix(
        partner_B,
        np.where(cut_B, 1, share_B).astype(np.float32),
        np.concatenate([corner_B2, corner_B2 + side_B[:, None]], axis=1).astype(np.float32),
    )


def _shares(rng: np.random.Generator, alpha: float, count: int) -> npt.NDArray[np.float64]:
    """(count,) the larger share of each of two photos, from a Beta(alpha, alpha) distribution."""
    share = rng.beta(alpha, alpha, count)
    return np.maximum(share, 1 - share)


def apply_mix(images_BCHW: Tensor, mix: Mix) -> Tensor:
    """Mixes photos of any range, (B, 3, H, W) float32; returns new ones, on the same device."""
    device, (height, width) = images_BCHW.device, images_BCHW.shape[2:]
    left, top, right, bottom = mix.box.T[..., None]
    x_W, y_H = ((np.arange(n, dtype=np.float32) + 0.5) / n for n in (width, height))
    across_BW, down_BH = (x_W >= left) & (x_W < right), (y_H >= top) & (y_H < bottom)
    pasted_BHW = down_BH[:, :, None] & across_BW[:, None]
    own_BHW = torch.from_numpy(np.where(pasted_BHW, 0, mix.share[:, None, None])).to(device)
    others = images_BCHW[torch.from_numpy(mix.partner).to(device)]
    return torch.lerp(others, images_BCHW, own_BHW[:, None])
