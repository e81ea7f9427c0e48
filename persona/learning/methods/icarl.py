"""iCaRL (Rebuffi et al. 2017, arXiv:1611.07725).

Exemplars are kept by herding. Each identity has a sigmoid. For old identities the target is the old
network's output. Faces are classified by the nearest mean of the exemplars.

An identity that comes again counts as old: its new photos get the old network's output as target.

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
    """Binary cross-entropy, summed over identities and averaged over the batch.

    This is the loss of algorithm 3: `- [d log g + (1 - d) log(1 - g)]`. For new identities `d` is
    the label (0 or 1). For old ones, the first of the K, the old network's output `q` takes its
    place.

    Args:
        logits_BK: (B, K) logits of the student, before the sigmoid `g`.
        labels_B: (B,) int64 labels.
        old_BK: (B, K') logits of the old network, with K' <= K.
    """
    target_BK = F.one_hot(labels_B, logits_BK.shape[1]).float()
    target_BK[:, : old_BK.shape[1]] = torch.sigmoid(old_BK.float())
    losses = F.binary_cross_entropy_with_logits(logits_BK.float(), target_BK, reduction="none")
    return losses.sum(dim=1).mean()


class Icarl(WithHerding, WithOldNetwork):
    """The method iCaRL.

    Half of every batch are exemplars. The paper instead draws from new photos and exemplars as one
    set.
    """

    name = "icarl"
    own_base = True
    means: ClassMeans

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.means = ClassMeans(self.context.student.embedding_size)

    def step(self, batch: LearnBatch) -> dict[str, Tensor]:
        """Loss of new photos and as many exemplars."""
        images, labels = self.with_recalled(batch)
        logits_BK = self.forward(images).logits
        return {"identities": icarl_loss(logits_BK, labels, self.old_logits(images))}

    def after(self, photos: Ints, labels: Tensor) -> None:
        """Chooses new exemplars, then computes all class means with the current student."""
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
        """State of the memory, the old network and the means."""
        old = WithOldNetwork.state(self)
        return {**WithHerding.state(self), **old, "means": self.means.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        WithHerding.load(self, state)
        WithOldNetwork.load(self, state)
        self.means.load(state["means"])

    def kept_bytes(self) -> dict[str, int]:
        """Bytes of the memory, the old network and the means."""
        both = {**WithHerding.kept_bytes(self), **WithOldNetwork.kept_bytes(self)}
        return {**both, "means": self.means.bytes}
