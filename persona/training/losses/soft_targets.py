"""Soft targets: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network".

Shapes: B batch, K identities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from persona.config import Term, between
from persona.errors import PersonaError
from persona.training.losses.base import Loss


@dataclass(frozen=True)
class SoftTargetsConfig(Term):
    """Options of soft targets."""

    temperature: float = between(0.01, 1000, default=4.0)


class SoftTargets(Loss):
    """`T² · KL(softmax(teacher / T) ‖ softmax(student / T))`, the mean over the batch.

    Both are softened by the temperature T (equation 1 of the paper). The divergence differs from
    the paper's cross-entropy by a constant. The gradients of soft targets scale as 1/T²
    (section 2). The factor T² cancels this, so that the weight relative to hard labels keeps its
    meaning when T changes.
    """

    name = "soft_targets"
    inputs = ("student_logits", "teacher_logits")
    config_class = SoftTargetsConfig

    def __init__(self, temperature: float) -> None:
        super().__init__()
        if not temperature > 0:
            raise PersonaError(f"temperature {temperature}: choose a number above 0")
        self.temperature = temperature

    def forward(self, student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
        """Computes the loss, () float32, of logits (B, K) of any float dtype.

        Raises:
            ValueError: the shapes differ.
        """
        if student_BK.shape != teacher_BK.shape:
            raise ValueError(f"logits of shapes {student_BK.shape} and {teacher_BK.shape}")
        # float32: a softmax over 8,631 classes loses its tail in float16.
        student = F.log_softmax(student_BK.float() / self.temperature, dim=1)
        teacher = F.log_softmax(teacher_BK.float() / self.temperature, dim=1)
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return divergence * self.temperature**2
