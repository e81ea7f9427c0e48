"""Learning without forgetting (Li and Hoiem 2016, arXiv:1606.09282).

The student is trained to keep the old network's outputs on the new photos. No photo is kept.

There are two differences from the paper. The paper has one softmax per task and is told the task of
a photo; here one softmax covers all identities, for the labels too. The paper first trains the new
rows of the last layer alone (warm-up); here they are not, so that all methods have the same steps.

Shapes: B batch, K identities known before.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from persona.config import Term, between
from persona.learning.methods.base import LearnBatch, Method, label_loss
from persona.learning.photos import Ints
from persona.models.output import freeze
from persona.models.student import Student


def kept_answers(new_BK: Tensor, old_BK: Tensor, temperature: float) -> Tensor:
    """Distillation loss `- sum_k y'_k log y_k`, the mean over the batch (equations 2 and 3).

    `y'` are the old network's probabilities and `y` the new network's. Both are raised to the power
    1/T and normalised, which is the softmax of the logits divided by T.

    Args:
        new_BK: (B, K) logits of the new network for the old identities.
        old_BK: (B, K) logits of the old network.
        temperature: T.
    """
    target = F.softmax(old_BK.float() / temperature, dim=1)
    return F.cross_entropy(new_BK.float() / temperature, target)


class WithOldNetwork(Method):
    """Base of the methods that keep a copy of the student from before the experience."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.old: Student | None = None
        self.known = self.context.student.num_classes

    def before(self, photos: Ints, labels: Tensor) -> None:
        """Keeps a copy of the student as the old network."""
        self._keep(self.known, None)

    def _keep(self, known: int, weights: dict[str, Tensor] | None) -> None:
        """Sets the old network: a copy of the student with its first `known` identities.

        Given weights replace those of the student.
        """
        self.old = None
        if known:
            old = copy.deepcopy(self.context.student)
            old.resize_head(known)
            if weights is not None:
                old.load_state_dict(weights)
            freeze(old)
            self.old = old

    @torch.no_grad()
    def old_logits(self, images_BCHW: Tensor) -> Tensor:
        """(B, K) logits of the old network, or (B, 0) if it knew no identity."""
        if self.old is None:
            return images_BCHW.new_zeros(len(images_BCHW), 0)
        logits_BK: Tensor = self.old.classify(self.old.features(images_BCHW))
        return logits_BK

    def after(self, photos: Ints, labels: Tensor) -> None:
        """Drops the old network."""
        self.old, self.known = None, self.context.student.num_classes

    def state(self) -> dict[str, Any]:
        """Number of identities that the old network knows, and its weights."""
        weights = None if self.old is None else self.old.state_dict()
        return {"known": self.known, "weights": weights}

    def load(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        self.known = state["known"]
        if state["weights"] is not None:
            self._keep(self.known, state["weights"])

    def kept_bytes(self) -> dict[str, int]:
        """Bytes of the old network, which is kept only during an experience."""
        return {"old network": sum(t.nbytes for t in self.context.student.state_dict().values())}


@dataclass(frozen=True)
class LwfConfig(Term):
    """Options of LwF."""

    temperature: float = between(0.01, 1000, default=2.0)


class Lwf(WithOldNetwork):
    """Cross-entropy with the new labels and with the old network's softened outputs."""

    name = "lwf"
    config_class, config_name = LwfConfig, "lwf"
    options: LwfConfig
    remembers = False

    def step(self, batch: LearnBatch) -> dict[str, Tensor]:
        """Loss of one batch of new photos."""
        logits_BK = self.forward(batch.images).logits
        terms = {"labels": label_loss(logits_BK, batch.labels)}
        if self.old is not None:
            options, old_BK = self.options, self.old_logits(batch.images)
            kept = kept_answers(logits_BK[:, : self.known], old_BK, options.temperature)
            terms["old answers"] = options.weight * kept
        return terms
