"""Loss terms, one a file, each citing its source; what one is stands in `base`."""

from __future__ import annotations

import dataclasses

from torch import nn

from persona.config import LossesConfig, Term
from persona.training.losses.base import LOSSES, Loss


def inputs_of(config: LossesConfig) -> dict[str, tuple[str, ...]]:
    """What each term that counts compares."""
    return {name: LOSSES.find(name).inputs for name in counting(config)}


def counting(config: LossesConfig) -> dict[str, Term]:
    """The terms whose weight is above 0."""
    return {name: term for name, term in config.terms.items() if term.weight}


def build_losses(config: LossesConfig, *, num_classes: int, embedding_size: int) -> nn.ModuleDict:
    """The terms that count, as modules."""
    sizes = {"num_classes": num_classes, "embedding_size": embedding_size}
    losses = nn.ModuleDict()
    for name, term in counting(config).items():
        options = dataclasses.asdict(term)
        del options["weight"]
        loss = LOSSES.find(name)
        losses[name] = loss(**options, **(sizes if loss.needs_classes else {}))
    return losses


def head_kind(config: LossesConfig) -> str:
    """The student's last layer that these terms train: linear, cosine or none."""
    wanted = {name for inputs in inputs_of(config).values() for name in inputs}
    if "student_logits" in wanted:
        return "linear"
    return "cosine" if "class_centres" in wanted else "none"


__all__ = ["LOSSES", "Loss", "build_losses", "counting", "head_kind", "inputs_of"]
