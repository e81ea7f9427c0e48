"""Compatibility with an old model: Meng et al. 2021, "Learning Compatible Embeddings"
(arXiv:2108.01958), section 3, with the formulas of the authors' code (IrvingMeng/LCE, main.py).

The old model is the teacher. What it embedded in a gallery can then be compared with the student's
embeddings.

Shapes: B batch, E embedding, K identities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from persona.config import Term, between
from persona.errors import PersonaError
from persona.training.collectives import gather_batch
from persona.training.losses.base import Loss


@dataclass(frozen=True)
class CompatibleConfig(Term):
    """Options of compatibility; the defaults are the authors'."""

    align: float = between(0, 1e6, default=100.0)
    """Weight of the distance between the centres of both models."""
    boundary: float = between(0, 1e6, default=1.0)
    """Weight of what lies outside the old model's boundaries."""


class Compatible(Loss):
    """`align · mean((w - c)²) + boundary · mean(max(0, b - cos(s, c)))`.

    `c` is the old model's centre of an identity: the mean of its embeddings, scaled to unit length.
    `b` is its boundary: the lowest cosine of such an embedding with the centre. `w` is the
    student's centre, a row of its last layer scaled to unit length, and `s` its embedding. An
    embedding that is as near to the old centre as the old model's own are costs nothing, so that
    the student may be better than the old model.

    The authors compute centres and boundaries before training. Here they are running ones, of all
    photos that the old model has embedded so far, so that no further pass is needed; identities
    that were not seen are left out. There is no transformation between the spaces: student and old
    model must have embeddings of one size.
    """

    name = "compatible"
    inputs = ("student_features", "teacher_features", "class_centres", "labels")
    needs_classes = True
    config_class = CompatibleConfig
    sums: Tensor
    least: Tensor

    def __init__(
        self, *, num_classes: int, embedding_size: int, align: float = 100.0, boundary: float = 1.0
    ) -> None:
        super().__init__()
        self.align, self.boundary = align, boundary
        self.register_buffer("sums", torch.zeros(num_classes, embedding_size))
        self.register_buffer("least", torch.ones(num_classes))

    @torch.no_grad()
    def update(self, teacher_BE: Tensor, labels_B: Tensor) -> None:
        """Adds a batch to centres and boundaries, in the same way on all processes."""
        old_BE = gather_batch(F.normalize(teacher_BE.float(), dim=1))
        labels_B = gather_batch(labels_B)
        self.sums.index_add_(0, labels_B, old_BE)
        cosine_B = F.cosine_similarity(old_BE, self.sums[labels_B], dim=1)
        self.least.scatter_reduce_(0, labels_B, cosine_B, "amin")

    def forward(
        self, student_BE: Tensor, teacher_BE: Tensor, centres_KE: Tensor, labels_B: Tensor
    ) -> Tensor:
        """Computes the loss, () float32.

        Args:
            student_BE: student features (B, E) of any norm.
            teacher_BE: features (B, E) of the old model, of any norm.
            centres_KE: the student's class centres (K, E), of any norm.
            labels_B: (B,) int64.

        Raises:
            PersonaError: the embeddings of student and old model differ in size.
        """
        if student_BE.shape != teacher_BE.shape:
            raise PersonaError(
                f"loss compatible: the student's embedding has {student_BE.shape[1]} numbers and "
                f"the teacher's {teacher_BE.shape[1]}; embeddings of two sizes cannot be compared: "
                f"add -o student.embedding_size={teacher_BE.shape[1]}"
            )
        if self.training:
            self.update(teacher_BE, labels_B)
        # Cloned, because a later batch may change them in place before the backward pass.
        sums_KE, least_B = self.sums.clone(), self.least[labels_B]
        seen_K = sums_KE.any(dim=1)
        old_KE = F.normalize(sums_KE, dim=1)
        squares_KE = (F.normalize(centres_KE.float(), dim=1) - old_KE) ** 2
        distance = squares_KE[seen_K].sum() / seen_K.sum().clamp(min=1) / old_KE.shape[1]
        cosine_B = F.cosine_similarity(student_BE.float(), old_KE[labels_B], dim=1)
        outside = ((least_B - cosine_B).clamp(min=0) * seen_K[labels_B]).mean()
        return self.align * distance + self.boundary * outside
