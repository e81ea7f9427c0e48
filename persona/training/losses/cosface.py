"""CosFace: Wang et al. 2018, "CosFace: Large Margin Cosine Loss for Deep Face Recognition"
(arXiv:1801.09414), equation 4.

Shapes: B batch, E embedding, K identities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from persona.config import Term, between
from persona.training.losses.arcface import cosines
from persona.training.losses.base import Loss


@dataclass(frozen=True)
class CosFaceConfig(Term):
    """Options of CosFace."""

    margin: float = between(0, 3, default=0.35)
    scale: float = between(0.1, 1000, default=64.0)


class CosFace(Loss):
    """Cross-entropy of `scale * cos(θ)`, with `margin` subtracted from the label's cosine."""

    name = "cosface"
    inputs = ("student_features", "class_centres", "labels")
    config_class = CosFaceConfig

    def __init__(self, margin: float = 0.35, scale: float = 64.0) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale

    def forward(self, student_BE: Tensor, centres_KE: Tensor, labels_B: Tensor) -> Tensor:
        """Computes the loss, () float32.

        Args:
            student_BE: student features (B, E) of any norm.
            centres_KE: class centres (K, E) of any norm.
            labels_B: (B,) int64.
        """
        cosine_BK = cosines(student_BE, centres_KE)
        return F.cross_entropy(self.scale * cos_margin(cosine_BK, labels_B, self.margin), labels_B)


def cos_margin(cosine_BK: Tensor, labels_B: Tensor, margin: float) -> Tensor:
    """Computes `cos(θ) - margin` at each row's label and `cos(θ)` elsewhere, (B, K)."""
    taken_B1 = torch.full_like(labels_B[:, None], -margin, dtype=cosine_BK.dtype)
    return cosine_BK.scatter_add(1, labels_B[:, None], taken_B1)
