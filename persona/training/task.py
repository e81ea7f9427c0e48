"""The objective as one module: student, teacher and loss terms.

Shapes: B batch, C channel, H W pixels, E embedding (512), K identities.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from persona.config import LossConfig
from persona.models.output import FaceNetwork
from persona.training.losses import HardLabels, SoftTargets


class DistillationTask(nn.Module):
    """`total, terms = task(images, labels)`.

    The teacher is frozen, in eval mode whatever `train()` says, and absent from the state dict: it
    is in no optimizer, no DDP wrapper and no checkpoint.
    """

    def __init__(self, student: nn.Module, teacher: FaceNetwork | None, config: LossConfig) -> None:
        """`student` may be wrapped (DDP); without a teacher the hard labels count in full."""
        super().__init__()
        self.student = student
        self._teacher = [teacher.eval().requires_grad_(False)] if teacher is not None else []
        self.soft = SoftTargets(config.temperature)
        self.hard = HardLabels()
        self.soft_weight = config.soft_weight if teacher is not None else 0.0
        self.hard_weight = config.hard_weight if teacher is not None else 1.0

    @property
    def teacher(self) -> FaceNetwork | None:
        """Kept in a list, where nn.Module does not look for submodules."""
        return self._teacher[0] if self._teacher else None

    def forward(self, images_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Normalised images (B, 3, H, W) and labels (B,) to the loss and its terms, unweighted."""
        output = self.student(images_BCHW)
        terms: dict[str, Tensor] = {}
        total = torch.zeros((), device=images_BCHW.device)
        if self.teacher is not None and self.soft_weight:
            with torch.no_grad():
                target_BK = self.teacher(images_BCHW).logits
            terms["soft"] = self.soft(output.logits, target_BK)
            total = total + self.soft_weight * terms["soft"]
        if self.hard_weight:
            terms["hard"] = self.hard(output.logits, labels_B)
            total = total + self.hard_weight * terms["hard"]
        return total, {name: term.detach() for name, term in terms.items()}
