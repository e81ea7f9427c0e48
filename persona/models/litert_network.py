"""A LiteRT file of `persona export` as a network, to evaluate it: `litert:FILE`.

Shapes: B batch, C channel, H W pixels, E embedding.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from persona.models.litert import open_litert, run_litert
from persona.models.output import FaceNetwork


class LitertNetwork(FaceNetwork):
    """It takes faces as training normalises them, one a run."""

    num_classes = 0

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Raises:
            PersonaError: missing, or no face network.
        """
        super().__init__()
        self._opened = open_litert(path, torch.get_num_threads())
        self._side = int(self._opened.get_input_details()[0]["shape"][1])
        self.embedding_size = int(self._opened.get_output_details()[0]["shape"][1])

    def features(self, images_BCHW: Tensor, landmarks_B62: Tensor | None = None) -> Tensor:
        """(B, E), of unit length already."""
        images = images_BCHW.float()
        if images.shape[2] != self._side:
            images = F.interpolate(
                images, (self._side, self._side), mode="bilinear", antialias=True
            )
        found = run_litert(self._opened, images.cpu().numpy())
        return torch.from_numpy(found).to(images_BCHW.device)

    def classify(self, features_BE: Tensor) -> Tensor:
        """(B, 0): it has no identities."""
        return features_BE.new_zeros(len(features_BE), 0)
