"""Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796), in its online form
(Schwarz et al. 2018, arXiv:1805.06370).

A penalty holds weights that mattered for earlier identities near their values. No photo is kept.

The Fisher information is the empirical one: it uses each photo's true identity. The exact one would
need the gradient for every identity, which is too slow with thousands of identities. Van de Ven
2025 (arXiv:2502.11756) compares the two.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from persona.config import Term, between
from persona.data.transforms import normalise
from persona.data.views import mix_seeds
from persona.learning.methods.base import LearnBatch, Method, label_loss
from persona.learning.photos import Ints

Weights = Mapping[str, Tensor]


def penalty(now: Weights, then: Weights, fisher: Weights) -> Tensor:
    """The penalty `1/2 sum_i F_i (w_i - w*_i)^2`.

    This is Kirkpatrick's equation 3, with the running Fisher information and the latest weights of
    Schwarz's equation 9. The gamma of Schwarz's penalty is part of `EwcConfig.weight` here. If the
    last layer has grown, only its old rows are penalised.

    Args:
        now: the current weights by name.
        then: the weights after the previous experience.
        fisher: the Fisher information of these weights.
    """
    parts = []
    for name, importance in fisher.items():
        weight = now[name]
        if weight.shape != importance.shape:  # a slice's gradient would lose its memory format
            weight = weight[: len(importance)]
        parts.append((importance * (weight - then[name]) ** 2).sum())
    return torch.stack(parts).sum() / 2


@dataclass(frozen=True)
class EwcConfig(Term):
    """Options of EWC."""

    weight: float = between(0, 1e6, default=100.0)
    decay: float = between(0, 1, default=0.9)
    """Factor of the earlier experiences' Fisher information after each experience."""
    photos: int = between(3, 4096, default=64)
    """Photos of an experience from which its Fisher information is estimated, one at a time."""


class Ewc(Method):
    """Cross-entropy on new photos, plus the penalty for moving important weights."""

    name = "ewc"
    config_class, config_name = EwcConfig, "ewc"
    options: EwcConfig

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.fisher: Weights = {}
        self.then: Weights = {}

    def step(self, batch: LearnBatch) -> dict[str, Tensor]:
        """Loss of one batch of new photos."""
        terms = {"labels": label_loss(self.forward(batch.images).logits, batch.labels)}
        if self.fisher:
            now = dict(self.context.student.named_parameters())
            terms["penalty"] = self.options.weight * penalty(now, self.then, self.fisher)
        return terms

    def after(self, photos: Ints, labels: Tensor) -> None:
        """Adds this experience's Fisher information to the decayed sum of the earlier ones."""
        student = self.context.student
        wanted = min(self.options.photos, len(photos))
        rng = np.random.default_rng(mix_seeds(self.config.seed, len(photos)))
        chosen = np.sort(rng.permutation(len(photos))[:wanted])
        decay = self.options.decay
        now = {name: p.detach() for name, p in student.named_parameters()}
        fisher = {name: torch.zeros_like(weight) for name, weight in now.items()}
        for name, old in self.fisher.items():
            fisher[name][tuple(slice(0, size) for size in old.shape)] = decay * old
        for place in chosen.tolist():
            for name, gradient in self._gradient(photos[place], labels[place]).items():
                fisher[name] += gradient**2 / wanted
        self.fisher, self.then = fisher, {name: weight.clone() for name, weight in now.items()}

    def _gradient(self, photo: int, label: Tensor) -> Weights:
        """Gradient of the log-likelihood of one photo's true identity, by weight name."""
        student, device = self.context.student, self.context.accelerator.device
        image_1CHW = normalise(self.context.photos.images(np.array([photo])).to(device))
        log_likelihood = -F.cross_entropy(student(image_1CHW).logits, label[None].to(device))
        names, weights = zip(*student.named_parameters(), strict=True)
        return dict(zip(names, torch.autograd.grad(log_likelihood, weights), strict=True))

    def state(self) -> dict[str, Any]:
        """The Fisher information, and the weights that it belongs to."""
        return {"fisher": self.fisher, "then": self.then}

    def load(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        device = self.context.accelerator.device
        self.fisher, self.then = (
            {name: tensor.to(device) for name, tensor in state[key].items()}
            for key in ("fisher", "then")
        )

    def kept_bytes(self) -> dict[str, int]:
        """Bytes of both: one value for each weight in each."""
        kept = [*self.fisher.values(), *self.then.values()]
        return {"Fisher information and weights": sum(t.nbytes for t in kept)}
