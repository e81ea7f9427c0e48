"""Transfer of the features' norm, which tells a face's quality: Meng et al. 2021, "MagFace"
(arXiv:2103.06627), section 3.1. The comparison by logarithms is Persona's own.

Shapes: B batch, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from persona.errors import PersonaError
from persona.training.losses.base import Loss

SMALLEST = 1e-6
"""Smallest norm, so that the logarithm is finite."""
UNIT = 1e-3
"""Largest distance from 1 of the norms of a teacher that normalises its embeddings itself."""


class FeatureNorm(Loss):
    """`(log ‖student‖ - log ‖teacher‖)²`, the norms of the embeddings before normalisation.

    Student and teacher may have different embedding sizes. A loss on directions, such as
    `embedding_cosine`, leaves the norm free; this one leaves the direction free.
    """

    name = "feature_norm"
    inputs = ("student_features", "teacher_features")

    def __init__(self) -> None:
        super().__init__()
        self.checked = False

    def forward(self, student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
        """Computes the loss, () float32, of features (B, Es) and (B, Et) of any float dtype.

        Raises:
            PersonaError: all norms of the teacher's first batch are 1, so it gives none.
        """
        student_B, teacher_B = (
            features.float().norm(dim=1).clamp_min(SMALLEST)
            for features in (student_BE, teacher_BE)
        )
        if not self.checked:
            if bool(((teacher_B - 1).abs() < UNIT).all()):
                raise PersonaError(
                    "loss feature_norm compares the norms of embeddings, and this teacher gives "
                    "all of them the length 1: leave the loss out, or choose another teacher"
                )
            self.checked = True
        return (torch.log(student_B) - torch.log(teacher_B)).square().mean()
