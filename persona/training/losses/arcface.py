"""ArcFace: Deng et al. 2019, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition"
(arXiv:1801.07698), equation 3.

Shapes: B batch, E embedding, K identities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from persona.config import Term, between
from persona.training.losses.base import Loss


@dataclass(frozen=True)
class ArcFaceConfig(Term):
    """Options of ArcFace."""

    margin: float = between(0, 3, default=0.5)
    scale: float = between(0.1, 1000, default=64.0)


class ArcFace(Loss):
    """Cross-entropy of `scale * cos(θ)`, with `margin` radians added to the label's angle."""

    name = "arcface"
    inputs = ("student_features", "class_centres", "labels")
    config_class = ArcFaceConfig

    def __init__(self, margin: float = 0.5, scale: float = 64.0) -> None:
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
        return F.cross_entropy(self.scale * arc_margin(cosine_BK, labels_B, self.margin), labels_B)


def cosines(features_BE: Tensor, centres_KE: Tensor) -> Tensor:
    """Computes the cosines of embeddings with class centres, (B, K) float32."""
    return F.normalize(features_BE.float(), dim=1) @ F.normalize(centres_KE.float(), dim=1).T


def arc_margin(cosine_BK: Tensor, labels_B: Tensor, margin: float) -> Tensor:
    """Computes `cos(θ + margin)` at each row's label and `cos(θ)` elsewhere, (B, K).

    Where θ is beyond π - margin, `cos(θ + margin)` would rise again. There the value is
    `cos(θ) - margin * sin(margin)`, which keeps falling, as in the authors' code.
    """
    own_B = cosine_BK.gather(1, labels_B[:, None])[:, 0]
    # Clamped, because arccos has no gradient at ±1.
    angle_B = own_B.clamp(-1 + 1e-7, 1 - 1e-7).acos()
    sine = torch.sin(torch.tensor(margin, dtype=cosine_BK.dtype))
    beyond_B = angle_B > torch.pi - margin
    with_margin_B = torch.where(
        beyond_B, own_B - margin * sine.to(own_B.device), (angle_B + margin).cos()
    )
    return cosine_BK.scatter(1, labels_B[:, None], with_margin_B[:, None])
