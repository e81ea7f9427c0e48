"""ShrinkTeaNet: Duong et al. 2019, "ShrinkTeaNet: Million-scale Lightweight Face Recognition via
Shrinking Teacher-Student Networks" (arXiv:1905.10620).

Shapes: B batch, E embedding.
"""

from __future__ import annotations

from torch import Tensor

from persona.training.losses.base import Loss
from persona.training.losses.embedding_cosine import paired_cosine


class EmbeddingAngular(Loss):
    """`(1 - cos(student, teacher))²`, the mean over the batch: the paper's angular distillation.

    Only the direction of the embedding is learned, not its norm. Because of the square, faces whose
    direction is nearly right have little influence.
    """

    name = "embedding_angular"
    inputs = ("student_features", "teacher_features")
    paired = True

    def forward(self, student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
        """Computes the loss, () float32 in [0, 4], of features (B, E) of any float dtype and norm.

        Raises:
            ValueError: the shapes differ.
        """
        return (1 - paired_cosine(student_BE, teacher_BE)).square().mean()
