"""Verification of pairs, as in LFW's view 2: each of ten folds is decided by the others' threshold.

AgeDB-30, CFP-FP, CALFW and CPLFW are measured in the same way, and so is a user's list (`--pairs`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from persona.config import between, checked
from persona.data.shards import Manifest, PairTable
from persona.errors import PersonaError, shown
from persona.evaluation.embed import Embedded
from persona.evaluation.groups import group_figures, groups_of
from persona.evaluation.metrics import FARS
from persona.evaluation.pair_lists import (
    DRAWN,
    LEAST_PEOPLE,
    cut_folds,
    pairs_of,
    read_pair_list,
)
from persona.evaluation.pairs import (
    PairScores,
    check_policy,
    names_across,
    overlap,
    score_pairs,
    write_scores,
)
from persona.evaluation.protocols.base import (
    Evaluation,
    Options,
    Protocol,
    Subject,
    Table,
    default_measure,
)
from persona.evaluation.sentences import Sentence, one_in, rate_told
from persona.evaluation.statistics import Interval, interval_text, verification_intervals
from persona.figure_names import counted
from persona.files import PRIVATE, write_atomically
from persona.models.sources import Named

UNKNOWN_SHOWN = 10
"""How many paths of a user's list that are not in the set are named in the note."""


def _check_fars(name: str, fars: Sequence[Any]) -> None:
    for rate in fars:
        if not isinstance(rate, int | float | np.number) or not 0 < rate <= 1:
            raise PersonaError(f"{name} {shown(rate)}: choose rates above 0, up to 1")


@dataclass(frozen=True)
class VerificationOptions(Options):
    """Options of verification."""

    no_face: str = checked(lambda _name, policy: check_policy(policy), default="centre")
    """Policy for photos without a face, see persona/evaluation/pairs.py."""
    pairs: Path | None = None
    """The user's own list of pairs. None takes the pairs of the set."""
    drawn: int = between(1, 1_000_000, default=DRAWN)
    """Genuine pairs, and as many impostor pairs, that are drawn where a set has no pairs."""
    by: str | None = None
    """Annotation to group the figures by."""
    fars: tuple[float, ...] = checked(_check_fars, default=FARS)
    """False accept rates at which the true accept rate is reported."""
    trained: tuple[str, ...] | None = None
    """Names of trained identities. Their pairs are left out."""
    scores: Path | None = None
    """File to which the main process writes one row for each pair."""
    overlap_names: Path | None = None
    """File to which the main process writes the set's identities that were trained on."""


@dataclass(frozen=True)
class VerificationFigures(Evaluation):
    """Verification figures over all pairs and by group. Rates are shares in [0, 1]."""

    model: str
    set: str
    measure: str
    accuracy: float | None = None
    accuracy_std: float | None = None
    auc: float | None = None
    eer: float | None = None
    tar_at_far: dict[str, float | None] | None = None
    """TAR by FAR. None means that the impostor pairs are too few to resolve that FAR."""
    pairs: int | None = None
    """Pairs measured, genuine and impostor."""
    no_face: int | None = None
    absent: int | None = None
    impostors: int | None = None
    """Impostor pairs among them."""
    folds: list[float] | None = None
    """Accuracy on each fold."""
    threshold_at_far: dict[str, float | None] | None = None
    """Lowest cosine threshold by FAR. None as in `tar_at_far`."""
    intervals: dict[str, Interval | None] | None = None
    resampled: str | None = None
    by: str | None = None
    """Annotation that the pairs are grouped by."""
    groups: dict[str, dict[str, Any]] | None = None
    """Figures of each group, see `group_figures`."""
    ungrouped: int | None = None
    """Pairs whose photos are of two groups or are not annotated."""
    gap: float | None = None
    """Accuracy of the best group minus that of the worst. Groups without genuine or without
    impostor pairs do not count."""
    overlap: int | None = None
    """Identities of the set that the network was trained on."""
    overlap_pairs: int | None = None
    """Pairs left out because they show such an identity."""
    duplicates: int | None = None
    """Pairs listed more than once. Each counts as often as it is listed."""
    no_centre: int | None = None
    drawn: int | None = None
    """Pairs that were drawn of the set's people, because it has none of its own."""
    unknown_photos: list[str] | None = None
    """Paths of the user's list that are not photos of the set."""
    flip: bool | None = None
    no_face_policy: str | None = None
    spread: float | None = None

    shown = (("accuracy", "accuracy"), ("AUC", "auc"), ("EER", "eer"), ("spread", "spread"))
    rates = (("tar", "tar_at_far"),)
    counted = ("pairs", "no_face", "absent", "overlap")
    unit = "pairs"

    def trials(self, rate: str) -> str:
        """Number of impostor pairs, as text."""
        return f"{self.impostors} impostor pairs"

    def in_words(self) -> Sentence:
        """How many pairs are decided rightly, and how many genuine ones at a low FAR."""
        figure, text = self.told("accuracy"), f" of {self.set}'s {self.pairs:,} pairs are "
        text += f"decided rightly{self.spread_of('accuracy')}"
        if (told := rate_told(self.tar_at_far)) is not None:
            rate, tar = told
            where = one_in(rate, "false accept")
            text += f"; at {where}, {tar:.4f} of the genuine pairs are accepted"
        return Sentence(figure, f"{text}.")

    def tables(self) -> list[Table]:
        """The table of the figures, then that of the groups if there are some."""
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
            pairs = counted(self.ungrouped, "pair is", "pairs are")
            notes.append(f"note: {pairs} {of_two}not annotated")
        return [*tables, Table(titles, rows, tuple(notes))]

    def notes(self) -> list[str]:
        """Notes of every protocol, then those about the pairs, one line each."""
        lines = super().notes()
        if self.drawn:
            lines.append(
                f"note: the set has no pairs: {self.drawn} were drawn of its people, from a fixed "
                "seed"
            )
        if self.duplicates:
            pairs = counted(self.duplicates, "pair is", "pairs are")
            lines.append(f"note: {pairs} listed more than once and counted each time")
        if self.overlap:
            left = self.overlap_pairs
            fate = "are measured" if left is None else f"are left out ({left})"
            people = counted(self.overlap, "person of the set was", "people of the set were")
            lines.append(f"note: {people} trained on; their pairs {fate}")
        strangers = self.unknown_photos or []
        if strangers:
            count = len(strangers)
            paths = counted(count, "path is no photo", "paths are no photos")
            lines.append(f"note: {paths} of the set; the pairs are left out:")
            lines += [f"  {path}" for path in strangers[:UNKNOWN_SHOWN]]
            if count > UNKNOWN_SHOWN:
                lines.append(f"  … {count - UNKNOWN_SHOWN} more")
        return lines


def pair_notes(facts: Mapping[str, Any]) -> list[str]:
    """Notes about the pairs from the counts of `pair_scores`, one line each."""
    names = {item.name for item in fields(VerificationFigures)} - {"model", "set", "measure"}
    known = {name: value for name, value in facts.items() if name in names}
    return VerificationFigures("", "", Verification.name, **known).notes()


class Verification(Protocol):
    """Verification on the pairs of a set, on a user's list, or on pairs drawn of its people."""

    name = "verification"
    needs_identities = False
    result = VerificationFigures
    chosen_by = "auc"
    config_class = VerificationOptions

    def check(self, named: Named, manifest: Manifest, options: VerificationOptions) -> None:
        """Raises PersonaError if there are no pairs and too few people to draw some."""
        if manifest.pairs or options.pairs is not None:
            return
        if manifest.kind != "photos" or manifest.identities < LEAST_PEOPLE:
            raise PersonaError(
                f"set {manifest.name} has no verification pairs, and {manifest.identities} people "
                "are too few to draw some: choose a set like lfw, or in `persona evaluate` "
                f"--measure {default_measure(manifest, named=named)} or --pairs FILE"
            )

    def figures(self, subject: Subject) -> dict[str, Any]:
        """Accuracy over folds, AUC, EER and TAR at FAR, also by group and with intervals."""
        options: VerificationOptions = subject.options
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
            metas = subject.faces.metas()
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


def pair_scores(
    subject: Subject, embedded: Embedded | None = None, second: Embedded | None = None
) -> tuple[PairScores, dict[str, Any]]:
    """Scores the pairs of a set.

    Args:
        subject: the network on the set, with the options.
        embedded: the network's embeddings of the set. None embeds it.
        second: another network's embeddings, for the second photo of each pair.

    Returns:
        The scores, and the counts about them as fields of `VerificationFigures`.

    Raises:
        PersonaError: there are no pairs, none is left to measure, or the list does not fit the set.
    """
    options: VerificationOptions = subject.options
    manifest = subject.manifest
    facts: dict[str, Any] = {"no_face_policy": options.no_face}
    pairs: PairTable
    if options.pairs is None:
        pairs = pairs_of(subject.faces, options.drawn)
        facts["drawn"] = None if manifest.pairs else len(pairs)
        if len(np.unique(pairs.fold)) == 1:  # LFW's view 1 has no folds
            fold = cut_folds(pairs.same, f"set {manifest.name}")
            pairs = replace(pairs, fold=fold)
    else:
        metas = subject.faces.metas()
        pairs, strangers = read_pair_list(options.pairs, manifest, metas)
        facts["unknown_photos"] = strangers or None
    embedded = embedded or subject.embed(subject.faces)
    trained: Sequence[str]
    if options.trained is not None:
        trained = options.trained
    else:
        named = subject.named
        trained = names_across(named.classes or (), named.classes_of, manifest)
    here = set(np.unique(embedded.labels).tolist())  # the classes are those of the whole dataset
    common = [label for label in overlap(manifest.classes, trained) if label in here]
    if any(trained):
        facts["overlap"] = len(common)
    if options.overlap_names is not None and subject.accelerator.is_main_process:
        names = "".join(f"{manifest.classes[place]}\n" for place in common)
        write_atomically(options.overlap_names, names.encode(), PRIVATE)
    left_out = frozenset(common if options.trained is not None else ())
    scores = score_pairs(
        embedded, manifest, pairs, no_face=options.no_face, left_out=left_out, second=second
    )
    facts |= {"no_face": scores.no_face, "absent": scores.absent}
    if options.trained is not None:
        facts["overlap_pairs"] = scores.overlapping
    if scores.no_centre:
        facts["no_centre"] = scores.no_centre
    if scores.duplicates:
        facts["duplicates"] = scores.duplicates
    return scores, facts
