"""Verification of pairs, as LFW's view 2: ten folds, each decided by the threshold of the others.

AgeDB-30, CFP-FP, CALFW and CPLFW are measured alike; a user's list by `--pairs`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from persona.data.shards import Manifest, PairTable, read_metas, read_pairs
from persona.errors import PersonaError
from persona.evaluation.groups import group_figures, groups_of
from persona.evaluation.pair_lists import cut_folds, read_pair_list
from persona.evaluation.pairs import PairScores, overlap, score_pairs, write_scores
from persona.evaluation.protocols.base import Options, Protocol, Subject, default_measure
from persona.evaluation.statistics import verification_intervals
from persona.files import PRIVATE, write_atomically
from persona.models.sources import Named


class Verification(Protocol):
    """Of a set with pairs, or of any set by a user's list."""

    name = "verification"
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
