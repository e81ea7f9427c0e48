"""Relational distillation, distances: Park et al. 2019, "Relational Knowledge Distillation"
(arXiv:1904.05068), equations 4 to 6.

Shapes: B batch, E embedding.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RkdDistance(nn.Module):
    """`huber(ψ(student), ψ(teacher))` over all pairs of photos, ψ their distance over the mean one.

    Of the embeddings, so that student and teacher may differ in width and in length. The mean runs
    over all B² pairs, a photo with itself (0 in both) too, as in the authors' code.
    """

    inputs: ClassVar = ("student_features", "teacher_features")

    def forward(self, student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
        """Vectors (B, Es) and (B, Et) of any float type; () float32."""
        return F.smooth_l1_loss(relative_distances(student_BE), relative_distances(teacher_BE))


def relative_distances(features_BE: Tensor) -> Tensor:
    """(B, B) distances of the embeddings over the mean of those between different photos."""
    embedding_BE = F.normalize(features_BE.float(), dim=1)
    cosine_BB = (embedding_BE @ embedding_BE.T).clamp(-1, 1)
    # sqrt has no gradient at 0: the diagonal is left out before it, not after.
    other_BB = ~torch.eye(len(cosine_BB), dtype=torch.bool, device=cosine_BB.device)
    squared_BB = torch.where(other_BB, (2 - 2 * cosine_BB).clamp_min(1e-12), 1.0)
    distance_BB = squared_BB.sqrt() * other_BB
    return distance_BB / (distance_BB.sum() / other_BB.sum().clamp_min(1)).clamp_min(1e-12)
