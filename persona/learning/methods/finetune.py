"""Training on the new photos alone: the lower bound, which forgets (McCloskey and Cohen 1989)."""

from __future__ import annotations

from torch import Tensor

from persona.learning.methods.base import LearnBatch, Method, label_loss


class Finetune(Method):
    """Cross-entropy over all identities, on the new photos."""

    name = "finetune"
    remembers = False

    def step(self, batch: LearnBatch) -> dict[str, Tensor]:
        """One batch of new photos."""
        return {"labels": label_loss(self.forward(batch.images).logits, batch.labels)}
