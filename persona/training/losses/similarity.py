"""Similarity-preserving distillation: Tung and Mori 2019, "Similarity-Preserving Knowledge
Distillation" (arXiv:1907.09682), equations 1 to 4.

Shapes: B batch, E embedding.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from persona.training.losses.base import Loss


class Similarity(Loss):
    """`‖G(student) - G(teacher)‖² / B²`, where G holds the inner products of the batch.

    Each row of G is normalised to unit length.
    """

    name = "similarity"
    inputs = ("student_features", "teacher_features")

    def forward(self, student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
        """Computes the loss, () float32, of features (B, Es) and (B, Et) of any float dtype."""
        difference_BB = gram(student_BE) - gram(teacher_BE)
        return difference_BB.square().sum() / len(student_BE) ** 2


def gram(features_BE: Tensor) -> Tensor:
    """Computes the inner products of the rows, (B, B), each row of them of unit length."""
    features = features_BE.float()
    return F.normalize(features @ features.T, dim=1)
