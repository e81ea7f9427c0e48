"""Embedding distillation by distance: Romero et al. 2015, "FitNets" (arXiv:1412.6550), equation 2.

Shapes: B batch, E embedding.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn


class EmbeddingL2(nn.Module):
    """`‖student - teacher‖² / 2`, the mean over the batch.

    Of the vectors before normalisation, so that the student learns their length as well, from which
    the teacher's logits come; `unit`: of the embeddings.
    """

    inputs: ClassVar = ("student_features", "teacher_features")

    def __init__(self, unit: bool = False) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
        """Vectors (B, E) of any float type; () float32.

        Raises:
            ValueError: the shapes differ.
        """
        if student_BE.shape != teacher_BE.shape:
            raise ValueError(f"vectors of shapes {student_BE.shape} and {teacher_BE.shape}")
        student, teacher = student_BE.float(), teacher_BE.float()
        if self.unit:
            student, teacher = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
        return (student - teacher).square().sum(dim=1).mean() / 2
