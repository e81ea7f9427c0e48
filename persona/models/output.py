"""What every face network returns: nothing depends on a hidden "classify" switch.

Shapes: B batch, C channel, H W pixels, E embedding (512), K identities.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

EMBEDDING_SIZE = 512


class FaceOutput(NamedTuple):
    """One forward pass."""

    features: Tensor
    """(B, E): the vector before L2 normalisation; logits are linear in it."""
    logits: Tensor
    """(B, K)."""

    @property
    def embedding(self) -> Tensor:
        """(B, E) of unit length: what faces are compared by."""
        return F.normalize(self.features, dim=1)


class FaceNetwork(nn.Module):
    """A network from normalised crops (B, 3, H, W) float32 to a FaceOutput."""

    num_classes: int

    def features(self, images_BCHW: Tensor) -> Tensor:
        """(B, E) before normalisation, without the cost of the logits."""
        raise NotImplementedError

    def classify(self, features_BE: Tensor) -> Tensor:
        """(B, K) logits of features."""
        raise NotImplementedError

    def forward(self, images_BCHW: Tensor) -> FaceOutput:
        """Features and logits at once."""
        features_BE = self.features(images_BCHW)
        return FaceOutput(features_BE, self.classify(features_BE))

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """(B, E) embeddings of unit length."""
        return F.normalize(self.features(images_BCHW).float(), dim=1)
