"""What a distillation trains on: a packed set, or several sets whose photos are mixed.

    --train-set utk,aaf*2,vggface2

A weight is how often the photos of a set come in an epoch. With 2 each photo comes twice, and with
0.5 half of the photos come in one epoch and the other half in the next one. Every batch is drawn
from all sets (persona/data/samples.py). Nothing is packed again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from persona.data.align.spec import AlignSpec
from persona.data.kept_targets import photos_of
from persona.data.sets import FaceSet, open_set
from persona.data.shards import holds_set, key_of
from persona.errors import PersonaError

MAX_WEIGHT = 1000.0
KEYS = 10**12
"""Keys of a mix: those of part n begin at n * KEYS, so that no two photos have the same key."""


@dataclass(frozen=True)
class Part:
    """One set of a mix, and how often its photos come in an epoch."""

    faces: FaceSet
    weight: float = 1.0
    excluded: Mapping[int, frozenset[int]] = field(default_factory=dict)
    """Keys of photos that do not come, by shard. Photos without a face never come."""

    def left_out(self, shard: int) -> frozenset[int]:
        """Keys of the photos of a shard that do not come."""
        no_face = self.faces.manifest.shards[shard].no_face
        return self.excluded.get(shard, frozenset()).union(no_face)

    @property
    def name(self) -> str:
        """The set's name, with the weight if it is not 1."""
        return self.faces.name + ("" if self.weight == 1 else f"*{self.weight:g}")


class MixedSet:
    """The sets that a distillation trains on. Often it is one set with weight 1.

    The labels of each set are kept apart: those of a part begin after the identities of the parts
    before it. Photos without an identity keep the label `NO_CLASS`.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        """Checks that the sets can be mixed.

        Raises:
            PersonaError: two sets hold the same photos, or crops that differ in size or alignment.
        """
        assert parts
        self.parts = tuple(parts)
        first, *others = self.parts
        for place, other in enumerate(others, start=1):
            for earlier in self.parts[:place]:
                if earlier.faces.digest == other.faces.digest:
                    raise PersonaError(
                        f"train sets {earlier.name} and {other.name} are the same photos: name the "
                        f"set once, with a weight ({earlier.faces.name}*2)"
                    )
            _check_alike(first.faces, other.faces)

    @classmethod
    def of(cls, faces: FaceSet) -> MixedSet:
        """A mix of one set alone."""
        return cls([Part(faces)])

    def without(self, excluded: Sequence[Mapping[int, frozenset[int]]]) -> MixedSet:
        """The same sets without some photos: of each set, their keys by shard."""
        pairs = zip(self.parts, excluded, strict=True)
        return MixedSet([replace(part, excluded=keys) for part, keys in pairs])

    @property
    def name(self) -> str:
        """The names of the sets, each with its weight if that is not 1, separated by commas."""
        return ",".join(part.name for part in self.parts)

    @property
    def origin(self) -> str | dict[str, str]:
        """What a resumed run compares: the digest of the set; of a mix, each digest and weight."""
        if len(self.parts) == 1 and self.parts[0].weight == 1:
            return self.parts[0].faces.digest
        return {
            str(place): f"{part.faces.digest} * {part.weight!r}"
            for place, part in enumerate(self.parts)
        }

    @property
    def dataset(self) -> str:
        """The names of the datasets, separated by commas."""
        return ",".join(part.faces.manifest.dataset for part in self.parts)

    @property
    def align(self) -> AlignSpec:
        """How the crops are aligned."""
        return self.parts[0].faces.manifest.align

    @property
    def roles(self) -> int:
        """Number of photos per sample: 3 for triplets, otherwise 1."""
        return photos_of(self.parts[0].faces.manifest)

    @property
    def people(self) -> int:
        """Number of identities that have photos."""
        return sum(part.faces.manifest.identities for part in self.parts)

    def __len__(self) -> int:
        """Number of samples of all sets, whatever their weight."""
        return sum(len(part.faces) for part in self.parts)

    @cached_property
    def identities(self) -> tuple[str, ...]:
        """Names of the identities; a label is an index into this tuple.

        A name that several sets have is written `SET/NAME`. It may be one person or several.
        """
        found = Counter(name for part in self.parts for name in part.faces.identities)
        return tuple(
            name if found[name] == 1 else f"{title}/{name}"
            for title, part in zip(self._titles, self.parts, strict=True)
            for name in part.faces.identities
        )

    @cached_property
    def first_labels(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """(parts,) the label of each part's first identity."""
        counts = [len(part.faces.identities) for part in self.parts]
        return np.cumsum([0, *counts[:-1]], dtype=np.int64)

    @property
    def _titles(self) -> list[str]:
        """The name of each part's set; a name that came before gets a number."""
        titles: list[str] = []
        for place, part in enumerate(self.parts):
            before = sum(other.faces.name == part.faces.name for other in self.parts[:place])
            titles.append(part.faces.name + (f"#{before + 1}" if before else ""))
        return titles

    def spell(self, key: int) -> int | str:
        """A sample's key as a file names it: a number, or in a mix the set and its own key."""
        if len(self.parts) == 1:
            return key
        place, own = divmod(key, KEYS)
        return f"{self._titles[place]}/{key_of(own)}"

    def check_labelled(self, what: str) -> None:
        """Raises PersonaError if the photos of a set have no identities, which `what` needs."""
        for part in self.parts:
            part.faces.manifest.check_labelled(what)

    def check_crops(self, network: str, image_size: int | None, needs_landmarks: bool) -> None:
        """Raises PersonaError if a network cannot take the crops, as `Manifest.check_crops`."""
        for part in self.parts:
            part.faces.manifest.check_crops(network, image_size, needs_landmarks)

    def knows(self, trained_on: str, num_classes: int, classes: tuple[str, ...] | None) -> bool:
        """Whether a network's logits stand for these identities, in the same order."""
        if len(self.parts) == 1:
            return self.parts[0].faces.manifest.knows(trained_on, num_classes, classes)
        return classes == self.identities

    def labelled_part(self) -> FaceSet:
        """The first set with identities, on which a teacher can be checked; else the first set."""
        sets = [part.faces for part in self.parts]
        return next((faces for faces in sets if faces.identities), sets[0])


def _check_alike(one: FaceSet, other: FaceSet) -> None:
    """Raises PersonaError if two sets cannot be mixed; the message names both."""
    if one.manifest.kind != other.manifest.kind:
        raise PersonaError(
            f"train sets {one.name} and {other.name} cannot be mixed: one holds triplets and the "
            "other photos"
        )
    specs = [faces.manifest.align for faces in (one, other)]
    # `template` and `landmarks` make equal crops of equal faces.
    if specs[0].of_photos != specs[1].of_photos:
        told = [
            f"{spec.image_size} px by {spec.method}, margin {spec.margin} px"
            + (f", faces from {spec.min_face} px" if spec.detects else "")
            for spec in specs
        ]
        raise PersonaError(
            f"train sets {one.name} and {other.name} cannot be mixed: their crops are {told[0]}, "
            f"and {told[1]}; pack one of them again as the other is"
        )


def open_mixed(
    names: str, shards: Path, cache: Path | None = None, *, verify: bool = True
) -> MixedSet:
    """Opens the sets of a text such as `utk,aaf*2,vggface2`. The options are those of `open_set`.

    Raises:
        PersonaError: a weight is no positive number, a set cannot be opened, or the sets cannot be
            mixed.
    """
    return MixedSet(
        [
            Part(open_set(name, shards, cache, verify=verify), weight)
            for name, weight in read_parts(names, shards)
        ]
    )


def read_parts(names: str, shards: Path) -> list[tuple[str, float]]:
    """The set names and weights of a text such as `utk,aaf*2,vggface2`.

    A text that names one set as it is, such as a folder with a comma, is that set.

    Raises:
        PersonaError: a name is missing, or a weight is no positive number.
    """
    if any(holds_set(place) for place in (Path(names), shards / names)):
        return [(names, 1.0)]
    return [_read_part(text.strip(), names) for text in names.split(",")]


def names_in(mix: str) -> list[str]:
    """The names in a mix's name, without their weights."""
    return [part.rpartition("*")[0] or part for part in mix.split(",")]


def _read_part(text: str, names: str) -> tuple[str, float]:
    name, star, weight = text.rpartition("*")
    name, weight = (name.strip(), weight.strip()) if star else (text, "1")
    if not name:
        raise PersonaError(
            f"train set {names!r} lacks a name: write the sets as in utk,aaf*2,vggface2"
        )
    return name, check_weight(name, weight)


def check_weight(name: str, weight: str | float) -> float:
    """The weight of a set as a number.

    Raises:
        PersonaError: it is no number above 0, or too large.
    """
    try:
        number = float(weight)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number <= MAX_WEIGHT:
        raise PersonaError(
            f"{name}*{weight}: a train set's weight is how often its photos come in an epoch; "
            f"choose a number above 0, at most {MAX_WEIGHT:g}"
        )
    return number
