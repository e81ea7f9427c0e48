"""iCaRL (Rebuffi et al. 2017, arXiv:1611.07725): exemplars by herding, a sigmoid an identity, the
old network's answers for the old identities, and naming by the exemplars' means.

An identity that comes again is an old one: its new photos are taught the old network's answer.

Shapes: B batch, K identities.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from persona.learning.means import ClassMeans
from persona.learning.methods.base import EMBED_BATCH, LearnBatch
from persona.learning.methods.lwf import WithOldNetwork
from persona.learning.methods.replay import WithHerding
from persona.learning.photos import Ints, decode


def icarl_loss(logits_BK: Tensor, labels_B: Tensor, old_BK: Tensor) -> Tensor:
    """The sum over identities of binary cross-entropies, the mean over the batch.

    Algorithm 3: `- [d log g + (1 - d) log(1 - g)]` with the label `d` for the new identities, and
    with the old network's answer `q` in its place for the old ones, the first of the K.

    Args:
        logits_BK: of the student, before the sigmoid `g`.
        labels_B: (B,).
        old_BK: the old network's logits, of fewer identities.
    """
    target_BK = F.one_hot(labels_B, logits_BK.shape[1]).float()
    target_BK[:, : old_BK.shape[1]] = torch.sigmoid(old_BK.float())
    losses = F.binary_cross_entropy_with_logits(logits_BK.float(), target_BK, reduction="none")
    return losses.sum(dim=1).mean()


class Icarl(WithHerding, WithOldNetwork):
    """Half of every batch are exemplars: the paper draws from both as one set."""

    name = "icarl"
    own_base = True
    means: ClassMeans

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.means = ClassMeans(self.context.student.embedding_size)

    def step(self, batch: LearnBatch) -> dict[str, Tensor]:
        """New photos, and as many exemplars."""
        images, labels = batch.images, batch.labels
        recalled = self.recall(self.config.batch_size - len(images), *batch.seeds)
        if recalled is not None:
            _, old_images, old_labels = recalled
            images, labels = torch.cat([images, old_images]), torch.cat([labels, old_labels])
        logits_BK = self.forward(images).logits
        return {"identities": icarl_loss(logits_BK, labels, self.old_logits(images))}

    def after(self, photos: Ints, labels: Tensor) -> None:
        """New exemplars, and the means of all of them as the student sees them now."""
        WithHerding.after(self, photos, labels)
        WithOldNetwork.after(self, photos, labels)
        self.means = ClassMeans(self.context.student.embedding_size)
        kept = self.memory.exemplars
        for start in range(0, len(kept), EMBED_BATCH):
            part = kept[start : start + EMBED_BATCH]
            images = decode((e.jpeg for e in part), self.context.photos.size_px)
            labels_N = torch.tensor([e.label for e in part], dtype=torch.int64)
            self.means.add(self.context.embed_images(images), labels_N)

    def state(self) -> dict[str, Any]:
        """Memory, old network, means."""
        old = WithOldNetwork.state(self)
        return {**WithHerding.state(self), **old, "means": self.means.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Takes up `state`."""
        WithHerding.load(self, state)
        WithOldNetwork.load(self, state)
        self.means.load(state["means"])

    def kept_bytes(self) -> dict[str, int]:
        """Memory, old network, means."""
        both = {**WithHerding.kept_bytes(self), **WithOldNetwork.kept_bytes(self)}
        return {**both, "means": self.means.bytes}
