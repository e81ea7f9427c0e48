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
"""Range to which norms are clipped, as in the authors' code."""
FIRST_MEAN, FIRST_DEVIATION = 20.0, 100.0
"""Initial values of the running statistics, as in the authors' code."""
EDGE = 1e-3
"""Least distance of cosines from ±1, and of angles from 0 and π (radians)."""


@dataclass(frozen=True)
class AdaFaceConfig(Term):
    """Options of AdaFace."""

    margin: float = between(0, 3, default=0.4)
    h: float = between(0, 10, default=0.333)
    scale: float = between(0.1, 1000, default=64.0)
    momentum: float = between(0, 1, default=0.99)


class AdaFace(Loss):
    """A softmax whose margin depends on the norm of the features, which measures photo quality.

    The logit of a photo's identity is `scale * (cos(θ - margin * z) - (margin + margin * z))`. Here
    z is the norm, standardised by its running mean and deviation, times `h`, clipped to [-1, 1].
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
        """Computes the loss, () float32.

        Args:
            student_BE: student features (B, E).
            centres_KE: class centres (K, E) of any norm.
            labels_B: (B,) int64.
        """
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
