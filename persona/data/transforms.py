"""What happens to a batch on the device: flip, then normalise.

Shapes: B batch, C channel (3, RGB), H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

PIXEL_MEAN = 127.5
PIXEL_SCALE = 128.0
"""FaceNet's "fixed image standardization" (facenet-pytorch 2.5.3, models/mtcnn.py)."""


def normalise(images_BCHW: Tensor) -> Tensor:
    """`(pixel - 127.5) / 128`: (B, 3, H, W) uint8 to float32 in [-0.997, 0.997]."""
    return images_BCHW.float().sub_(PIXEL_MEAN).div_(PIXEL_SCALE)


def random_flip(images_BCHW: Tensor, *seeds: int) -> Tensor:
    """Mirrors each photo with probability 1/2, decided by `seeds` alone.

    The coins are tossed on the CPU, so that every device sees the same ones.
    """
    generator = torch.Generator().manual_seed(mix_seeds(*seeds))
    coins_B = torch.rand(len(images_BCHW), generator=generator) < 0.5
    coins_B111 = coins_B.to(images_BCHW.device).view(-1, 1, 1, 1)
    return torch.where(coins_B111, images_BCHW.flip(3), images_BCHW)


def mix_seeds(*seeds: int) -> int:
    """One 63-bit seed from several, in this order, by the mixing steps of splitmix64."""
    state = 0
    for seed in seeds:
        state = (state ^ seed) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
