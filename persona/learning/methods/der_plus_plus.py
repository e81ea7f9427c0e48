"""Dark experience replay, DER++ (Buzzega et al. 2020, arXiv:2004.07211).

A reservoir keeps photos with their labels and with the logits that the student gave them when they
were offered to it.

Shapes: B batch, K identities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from persona.config import Checked, between
from persona.data.transforms import normalise
from persona.learning.methods.base import EMBED_BATCH, LearnBatch, label_loss
from persona.learning.methods.replay import WithMemory
from persona.learning.photos import Ints
from persona.training.collectives import gather_batch


def logits_loss(logits_BK: Tensor, kept: Sequence[Tensor]) -> Tensor:
    """Squared error `|| z - h(x) ||^2` (equation 6, alpha's term).

    It is averaged over the identities, as in the authors' code, and over the batch. Identities that
    were not known when a photo was kept have no kept logit and are left out.

    Args:
        logits_BK: (B, K) logits of the student for the kept photos.
        kept: (K',) kept logits of each photo, with K' <= K.
    """
    parts = [
        ((logits_K[: len(kept_K)].float() - kept_K.to(logits_K.device)) ** 2)
        for logits_K, kept_K in zip(logits_BK, kept, strict=True)
    ]
    return torch.cat(parts).mean()


@dataclass(frozen=True)
class DerConfig(Checked):
    """Options of DER++."""

    alpha: float = between(0, 1e6, default=0.5)
    """Weight of the loss on the kept logits."""
    beta: float = between(0, 1e6, default=0.5)
    """Weight of the loss on the kept labels."""


class DerPlusPlus(WithMemory):
    """Replay of logits and of labels: a quarter of each batch for each, drawn from the memory."""

    name = "der++"
    config_class, config_name = DerConfig, "der"
    options: DerConfig

    def step(self, batch: LearnBatch) -> dict[str, Tensor]:
        """Loss of new photos and two draws from the memory, in one forward pass."""
        options, new = self.options, len(batch.images)
        rest = self.config.batch_size - new
        first = self.recall(rest // 2, *batch.seeds, 0)
        second = self.recall(rest - rest // 2, *batch.seeds, 1)
        images = [batch.images, *(drawn[1] for drawn in (first, second) if drawn is not None)]
        logits_BK = self.forward(torch.cat(images)).logits
        terms = {"labels": label_loss(logits_BK[:new], batch.labels)}
        if first is not None and second is not None:
            middle = new + len(first[0])
            of_first, of_second = logits_BK[new:middle], logits_BK[middle:]
            kept = [e.logits for e in first[0] if e.logits is not None]
            terms["kept logits"] = options.alpha * logits_loss(of_first, kept)
            terms["kept labels"] = options.beta * label_loss(of_second, second[2])
        self._pass(batch, logits_BK[:new].detach().float())
        return terms

    def _pass(self, batch: LearnBatch, logits_BK: Tensor) -> None:
        """Offers the new photos of all processes to the reservoir, with their current logits."""
        device = logits_BK.device
        photos = gather_batch(torch.from_numpy(batch.photos).to(device)).cpu().numpy()
        labels = gather_batch(batch.labels)
        self._keep(photos, labels, gather_batch(logits_BK).cpu())

    def _keep(self, photos: Ints, labels: Tensor, logits_BK: Tensor) -> None:
        rows = (row.clone() for row in logits_BK)  # a view would keep all rows alive
        self.memory.add(self.exemplars(photos, labels, rows))

    @torch.no_grad()
    def adopt(self, photos: Ints, labels: Tensor) -> None:
        """Offers photos that were learned elsewhere to the reservoir, with their current logits."""
        context = self.context
        for start in range(0, len(photos), EMBED_BATCH):
            part = photos[start : start + EMBED_BATCH]
            images = normalise(context.photos.images(part).to(context.accelerator.device))
            logits_BK = context.student(images).logits.float().cpu()
            self._keep(part, labels[start : start + EMBED_BATCH], logits_BK)
