"""From a set and its embeddings to the scores of its pairs: which count, and how.

A pair may name a photo that is absent (the set does not know it), or one that is faceless: no face
was found, and the set holds its middle or, packed without pairs, nothing of it. The policy decides
of both:

- `centre`: the middle of a faceless photo stands in for the face (the reference's behaviour); pairs
  of photos of which there is nothing are left out
- `fail`: the pair is decided wrongly, whatever the network says
- `exclude`: it is left out

They are two counts: a pair that has both kinds is counted as absent. Shapes: P pairs, N samples.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from persona.data.shards import FACELESS, Manifest, PairTable
from persona.errors import PersonaError, unknown
from persona.evaluation.embed import Embedded
from persona.evaluation.metrics import (
    Bools,
    Floats,
    Folds,
    Ints,
    Verification,
    decide_folds,
    listed_scores,
    verification,
)
from persona.evaluation.statistics import Curve, Units, units_of
from persona.files import write_atomically

POLICIES = ("centre", "fail", "exclude")
FAILED = 1.0
"""Score of an impostor pair that fails; of a genuine one its negative."""
CSV_ROWS = 100_000
"""Rows of the scores file written at once."""


@dataclass(frozen=True)
class PairScores:
    """The pairs that are measured, in the order of their list."""

    fold: Ints
    same: Bools
    score: Floats
    """(P,) cosine similarity."""
    key_a: Ints
    key_b: Ints
    """-1 where a failed pair names a photo that is not there."""
    identity_a: Ints
    identity_b: Ints
    """Labels of the two photos."""
    failed: Bools
    """(P,) decided wrongly by policy, whatever the score."""
    no_face: int
    """Listed pairs with a faceless photo, and none that is absent."""
    absent: int = 0
    """Listed pairs with an absent photo."""
    overlapping: int = 0
    """Listed pairs left out because a person of theirs was trained on."""
    duplicates: int = 0
    """Measured pairs that were listed before."""

    def __len__(self) -> int:
        return len(self.fold)

    def decide(self) -> Folds:
        """The k-fold procedure over these pairs; failed ones are wrong."""
        decided = decide_folds(self.score, self.same, self.fold)
        if not self.failed.any():
            return decided
        right = decided.right & ~self.failed
        accuracies = [right[self.fold == number].mean() for number in decided.numbers]
        return Folds(decided.numbers, decided.thresholds, np.array(accuracies), right)

    def figures(self, fars: Iterable[float], decided: Folds) -> Verification:
        """Accuracy, AUC, EER and TAR at each FAR."""
        return verification(self.score, self.same, self.fold, tuple(fars), decided)

    def curve(self, decided: Folds, folds_P: Ints | None = None) -> Curve:
        """For resampling; `folds_P`: others than its own to average accuracy over."""
        folds = self.fold if folds_P is None else folds_P
        return Curve.of(self.score, self.same, decided.right, folds)

    def units(self) -> Units:
        """What is resampled."""
        return units_of(self.same, self.identity_a, self.identity_b)

    def take(self, which_P: Bools) -> PairScores:
        """Some of the pairs."""
        columns = ("fold", "same", "score", "key_a", "key_b", "identity_a", "identity_b", "failed")
        return PairScores(
            **{name: getattr(self, name)[which_P] for name in columns},
            no_face=self.no_face,
            absent=self.absent,
        )


def score_pairs(
    embedded: Embedded,
    manifest: Manifest,
    pairs: PairTable,
    *,
    no_face: str = "centre",
    left_out: frozenset[int] = frozenset(),
) -> PairScores:
    """All pairs of a set that a policy measures.

    Args:
        embedded: the set's photos.
        manifest: its manifest.
        pairs: the pairs by key, of the set or of the user.
        no_face: one of POLICIES.
        left_out: labels of identities whose pairs are left out.

    Raises:
        PersonaError: no pair is left, or one is listed as genuine and as impostor.
    """
    if no_face not in POLICIES:
        raise unknown("policy for photos without a face", no_face, POLICIES)
    a, b = embedded.rows_of(pairs.a), embedded.rows_of(pairs.b)
    not_there = (a < 0) | (b < 0)
    without_face = np.array([*manifest.no_face, FACELESS], np.int64)
    no_face_a, no_face_b = np.isin(pairs.a, without_face), np.isin(pairs.b, without_face)
    absent = ((a < 0) & ~no_face_a) | ((b < 0) & ~no_face_b)
    faceless = ~absent & (no_face_a | no_face_b)
    lost = absent | faceless
    label_N = embedded.labels[:, 0]
    label_a, label_b = np.where(a < 0, -1, label_N[a]), np.where(b < 0, -1, label_N[b])
    strange = np.array(sorted(left_out), np.int64)
    overlapping = np.isin(label_a, strange) | np.isin(label_b, strange)
    dropped = {"centre": not_there, "fail": np.zeros(len(a), bool), "exclude": lost}[no_face]
    kept = ~dropped & ~overlapping
    if not kept.any():
        why = (
            "every person of theirs was trained on: leave --exclude-overlap out, or choose another "
            "list with --pairs"
            if overlapping.any()
            else f"{int(absent.sum())} name a photo that the set lacks, {int(faceless.sum())} one "
            "without a face: pack the whole dataset, or choose another list with --pairs"
        )
        raise PersonaError(f"set {manifest.name}: of {len(a)} pairs none is left to measure; {why}")
    duplicates = _count_duplicates(manifest, pairs, kept & ~not_there)
    # Where all are kept nothing is copied: of ten million pairs each column is 80 MB.
    which: slice | Bools = slice(None) if kept.all() else kept
    a, b, same = a[which], b[which], pairs.same[which]
    failed = lost[which] if no_face == "fail" else np.zeros(len(a), bool)
    score = listed_scores(embedded.embeddings[:, 0], np.maximum(a, 0), np.maximum(b, 0))
    score[failed] = np.where(same[failed], -FAILED, FAILED)
    return PairScores(
        fold=pairs.fold[which],
        same=same,
        score=score,
        key_a=np.where(a < 0, -1, pairs.a[which]),
        key_b=np.where(b < 0, -1, pairs.b[which]),
        identity_a=label_a[which],
        identity_b=label_b[which],
        failed=failed,
        no_face=int(faceless.sum()),
        absent=int(absent.sum()),
        overlapping=int(overlapping.sum()),
        duplicates=duplicates,
    )


def _count_duplicates(manifest: Manifest, pairs: PairTable, which_P: Bools) -> int:
    """Pairs listed before, in either order.

    Raises:
        PersonaError: one is listed as genuine and as impostor.
    """
    a, b = pairs.a[which_P], pairs.b[which_P]
    width = int(max(a.max(initial=0), b.max(initial=0))) + 1
    code_P = np.minimum(a, b) * width + np.maximum(a, b)
    code_P = 2 * code_P + pairs.same[which_P]
    code_P.sort()
    step_P = np.diff(code_P)
    torn = np.flatnonzero((step_P == 1) & (code_P[:-1] % 2 == 0))
    if len(torn):
        keys = divmod(int(code_P[torn[0]]) // 2, width)
        one = np.isin(pairs.a, keys) & np.isin(pairs.b, keys)
        one &= (pairs.a == pairs.b) == (keys[0] == keys[1])
        genuine, impostor = (np.flatnonzero(one & (pairs.same == kind))[0] for kind in (1, 0))
        raise PersonaError(
            f"set {manifest.name}: pairs {genuine + 1} and {impostor + 1} of the list are the same "
            "two photos, once as one person and once as two: mend the list"
        )
    return int(np.count_nonzero(step_P == 0))


def write_scores(path: Path, scores: PairScores) -> None:
    """Writes `fold,same,score`, one row a pair."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["fold", "same", "score"])
    columns = (scores.fold, scores.same.astype(int), scores.score)
    for start in range(0, len(scores), CSV_ROWS):
        part = (column[start : start + CSV_ROWS].tolist() for column in columns)
        writer.writerows((f, s, repr(v)) for f, s, v in zip(*part, strict=True))
    write_atomically(path, buffer.getvalue().encode())


def overlap(classes: Iterable[str], trained: Iterable[str]) -> list[int]:
    """Places in `classes` of the people who are also in `trained`, by normalised name."""
    known = {normalised(name) for name in trained}
    return [place for place, name in enumerate(classes) if normalised(name) in known]


def normalised(name: str) -> str:
    """`Gérard_Depardieu` and `gerard depardieu` alike: no case, accents, spaces or punctuation."""
    plain = unicodedata.normalize("NFKD", name).casefold()
    return "".join(c for c in plain if c.isalnum())
