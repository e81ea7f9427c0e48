"""Relational distillation, angles: Park et al. 2019, "Relational Knowledge Distillation"
(arXiv:1904.05068), equations 7 and 8.

Shapes: B batch, N photos of it, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from persona.config import Term, between
from persona.training.losses.base import Loss

NEAR = 1e-2
"""Smallest distance by which a difference of two embeddings is divided. The gradient of the cosine
grows with 1 / distance, and a batch may hold the same photo twice."""


@dataclass(frozen=True)
class RkdAngleConfig(Term):
    """Options of the angle loss."""

    photos: int = between(3, 4096, default=128)
    """Largest number of photos of a batch that are used. The cost grows with its cube."""


class RkdAngle(Loss):
    """`huber(ψ(student), ψ(teacher))` over all triples (i, j, k), ψ the cosine of the angle at j.

    The triples are of the embeddings of the batch's first `photos` photos, because there are N³ of
    them. As in the authors' code, the mean includes triples that name a photo twice. Their ψ is 0
    or 1, the same for student and teacher.
    """

    name = "rkd_angle"
    inputs = ("student_features", "teacher_features")
    config_class = RkdAngleConfig

    def __init__(self, photos: int = 128) -> None:
        super().__init__()
        self.photos = photos

    def forward(self, student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
        """Computes the loss, () float32, of features (B, Es) and (B, Et) of any float dtype."""
        student_NE, teacher_NE = student_BE[: self.photos], teacher_BE[: self.photos]
        return F.smooth_l1_loss(angles(student_NE), angles(teacher_NE))


def angles(features_NE: Tensor) -> Tensor:
    """Computes the cosine of the angle at the first photo between the two others, (N, N, N)."""
    embedding_NE = F.normalize(features_NE.float(), dim=1)
    towards_NNE = F.normalize(embedding_NE[None] - embedding_NE[:, None], dim=2, eps=NEAR)
    return towards_NNE @ towards_NNE.transpose(1, 2)
