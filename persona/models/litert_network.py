"""A LiteRT file of `persona export` as a torch network, for evaluation: `litert:FILE`.

Shapes: B batch, C channel, H W pixels, E embedding.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from persona.models.litert import LitertSession
from persona.models.output import FaceNetwork


class LitertNetwork(FaceNetwork):
    """A LiteRT file as a FaceNetwork. It takes faces normalised as in training, one per run."""

    num_classes = 0
    computes_itself = True

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Raises:
            PersonaError: the file is missing or holds no face network.
        """
        super().__init__()
        self._file = LitertSession(path, torch.get_num_threads())
        self.embedding_size = self._file.embedding_size

    def count_parameters(self) -> int | None:
        """Returns None: the graph is folded and may be quantised, so a count would mean little."""
        return None

    def features(self, images_BCHW: Tensor, landmarks_B62: Tensor | None = None) -> Tensor:
        """Computes embeddings, (B, E). They already have unit length."""
        images, side = images_BCHW.float(), self._file.side_px
        if images.shape[2] != side:
            images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        found = self._file.run(images.cpu().numpy())
        return torch.from_numpy(found).to(images_BCHW.device)

    def classify(self, features_BE: Tensor) -> Tensor:
        """Returns logits of shape (B, 0), because the file has no identities."""
        return features_BE.new_zeros(len(features_BE), 0)
