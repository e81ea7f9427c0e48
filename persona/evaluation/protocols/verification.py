"""Verification of pairs, as LFW's view 2: ten folds, each decided by the threshold of the others.

AgeDB-30, CFP-FP, CALFW and CPLFW are measured alike; a user's list by `--pairs`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from persona.data.shards import Manifest, PairTable, read_metas, read_pairs
from persona.errors import PersonaError
from persona.evaluation.groups import group_figures, groups_of
from persona.evaluation.pair_lists import cut_folds, read_pair_list
from persona.evaluation.pairs import PairScores, overlap, score_pairs, write_scores
from persona.evaluation.protocols.base import (
    Evaluation,
    Options,
    Protocol,
    Subject,
    Table,
    default_measure,
)
from persona.evaluation.statistics import Interval, interval_text, verification_intervals
from persona.files import PRIVATE, write_atomically
from persona.models.sources import Named

UNKNOWN_SHOWN = 10
"""Paths of a user's list that are named."""


@dataclass(frozen=True)
class VerificationFigures(Evaluation):
    """How well genuine and impostor pairs are told apart, in all and by group."""

    model: str
    set: str
    measure: str
    accuracy: float | None = None
    accuracy_std: float | None = None
    auc: float | None = None
    eer: float | None = None
    tar_at_far: dict[str, float | None] | None = None
    """None in it: the impostor pairs are too few to resolve that FAR."""
    pairs: int | None = None
    """Pairs measured."""
    no_face: int | None = None
    absent: int | None = None
    impostors: int | None = None
    folds: list[float] | None = None
    """Accuracy on each."""
    threshold_at_far: dict[str, float | None] | None = None
    """Of the cosine, the lowest with that FAR."""
    intervals: dict[str, Interval | None] | None = None
    resampled: str | None = None
    by: str | None = None
    groups: dict[str, dict[str, Any]] | None = None
    ungrouped: int | None = None
    """Pairs of two groups, or not annotated."""
    gap: float | None = None
    """Accuracy of the best group less that of the worst, of those with pairs of both kinds."""
    overlap: int | None = None
    """Identities of the set that were trained on."""
    overlap_pairs: int | None = None
    """Pairs left out for them."""
    duplicates: int | None = None
    """Pairs listed more than once; each counts as often as it is listed."""
    unknown_photos: list[str] | None = None
    """Paths of the user's list that are no photo of the set."""
    flip: bool | None = None
    no_face_policy: str | None = None
    spread: float | None = None

    shown = (("accuracy", "accuracy"), ("AUC", "auc"), ("EER", "eer"), ("spread", "spread"))
    rates = (("TAR @ FAR", "tar_at_far", "tar"),)
    counted = ("pairs", "no_face", "absent", "overlap")
    unit = "pairs"

    def trials(self, rate: str) -> str:
        """Impostor pairs."""
        return f"{self.impostors} impostor pairs"

    def tables(self) -> list[Table]:
        """The figures, then those of each group."""
        tables = super().tables()
        if self.groups is None:
            return tables
        titles = (
            *(self.by or "", "pairs", "impostor", "accuracy", "95 % interval"),
            *("FAR", "FRR", "AUC", "EER"),
        )
        rows: list[list[str | None]] = []
        for name, group in self.groups.items():
            interval = interval_text(group.get("intervals", {}).get("accuracy"))
            figures = ("far", "frr", "auc", "eer")
            shown = (None if group[n] is None else f"{group[n]:.4f}" for n in figures)
            counts = (str(group["pairs"]), str(group["impostors"]))
            rows.append([name, *counts, f"{group['accuracy']:.4f}", interval, *shown])
        notes = ["FAR, FRR and their mean, the accuracy, are at the thresholds of all pairs"]
        if self.gap is not None:
            notes.append(f"between the best and the worst group: {self.gap:.4f} of accuracy")
        if self.ungrouped:
            of_two = "" if (self.by or "").endswith("-gap") else "of two groups or "
            notes.append(f"note: {self.ungrouped} pairs are {of_two}not annotated")
        return [*tables, Table(titles, rows, tuple(notes))]

    def notes(self) -> list[str]:
        """What else was noticed about the pairs."""
        lines = super().notes()
        if self.duplicates:
            lines.append(
                f"note: {self.duplicates} pairs are listed more than once and count each time"
            )
        if self.overlap:
            left = self.overlap_pairs
            fate = "are measured" if left is None else f"are left out ({left})"
            lines.append(
                f"note: {self.overlap} people of the set were trained on; their pairs {fate}"
            )
        strangers = self.unknown_photos or []
        if strangers:
            count = len(strangers)
            lines.append(f"note: {count} paths are no photo of the set; their pairs are left out:")
            lines += [f"  {path}" for path in strangers[:UNKNOWN_SHOWN]]
            if count > UNKNOWN_SHOWN:
                lines.append(f"  … {count - UNKNOWN_SHOWN} more")
        return lines


class Verification(Protocol):
    """Of a set with pairs, or of any set by a user's list."""

    name = "verification"
    needs_identities = False
    result = VerificationFigures
    chosen_by = "auc"
    options = frozenset({"pairs", "by", "trained", "scores", "overlap_names"})

    def check(self, named: Named, manifest: Manifest, options: Options) -> None:
        """There must be pairs."""
        if not manifest.pairs and options.pairs is None:
            raise PersonaError(
                f"set {manifest.name} has no verification pairs: choose a set like lfw, or in "
                f"`persona evaluate` --measure {default_measure(manifest)} or --pairs FILE"
            )

    def figures(self, subject: Subject) -> dict[str, Any]:
        """Accuracy over folds, AUC, EER, TAR at FAR, per group, with intervals."""
        options, manifest = subject.options, subject.manifest
        scores, facts = pair_scores(subject)
        decided = scores.decide()
        figures = {**vars(scores.figures(options.fars, decided)), **facts}
        if options.resamples:
            units = scores.units()
            found = verification_intervals(
                scores.curve(decided), units, fars=options.fars, resamples=options.resamples
            )
            figures |= {"intervals": found, "resampled": units.kind}
        if options.by is not None:
            metas = read_metas(subject.folder, manifest)
            group_P = groups_of(scores, metas, options.by)
            groups = group_figures(scores, decided, group_P, options.fars, options.resamples)
            both = [g for g in groups.values() if None not in (g["far"], g["frr"])]
            accuracies = [group["accuracy"] for group in both]
            figures |= {
                "by": options.by,
                "groups": groups,
                "ungrouped": int(np.count_nonzero(group_P == "")),
                "gap": max(accuracies) - min(accuracies) if len(both) > 1 else None,
            }
        if options.scores is not None and subject.accelerator.is_main_process:
            write_scores(options.scores, scores)
        return figures


def pair_scores(subject: Subject) -> tuple[PairScores, dict[str, Any]]:
    """Every measured pair of a network on a set, and what was counted on the way.

    Raises:
        PersonaError: no pairs, none left to measure, or a list that does not fit the set.
    """
    options, manifest = subject.options, subject.manifest
    facts: dict[str, Any] = {"no_face_policy": options.no_face}
    pairs: PairTable
    if options.pairs is None:
        pairs = read_pairs(subject.folder, manifest)
        if len(np.unique(pairs.fold)) == 1:  # LFW's view 1 has none
            fold = cut_folds(pairs.same, f"set {manifest.name}")
            pairs = replace(pairs, fold=fold)
    else:
        metas = read_metas(subject.folder, manifest)
        pairs, strangers = read_pair_list(options.pairs, manifest, metas)
        facts["unknown_photos"] = strangers or None
    trained = options.trained if options.trained is not None else subject.named.classes
    common = overlap(manifest.classes, trained or ())
    if trained:
        facts["overlap"] = len(common)
    if options.overlap_names is not None and subject.accelerator.is_main_process:
        names = "".join(f"{manifest.classes[place]}\n" for place in common)
        write_atomically(options.overlap_names, names.encode(), PRIVATE)
    embedded = subject.embed(subject.folder, manifest)
    left_out = frozenset(common if options.trained is not None else ())
    scores = score_pairs(embedded, manifest, pairs, no_face=options.no_face, left_out=left_out)
    facts |= {"no_face": scores.no_face, "absent": scores.absent}
    if options.trained is not None:
        facts["overlap_pairs"] = scores.overlapping
    if scores.duplicates:
        facts["duplicates"] = scores.duplicates
    return scores, facts
