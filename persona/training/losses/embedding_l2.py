"""Embedding distillation by distance: Romero et al. 2015, "FitNets" (arXiv:1412.6550), equation 2.

Shapes: B batch, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from persona.config import Term
from persona.training.losses.base import Loss


@dataclass(frozen=True)
class EmbeddingL2Config(Term):
    """Options of the embedding distance."""

    unit: bool = False
    """Whether embeddings are normalised to unit length first."""


class EmbeddingL2(Loss):
    """`‖student - teacher‖² / 2`, the mean over the batch.

    By default it compares the embeddings before normalisation. The student then also learns their
    norm, on which the teacher's logits depend. With `unit` both are normalised to unit length.
    """

    name = "embedding_l2"
    inputs = ("student_features", "teacher_features")
    paired = True
    config_class = EmbeddingL2Config

    def __init__(self, unit: bool = False) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
        """Computes the loss, () float32, of features (B, E) of any float dtype.

        Raises:
            ValueError: the shapes differ.
        """
        if student_BE.shape != teacher_BE.shape:
            raise ValueError(f"embeddings of shapes {student_BE.shape} and {teacher_BE.shape}")
        student, teacher = student_BE.float(), teacher_BE.float()
        if self.unit:
            student, teacher = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
        return (student - teacher).square().sum(dim=1).mean() / 2
