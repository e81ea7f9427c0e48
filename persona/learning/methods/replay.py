"""Experience replay (Chaudhry et al. 2019, arXiv:1902.10486).

Half of every batch comes from a memory of photos, chosen by a reservoir or by herding.

Shapes: B batch, N photos, K identities.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from persona.evaluation.search import rows_of_each
from persona.learning.memory import Budget, Choice, Exemplar, Memory, herd, herding, reservoir
from persona.learning.methods.base import LearnBatch, Method, label_loss
from persona.learning.photos import Ints, decode


class WithMemory(Method):
    """Base of the methods that keep photos in a memory."""

    choose: ClassVar[Choice] = staticmethod(reservoir)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        budget = Budget.of(self.config.memory, self.config.memory_mb)
        budget.check(self.name)
        self.memory = Memory(budget, type(self).choose)

    def check(self, photos: Ints, identities: Ints) -> None:
        """Raises PersonaError if not even the smallest photo fits in the memory."""
        self.memory.budget.check_smallest([int(self.context.photos.sizes[photos].min())])

    def new_photos(self) -> int:
        """Half of a batch, or all of it while the memory is empty."""
        size = self.config.batch_size
        return size - size // 2 if len(self.memory) else size

    def recall(self, count: int, *seeds: int) -> tuple[list[Exemplar], Tensor, Tensor] | None:
        """Draws `count` exemplars with their views and labels. None if the memory is empty."""
        drawn = self.memory.draw(count, *seeds)
        return (drawn, *self.context.remembered(drawn, seeds)) if drawn else None

    def with_recalled(self, batch: LearnBatch) -> tuple[Tensor, Tensor]:
        """Images and labels of the batch's new photos, and of exemplars up to the batch size."""
        images, labels = batch.images, batch.labels
        recalled = self.recall(self.config.batch_size - len(images), *batch.seeds)
        if recalled is None:
            return images, labels
        _, old_images, old_labels = recalled
        return torch.cat([images, old_images]), torch.cat([labels, old_labels])

    def state(self) -> dict[str, Any]:
        """State of the memory."""
        return {"memory": self.memory.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        self.memory.load(state["memory"])

    def leave_out(self, photos: Ints) -> None:
        """Drops the exemplars that are among the held-out photos."""
        found = self.context.photos
        # Few photos have the size of an exemplar, so few are read.
        likely = photos[np.isin(found.sizes[photos], [len(e.jpeg) for e in self.memory.exemplars])]
        held = set(map(found.jpeg, likely.tolist()))
        self.memory.exemplars = [e for e in self.memory.exemplars if e.jpeg not in held]

    def kept_bytes(self) -> dict[str, int]:
        """Bytes of the kept photos and of their logits."""
        return {"memory": self.memory.bytes}


class Replay(WithMemory):
    """Cross-entropy on new photos and on photos kept by a reservoir."""

    name = "replay"

    def step(self, batch: LearnBatch) -> dict[str, Tensor]:
        """Cross-entropy of new photos and as many photos from the memory."""
        images, labels = self.with_recalled(batch)
        return {"labels": label_loss(self.forward(images).logits, labels)}

    def after(self, photos: Ints, labels: Tensor) -> None:
        """Offers the experience's photos to the reservoir."""
        self.memory.add(self.exemplars(photos, labels))


class WithHerding(WithMemory):
    """Base of the methods that keep photos by herding.

    Herding picks the photos of an identity whose mean embedding is nearest to the identity's mean.
    """

    choose: ClassVar[Choice] = staticmethod(herding)

    def check(self, photos: Ints, identities: Ints) -> None:
        """Raises PersonaError if one photo of each identity does not fit in the memory."""
        smallest = {e.label: len(e.jpeg) for e in self.memory.exemplars}
        sizes = self.context.photos.sizes[photos]
        smallest |= {
            label: int(sizes[mine].min()) for label, mine in rows_of_each(identities).items()
        }
        self.memory.budget.check_smallest(list(smallest.values()), each=True)

    def after(self, photos: Ints, labels: Tensor) -> None:
        """Ranks each identity's new photos together with its kept ones, and keeps the best."""
        context, memory, jpeg_of = self.context, self.memory, self.context.photos.jpeg
        embeddings_NE = context.embed(photos)
        kept: dict[int, list[Exemplar]] = defaultdict(list)
        for exemplar in memory.exemplars:
            kept[exemplar.label].append(exemplar)
        new = rows_of_each(labels.numpy())
        wanted = max(1, memory.budget.photos // len(kept.keys() | new))
        fresh: list[Exemplar] = []
        for label, mine in new.items():
            mine_NE, again = embeddings_NE[mine], [e.jpeg for e in kept.pop(label, [])]
            if again:
                known = set(map(jpeg_of, photos[mine]))
                again = [jpeg for jpeg in again if jpeg not in known]
            if again:
                images = decode(again, context.photos.size_px)
                mine_NE = torch.cat([mine_NE, context.embed_images(images)])
            for rank, place in enumerate(herd(mine_NE, wanted)):
                is_new = place < len(mine)
                jpeg = jpeg_of(photos[mine[place]]) if is_new else again[place - len(mine)]
                fresh.append(Exemplar(rank, label, jpeg))
        memory.exemplars = [e for exemplars in kept.values() for e in exemplars]
        memory.add(fresh)


class ReplayHerding(WithHerding, Replay):
    """Cross-entropy on new photos and on photos kept by herding."""

    name = "replay-herding"
