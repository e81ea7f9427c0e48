"""Dark experience replay, DER++ (Buzzega et al. 2020, arXiv:2004.07211): photos are kept with their
labels, and with the logits that the student gave them when they passed.

Shapes: B batch, K identities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from persona.config import Checked, between
from persona.data.transforms import normalise
from persona.learning.methods.base import LearnBatch, label_loss
from persona.learning.methods.replay import WithMemory
from persona.learning.photos import Ints
from persona.training.collectives import gather_batch


def logits_loss(logits_BK: Tensor, kept: Sequence[Tensor]) -> Tensor:
    """`|| z - h(x) ||^2` (equation 6, alpha's term), the mean over identities and the batch.

    The mean over identities is that of the authors' code. An identity that was not known when a
    photo was kept has no logit to compare with.

    Args:
        logits_BK: the student's of the kept photos.
        kept: of each photo, (K',) with K' <= K.
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
    """Of the kept logits."""
    beta: float = between(0, 1e6, default=0.5)
    """Of the kept labels."""


class DerPlusPlus(WithMemory):
    """A quarter of each batch are photos kept for their logits, a quarter for their labels."""

    name = "der++"
    config_class, config_name = DerConfig, "der"
    options: DerConfig

    def step(self, batch: LearnBatch) -> dict[str, Tensor]:
        """New photos, and two draws out of the memory, in one forward pass."""
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
        """The new photos of all processes pass the reservoir, with the logits they get now."""
        device = logits_BK.device
        photos = gather_batch(torch.from_numpy(batch.photos).to(device)).cpu().numpy()
        labels = gather_batch(batch.labels)
        self._keep(photos, labels, gather_batch(logits_BK).cpu())

    def _keep(self, photos: Ints, labels: Tensor, logits_BK: Tensor) -> None:
        rows = (row.clone() for row in logits_BK)  # or each would hold all of them
        self.memory.add(self.exemplars(photos, labels, rows))

    @torch.no_grad()
    def adopt(self, photos: Ints, labels: Tensor) -> None:
        """Photos that were learned already pass with the logits that they get now."""
        context = self.context
        for start in range(0, len(photos), 64):
            part = photos[start : start + 64]
            images = normalise(context.photos.images(part).to(context.accelerator.device))
            logits_BK = context.student(images).logits.float().cpu()
            self._keep(part, labels[start : start + 64], logits_BK)
