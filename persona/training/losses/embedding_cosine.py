"""Embedding distillation by cosine, the measure by which faces are compared.

Shapes: B batch, E embedding.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from persona.training.losses.base import Loss


class EmbeddingCosine(Loss):
    """`1 - cos(student, teacher)`, the mean over the batch.

    This is feature imitation (Romero et al. 2015, FitNets, arXiv:1412.6550, equation 2) on
    embeddings of unit length, where half the squared distance is one minus the cosine.
    """

    name = "embedding_cosine"
    inputs = ("student_features", "teacher_features")
    paired = True

    def forward(self, student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
        """Computes the loss, () float32 in [0, 2], of features (B, E) of any float dtype and norm.

        Raises:
            ValueError: the shapes differ.
        """
        return (1 - paired_cosine(student_BE, teacher_BE)).mean()


def paired_cosine(student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
    """Computes the cosine of each student row with the teacher row of the same photo, (B,) float32.

    Raises:
        ValueError: the shapes differ.
    """
    if student_BE.shape != teacher_BE.shape:
        raise ValueError(f"embeddings of shapes {student_BE.shape} and {teacher_BE.shape}")
    return F.cosine_similarity(student_BE.float(), teacher_BE.float(), dim=1)
