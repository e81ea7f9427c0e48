"""Experience replay (Chaudhry et al. 2019, arXiv:1902.10486): half of every batch are photos of the
memory, chosen by a reservoir or by herding.

Shapes: B batch, N photos, K identities.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, ClassVar

import torch
from torch import Tensor

from persona.learning.memory import Budget, Choice, Exemplar, Memory, herd, herding, reservoir
from persona.learning.methods.base import LearnBatch, Method, label_loss
from persona.learning.photos import Ints, decode, group


class WithMemory(Method):
    """Keeps photos."""

    choose: ClassVar[Choice] = staticmethod(reservoir)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        budget = Budget.of(self.config.memory, self.config.memory_mb)
        budget.check(self.name)
        self.memory = Memory(budget, type(self).choose)

    def check(self, photos: Ints, identities: Ints) -> None:
        """One photo must fit."""
        self.memory.budget.check_smallest([int(self.context.photos.sizes[photos].min())])

    def new_photos(self) -> int:
        """Half of a batch, and all of it while nothing is kept."""
        size = self.config.batch_size
        return size - size // 2 if len(self.memory) else size

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
        recalled = self.recall(self.config.batch_size - len(images), *batch.seeds)
        if recalled is not None:
            _, old_images, old_labels = recalled
            images, labels = torch.cat([images, old_images]), torch.cat([labels, old_labels])
        return {"labels": label_loss(self.forward(images).logits, labels)}

    def after(self, photos: Ints, labels: Tensor) -> None:
        """The experience's photos pass the reservoir."""
        self.memory.add(self.exemplars(photos, labels))


class WithHerding(WithMemory):
    """Keeps of each identity the photos whose mean is nearest to its own."""

    choose: ClassVar[Choice] = staticmethod(herding)

    def check(self, photos: Ints, identities: Ints) -> None:
        """One photo of each identity must fit."""
        smallest = {e.label: len(e.jpeg) for e in self.memory.exemplars}
        sizes = self.context.photos.sizes[photos]
        smallest |= {label: int(sizes[mine].min()) for label, mine in group(identities).items()}
        self.memory.budget.check_smallest(list(smallest.values()), each=True)

    def after(self, photos: Ints, labels: Tensor) -> None:
        """Ranks the new photos of each identity, with those that were kept of it."""
        context, memory, jpeg_of = self.context, self.memory, self.context.photos.jpeg
        embeddings_NE = context.embed(photos)
        kept: dict[int, list[Exemplar]] = defaultdict(list)
        for exemplar in memory.exemplars:
            kept[exemplar.label].append(exemplar)
        new = group(labels.numpy())
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
    """The same with herding."""

    name = "replay-herding"
