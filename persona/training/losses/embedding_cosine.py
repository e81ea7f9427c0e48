"""Embedding distillation by cosine: the measure that faces are compared by.

Shapes: B batch, E embedding.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from persona.training.losses.base import Loss


class EmbeddingCosine(Loss):
    """`1 - cos(student, teacher)`, the mean over the batch.

    The cosine form of feature imitation (Romero et al. 2015, FitNets, arXiv:1412.6550, equation 2,
    on vectors of unit length, where half the squared distance is one minus the cosine).
    """

    name = "embedding_cosine"
    inputs = ("student_features", "teacher_features")
    paired = True

    def forward(self, student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
        """Vectors (B, E) of any float type and length; () float32 in [0, 2].

        Raises:
            ValueError: the shapes differ.
        """
        return (1 - paired_cosine(student_BE, teacher_BE)).mean()


def paired_cosine(student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
    """(B,) float32 cosine of each row with the same row.

    Raises:
        ValueError: the shapes differ.
    """
    if student_BE.shape != teacher_BE.shape:
        raise ValueError(f"vectors of shapes {student_BE.shape} and {teacher_BE.shape}")
    return F.cosine_similarity(student_BE.float(), teacher_BE.float(), dim=1)
