"""Loss terms, one a file, each citing its source.

A term says by `inputs` what it compares; persona.training.task hands it those tensors in order.

| input | what |
|---|---|
| `student_features` | (B, E) the student's vectors before normalisation |
| `student_logits` | (B, K) |
| `class_centres` | (K, E) weights of the student's last layer, for heads of cosines |
| `teacher_features` | (B, E) the teacher's vectors before normalisation |
| `teacher_logits` | (B, K) |
| `labels` | (B,) int64 |

Every term takes any float type and gives a () float32, the mean over the batch; the task calls it
outside autocast.
"""

from __future__ import annotations

import dataclasses

from torch import nn

from persona.config import LossesConfig, Term
from persona.training.losses.adadistill import AdaDistill
from persona.training.losses.adaface import AdaFace
from persona.training.losses.arcface import ArcFace
from persona.training.losses.cosface import CosFace
from persona.training.losses.embedding_angular import EmbeddingAngular
from persona.training.losses.embedding_cosine import EmbeddingCosine
from persona.training.losses.embedding_l2 import EmbeddingL2
from persona.training.losses.hard_labels import HardLabels
from persona.training.losses.rkd_angle import RkdAngle
from persona.training.losses.rkd_distance import RkdDistance
from persona.training.losses.similarity import Similarity
from persona.training.losses.soft_targets import SoftTargets
from persona.training.losses.triplet import Triplet

LOSSES: dict[str, type[nn.Module]] = {
    "soft_targets": SoftTargets,
    "hard_labels": HardLabels,
    "embedding_cosine": EmbeddingCosine,
    "embedding_l2": EmbeddingL2,
    "embedding_angular": EmbeddingAngular,
    "rkd_distance": RkdDistance,
    "rkd_angle": RkdAngle,
    "similarity": Similarity,
    "arcface": ArcFace,
    "cosface": CosFace,
    "adaface": AdaFace,
    "adadistill": AdaDistill,
    "triplet": Triplet,
}


def inputs_of(config: LossesConfig) -> dict[str, tuple[str, ...]]:
    """What each term that counts compares."""
    return {name: LOSSES[name].inputs for name in counting(config)}  # type: ignore[attr-defined]


def counting(config: LossesConfig) -> dict[str, Term]:
    """The terms whose weight is above 0."""
    return {name: term for name, term in config.terms().items() if term.weight}


def build_losses(config: LossesConfig, *, num_classes: int, embedding_size: int) -> nn.ModuleDict:
    """The terms that count, as modules."""
    losses = nn.ModuleDict()
    for name, term in counting(config).items():
        options = dataclasses.asdict(term)
        del options["weight"]
        if name == "adadistill":
            options |= {"num_classes": num_classes, "embedding_size": embedding_size}
        losses[name] = LOSSES[name](**options)
    return losses


def head_kind(config: LossesConfig) -> str:
    """The student's last layer that these terms train: linear, cosine or none."""
    wanted = {name for inputs in inputs_of(config).values() for name in inputs}
    if "student_logits" in wanted:
        return "linear"
    return "cosine" if "class_centres" in wanted else "none"


__all__ = ["LOSSES", "build_losses", "counting", "head_kind", "inputs_of"]
