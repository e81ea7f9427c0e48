"""Experience replay (Chaudhry et al. 2019, arXiv:1902.10486): half of every batch are photos of the
memory, chosen by a reservoir or by herding.

Shapes: B batch, N photos, K identities.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from persona.learning.memory import Budget, Choice, Exemplar, Memory, herd, herding, reservoir
from persona.learning.methods.base import LearnBatch, Method, label_loss
from persona.learning.photos import Ints, decode


class WithMemory(Method):
    """Keeps photos."""

    new_share = 0.5
    choose: ClassVar[Choice] = staticmethod(reservoir)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        budget = Budget.of(self.config.memory, self.config.memory_mb)
        budget.check(self.name)
        self.memory = Memory(budget, type(self).choose)

    def recall(self, count: int, *seeds: int) -> tuple[list[Exemplar], Tensor, Tensor] | None:
        """`count` exemplars, their views and labels; None if nothing is kept yet."""
        drawn = self.memory.draw(count, *seeds)
        return (drawn, *self.context.remembered(drawn, seeds)) if drawn else None

    def state(self) -> dict[str, Any]:
        """The memory."""
        return {"memory": self.memory.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Takes up `state`."""
        self.memory.load(state["memory"])

    def kept_bytes(self) -> dict[str, int]:
        """Photos and logits."""
        return {"memory": self.memory.bytes}


class Replay(WithMemory):
    """Cross-entropy on new and kept photos alike; a reservoir."""

    name = "replay"

    def step(self, batch: LearnBatch) -> dict[str, Tensor]:
        """New photos, and as many out of the memory."""
        images, labels = batch.images, batch.labels
        recalled = self.recall(len(images), *batch.seeds)
        if recalled is not None:
            _, old_images, old_labels = recalled
            images, labels = torch.cat([images, old_images]), torch.cat([labels, old_labels])
        return {"labels": label_loss(self.forward(images).logits, labels)}

    def after(self, photos: Ints, labels: Tensor) -> None:
        """The experience's photos pass the reservoir."""
        pairs = zip(photos.tolist(), labels.tolist(), strict=True)
        self.memory.add(self.exemplar(photo, label) for photo, label in pairs)


class WithHerding(WithMemory):
    """Keeps of each identity the photos whose mean is nearest to its own."""

    choose: ClassVar[Choice] = staticmethod(herding)

    def after(self, photos: Ints, labels: Tensor) -> None:
        """Ranks the new photos of each identity, with those that were kept of it."""
        context, memory = self.context, self.memory
        embeddings_NE = context.embed(photos)
        fresh: list[Exemplar] = []
        for label in torch.unique(labels).tolist():
            mine = np.flatnonzero(labels.numpy() == label)
            jpegs = [context.photos.jpeg(photo) for photo in photos[mine].tolist()]
            mine_NE = embeddings_NE[mine]
            kept = [e.jpeg for e in memory.exemplars if e.label == label]
            if kept:
                kept_NE = context.embed_images(decode(kept, context.photos.size_px))
                jpegs, mine_NE = jpegs + kept, torch.cat([mine_NE, kept_NE])
            best = herd(mine_NE, memory.budget.photos)
            fresh += [Exemplar(rank, label, jpegs[place]) for rank, place in enumerate(best)]
        again = {e.label for e in fresh}
        memory.exemplars = [e for e in memory.exemplars if e.label not in again]
        memory.add(fresh)


class ReplayHerding(WithHerding, Replay):
    """The same with herding."""

    name = "replay-herding"
