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
"""Two embeddings nearer than this have no direction worth learning from: the gradient of a cosine
grows with one over their distance, and the same photo may come twice in a batch."""


@dataclass(frozen=True)
class RkdAngleConfig(Term):
    """Options of the angles."""

    photos: int = between(3, 4096, default=128)
    """Of a batch: the term's cost grows with their cube."""


class RkdAngle(Loss):
    """`huber(ψ(student), ψ(teacher))` over all triples (i, j, k), ψ the cosine of the angle at j.

    Of the embeddings of the batch's first `photos`, because there are N³ triples. The mean runs
    over all of them, also those with a photo twice (0 or 1 in both), as in the authors' code.
    """

    name = "rkd_angle"
    inputs = ("student_features", "teacher_features")
    config_class = RkdAngleConfig

    def __init__(self, photos: int = 128) -> None:
        super().__init__()
        self.photos = photos

    def forward(self, student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
        """Vectors (B, Es) and (B, Et) of any float type; () float32."""
        student_NE, teacher_NE = student_BE[: self.photos], teacher_BE[: self.photos]
        return F.smooth_l1_loss(angles(student_NE), angles(teacher_NE))


def angles(features_NE: Tensor) -> Tensor:
    """(N, N, N) cosine of the angle at the first index between the two others."""
    embedding_NE = F.normalize(features_NE.float(), dim=1)
    towards_NNE = F.normalize(embedding_NE[None] - embedding_NE[:, None], dim=2, eps=NEAR)
    return towards_NNE @ towards_NNE.transpose(1, 2)
