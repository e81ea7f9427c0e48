"""Several teachers as one network, see persona/data/ensembles.py for how they are joined.

Shapes: B batch, C channel, H W pixels, D sizes of all embeddings together, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from persona.models.output import FaceNetwork
from persona.models.sources import NamedNetwork


class EnsembleNetwork(FaceNetwork):
    """Networks whose embeddings are joined. It gives embeddings of unit length and no logits."""

    num_classes = 0
    projection: Tensor

    def __init__(self, members: Sequence[NamedNetwork]) -> None:
        """Joins the networks by concatenation, until `project_by` gives a projection."""
        super().__init__()
        self.named = tuple(members)
        self.members = nn.ModuleList(member.network for member in members)
        self.uses_landmarks = any(member.network.uses_landmarks for member in members)
        self.computes_itself = all(member.network.computes_itself for member in members)
        self.embedding_size = sum(member.network.embedding_size for member in members)
        self.register_buffer("projection", torch.eye(self.embedding_size))

    def project_by(self, projection_DE: Tensor) -> None:
        """Sets the projection, (D, E)."""
        self.projection = projection_DE
        self.embedding_size = projection_DE.shape[1]

    def concatenated(self, images_BCHW: Tensor, landmarks_B62: Tensor | None = None) -> Tensor:
        """Computes the embeddings of all members, each of unit length, (B, D) float32."""
        networks = [member.network for member in self.named]
        found = [network.features(images_BCHW, landmarks_B62).float() for network in networks]
        return torch.cat([F.normalize(features, dim=1) for features in found], dim=1)

    def features(self, images_BCHW: Tensor, landmarks_B62: Tensor | None = None) -> Tensor:
        """Computes the joined embeddings, (B, E) of unit length."""
        found_BD = self.concatenated(images_BCHW, landmarks_B62)
        with torch.autocast(found_BD.device.type, enabled=False):  # joined in float32
            return F.normalize(found_BD @ self.projection, dim=1)

    def classify(self, features_BE: Tensor) -> Tensor:
        """Returns logits of shape (B, 0)."""
        return features_BE.new_zeros(len(features_BE), 0)
