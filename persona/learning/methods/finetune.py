"""Finetuning: training on the new photos only, which forgets (McCloskey and Cohen 1989).

It is the lower bound for the other methods.
"""

from __future__ import annotations

from torch import Tensor

from persona.learning.methods.base import LearnBatch, Method, label_loss


class Finetune(Method):
    """Cross-entropy over all identities, on the new photos only."""

    name = "finetune"
    remembers = False

    def step(self, batch: LearnBatch) -> dict[str, Tensor]:
        """Cross-entropy of one batch of new photos."""
        return {"labels": label_loss(self.forward(batch.images).logits, batch.labels)}
