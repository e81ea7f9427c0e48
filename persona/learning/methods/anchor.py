"""Anchor: the original teacher holds the student's embedding space in place (this project's idea).

The student is trained to keep the teacher's embeddings of the new photos. The class means of
identities learned before therefore stay valid. No photo is kept.

It differs from LwF, which keeps the student's own old outputs, good or bad. The teacher embeds the
new faces better than the student does.

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
    """Options of the anchor."""

    weight: float = between(0, 1e6, default=10.0)
    """Weight of the cosine distance to the teacher's embedding."""


class Anchor(ByMeans):
    """Loss `CE + weight · (1 - cos(student, teacher))`; faces are classified by class means.

    The cross-entropy covers only the identities of the experience. Over all identities it would
    push the old ones away from the new photos, and so move the embedding space.
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
        """Labels of the experience's identities, rising."""

    def before(self, photos: Ints, labels: Tensor) -> None:
        """Notes the labels of the experience."""
        self.present = torch.unique(labels)

    def step(self, batch: LearnBatch) -> dict[str, Tensor]:
        """Loss of one batch of new photos."""
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
        """State of the class means, and the labels of the experience."""
        return {**super().state(), "present": self.present}

    def load(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        super().load(state)
        self.present = state["present"]
