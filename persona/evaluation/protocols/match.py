"""Match accuracy: the share of triplets whose anchor is closer to its positive than its negative.

Closer means a higher cosine similarity of the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from persona.data.shards import Manifest
from persona.errors import PersonaError
from persona.evaluation.metrics import match_auc, match_scores
from persona.evaluation.protocols.base import Evaluation, Options, Protocol, Subject
from persona.evaluation.sentences import Sentence
from persona.evaluation.statistics import Interval, bootstrap_interval
from persona.models.sources import Named


@dataclass(frozen=True)
class MatchFigures(Evaluation):
    """Share of triplets whose anchor is closer to the positive, and by how much."""

    model: str
    set: str
    measure: str
    accuracy: float | None = None
    auc: float | None = None
    triplets: int | None = None
    no_face: int | None = None
    absent: int | None = None
    intervals: dict[str, Interval | None] | None = None
    resampled: str | None = None
    flip: bool | None = None
    no_face_policy: str | None = None
    margin: float | None = None
    """Mean over triplets of the anchor's cosine with the positive minus that with the negative."""
    spread: float | None = None

    shown = (
        ("accuracy", "accuracy"),
        ("AUC", "auc"),
        ("mean margin", "margin"),
        ("spread", "spread"),
    )
    counted = ("triplets", "no_face", "absent")
    unit = "triplets"

    def in_words(self) -> Sentence:
        """In how many triplets the two photos of one person are closer."""
        return Sentence(
            self.told("accuracy"),
            f" of {self.set}'s {self.triplets:,} triplets have the two photos of one person closer "
            f"together{self.spread_of('accuracy')}.",
        )


class Match(Protocol):
    """Match accuracy on a packed set of triplets."""

    name = "match"
    result = MatchFigures
    chosen_by = "auc"

    def check(self, named: Named, manifest: Manifest, options: Options) -> None:
        """Raises PersonaError if the set does not hold triplets."""
        if manifest.kind != "triplets":
            raise PersonaError(
                f"set {manifest.name} holds photos, no triplets: match needs triplets"
            )

    def figures(self, subject: Subject) -> dict[str, Any]:
        """Accuracy, AUC and mean margin. Intervals resample the anchors' identities."""
        embedded = subject.embed(subject.faces)
        genuine, impostor = match_scores(*np.moveaxis(embedded.embeddings, 1, 0))
        right = genuine > impostor
        figures: dict[str, Any] = {
            "accuracy": float(right.mean()),
            "auc": match_auc(genuine, impostor),
            "triplets": len(right),
            "no_face": subject.manifest.left_out[0],
            "margin": float((genuine - impostor).mean()),
        }
        resamples = subject.options.resamples
        if resamples:
            interval = bootstrap_interval(right, embedded.labels[:, 0], resamples=resamples)
            figures |= {"intervals": {"accuracy": interval}, "resampled": "identities"}
        return figures
