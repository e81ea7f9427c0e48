"""Looks over a gallery for people and photos that its owner should look at.

1. people who look alike: the means of their templates reach the threshold
2. photos far from their person: the template does not reach the threshold to the mean of the
   person's other templates
3. people with one photo that is poor, as far as its crop is kept

Nothing is changed. Up to `EXACT` people all pairs of means are compared, in blocks. Of more people,
an inverted file proposes the pairs (persona/evaluation/grouping.py).

Shapes: N templates, K people, E embedding, L pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from persona.errors import PersonaError
from persona.evaluation.grouping import link
from persona.evaluation.metrics import Ints
from persona.gallery.crops import read_crop
from persona.gallery.people import threshold_of
from persona.gallery.quality import sharpness
from persona.gallery.store import Store, StoredPhoto, Templates, Threshold, unit
from persona.workspace import Workspace

EXACT = 20_000
"""Largest number of people whose means are all compared with each other."""
BLOCK = 16_000_000
"""Similarities in memory at once: 64 MB."""
MOST_PAIRS = 100_000
"""Largest number of pairs of people that are kept, the most similar ones."""
POOR_SHARPNESS = 20.0
"""Sharpness below which an only photo is poor, see persona/gallery/quality.py: sharp faces have 26
or more, and a face below 8 is not enrolled at all."""
POOR_EYES_PX = 24.0
"""Distance of the eyes in px of the photo below which an only photo is poor. It is about half of
that in a photo of LFW."""


@dataclass(frozen=True)
class Alike:
    """Two people who look alike."""

    a: str
    b: str
    similarity: float
    """Cosine similarity of the means of their templates, in [-1, 1]."""


@dataclass(frozen=True)
class FarPhoto:
    """A photo that is far from the others of its person."""

    name: str
    photo: int
    """Place of the photo among the person's, from 1, in order of enrolment."""
    photos: int
    """Number of the person's photos."""
    number: int
    """Number of the photo in the gallery."""
    similarity: float
    """Cosine similarity to the mean of the person's other templates, in [-1, 1]."""


@dataclass(frozen=True)
class PoorPhoto:
    """A person whose only photo is poor."""

    name: str
    reason: str
    """What is poor about it, with its figure."""
    number: int
    """Number of the photo in the gallery."""


@dataclass(frozen=True)
class Audit:
    """What was found in a gallery."""

    people: int
    """Number of people with a photo."""
    templates: int
    model: str
    """Name of the gallery's network."""
    threshold: Threshold
    """Threshold from which on two people look alike."""
    alike: tuple[Alike, ...]
    """The most similar pair comes first."""
    far: tuple[FarPhoto, ...]
    """The least similar photo comes first."""
    poor: tuple[PoorPhoto, ...]
    """Sorted by name."""
    one_photo: int
    """Number of people with one photo."""
    unknown_quality: int
    """Number of people with one photo whose crop is not kept, so that nobody knows how good it
    is."""
    crops: dict[int, bytes]
    """Kept crops as JPEG by number of the photo, of the photos in `far` and `poor`."""
    faces: dict[str, bytes]
    """A kept crop of each person in `alike`, as JPEG by name."""

    def to_json(self) -> dict[str, Any]:
        """Returns the findings as `persona gallery audit --json` prints them."""
        return {
            "people": self.people,
            "templates": self.templates,
            "model": self.model,
            "threshold": self.threshold.value,
            "threshold_source": self.threshold.source,
            "alike": [vars(found) for found in self.alike],
            "far": [vars(found) for found in self.far],
            "poor": [vars(found) for found in self.poor],
            "one_photo": self.one_photo,
            "unknown_quality": self.unknown_quality,
        }


def own_threshold(store: Store, given: float | None, place: Workspace) -> Threshold | None:
    """The threshold of a gallery whose network is not loaded; None if it has none.

    Args:
        store: the open gallery.
        given: cosine similarity to use instead.
        place: where models are stored, whose cards may hold a threshold.

    Raises:
        PersonaError: the given threshold is no cosine similarity.
    """
    if given is not None:
        if not -1 <= given <= 1:
            raise PersonaError(f"threshold {given:g}: a similarity is between -1 and 1")
        return Threshold(given, "given by hand")
    return threshold_of(store.facts(), place)


def audit_gallery(store: Store, threshold: Threshold | None) -> Audit:
    """Looks over a gallery.

    Args:
        store: the open gallery. It is only read.
        threshold: the threshold, see `own_threshold`.

    Raises:
        PersonaError: nobody is enrolled, or there is no threshold.
    """
    facts = store.facts()
    rows = list(store.photos())
    if facts is None or not rows:
        raise PersonaError(f"{store.place} has nobody to look at: `persona enroll` enrols somebody")
    if threshold is None:
        raise PersonaError(
            f"{store.place} has no threshold for {facts.network}: choose one with `persona gallery "
            "calibrate --set SET --far 1e-3`, or give --threshold X"
        )
    names = sorted({name for name, _, _ in rows})
    number_of = {name: place for place, name in enumerate(names)}
    owner_N = np.array([number_of[name] for name, _, _ in rows], np.int64)
    template_NE = np.stack([photo.template for _, _, photo in rows])
    sum_KE = np.zeros((len(names), template_NE.shape[1]))
    np.add.at(sum_KE, owner_N, template_NE)
    photos_K = np.bincount(owner_N)

    a_L, b_L, similarity_L = _alike(unit(sum_KE), threshold.value)
    alike = tuple(
        Alike(names[a], names[b], float(similarity))
        for a, b, similarity in zip(a_L.tolist(), b_L.tolist(), similarity_L, strict=True)
    )
    similarity_N = _to_others(template_NE, owner_N, sum_KE)
    place_N = _places(owner_N)
    far = tuple(
        FarPhoto(
            *(rows[n][0], int(place_N[n]), int(photos_K[owner_N[n]]), rows[n][1]),
            similarity=float(similarity_N[n]),
        )
        for n in np.argsort(similarity_N, kind="stable").tolist()
        if photos_K[owner_N[n]] > 1 and similarity_N[n] < threshold.value
    )
    only = [rows[n] for n in np.flatnonzero(photos_K[owner_N] == 1).tolist()]
    poor = tuple(
        PoorPhoto(name, reason, number)
        for name, number, photo in sorted(only, key=lambda row: row[0])
        if photo.crop is not None and (reason := poor_of(photo)) is not None
    )
    shown = {one.number for one in far} | {one.number for one in poor}
    people = {name for found in alike for name in (found.a, found.b)}
    return Audit(
        *(len(names), len(rows), facts.network, threshold, alike, far, poor, len(only)),
        unknown_quality=sum(photo.crop is None for _, _, photo in only),
        crops={number: photo.crop for _, number, photo in rows if photo.crop and number in shown},
        # The last one of a name counts, so the rows are read from their end: the first photo shows
        # a person.
        faces={name: photo.crop for name, _, photo in rows[::-1] if photo.crop and name in people},
    )


def _alike(mean_KE: Templates, threshold: float) -> tuple[Ints, Ints, npt.NDArray[np.float32]]:
    """Pairs of people, each once, whose means reach the threshold; the most similar come first."""
    parts = list(_pairs(mean_KE, threshold))
    a, b, similarity = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((b, a, -similarity))[:MOST_PAIRS]
    return a[order], b[order], similarity[order]


def _pairs(
    mean_KE: Templates, threshold: float
) -> Iterator[tuple[Ints, Ints, npt.NDArray[np.float32]]]:
    count = len(mean_KE)
    if count > EXACT:
        links = link(mean_KE, threshold)
        once = links.source < links.target
        yield links.source[once], links.target[once], links.weight[once]
        return
    for start in range(0, count, rows := max(1, BLOCK // count)):
        # Each block is compared with the people from it on, so every pair comes once.
        similarity = mean_KE[start : start + rows] @ mean_KE[start:].T
        a, b = np.nonzero(similarity >= threshold)
        later = b > a
        a, b = a[later], b[later]
        yield a + start, b + start, similarity[a, b]


def _to_others(
    template_NE: Templates, owner_N: Ints, sum_KE: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """(N,) cosine similarity of each template to the mean of its person's other templates.

    It has no meaning for a person's only template.
    """
    similarity_N = np.empty(len(template_NE))
    for start in range(0, len(template_NE), rows := max(1, BLOCK // sum_KE.shape[1] // 4)):
        part = slice(start, start + rows)
        others = sum_KE[owner_N[part]] - template_NE[part]
        similarity_N[part] = np.einsum("ne,ne->n", unit(others), template_NE[part])
    return similarity_N


def _places(owner_N: Ints) -> Ints:
    """(N,) place of each template among those of its person, from 1."""
    order = np.argsort(owner_N, kind="stable")
    starts = np.flatnonzero(np.diff(owner_N[order], prepend=-1))
    place_N = np.empty(len(owner_N), np.int64)
    lengths = np.diff(starts, append=len(owner_N))
    place_N[order] = np.arange(len(owner_N)) - np.repeat(starts, lengths) + 1
    return place_N


def poor_of(photo: StoredPhoto) -> str | None:
    """Returns what is poor about a photo whose crop is kept, or None if it is good.

    A crop that cannot be read is poor, too: `gallery rebuild` could not use it.
    """
    try:
        crop = read_crop(photo.crop or b"")
    except PersonaError:
        return "unreadable: its kept face is no image"
    found = sharpness(crop)
    if found < POOR_SHARPNESS:
        return f"blurred: sharpness {found:.1f}, good photos have {POOR_SHARPNESS:g} or more"
    if photo.landmarks_62 is None:
        return None
    eyes_22, scale_2 = photo.landmarks_62[:2], photo.landmarks_62[5]
    distance = float(np.linalg.norm((eyes_22[1] - eyes_22[0]) / scale_2))
    if distance < POOR_EYES_PX:
        return f"small: the eyes are {distance:.0f} px apart, {POOR_EYES_PX:g} or more are good"
    return None


def rows_of(audit: Audit) -> Sequence[tuple[str, str, str, float | None]]:
    """The findings as rows of a table: the kind, the person, what was found, the similarity."""
    alike = [("look alike", one.a, f"and {one.b}", one.similarity) for one in audit.alike]
    far = [
        ("far photo", one.name, f"photo {one.photo} of {one.photos}", one.similarity)
        for one in audit.far
    ]
    poor = [("one poor photo", one.name, one.reason, None) for one in audit.poor]
    return [*alike, *far, *poor]
