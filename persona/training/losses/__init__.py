"""The loss terms, one per file, each with its source. `base` defines what a loss term is."""

from __future__ import annotations

import dataclasses

from torch import nn

from persona.config import LossesConfig, Term
from persona.training.losses.base import LOSSES, Loss


def inputs_of(config: LossesConfig) -> dict[str, tuple[str, ...]]:
    """The inputs of each term that counts, by the term's name."""
    return {name: LOSSES.find(name).inputs for name in counting(config)}


def counting(config: LossesConfig) -> dict[str, Term]:
    """The terms that count: those whose weight is above 0."""
    return {name: term for name, term in config.terms.items() if term.weight}


def build_losses(
    config: LossesConfig,
    *,
    num_classes: int,
    embedding_size: int,
    teacher_size: int | None = None,
) -> nn.ModuleDict:
    """Builds the modules of the terms that count.

    Args:
        config: the terms.
        num_classes: identities of the labels.
        embedding_size: the student's embedding size.
        teacher_size: the teacher's, at which paired terms compare. None means the student's.
    """
    losses = nn.ModuleDict()
    for name, term in counting(config).items():
        options = dataclasses.asdict(term)
        del options["weight"]
        loss = LOSSES.find(name)
        if loss.needs_classes:
            options["num_classes"] = num_classes
        if loss.needs_classes or loss.needs_size:
            options["embedding_size"] = (loss.paired and teacher_size) or embedding_size
        losses[name] = loss(**options)
    return losses


def needs_projection(config: LossesConfig, embedding_size: int, teacher_size: int | None) -> bool:
    """Whether a term compares embeddings number by number that have different sizes."""
    paired = any(LOSSES.find(name).paired for name in counting(config))
    return paired and teacher_size not in {None, embedding_size}


def head_kind(config: LossesConfig) -> str:
    """The kind of last layer that these terms train in the student: linear, cosine or none."""
    wanted = {name for inputs in inputs_of(config).values() for name in inputs}
    if "student_logits" in wanted:
        return "linear"
    return "cosine" if "class_centres" in wanted else "none"


__all__ = [
    "LOSSES",
    "Loss",
    "build_losses",
    "counting",
    "head_kind",
    "inputs_of",
    "needs_projection",
]
