"""Verification across two networks: the first photo of a pair by one, the second by the other.

A student that was distilled by embedding lies in its teacher's space. Templates that the teacher
made on a server can then be compared with faces that the student embeds on a phone. What this costs
is measured here, beside the figures of both networks alone, on the same pairs.

Shapes: N photos, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from persona.data.sets import FaceSet
from persona.errors import PersonaError
from persona.evaluation.compare import Difference, paired_differences
from persona.evaluation.metrics import PairFigures
from persona.evaluation.pairs import write_scores
from persona.evaluation.processes import Processes
from persona.evaluation.protocols.base import Subject, check_measure, note_other_crops
from persona.evaluation.protocols.verification import (
    Verification,
    VerificationOptions,
    pair_scores,
)
from persona.evaluation.spread import has_collapsed, tell_collapse
from persona.models.sources import Named

LEAST_SHARE = 0.5
"""Share of what the weaker network alone is above chance, as AUC - 0.5, that must be left of it
across both. Networks of two spaces have an AUC near 0.5 across both, and a distilled student and
its teacher one between those of both alone."""
LEAST_AGREEMENT = 0.3
"""Mean similarity of both networks' embeddings of one photo from which they share a space, whatever
the AUC. Between two spaces it is near 0; a first student of MobileFaceNet had 0.68."""


@dataclass(frozen=True)
class Across:
    """Figures across two networks, and of both alone, on the same pairs."""

    gallery_model: str
    """Name of the network that embeds the first photo of each pair."""
    probe_model: str
    """Name of the network that embeds the second photo."""
    set: str
    across: PairFigures
    gallery: PairFigures
    """Figures of the gallery's network alone."""
    probe: PairFigures
    """Figures of the probes' network alone."""
    agreement: float
    """Mean cosine similarity of both networks' embeddings of one photo."""
    differences: tuple[Difference, ...]
    """The difference of each figure of both networks together from that of the gallery's network
    alone. Empty without resamples."""
    facts: dict[str, Any]
    """Counts about the pairs, see `VerificationFigures`."""
    warnings: tuple[str, ...] = ()
    """One line for each network that has collapsed."""

    def to_json(self) -> dict[str, Any]:
        """Returns the figures as `persona evaluate --json` prints them."""
        rows = {
            d.figure: {k: v for k, v in vars(d).items() if k != "figure"} for d in self.differences
        }
        found = {name: value for name, value in self.facts.items() if value is not None}
        return {
            "gallery_model": self.gallery_model,
            "probe_model": self.probe_model,
            "set": self.set,
            "measure": Verification.name,
            "agreement": self.agreement,
            **{name: vars(getattr(self, name)) for name in ("across", "gallery", "probe")},
            **found,
            **({"differences": rows} if rows else {}),
            **({"warnings": list(self.warnings)} if self.warnings else {}),
        }


def check_sizes(gallery: Named, probe: Named) -> None:
    """Raises PersonaError unless the embeddings of both networks have one size."""
    a, b = gallery.network.embedding_size, probe.network.embedding_size
    if a != b:
        raise PersonaError(
            f"the embeddings of {gallery.name} have {a} numbers, those of {probe.name} {b}: they "
            "cannot be compared; choose a student that was distilled by embedding without a "
            "projection"
        )


def evaluate_across(
    gallery: Named,
    probe: Named,
    faces: FaceSet,
    processes: Processes,
    options: VerificationOptions = VerificationOptions(),  # noqa: B008 - frozen
    *,
    batch_size: int = 128,
    workers: int | None = None,
    quiet: bool = False,
) -> Across:
    """Measures the pairs of a set across two networks, and by each of them alone.

    Raises:
        PersonaError: the embeddings differ in size, the set does not fit one of the networks, or
            the networks do not share a space.
    """
    check_sizes(gallery, probe)
    for named in (gallery, probe):
        check_measure(Verification.name, named, faces.manifest, options)
        if processes.is_main_process:
            note_other_crops(named, faces.manifest)
    subjects = [
        Subject(named, faces, processes, options, batch_size, workers, quiet)
        for named in (gallery, probe)
    ]
    first, second = (subject.embed(faces) for subject in subjects)
    agreement = float(np.einsum("ne,ne->n", first.embeddings[:, 0], second.embeddings[:, 0]).mean())
    alone = [
        pair_scores(subject, embedded)[0]
        for subject, embedded in zip(subjects, (first, second), strict=True)
    ]
    scores, facts = pair_scores(subjects[0], first, second)
    decided = [some.decide() for some in (scores, *alone)]
    across, of_gallery, of_probe = (
        some.figures(options.fars, folds)
        for some, folds in zip((scores, *alone), decided, strict=True)
    )
    least = 0.5 + LEAST_SHARE * (min(of_gallery.auc, of_probe.auc) - 0.5)
    if agreement < LEAST_AGREEMENT and across.auc < least:
        raise PersonaError(
            f"{gallery.name} and {probe.name} do not share a space, so faces cannot be compared "
            f"across them: on {faces.name} the AUC is {across.auc:.4f} across both, and "
            f"{of_gallery.auc:.4f} and {of_probe.auc:.4f} alone; the embeddings of one photo by "
            f"both have a mean similarity of {agreement:.3f}; distil the student from that teacher "
            "by embedding"
        )
    differences: list[Difference] = []
    if options.resamples:
        differences = paired_differences(scores, alone[0], options.fars, options.resamples)
    if options.scores is not None and processes.is_main_process:
        write_scores(options.scores, scores)
    return Across(
        *(gallery.name, probe.name, faces.name, across, of_gallery, of_probe, agreement),
        differences=tuple(differences),
        facts=facts | {"resampled": scores.units().kind if differences else None},
        warnings=tuple(
            tell_collapse(subject.named.name, subject.spread, f"set {faces.name}")
            for subject in subjects
            if has_collapsed(subject.spread)
        ),
    )
