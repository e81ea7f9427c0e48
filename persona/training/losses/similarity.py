"""Similarity-preserving distillation: Tung and Mori 2019, "Similarity-Preserving Knowledge
Distillation" (arXiv:1907.09682), equations 1 to 4.

Shapes: B batch, E embedding.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from persona.training.losses.base import Loss


class Similarity(Loss):
    """`‖G(student) - G(teacher)‖² / B²`, G the batch's inner products, each row of unit length."""

    name = "similarity"
    inputs = ("student_features", "teacher_features")

    def forward(self, student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
        """Vectors (B, Es) and (B, Et) of any float type; () float32."""
        difference_BB = gram(student_BE) - gram(teacher_BE)
        return difference_BB.square().sum() / len(student_BE) ** 2


def gram(features_BE: Tensor) -> Tensor:
    """(B, B) inner products, normalised by row."""
    features = features_BE.float()
    return F.normalize(features @ features.T, dim=1)
