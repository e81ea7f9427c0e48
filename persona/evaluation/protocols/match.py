"""Match accuracy of triplets: is the anchor closer to the positive than to the negative?"""

from __future__ import annotations

from typing import Any

import numpy as np

from persona.data.shards import Manifest
from persona.errors import PersonaError
from persona.evaluation.metrics import match_margins
from persona.evaluation.protocols.base import Options, Protocol, Subject
from persona.evaluation.statistics import bootstrap_interval
from persona.models.sources import Named


class Match(Protocol):
    """Of a packed triplet set."""

    name = "match"
    chosen_by = "margin"

    def check(self, named: Named, manifest: Manifest, options: Options) -> None:
        """Triplets alone have it."""
        if manifest.kind != "triplets":
            raise PersonaError(
                f"set {manifest.name} holds photos, no triplets: match needs triplets"
            )

    def figures(self, subject: Subject) -> dict[str, Any]:
        """Accuracy and mean margin; intervals resample the anchors' identities."""
        embedded = subject.embed(subject.folder, subject.manifest)
        margin = match_margins(*np.moveaxis(embedded.embeddings, 1, 0))
        right = margin > 0
        figures: dict[str, Any] = {
            "accuracy": float(right.mean()),
            "triplets": len(right),
            "no_face": subject.manifest.left_out[0],
            "margin": float(margin.mean()),
        }
        resamples = subject.options.resamples
        if resamples:
            interval = bootstrap_interval(right, embedded.labels[:, 0], resamples=resamples)
            figures |= {"intervals": {"accuracy": interval}, "resampled": "identities"}
        return figures
