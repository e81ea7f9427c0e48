"""AdaDistill: Boutros et al. 2024, "AdaDistill: Adaptive Knowledge Distillation for Deep Face
Recognition" (arXiv:2407.01332), equations 4 to 8.

Shapes: B batch, E embedding, K identities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from persona.config import Term, among, between
from persona.training.collectives import gather_batch
from persona.training.losses.arcface import arc_margin, cosines
from persona.training.losses.base import Loss
from persona.training.losses.cosface import cos_margin

SMALLEST = 1e-6
PENALTIES = {"arcface": arc_margin, "cosface": cos_margin}


@dataclass(frozen=True)
class AdaDistillConfig(Term):
    """Options of AdaDistill."""

    penalty: str = among(PENALTIES, default="arcface")
    margin: float = between(0, 3, default=0.45)
    scale: float = between(0.1, 1000, default=64.0)


class AdaDistill(Loss):
    """A margin softmax of the student's embedding against the teacher's class centres.

    A class centre is a running mean of the teacher's embeddings of one identity. Its momentum is
    `cos(student, teacher) * cos(centre, teacher)`. While the student is far from the teacher, the
    centre follows the current photo, which is easy to match. Later the centre stays with the
    identity, which is harder to match. The less a photo resembles its centre, the further it moves
    the centre.
    """

    name = "adadistill"
    inputs = ("student_features", "teacher_features", "labels")
    paired = True
    needs_classes = True
    config_class = AdaDistillConfig
    centres: Tensor
    seen: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        embedding_size: int,
        penalty: str = "arcface",
        margin: float = 0.45,
        scale: float = 64.0,
    ) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale
        self.add_margin = PENALTIES[penalty]
        start = torch.randn(num_classes, embedding_size)
        self.register_buffer("centres", F.normalize(start, dim=1))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

    @torch.no_grad()
    def update(self, student_BE: Tensor, teacher_BE: Tensor, labels_B: Tensor) -> None:
        """Updates the centres of the batch's identities, in the same way on all processes.

        If a batch has several photos of an identity, its centre becomes the mean of the centres
        that each photo gives. This does not depend on their order. The first photos of an identity
        replace its random centre.
        """
        teacher_BE = F.normalize(teacher_BE.float(), dim=1)
        centre_BE = self.centres[labels_B]
        near_B = F.cosine_similarity(student_BE.float(), teacher_BE, dim=1).clamp(-1, 1)
        sure_B = F.cosine_similarity(centre_BE, teacher_BE, dim=1).clamp(SMALLEST, 1)
        momentum_B = (near_B * sure_B).clamp(SMALLEST, 1)
        momentum_B = torch.where(self.seen[labels_B], momentum_B, 0.0)
        moved_BE = centre_BE + (1 - momentum_B[:, None]) * (teacher_BE - centre_BE)
        labels_B, moved_BE = gather_batch(labels_B), gather_batch(moved_BE)
        present_P, place_B = torch.unique(labels_B, return_inverse=True)
        sums_PE = moved_BE.new_zeros(len(present_P), moved_BE.shape[1])
        sums_PE.index_add_(0, place_B, moved_BE)
        counts_P = place_B.bincount(minlength=len(present_P))
        self.centres[present_P] = sums_PE / counts_P[:, None]
        self.seen[present_P] = True

    def forward(self, student_BE: Tensor, teacher_BE: Tensor, labels_B: Tensor) -> Tensor:
        """Computes the loss, () float32.

        Args:
            student_BE: student features (B, E) of any norm.
            teacher_BE: teacher features (B, E) of any norm.
            labels_B: (B,) int64.

        Raises:
            ValueError: the shapes of the features differ.
        """
        if student_BE.shape != teacher_BE.shape:
            raise ValueError(f"embeddings of shapes {student_BE.shape} and {teacher_BE.shape}")
        if self.training:
            self.update(student_BE.detach(), teacher_BE, labels_B)
        # Cloned, because a later batch may change the centres in place before the backward pass.
        cosine_BK = cosines(student_BE, self.centres.clone())
        logits_BK = self.scale * self.add_margin(cosine_BK, labels_B, self.margin)
        return F.cross_entropy(logits_BK, labels_B)
