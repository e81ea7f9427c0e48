"""Relational distillation, distances: Park et al. 2019, "Relational Knowledge Distillation"
(arXiv:1904.05068), equations 4 to 6.

Shapes: B batch, E embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from persona.training.losses.base import Loss


class RkdDistance(Loss):
    """`huber(ψ(student), ψ(teacher))` over all pairs of photos, ψ the distance / mean distance.

    The distances are of embeddings of unit length, so student and teacher may differ in embedding
    size and in norm. As in the authors' code, the mean runs over all B² pairs. They include each
    photo with itself, where ψ is 0 for both.
    """

    name = "rkd_distance"
    inputs = ("student_features", "teacher_features")

    def forward(self, student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
        """Computes the loss, () float32, of features (B, Es) and (B, Et) of any float dtype."""
        return F.smooth_l1_loss(relative_distances(student_BE), relative_distances(teacher_BE))


def relative_distances(features_BE: Tensor) -> Tensor:
    """Computes the distances, (B, B), divided by the mean distance of two different photos."""
    embedding_BE = F.normalize(features_BE.float(), dim=1)
    # Not from 2 - 2 cos, whose rounding error exceeds the distance of similar photos. Here the
    # distance of a photo to itself is exactly 0, where torch's gradient is 0.
    exact = "donot_use_mm_for_euclid_dist"
    distance_BB = torch.cdist(embedding_BE, embedding_BE, compute_mode=exact)
    pairs = max(len(distance_BB) * (len(distance_BB) - 1), 1)
    return distance_BB / (distance_BB.sum() / pairs).clamp_min(1e-12)
