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
    """`huber(ψ(student), ψ(teacher))` over all pairs of photos, ψ their distance over the mean one.

    Of the embeddings, so that student and teacher may differ in width and in length. The mean runs
    over all B² pairs, a photo with itself (0 in both) too, as in the authors' code.
    """

    name = "rkd_distance"
    inputs = ("student_features", "teacher_features")

    def forward(self, student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
        """Vectors (B, Es) and (B, Et) of any float type; () float32."""
        return F.smooth_l1_loss(relative_distances(student_BE), relative_distances(teacher_BE))


def relative_distances(features_BE: Tensor) -> Tensor:
    """(B, B) distances of the embeddings over the mean of those between different photos."""
    embedding_BE = F.normalize(features_BE.float(), dim=1)
    # From differences: 2 - 2 cos would lose near photos in its rounding. A photo's distance from
    # itself is exactly 0, and torch gives it no gradient.
    exact = "donot_use_mm_for_euclid_dist"
    distance_BB = torch.cdist(embedding_BE, embedding_BE, compute_mode=exact)
    pairs = max(len(distance_BB) * (len(distance_BB) - 1), 1)
    return distance_BB / (distance_BB.sum() / pairs).clamp_min(1e-12)
