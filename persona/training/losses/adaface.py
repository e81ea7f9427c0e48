"""AdaFace: Kim et al. 2022, "AdaFace: Quality Adaptive Margin for Face Recognition"
(arXiv:2204.00964), equations 13 to 17.

Shapes: B batch, E embedding, K identities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from persona.config import Term, between
from persona.training.collectives import gather_batch
from persona.training.losses.arcface import cosines
from persona.training.losses.base import Loss

NORM_RANGE = (0.001, 100.0)
"""Norms are clipped to it, as in the authors' code."""
FIRST_MEAN, FIRST_DEVIATION = 20.0, 100.0
"""What the running statistics start from, as in the authors' code."""
EDGE = 1e-3
"""Angles are kept this far from 0 and π."""


@dataclass(frozen=True)
class AdaFaceConfig(Term):
    """Options of AdaFace."""

    margin: float = between(0, 3, default=0.4)
    h: float = between(0, 10, default=0.333)
    scale: float = between(0.1, 1000, default=64.0)
    momentum: float = between(0, 1, default=0.99)


class AdaFace(Loss):
    """A margin that follows the vector's length, the student's own measure of a photo's quality.

    With z the length's deviation from its running mean, times `h`, in [-1, 1], the own identity's
    logit is `scale * (cos(θ - margin * z) - (margin + margin * z))`.
    """

    name = "adaface"
    inputs = ("student_features", "class_centres", "labels")
    config_class = AdaFaceConfig
    mean: Tensor
    deviation: Tensor

    def __init__(
        self, margin: float = 0.4, h: float = 0.333, scale: float = 64.0, momentum: float = 0.99
    ) -> None:
        super().__init__()
        self.margin, self.h, self.scale, self.momentum = margin, h, scale, momentum
        self.register_buffer("mean", torch.tensor(FIRST_MEAN))
        self.register_buffer("deviation", torch.tensor(FIRST_DEVIATION))

    def forward(self, student_BE: Tensor, centres_KE: Tensor, labels_B: Tensor) -> Tensor:
        """Vectors (B, E) and class centres (K, E) of any length, labels (B,) int64; () float32."""
        norm_B = student_BE.detach().float().norm(dim=1).clamp(*NORM_RANGE)
        if self.training:
            everybody = gather_batch(norm_B)
            deviation = everybody.std() if len(everybody) > 1 else self.deviation
            self.mean.lerp_(everybody.mean(), 1 - self.momentum)
            self.deviation.lerp_(deviation, 1 - self.momentum)
        z_B = ((norm_B - self.mean) / (self.deviation + EDGE) * self.h).clamp(-1, 1)
        cosine_BK = cosines(student_BE, centres_KE)
        own_B = cosine_BK.gather(1, labels_B[:, None])[:, 0].clamp(-1 + EDGE, 1 - EDGE)
        angle_B = (own_B.acos() - self.margin * z_B).clamp(EDGE, torch.pi - EDGE)
        own_B = angle_B.cos() - (self.margin + self.margin * z_B)
        logits_BK = self.scale * cosine_BK.scatter(1, labels_B[:, None], own_B[:, None])
        return F.cross_entropy(logits_BK, labels_B)
