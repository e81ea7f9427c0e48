"""Hard labels: cross-entropy with the identity.

Shapes: B batch, K identities.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn


class HardLabels(nn.Module):
    """`-log softmax(student)[label]`, the mean over the batch."""

    inputs: ClassVar = ("student_logits", "labels")

    def forward(self, student_BK: Tensor, labels_B: Tensor) -> Tensor:
        """Logits (B, K) of any float type and labels (B,) int64 in [0, K); () float32."""
        return F.cross_entropy(student_BK.float(), labels_B)
