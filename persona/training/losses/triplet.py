"""Triplet loss: Schroff et al. 2015, "FaceNet" (arXiv:1503.03832), equation 2 and section 3.2.

Shapes: B batch, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from persona.config import Term, between
from persona.training.losses.base import Loss


@dataclass(frozen=True)
class TripletConfig(Term):
    """Options of the triplet loss."""

    margin: float = between(0, 3, default=0.2)


class Triplet(Loss):
    """`max(0, d(a, p) - d(a, n) + margin)`, the mean over all anchor-positive pairs of the batch.

    d is the squared distance of two embeddings. For each pair, a negative is chosen from the batch:
    the nearest semi-hard one, which is further away than the positive but within the margin. If
    there is none, the furthest negative is chosen. It is the easiest one, and the hardest ones make
    the network collapse early in training.

    A set of triplets (three photos a sample) always has positive pairs. The loss of a batch without
    any is 0.
    """

    name = "triplet"
    inputs = ("student_features", "labels")
    config_class = TripletConfig

    def __init__(self, margin: float = 0.2) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, student_BE: Tensor, labels_B: Tensor) -> Tensor:
        """Computes the loss, () float32, of features (B, E) of any norm and labels (B,) int64."""
        embedding_BE = F.normalize(student_BE.float(), dim=1)
        distance_BB = 2 - 2 * (embedding_BE @ embedding_BE.T)
        same_BB = labels_B[:, None] == labels_B[None]
        positive_BB = same_BB & ~torch.eye(len(labels_B), dtype=torch.bool, device=same_BB.device)
        has_negative_B = (~same_BB).any(dim=1)
        anchor_P, positive_P = (positive_BB & has_negative_B[:, None]).nonzero(as_tuple=True)
        if not len(anchor_P):
            return distance_BB.sum() * 0
        to_positive_P = distance_BB[anchor_P, positive_P]
        to_others_PB = distance_BB[anchor_P].masked_fill(same_BB[anchor_P], torch.inf)
        gap_PB = to_others_PB - to_positive_P[:, None]
        semi_hard_PB = (gap_PB > 0) & (gap_PB < self.margin)
        nearest_P = to_others_PB.masked_fill(~semi_hard_PB, torch.inf).amin(dim=1)
        furthest_P = to_others_PB.masked_fill(same_BB[anchor_P], -torch.inf).amax(dim=1)
        to_negative_P = torch.where(semi_hard_PB.any(dim=1), nearest_P, furthest_P)
        return (to_positive_P - to_negative_P + self.margin).clamp_min(0).mean()
