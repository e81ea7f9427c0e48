"""An ONNX file as a torch network, which can be a teacher like any other; see also onnx.py.

Shapes: B batch, C channel, H W pixels, E embedding.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from persona.landmarks import Floats, aligned, crop_to_template
from persona.models.graphs import read_onnx
from persona.models.onnx import (
    OnnxSession,
    OnnxSettings,
    find_settings,
    parse_settings,
    providers,
)
from persona.models.onnx_graph import count_onnx
from persona.models.output import FaceNetwork

PIXEL_MEAN, PIXEL_SCALE = 127.5, 128.0
"""Normalisation of the crops (persona/data/transforms.py), undone here."""


def open_network(path: Path) -> OnnxNetwork:
    """Opens an ONNX file with its own settings.

    Raises:
        PersonaError: the file is missing, no ONNX, or does not fit its settings.
    """
    read_onnx(path)  # so that errors of the file are reported before those of its settings
    return OnnxNetwork(path, parse_settings(*find_settings(path)))


class OnnxNetwork(FaceNetwork):
    """An ONNX file as a FaceNetwork. It runs in onnxruntime, on CUDA if that is available."""

    num_classes = 0
    computes_itself = True
    from_elsewhere = True

    def __init__(self, path: Path, settings: OnnxSettings) -> None:
        """Loads the file and runs it once, for a limited time.

        Raises:
            PersonaError: the file is no ONNX, has control flow, is too slow, or has an input or
                output that does not fit the settings.
        """
        super().__init__()
        # As many threads as torch, because the user may run one process per core.
        self._file = OnnxSession(path, settings, torch.get_num_threads(), providers())
        self.embedding_size = self._file.embedding_size

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self._file.path

    @property
    def settings(self) -> OnnxSettings:
        """The settings of the file."""
        return self._file.settings

    @property
    def uses_landmarks(self) -> bool:  # type: ignore[override]
        """Whether it needs faces aligned to the five landmarks."""
        return self._file.uses_landmarks

    def count_parameters(self) -> int | None:
        """The number of parameters in the graph; None if the package `onnx` is not installed."""
        return count_onnx(self.path)[0]

    def with_settings(self, settings: OnnxSettings) -> OnnxNetwork:
        """Returns the same network with other settings. Both share one session."""
        other = copy.copy(self)
        other._file = copy.copy(self._file)
        other._file.settings = settings
        return other

    def features(self, images_BCHW: Tensor, landmarks_B62: Tensor | None = None) -> Tensor:
        """Computes the embeddings before normalisation, (B, E).

        Raises:
            PersonaError: the network needs landmarks and a crop has none.
        """
        points = None if landmarks_B62 is None else landmarks_B62.cpu().numpy()
        self._file.check_landmarks(points)
        # The file has its own precision. Autocast would only round its pixels.
        with torch.autocast(images_BCHW.device.type, enabled=False):
            return self._features(images_BCHW.float(), points)

    def _features(self, images_BCHW: Tensor, landmarks_B62: Floats | None) -> Tensor:
        pixels = (images_BCHW * PIXEL_SCALE).add_(PIXEL_MEAN)
        side = self.settings.input_size
        if self.uses_landmarks:
            assert landmarks_B62 is not None
            pixels = turn(pixels, landmarks_B62, side)
        elif pixels.shape[2] != side:
            pixels = F.interpolate(
                pixels, (side, side), mode="bilinear", antialias=True, align_corners=False
            )
        return torch.from_numpy(self._file.run(pixels.cpu().numpy())).to(images_BCHW.device)

    def classify(self, features_BE: Tensor) -> Tensor:
        """Returns logits of shape (B, 0), because the file has no identities."""
        return features_BE.new_zeros(len(features_BE), 0)


def turn(pixels_BCHW: Tensor, landmarks_B62: Floats, size_px: int) -> Tensor:
    """Warps crops so that their landmarks lie on ArcFace's template, (B, 3, size_px, size_px).

    A crop whose landmarks lie there already keeps its pixels.
    """
    side = pixels_BCHW.shape[2]
    done_B = aligned(side, landmarks_B62, size_px)
    if done_B.all():
        return pixels_BCHW
    if done_B.any():
        rows = torch.from_numpy(np.flatnonzero(~done_B)).to(pixels_BCHW.device)
        turned = turn(pixels_BCHW[rows], landmarks_B62[~done_B], size_px)
        return pixels_BCHW.index_copy(0, rows, turned)
    back_B23 = crop_to_template(landmarks_B62, size_px)
    # crop_to_template is in px, with pixel centres at whole numbers. grid_sample uses [-1, 1] from
    # edge to edge, for input and output.
    theta = np.empty_like(back_B23)
    theta[..., :2] = back_B23[..., :2] * (size_px / side)
    middle = back_B23[..., :2] @ np.full(2, (size_px - 1) / 2) + back_B23[..., 2]
    theta[..., 2] = (2 * middle + 1) / side - 1
    # Mirrored crops of a set that is aligned to the template share one warp.
    warps = theta[:1] if (theta == theta[:1]).all() else theta
    grid = F.affine_grid(
        torch.from_numpy(warps).float().to(pixels_BCHW.device),
        [len(warps), 3, size_px, size_px],
        align_corners=False,
    ).expand(len(pixels_BCHW), -1, -1, -1)
    return F.grid_sample(pixels_BCHW, grid, padding_mode="border", align_corners=False)
