"""Verification on people outside the stream of a benchmark.

It shows whether continual learning harms the student as a general face model.

Shapes: N photos, P pairs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from persona.data.sets import FaceSet
from persona.errors import PersonaError
from persona.evaluation.metrics import (
    FARS,
    cosine_scores,
    equal_error_rate,
    roc_auc,
    tar_at_far,
)
from persona.evaluation.pair_lists import pairs_of
from persona.learning.methods import Context
from persona.learning.photos import Ints, Photos

MAX_PAIRS = 100_000
"""Most genuine pairs, and most impostor pairs."""


@dataclass(frozen=True)
class Outside:
    """Pairs of photos of people who are not in the stream."""

    photos: Photos
    chosen: Ints
    """(N,) numbers of their photos in `photos`."""
    a: Ints
    b: Ints
    """(P,) places in `chosen` of each pair's photos."""
    same: Any
    """(P,) bool, whether a pair is genuine."""

    def measure(self, context: Context) -> dict[str, Any]:
        """AUC, EER and TAR at FAR of the context's student on these pairs."""
        theirs = dataclasses.replace(context, photos=self.photos)
        embeddings = theirs.embed(self.chosen).numpy()
        scores = cosine_scores(embeddings[self.a], embeddings[self.b])
        return {
            "auc": roc_auc(scores, self.same),
            "eer": equal_error_rate(scores, self.same),
            "tar_at_far": {f"{far:g}": tar_at_far(scores, self.same, far) for far in FARS},
        }


def left_out(photos: Photos, names: list[str], seed: int, set_name: str) -> Outside:
    """Pairs of photos of people whom the stream leaves out, at most `MAX_PAIRS` of each kind.

    Raises:
        PersonaError: there are fewer than two people or no genuine pairs.
    """
    theirs = set(names)
    places = [place for place, name in enumerate(photos.names) if name in theirs]
    mine = np.flatnonzero(np.isin(photos.identity, places))
    a, b, same = draw_pairs(photos.identity[mine], MAX_PAIRS, seed)
    if len(names) < 2 or not same.any():
        raise PersonaError(
            f"a fifth of the identities of set {set_name} makes no pairs: give --test-set a set of "
            "other people"
        )
    return Outside(photos, mine, a, b, same)


def pairs_of_set(faces: FaceSet, stream: Photos) -> Outside:
    """The pairs of a set with a face in both photos.

    Raises:
        PersonaError: the set has no pairs and too few people, or shares identities with the stream.
    """
    pairs = pairs_of(faces)
    photos = Photos([faces])
    common = len(set(photos.names) & set(stream.names))
    if common:
        raise PersonaError(
            f"{common} identities of --test-set {faces.name} are in the stream by name: choose "
            "a set of other people"
        )
    keys = photos.keys()
    order = np.argsort(keys)
    wanted = np.stack([pairs.a, pairs.b])
    places = np.searchsorted(keys[order], wanted)
    rows = order[np.minimum(places, len(keys) - 1)]
    rows[keys[rows] != wanted] = -1
    there = (rows >= 0).all(axis=0)
    return Outside(
        photos, np.arange(len(photos)), rows[0, there], rows[1, there], pairs.same[there]
    )


def draw_pairs(identity_N: Ints, most: int, seed: int) -> tuple[Ints, Ints, Any]:
    """Draws `most` genuine and `most` impostor pairs.

    If there are fewer of a kind, all of them are taken. Memory grows with the number of drawn
    pairs, not of all pairs: 40,000 photos have 800 million pairs.

    Args:
        identity_N: (N,) identity of each photo.
        most: most pairs of each kind.
        seed: seed of the random draw.

    Returns:
        (P,) and (P,) places of the pairs' photos, and (P,) whether a pair is genuine.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(identity_N, kind="stable")  # one person's photos are neighbours
    _, first, counts = np.unique(identity_N[order], return_index=True, return_counts=True)
    # Photo j makes an impostor pair with each photo of the people before its own.
    j, i = _numbered(np.repeat(first, counts), most, rng)
    who, place = _numbered(counts * (counts - 1) // 2, most, rng)
    one, other = pair_at(place)
    a = np.concatenate([order[i], order[first[who] + one]])
    b = np.concatenate([order[j], order[first[who] + other]])
    return a, b, np.repeat([False, True], [len(j), len(who)])


def _numbered(sizes_G: Ints, most: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Draws up to `most` items of groups of these sizes: the group and the place of each item."""
    ends_G = np.cumsum(sizes_G)
    total = int(sizes_G.sum())
    drawn = rng.choice(total, min(total, most), replace=False)
    group = np.searchsorted(ends_G, drawn, side="right")
    return group, drawn - (ends_G - sizes_G)[group]


def pair_at(numbers: Ints) -> tuple[Ints, Ints]:
    """The pairs i < j with these numbers: 0 is (0, 1), 1 is (0, 2), then (1, 2), (0, 3), …"""
    j = ((1 + np.sqrt(1 + 8 * numbers)) / 2).astype(np.int64)
    j -= numbers < j * (j - 1) // 2  # corrects roots that were rounded up
    return numbers - j * (j - 1) // 2, j
