"""Hard labels: cross-entropy with the label of the photo.

Shapes: B batch, K identities.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from persona.training.losses.base import Loss


class HardLabels(Loss):
    """`-log softmax(student)[label]`, the mean over the batch."""

    name = "hard_labels"
    inputs = ("student_logits", "labels")

    def forward(self, student_BK: Tensor, labels_B: Tensor) -> Tensor:
        """Computes the loss, () float32.

        Args:
            student_BK: student logits (B, K) of any float dtype.
            labels_B: (B,) int64 in [0, K).
        """
        return F.cross_entropy(student_BK.float(), labels_B)
