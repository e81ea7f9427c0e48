"""Stores photos as JPEGs of low quality: blocks of 8 x 8 pixels and smeared colours.

The device computes it. A JPEG loses what rounding its coefficients and halving the resolution of
its colours take away, and both are products of small matrices. The entropy coding that follows
loses nothing and is left out. Encoding and decoding by simplejpeg would need the photos on the CPU,
in the process that trains, and a GPU would wait for it. The pixels are those of libjpeg but for
rounding (tests/data/test_augmentations.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from persona.config import Checked, between
from persona.data.augmentations.base import LUMA, Augmentation, Column, Columns, Floats, Stage

if TYPE_CHECKING:
    from torch import Tensor

QUALITY = (10, 75)
"""Lowest and highest quality, on the scale of the IJG's libjpeg."""
BLOCK = 8
LUMA_STEPS = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
"""Quantisation steps of the luma at quality 50 (ITU-T T.81, table K.1)."""
CHROMA_STEPS = np.full((BLOCK, BLOCK), 99)
CHROMA_STEPS[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
"""Quantisation steps of the colours at quality 50 (ITU-T T.81, table K.2)."""
TO_YCC = np.array([LUMA, (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411)])
"""From RGB to Y, Cb and Cr (JFIF 1.02)."""


@dataclass(frozen=True)
class JpegConfig(Checked):
    """Options of JPEG."""

    jpeg: float = between(0, 1, default=0.0)
    """Probability that a photo is stored as a JPEG of quality 10 to 75."""


class Jpeg(Augmentation):
    """Loses what a JPEG with colours of half the resolution (4:2:0) loses."""

    name = "jpeg"
    config_class, stage = JpegConfig, Stage.CODING
    columns = (Column("quality", 0, 0, 100),)  # 0 keeps the photo

    def draw(self, rng: np.random.Generator, count: int) -> Columns:
        """Draws which photos are stored, and at which quality."""
        stored = rng.random(count) < self.options.jpeg
        return {"quality": np.where(stored, rng.integers(QUALITY[0], QUALITY[1] + 1, count), 0)}

    def apply(self, images_BCHW: Tensor, columns: Columns) -> Tensor:
        """Stores and reads photos."""
        import torch
        import torch.nn.functional as F

        height, width = images_BCHW.shape[2:]
        device = images_BCHW.device
        matrix = torch.tensor(TO_YCC, dtype=torch.float32, device=device)
        # Whole blocks of colours are 16 pixels wide. The border is repeated, as libjpeg does.
        more = (0, -width % (2 * BLOCK), 0, height % 2)
        pixels = F.pad(images_BCHW.clamp(0, 255).round(), more, mode="replicate")
        ycc = torch.einsum("yc,bchw->byhw", matrix, pixels).round()
        luma, colours = ycc[:, :1] - 128, F.avg_pool2d(ycc[:, 1:], 2).round()
        luma = _quantise(luma, steps(LUMA_STEPS, columns["quality"]))
        colours = _quantise(colours, steps(CHROMA_STEPS, columns["quality"]))
        luma = (luma + 128).round().clamp(0, 255)
        # Only what belongs to the photo, so that the padding does not reach into the last pixels.
        colours = colours[:, :, : -(-height // 2), : -(-width // 2)].round().clamp(-128, 127)
        # Linear between the centres of colours, which is libjpeg's "fancy upsampling".
        large = F.interpolate(colours, scale_factor=2, mode="bilinear", align_corners=False)
        planes = (plane[:, :, :height, :width] for plane in (luma, large.round()))
        ycc = torch.cat([*planes], dim=1)
        read = torch.einsum("cy,byhw->bchw", torch.linalg.inv(matrix), ycc)
        return read.round().clamp(0, 255)


def steps(table_88: Floats, quality_B: Floats) -> Floats:
    """(B, 8, 8) float32 quantisation steps, scaled as libjpeg does (jcparam.c)."""
    quality_B = np.clip(np.rint(quality_B), 1, 100)
    scale_B = np.where(quality_B < 50, 5000 // quality_B, 200 - 2 * quality_B)
    scaled = (table_88 * scale_B[:, None, None] + 50) // 100
    return np.clip(scaled, 1, 255).astype(np.float32)


def _quantise(plane_BCHW: Tensor, steps_B88: Floats) -> Tensor:
    """Rounds the cosine transform of each block of 8 x 8 to multiples of the steps."""
    import torch
    import torch.nn.functional as F

    whole = F.pad(plane_BCHW, (0, 0, 0, -plane_BCHW.shape[2] % BLOCK), mode="replicate")
    batch, channels, height, width = whole.shape
    step = torch.from_numpy(steps_B88).to(plane_BCHW.device)[:, None, None, :, None, :]
    cosine = torch.tensor(_cosines(), dtype=torch.float32, device=plane_BCHW.device)
    shape = (batch, channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    blocks = whole.reshape(shape)
    coefficients = torch.einsum("uy,bciyjx,vx->bciujv", cosine, blocks, cosine)
    kept = (coefficients / step).round() * step
    decoded: Tensor = torch.einsum("uy,bciujv,vx->bciyjx", cosine, kept, cosine)
    return decoded.reshape(whole.shape)


def _cosines() -> Floats:
    """(8, 8) the orthonormal discrete cosine transform: frequency, then pixel."""
    frequency, pixel = np.arange(BLOCK)[:, None], np.arange(BLOCK)[None]
    cosines = np.cos((2 * pixel + 1) * frequency * np.pi / (2 * BLOCK)) / 2
    cosines[0] /= np.sqrt(2)
    return np.asarray(cosines)
