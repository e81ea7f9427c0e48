"""AgeDB (Moschoglou et al. 2017): 16,488 photos of 568 identities with age and gender."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from persona.data.raw.base import (
    MAX_NESTED,
    Pair,
    Photo,
    RawDataset,
    list_folders,
    list_images,
)
from persona.errors import PersonaError
from persona.files import whole_number

GAP_YEARS = 30
FOLDS = 10
PER_FOLD = 300
"""Genuine pairs per fold of AgeDB-30. There are as many impostor pairs."""
SEED = 0


class AgeDB(RawDataset):
    """AgeDB's folder of `<id>_<Name>_<age>_<gender>.jpg`. The faces are already cropped."""

    name = "agedb"
    folder = "AgeDB"
    layout = "<id>_<Name>_<age>_<gender>.jpg, all in one folder"
    obtain = "ask its authors (Imperial College London, iBUG) for access"

    def photo_root(self) -> Path:
        """The folder that holds the photos. Archives may nest it some levels deeper."""
        root = self.root
        for _ in range(MAX_NESTED):
            if list_images(root):
                return root
            folders = list_folders(root)
            deeper = [name for name in folders if list_images(root / name)] or folders
            if len(deeper) != 1:
                break
            root /= deeper[0]
        return self.root

    def iter_photos(self) -> Iterator[Photo]:
        """Yields every photo. The identity is the name in the file name."""
        root = self.photo_root()
        below = "" if root == self.root else f"{self.relative(root)}/"
        for name in list_images(root):
            number, _, rest = name.rpartition(".")[0].partition("_")
            fields = rest.rsplit("_", maxsplit=2)
            age = whole_number(fields[1]) if len(fields) == 3 else None
            if whole_number(number) is None or age is None or not fields[0]:
                raise PersonaError(
                    f"{root / name}: expected <id>_<Name>_<age>_<gender>.jpg; "
                    "rename it or take it out"
                )
            attributes = (("age", age), ("gender", fields[2]))
            yield Photo(identity=fields[0], source=f"{below}{name}", attributes=attributes)

    def pairs(self) -> list[Pair] | None:
        """Pairs that are 30 years apart, drawn as in the paper's section 4. It is not its own list.

        The pairs are in ten folds that share no identity. Each has at most 300 genuine and as many
        impostor pairs. The two photos of every pair are exactly 30 years apart, and those of an
        impostor pair have the same gender. Equal photos give equal pairs.

        Returns:
            The pairs, or None if there are too few photos for two folds.
        """
        return draw_age_pairs(list(self.iter_photos()))


def draw_age_pairs(photos: list[Photo]) -> list[Pair] | None:
    """Draws the pairs of `AgeDB.pairs` from these photos."""
    rng = random.Random(SEED)
    by_identity: dict[str, list[Photo]] = {}
    for photo in sorted(photos):
        by_identity.setdefault(photo.identity, []).append(photo)
    genuine = {
        name: found for name, own in by_identity.items() if (found := _apart(own, same=True))
    }
    folds = min(FOLDS, len(genuine) // 2)
    if folds < 2:
        return None
    # Identities with many pairs come first, each to the smallest fold: the sizes become similar.
    people: list[list[str]] = [[] for _ in range(folds)]
    sizes = [0] * folds
    for name in sorted(genuine, key=lambda name: (-len(genuine[name]), name)):
        fold = sizes.index(min(sizes))
        people[fold].append(name)
        sizes[fold] += len(genuine[name])
    pairs = []
    for fold, names in enumerate(people):
        same = [pair for name in names for pair in genuine[name]]
        other = _apart([photo for name in names for photo in by_identity[name]], same=False)
        count = min(len(same), len(other), PER_FOLD)
        for is_same, found in ((True, same), (False, other)):
            pairs += [Pair(fold, is_same, a, b) for a, b in rng.sample(found, count)]
    return pairs or None


def _apart(photos: list[Photo], *, same: bool) -> list[tuple[str, str]]:
    """Pairs of sources that are GAP_YEARS apart: of one identity, or of two of the same gender."""
    by_look: dict[tuple[int, str], list[Photo]] = {}
    for photo in photos:
        by_look.setdefault(_look(photo), []).append(photo)
    return [
        (young.source, old.source)
        for young in photos
        for age, gender in [_look(young)]
        for old in by_look.get((age + GAP_YEARS, gender), ())
        if (young.identity == old.identity) == same
    ]


def _look(photo: Photo) -> tuple[int, str]:
    known = dict(photo.attributes)
    return int(known["age"]), str(known["gender"])
