"""A LiteRT file of `persona export` as a torch network, for evaluation: `litert:FILE`.

Shapes: B batch, C channel, H W pixels, E embedding.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from persona.models.embedder import demand_landmarks
from persona.models.litert import PIXEL_MEAN, PIXEL_SCALE, LitertSession
from persona.models.onnx_network import turn
from persona.models.output import FaceNetwork


class LitertNetwork(FaceNetwork):
    """A LiteRT file as a FaceNetwork. It takes faces normalised as in training, one per run.

    If its card says that faces are aligned by five points, it turns them to the template itself.
    """

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

    @property
    def uses_landmarks(self) -> bool:  # type: ignore[override]
        """Whether it needs faces aligned to the five landmarks."""
        return self._file.uses_landmarks

    def count_parameters(self) -> int | None:
        """Returns None: the graph is folded and may be quantised, so a count would mean little."""
        return None

    def features(self, images_BCHW: Tensor, landmarks_B62: Tensor | None = None) -> Tensor:
        """Computes embeddings, (B, E). They already have unit length.

        Raises:
            PersonaError: the network needs landmarks and a crop has none.
        """
        images, side = images_BCHW.float(), self._file.side_px
        if self.uses_landmarks:
            points = None if landmarks_B62 is None else landmarks_B62.cpu().numpy()
            # Pixels outside a crop are black, as in `LitertSession`, so not normalised ones.
            pixels = (images * PIXEL_SCALE).add_(PIXEL_MEAN)
            turned = turn(pixels, demand_landmarks(points, self._file.name), side)
            images = (turned - PIXEL_MEAN) / PIXEL_SCALE
        elif images.shape[2] != side:
            images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        found = self._file.run(images.cpu().numpy())
        return torch.from_numpy(found).to(images_BCHW.device)

    def classify(self, features_BE: Tensor) -> Tensor:
        """Returns logits of shape (B, 0), because the file has no identities."""
        return features_BE.new_zeros(len(features_BE), 0)
