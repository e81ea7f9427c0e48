"""Identification 1:N: which person of a gallery does a probe show?

Without `--gallery`, the set gives both gallery and probes. Of every person with two or more photos
the first one (in the order of paths) is enrolled and the others are probes. This closed search
gives rank-1, rank-5 and the CMC. For the open search, half of the people, drawn by a seed, are
taken out of the gallery again. Their probes, and the photos of people with only one photo, are the
non-mated probes.

With `--gallery SET`, that set is enrolled with one template per person, pooled from all photos of
the person. The photos of the evaluated set are the probes. Those of people who are not in the
gallery are the non-mated probes. A probe that is a photo of its person in the gallery, too, is left
out and counted: it would find itself. Its crop then has the same bytes.

The figures are those of NIST's FRVT 1:N. The threshold is the one at which a share FPIR of the
non-mated probes gets an answer. TPIR is the share of mated probes whose person is ranked first and
above this threshold.

Photos without a face and absent photos are neither enrolled nor used as probes; they are counted.

Shapes: N photos, F enrolled photos, G gallery templates, E embedding, K identities.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np

from persona.data.sets import FaceSet, iter_jpegs
from persona.data.shards import Manifest
from persona.errors import PersonaError
from persona.evaluation.metrics import Bools, Ints
from persona.evaluation.pairs import match_names, names_across
from persona.evaluation.protocols.base import Evaluation, Options, Protocol, Subject
from persona.evaluation.search import (
    BLOCK,
    FPIRS,
    Embeddings,
    Search,
    accepted,
    cmc,
    pool,
    rows_of_each,
    search,
)
from persona.evaluation.sentences import Sentence, one_in, rate_told
from persona.evaluation.statistics import Interval, bootstrap_interval
from persona.figure_names import counted
from persona.models.sources import Named

NEARLY = 0.999
"""Cosine from which on the crops of a probe and of a gallery photo are compared byte by byte."""
RANKS = 20
SEED = 0


@dataclass(frozen=True)
class IdentificationOptions(Options):
    """Options of identification."""

    gallery: FaceSet | None = None
    """The set that is enrolled; the evaluated set gives the probes. None: see the module."""


@dataclass(frozen=True)
class IdentificationFigures(Evaluation):
    """Identification figures of the closed and the open search. Rates are shares in [0, 1]."""

    model: str
    set: str
    measure: str
    accuracy: float | None = None
    no_face: int | None = None
    absent: int | None = None
    rank_1: float | None = None
    """The same value as `accuracy`."""
    rank_5: float | None = None
    cmc: list[float] | None = None
    """Share of mated probes whose identity is among the first 1, 2, … answers."""
    tpir_at_fpir: dict[str, float | None] | None = None
    """TPIR by FPIR. None means that the non-mated probes are too few to resolve that FPIR."""
    gallery: int | None = None
    """Number of templates in the gallery."""
    probes: int | None = None
    """Number of mated probes, whose identity is in the gallery."""
    non_mated: int | None = None
    """Number of non-mated probes of the open search."""
    same_photos: int | None = None
    """Number of probes that are photos of the gallery, too, and are left out. None without one."""
    intervals: dict[str, Interval | None] | None = None
    resampled: str | None = None
    flip: bool | None = None
    no_face_policy: str | None = None
    spread: float | None = None

    shown = (("rank-1", "accuracy"), ("rank-5", "rank_5"), ("spread", "spread"))
    rates = (("tpir", "tpir_at_fpir"),)
    counted = ("gallery", "probes", "non_mated", "same_photos", "no_face", "absent")

    def in_words(self) -> Sentence:
        """How many probes find their person, and how many are named with strangers about."""
        text = f" of {self.probes:,} probes on {self.set} find their person first among "
        text += f"{self.gallery:,} templates{self.spread_of('rank_1')}"
        if (told := rate_told(self.tpir_at_fpir)) is not None:
            rate, tpir = told
            where = f"where {one_in(rate, 'stranger')} gets a name"
            text += f"; {where}, {tpir:.4f} of them are named rightly"
        return Sentence(self.told("accuracy"), f"{text}.")

    def notes(self) -> list[str]:
        """Notes of every protocol, then one on probes that are in the gallery, too."""
        lines = super().notes()
        if self.same_photos:
            same = counted(self.same_photos, "probe is a photo", "probes are photos")
            lines.append(f"note: {same} of the gallery, too: left out")
        return lines

    def trials(self, rate: str) -> str:
        """Number of non-mated probes, as text."""
        return f"{self.non_mated} non-mated probes"


class Identification(Protocol):
    """Identification on a set of photos, within the set or against a gallery set."""

    name = "identification"
    result = IdentificationFigures
    config_class = IdentificationOptions

    def check(self, named: Named, manifest: Manifest, options: IdentificationOptions) -> None:
        """Raises PersonaError if a set holds triplets or the gallery's crops do not fit."""
        if manifest.kind != "photos":
            raise PersonaError(f"set {manifest.name} holds triplets: identification needs photos")
        if options.gallery is not None:
            gallery = options.gallery.manifest
            if gallery.kind != "photos":
                raise PersonaError(f"gallery {gallery.name} holds triplets: it must hold photos")
            gallery.check_crops(named.name, named.image_size, named.network.uses_landmarks)
            if {one.sha256 for one in manifest.shards} <= {one.sha256 for one in gallery.shards}:
                raise _itself(manifest, gallery)

    def figures(self, subject: Subject) -> dict[str, Any]:
        """Rank-1, rank-5, CMC and TPIR at FPIR. Intervals resample the probes' identities."""
        for faces in (subject.faces, subject.options.gallery):
            if faces is not None:
                faces.check_people("measure identification")
        probes, left_out = _faces(subject, subject.faces)
        same_photos = None
        if subject.options.gallery is None:
            closed, opened, owner, gallery = _within(probes.embeddings, probes.labels)
        else:
            enrolled, more = _faces(subject, subject.options.gallery)
            left_out += more
            gallery_set = subject.options.gallery.manifest
            known = names_across(gallery_set.classes, gallery_set.dataset, subject.manifest)
            mate = _mates(probes.labels, subject.manifest.classes, enrolled.labels, known)
            same_N = _same_photos(subject, probes, enrolled, mate)
            same_photos = int(same_N.sum())
            if same_photos and not (mate[~same_N] >= 0).any():
                raise _itself(subject.manifest, subject.options.gallery.manifest)
            template_GE, mate = _templates(enrolled.embeddings, enrolled.labels, mate[~same_N])
            closed = opened = search(probes.embeddings[~same_N], template_GE, mate)
            owner, gallery = (probes.labels[~same_N],) * 2, len(template_GE)
        mated = closed.rank > 0
        if not mated.any():
            assert subject.options.gallery is not None  # within one set every template has a probe
            numbered = " (a number names nobody of another dataset)" if "" in known else ""
            raise PersonaError(
                f"no person of set {subject.manifest.name} is in gallery "
                f"{subject.options.gallery.name}{numbered}: choose a gallery of the same people"
            )
        rank_M = closed.rank[mated]
        curve = cmc(rank_M, min(RANKS, gallery))
        dir_at = {f"{fpir:g}": accepted(opened.best, opened.rank, fpir) for fpir in FPIRS}
        figures: dict[str, Any] = {
            "accuracy": float(curve[0]),
            "rank_1": float(curve[0]),
            "rank_5": float(np.mean(rank_M <= 5)),
            "cmc": curve.tolist(),
            "tpir_at_fpir": {n: None if v is None else float(v.mean()) for n, v in dir_at.items()},
            "gallery": gallery,
            "probes": len(rank_M),
            "non_mated": int((opened.rank == 0).sum()),
            "same_photos": same_photos,
            "no_face": int(left_out[0]),
            "absent": int(left_out[1]),
        }
        resamples = subject.options.resamples
        if resamples:
            people, open_people = owner[0][mated], owner[1][opened.rank > 0]
            first = bootstrap_interval(rank_M == 1, people, resamples=resamples)
            figures["intervals"] = {
                "accuracy": first,
                "rank_1": first,
                "rank_5": bootstrap_interval(rank_M <= 5, people, resamples=resamples),
            }
            for name, found in dir_at.items():
                if found is not None:
                    interval = bootstrap_interval(found, open_people, resamples=resamples)
                    figures["intervals"][f"tpir@{name}"] = interval
            figures["resampled"] = "identities"
        return figures


class _Faces(NamedTuple):
    """The photos of a set with a face."""

    keys: Ints
    """(N,) sample keys."""
    embeddings: Embeddings
    """(N, E) embeddings of unit length."""
    labels: Ints
    """(N,) class indices."""


def _itself(probes: Manifest, gallery: Manifest) -> PersonaError:
    """The error for a gallery that holds all probes, which would find their own photos."""
    return PersonaError(
        f"gallery {gallery.name} holds the photos of set {probes.name}, which would be compared "
        "with themselves: choose other photos, or leave --gallery out to search the set within "
        "itself"
    )


def _faces(subject: Subject, faces: FaceSet) -> tuple[_Faces, Ints]:
    """A set's photos with a face; counts of faceless and absent ones."""
    manifest = faces.manifest
    embedded = subject.embed(faces)
    usable_N = ~np.isin(embedded.keys, np.array(manifest.no_face, np.int64))
    if not usable_N.any():
        raise PersonaError(f"set {manifest.name}: no face was found in any photo")
    faceless, absent = manifest.left_out
    left_out = np.array([faceless + np.count_nonzero(~usable_N), absent])
    usable = _Faces(
        embedded.keys[usable_N], embedded.embeddings[usable_N, 0], embedded.labels[usable_N, 0]
    )
    return usable, left_out


def _same_photos(subject: Subject, probes: _Faces, enrolled: _Faces, mate_N: Ints) -> Bools:
    """(N,) whether a probe is a photo of its person in the gallery: the same crop to the byte.

    Crops are read only of probes and photos of one person whose embeddings are nearly the same.
    Embeddings alone do not tell: those of a collapsed network are all the same.
    """
    near_N, near_F = np.zeros(len(mate_N), bool), np.zeros(len(enrolled.labels), bool)
    of_label = rows_of_each(enrolled.labels)
    for label, all_N in rows_of_each(mate_N).items():
        rows_F = of_label.get(label)
        if rows_F is None:  # -1: the gallery does not have this person
            continue
        for rows_N in np.array_split(all_N, -(-len(all_N) * len(rows_F) // BLOCK)):
            near = probes.embeddings[rows_N] @ enrolled.embeddings[rows_F].T >= NEARLY
            near_N[rows_N[near.any(axis=1)]] = True
            near_F[rows_F[near.any(axis=0)]] = True
    if not near_N.any():
        return near_N
    gallery = subject.options.gallery
    known = {sha256(jpeg).digest() for _, jpeg in iter_jpegs(gallery, enrolled.keys[near_F])}
    same = {
        key
        for key, jpeg in iter_jpegs(subject.faces, probes.keys[near_N])
        if sha256(jpeg).digest() in known
    }
    return np.isin(probes.keys, np.array(sorted(same), np.int64))


def _within(
    embedding_NE: Embeddings, label_N: Ints
) -> tuple[Search, Search, tuple[Ints, Ints], int]:
    """Searches a set within itself.

    Returns:
        The closed search, the open search, the labels of the probes of each, and the size of the
        closed gallery.
    """
    labels, first, counts = np.unique(label_N, return_index=True, return_counts=True)
    gallery_G = first[counts > 1]
    rest = np.setdiff1d(np.arange(len(label_N)), gallery_G)
    place_K = np.full(int(labels.max()) + 1, -1)
    place_K[label_N[gallery_G]] = np.arange(len(gallery_G))
    mate = place_K[label_N[rest]]
    template_GE = embedding_NE[gallery_G]
    if not len(template_GE):
        raise PersonaError(
            "no person of this set has two photos, so nobody can be looked up: give --gallery SET"
        )
    mated = mate >= 0
    closed = search(embedding_NE[rest[mated]], template_GE, mate[mated])
    # Half of the people leave the gallery. A single person stays.
    kept = np.sort(
        np.random.default_rng(SEED).permutation(len(gallery_G))[: -(-len(gallery_G) // 2)]
    )
    place = np.full(len(gallery_G) + 1, -1)
    place[kept] = np.arange(len(kept))
    opened = search(embedding_NE[rest], template_GE[kept], place[mate])
    return closed, opened, (label_N[rest[mated]], label_N[rest]), len(gallery_G)


def _mates(label_N: Ints, classes: tuple[str, ...], label_F: Ints, known: list[str]) -> Ints:
    """(N,) gallery label of each probe's identity, found by name; -1 if it is not enrolled."""
    place_K = np.array(match_names(classes, known), np.int64)
    place_K[~np.isin(place_K, label_F)] = -1
    return place_K[label_N]


def _templates(embedding_FE: Embeddings, label_F: Ints, mate_N: Ints) -> tuple[Embeddings, Ints]:
    """(G, E) one template per gallery identity, and (N,) the probe's template in it or -1."""
    labels, owner = np.unique(label_F, return_inverse=True)
    template_GE = pool(embedding_FE, owner, len(labels))
    place = np.minimum(np.searchsorted(labels, mate_N), len(labels) - 1)
    return template_GE, np.where((mate_N >= 0) & (labels[place] == mate_N), place, -1)
