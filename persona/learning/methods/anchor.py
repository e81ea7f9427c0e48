"""The original teacher as an anchor, this project's own idea: its embedding of the new photos keeps
the student's space in place, and so the means of those learned before. No photo is kept.

It is no LwF: that one keeps the student's own old answers, whatever they were worth; the teacher
knows the new faces better than the student ever did.

Shapes: B batch, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from persona.config import Term, between
from persona.errors import PersonaError
from persona.learning.methods.base import LearnBatch, label_loss
from persona.learning.methods.ncm import ByMeans
from persona.learning.photos import Ints
from persona.training.losses.embedding_cosine import EmbeddingCosine


@dataclass(frozen=True)
class AnchorConfig(Term):
    """Options of the anchor: how much the teacher's embedding of the new photos counts."""

    weight: float = between(0, 1e6, default=10.0)


class Anchor(ByMeans):
    """`CE + weight · (1 - cos(student, teacher))`; faces are named by class means.

    The cross-entropy is among the experience's own identities: over all of them it would push the
    old ones away from the new photos, which is what moves the space.
    """

    name = "anchor"
    config_class, config_name = AnchorConfig, "anchor"
    options: AnchorConfig
    own_base = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if self.context.teacher is None:
            raise PersonaError(
                "method anchor wants the teacher that the student was distilled from, and none is "
                "at hand: name it with --teacher, or choose lwf, which keeps the student's own "
                "answers"
            )
        self.cosine = EmbeddingCosine()
        self.present = torch.empty(0, dtype=torch.int64)
        """Labels of the experience, sorted."""

    def before(self, photos: Ints, labels: Tensor) -> None:
        """Notes who is in the experience."""
        self.present = torch.unique(labels)

    def step(self, batch: LearnBatch) -> dict[str, Tensor]:
        """One batch of new photos."""
        teacher = self.context.teacher
        assert teacher is not None
        targets_BE = batch.targets
        if targets_BE is None:
            targets_BE = teacher.features(batch.images, batch.landmarks)
        output = self.forward(batch.images)
        present = self.present.to(batch.labels.device)
        labels = torch.searchsorted(present, batch.labels)
        kept = self.cosine(output.features, targets_BE.float())
        return {
            "labels": label_loss(output.logits[:, present], labels),
            "anchor": self.options.weight * kept,
        }

    def state(self) -> dict[str, Any]:
        """Means and identities."""
        return {**super().state(), "present": self.present}

    def load(self, state: dict[str, Any]) -> None:
        """Takes up `state`."""
        super().load(state)
        self.present = state["present"]
