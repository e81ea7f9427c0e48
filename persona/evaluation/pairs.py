"""Scores of the pairs of a set, from its embeddings, and which of the pairs count.

A pair may name an absent photo, which the set does not know. It may also name a faceless photo, in
which no face was found. The set holds a centre crop of a faceless photo or, if it was packed
without pairs, nothing. The policy decides what happens to pairs with such photos:

- `centre`: the centre crop of a faceless photo replaces the face, as in the reference. Pairs with a
  photo of which the set holds nothing are left out.
- `fail`: the pair counts as decided wrongly, whatever the network says.
- `exclude`: the pair is left out.

Pairs with faceless and with absent photos are counted apart. A pair with both counts as absent.

Shapes: P pairs, N samples.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from persona.data.shards import FACELESS, NO_CLASS, Manifest, PairTable
from persona.errors import PersonaError, unknown
from persona.evaluation.embed import Embedded
from persona.evaluation.metrics import (
    Bools,
    Floats,
    Folds,
    Ints,
    PairFigures,
    decide_folds,
    listed_scores,
    verification,
)
from persona.evaluation.statistics import Curve, Units, units_of
from persona.files import write_atomically

POLICIES = ("centre", "fail", "exclude")
FAILED = 1.0
"""Score of an impostor pair that fails. A genuine pair that fails gets -1."""
CSV_ROWS = 100_000
"""Rows of the scores file that are formatted at once."""


def check_policy(policy: str) -> None:
    """Raises PersonaError if it is no policy for photos without a face."""
    if policy not in POLICIES:
        raise unknown("policy for photos without a face", policy, POLICIES)


@dataclass(frozen=True)
class PairScores:
    """The pairs that are measured, in the order of their list, with their scores."""

    fold: Ints
    """(P,) fold numbers."""
    same: Bools
    """(P,) whether a pair is genuine."""
    score: Floats
    """(P,) cosine similarity."""
    key_a: Ints
    key_b: Ints
    """(P,) keys of the two photos; -1 where a failed pair names a photo that the set lacks."""
    identity_a: Ints
    identity_b: Ints
    """(P,) labels of the two photos. A photo that the set lacks has its partner's in a genuine
    pair, and a negative one of its own otherwise."""
    failed: Bools
    """(P,) whether the policy decided the pair wrongly, whatever its score."""
    no_face: int
    """Number of listed pairs with a faceless photo and no absent one."""
    absent: int = 0
    """Number of listed pairs with an absent photo."""
    no_centre: int = 0
    """Number of pairs among `no_face` that policy `centre` leaves out for want of a centre crop."""
    overlapping: int = 0
    """Number of listed pairs left out because the network was trained on one of their people."""
    duplicates: int = 0
    """Number of measured pairs that repeat an earlier pair of the list."""

    def __len__(self) -> int:
        return len(self.fold)

    def decide(self) -> Folds:
        """The k-fold procedure over these pairs. Failed pairs count as wrong."""
        decided = decide_folds(self.score, self.same, self.fold)
        if not self.failed.any():
            return decided
        right = decided.right & ~self.failed
        accuracies = [right[self.fold == number].mean() for number in decided.numbers]
        return Folds(decided.numbers, decided.thresholds, np.array(accuracies), right)

    def figures(self, fars: Iterable[float], decided: Folds) -> PairFigures:
        """Accuracy, AUC, EER and TAR at each FAR, given the result of `decide`."""
        return verification(self.score, self.same, self.fold, tuple(fars), decided)

    def curve(self, decided: Folds, folds_P: Ints | None = None) -> Curve:
        """The pairs sorted for resampling.

        Accuracy is averaged over `folds_P`, (P,) fold numbers. None takes the pairs' own folds.
        """
        folds = self.fold if folds_P is None else folds_P
        return Curve.of(self.score, self.same, decided.right, folds)

    def units(self) -> Units:
        """The units to resample: identities or pairs."""
        return units_of(self.same, self.identity_a, self.identity_b)

    def take(self, which_P: Bools) -> PairScores:
        """The pairs that a (P,) mask marks. Counts of listed pairs stay those of the whole list."""
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
    second: Embedded | None = None,
) -> PairScores:
    """Scores the pairs that the policy keeps.

    Args:
        embedded: embeddings of the set's photos.
        manifest: manifest of the set.
        pairs: the pairs by key, from the set or from a user's list.
        no_face: policy for absent and faceless photos, one of POLICIES.
        left_out: labels of identities whose pairs are left out.
        second: another network's embeddings of the same photos, for the second photo of each pair.
            None takes `embedded` for both.

    Raises:
        PersonaError: no pair is left, or a pair is listed both as genuine and as impostor.
    """
    check_policy(no_face)
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
    # A slice copies nothing if all pairs are kept. At ten million pairs each column takes 80 MB.
    which: slice | Bools = slice(None) if kept.all() else kept
    a, b, same = a[which], b[which], pairs.same[which]
    failed = lost[which] if no_face == "fail" else np.zeros(len(a), bool)
    score = listed_scores(
        *(embedded.embeddings[:, 0], np.maximum(a, 0), np.maximum(b, 0)),
        second_ME=None if second is None else second.embeddings[:, 0],
    )
    score[failed] = np.where(same[failed], -FAILED, FAILED)
    identity_a, identity_b = _people(label_a[which], label_b[which], a < 0, b < 0, same)
    return PairScores(
        fold=pairs.fold[which],
        same=same,
        score=score,
        key_a=np.where(a < 0, -1, pairs.a[which]),
        key_b=np.where(b < 0, -1, pairs.b[which]),
        identity_a=identity_a,
        identity_b=identity_b,
        failed=failed,
        no_face=int(faceless.sum()),
        absent=int(absent.sum()),
        no_centre=int((faceless & dropped).sum()) if no_face == "centre" else 0,
        overlapping=int(overlapping.sum()),
        duplicates=duplicates,
    )


def _people(
    label_a_P: Ints, label_b_P: Ints, lacks_a_P: Bools, lacks_b_P: Bools, same_P: Bools
) -> tuple[Ints, Ints]:
    """Labels of the photos, also of those that the set lacks.

    The pair tells who a lacking photo shows if it is genuine. Otherwise it may show anybody, and
    gets a label of its own. With one label for all of them no label would fit the pairs, and pairs
    would be resampled instead of people.
    """
    fresh_P = NO_CLASS - 1 - 2 * np.arange(len(same_P))
    label_a_P = np.where(lacks_a_P, np.where(same_P & ~lacks_b_P, label_b_P, fresh_P), label_a_P)
    label_b_P = np.where(lacks_b_P, np.where(same_P, label_a_P, fresh_P - 1), label_b_P)
    return label_a_P, label_b_P


def _count_duplicates(manifest: Manifest, pairs: PairTable, which_P: Bools) -> int:
    """Number of marked pairs that repeat an earlier one, in either order of the photos.

    Raises:
        PersonaError: a pair is listed both as genuine and as impostor.
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
    """Writes a CSV file with the columns `fold,same,score` and one row per pair."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["fold", "same", "score"])
    columns = (scores.fold, scores.same.astype(int), scores.score)
    for start in range(0, len(scores), CSV_ROWS):
        part = (column[start : start + CSV_ROWS].tolist() for column in columns)
        writer.writerows((f, s, repr(v)) for f, s, v in zip(*part, strict=True))
    write_atomically(path, buffer.getvalue().encode())


def overlap(classes: Iterable[str], trained: Iterable[str]) -> list[int]:
    """Places in `classes` of the names that are also in `trained`, compared by `match_names`.

    A trained name may be `SET/NAME`, which a run on several sets writes for a name that several of
    them have.
    """
    known = [text for name in trained for text in (name, name.rpartition("/")[2])]
    return [place for place, found in enumerate(match_names(classes, known)) if found >= 0]


def names_across(names: Iterable[str], datasets: str, manifest: Manifest) -> list[str]:
    """The names of other people as they may be compared with those of a set, in their order.

    A name of digits alone is a number of its dataset. It stands for nobody in another one, so there
    it is replaced by an empty name. If the datasets are unknown, as they are for an older model,
    numbers are believed only if all names are equal to those of the set.

    Args:
        names: the names. They may be `SET/NAME`, as in `overlap`.
        datasets: names of the datasets that they are of, separated by commas. Empty means unknown.
        manifest: the manifest of the set.
    """
    names = list(names)
    if manifest.dataset in {datasets, *datasets.split(",")}:
        return names
    if not datasets and names == list(manifest.classes):
        return names
    return ["" if name.rpartition("/")[2].isdecimal() else name for name in names]


def match_names(names: Iterable[str], known: Sequence[str]) -> list[int]:
    """Place in `known` of each name, -1 where it is not there.

    A name that is not there as it is written is compared as `normalised`, if among the names of
    either side no other one is normalised to the same.
    """
    names = list(names)
    place_of = {name: place for place, name in enumerate(known)}
    own, others = _spellings(names), _spellings(filter(None, known))

    def find(name: str) -> int:
        if name in place_of:
            return place_of[name]
        plain = normalised(name)
        alike = others.get(plain, set())
        return place_of[next(iter(alike))] if len(alike) == len(own[plain]) == 1 else -1

    return [find(name) for name in names]


def _spellings(names: Iterable[str]) -> dict[str, set[str]]:
    """The names that are normalised to the same, by what that is."""
    spellings: dict[str, set[str]] = {}
    for name in names:
        spellings.setdefault(normalised(name), set()).add(name)
    return spellings


def normalised(name: str) -> str:
    """A name without case, accents, spaces and punctuation.

    `Gérard_Depardieu` and `gerard depardieu` both give `gerarddepardieu`. What tells names apart
    stays: a space between two digits (`1_23` is not `12_3`), and marks after letters of other
    scripts than Latin, Greek and Cyrillic, which are vowels or make other consonants.
    """
    kept, after_gap = "", False
    for char in unicodedata.normalize("NFKD", name).casefold():
        if unicodedata.category(char)[0] == "M":
            kept += "" if not kept or _takes_accents(kept[-1]) else char
        elif char.isalnum():
            kept += " " if after_gap and char.isdigit() and kept[-1:].isdigit() else ""
            kept, after_gap = kept + char, False
        else:
            after_gap = True
    return kept


def _takes_accents(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(("LATIN", "GREEK", "CYRILLIC", "DIGIT"))
