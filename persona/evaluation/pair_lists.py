"""Pairs of a packed set that has none of its own: a user's list, or drawn from its identities.

A list is a CSV or parquet file, or has the layout of LFW's pairs.txt.

A CSV or parquet table has a header. Two paths are in the columns `a` and `b`, or in the first two
columns. The column `label` (or `same`) is 1 for a genuine and 0 for an impostor pair. The column
`fold` is optional. Without folds, as in the lists of LFW's view 1, the list is cut into ten folds
in its order.

A path is that of a photo below the folder of its dataset, or an end of it that is unique in the
set. It may also begin with up to two folders above that of the dataset.
"""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

from persona.data.raw.lfw import parse_pairs
from persona.data.raw.parquet import open_parquet
from persona.data.sets import FaceSet
from persona.data.shards import FACELESS, Manifest, PairTable
from persona.errors import PersonaError
from persona.files import LONGEST_LINE, iter_csv, open_list, whole_number

LAYOUT = "a list of pairs (a CSV or parquet file with columns a, b and label, or a pairs.txt)"
FOLDS = 10
SEED = 0
"""Seed of drawn pairs, so that all models are measured on the same ones."""
DRAWN = 3000
"""Genuine pairs, and as many impostor pairs, that are drawn where a set has no pairs."""
LEAST_PEOPLE = 4
"""Fewest people of whom pairs can be drawn: two folds of two people."""
UNKNOWN = -1
MAX_FOLD = 10**9
SHOWN = 5
"""How many unknown photos the error names."""
MAX_UNKNOWN = 0.5
"""Largest share of the pairs that may name unknown photos."""
LABELS = dict.fromkeys(("1", "1.0", "true", "same"), True)
LABELS |= dict.fromkeys(("0", "0.0", "false", "different"), False)

Pair = tuple[int, int]
"""The keys of two photos."""
Row = tuple[int | None, bool, str, str]
"""The fold (None if the list has none), whether the pair is genuine, and the two paths."""


def read_pair_list(
    path: Path, manifest: Manifest, metas: dict[int, dict[str, Any]]
) -> tuple[PairTable, list[str]]:
    """Reads a list of pairs and finds the photos in a set.

    Args:
        path: file of the list.
        manifest: manifest of the set.
        metas: `FaceSet.metas` of the set.

    Returns:
        The pairs by key, and the paths that no photo of the set has, sorted.

    Raises:
        PersonaError: the list is unreadable or malformed, has too few pairs for ten folds, or more
            than half of its pairs name unknown photos.
    """
    rows = _read_rows(path)
    if not rows:
        raise PersonaError(f"{path} holds no pair")
    find = _Finder(metas, manifest)
    keys = np.array([(find(a), find(b)) for _, _, a, b in rows], np.int64)
    lost = int((keys == UNKNOWN).any(axis=1).sum())
    missing = sorted(
        {
            p
            for row, key in zip(rows, keys, strict=True)
            for p, k in zip(row[2:], key, strict=True)
            if k == UNKNOWN
        }
    )
    if lost > MAX_UNKNOWN * len(rows):
        raise PersonaError(
            f"{path}: {lost} of {len(rows)} pairs name photos that set {manifest.name} does not "
            f"have ({_some(missing)}): are they paths below its dataset's folder?"
        )
    same = np.array([row[1] for row in rows])
    folds = [row[0] for row in rows]
    if all(fold is not None for fold in folds):
        fold = np.array(folds, np.int64)
        if len(np.unique(fold)) < 2:
            raise PersonaError(
                f"{path}: all pairs lie in one fold, and a threshold needs others to be chosen on: "
                "give `fold` at least two values, or leave it out"
            )
    else:
        fold = cut_folds(same, path)
    return PairTable(fold, same, keys[:, 0], keys[:, 1]), missing


def cut_folds(same: np.ndarray[Any, np.dtype[np.bool_]], path: Path | str) -> Any:
    """(P,) int64 numbers of ten folds, cut in the order of the list.

    Each fold gets its share of the genuine and of the impostor pairs.

    Raises:
        PersonaError: the pairs are all genuine or all impostor, or there are fewer than ten.
    """
    genuine, impostor = int(same.sum()), int((~same).sum())
    if not genuine or not impostor:
        kind = "impostor" if impostor else "genuine"
        raise PersonaError(f"{path}: all {len(same)} pairs are {kind}: nothing can be measured")
    if len(same) < FOLDS:
        raise PersonaError(
            f"{path}: {len(same)} pairs cannot fill {FOLDS} folds: give more pairs, or a column "
            "`fold` with at least two values"
        )
    fold = np.empty(len(same), np.int64)
    # Impostor pairs are dealt from the last fold down, so that even a short list fills every fold.
    fold[same] = np.arange(genuine) * FOLDS // genuine
    fold[~same] = FOLDS - 1 - np.arange(impostor) * FOLDS // impostor
    return fold


def pairs_of(faces: FaceSet, drawn: int = DRAWN) -> PairTable:
    """The pairs of a set, or as many drawn genuine and impostor pairs if it has none.

    Raises:
        PersonaError: the set's pairs cannot be read, or there are too few people to draw some.
    """
    if faces.manifest.pairs:
        return faces.pairs()
    return draw_pairs(faces.metas(), drawn, faces.manifest)


def draw_pairs(metas: dict[int, dict[str, Any]], count: int, manifest: Manifest) -> PairTable:
    """Draws pairs of the people of a set, from a fixed seed.

    As in LFW's view 2, no person is in two folds, and there are as many impostor as genuine pairs.
    A person is drawn as often as any other, however many photos there are. No pair is drawn twice.

    Args:
        metas: `FaceSet.metas` of the set.
        count: genuine pairs. A set with fewer gives those that it has.
        manifest: manifest of the set. Its photos without a face are not drawn.

    Raises:
        PersonaError: there are fewer than four people, or none with two photos.
    """
    people: dict[str, list[int]] = {}
    for key in sorted(metas.keys() - {*manifest.no_face}):
        people.setdefault(metas[key]["identity"], []).append(key)
    folds = min(FOLDS, len(people) // 2)
    if len(people) < LEAST_PEOPLE:
        raise PersonaError(
            f"set {manifest.name} has no pairs and {len(people)} people: pairs are drawn of at "
            f"least {LEAST_PEOPLE} people; give a list of pairs"
        )
    rng = np.random.default_rng(SEED)
    photos = [people[name] for name in sorted(people)]
    order = rng.permutation(len(photos)).tolist()
    rows: list[tuple[int, bool, int, int]] = []
    for fold in range(folds):
        mine = [photos[place] for place in order[fold::folds]]
        wanted = count // folds + (fold < count % folds)
        genuine = _genuine(mine, wanted, rng)
        rows += [(fold, True, a, b) for a, b in genuine]
        rows += [(fold, False, a, b) for a, b in _impostor(mine, len(genuine), rng)]
    if not any(same for _, same, _, _ in rows):
        raise PersonaError(
            f"set {manifest.name} has no pairs and one photo of each person: pack more photos, or "
            "give a list of pairs"
        )
    fold_P, same_P, a_P, b_P = map(np.array, zip(*rows, strict=True))
    return PairTable(fold_P, same_P, a_P, b_P)


def _genuine(people: list[list[int]], wanted: int, rng: np.random.Generator) -> list[Pair]:
    """Draws pairs of two photos of a person, from the photos of each person."""
    several = [keys for keys in people if len(keys) > 1]
    known = sum(len(keys) * (len(keys) - 1) // 2 for keys in several)
    if known <= 2 * wanted:  # drawing would rarely find the last ones
        return _some_of([pair for keys in several for pair in combinations(keys, 2)], wanted, rng)
    drawn = set[Pair]()
    while len(drawn) < wanted:
        keys = several[rng.integers(len(several))]
        first, second = sorted(rng.choice(len(keys), 2, replace=False).tolist())
        drawn.add((keys[first], keys[second]))
    return sorted(drawn)


def _impostor(people: list[list[int]], wanted: int, rng: np.random.Generator) -> list[Pair]:
    """Draws pairs of photos of two people."""
    known = sum(map(len, people)) ** 2 - sum(len(keys) ** 2 for keys in people)
    if known // 2 <= 2 * wanted:
        both = combinations(people, 2)
        return _some_of([pair for one, other in both for pair in product(one, other)], wanted, rng)
    drawn = set[Pair]()
    while len(drawn) < wanted:
        one, other = (people[place] for place in sorted(rng.choice(len(people), 2, replace=False)))
        drawn.add((one[rng.integers(len(one))], other[rng.integers(len(other))]))
    return sorted(drawn)


def _some_of(pairs: list[Pair], wanted: int, rng: np.random.Generator) -> list[Pair]:
    return [pairs[place] for place in sorted(rng.permutation(len(pairs))[:wanted].tolist())]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(repr(name[:80]) for name in names[:SHOWN]) + more


class _Finder:
    """Finds the key of the photo that a path names, or UNKNOWN if it names none or several."""

    def __init__(self, metas: dict[int, dict[str, Any]], manifest: Manifest) -> None:
        if manifest.kind == "triplets":
            raise PersonaError(f"set {manifest.name} holds triplets, no photos: pairs need photos")
        self.sources: dict[str, int] = dict.fromkeys(manifest.faceless, FACELESS)
        self.sources |= {str(meta["source"]): key for key, meta in metas.items()}
        self.ends: dict[str, int] = {}
        for source, key in self.sources.items():
            parts = source.split("/")
            for start in range(1, len(parts)):
                end = "/".join(parts[start:])
                self.ends[end] = UNKNOWN if end in self.ends else key

    def __call__(self, path: str) -> int:
        parts = path.replace("\\", "/").removeprefix("./").split("/")
        written = "/".join(parts)
        if written in self.sources or written in self.ends:
            return self.sources.get(written, self.ends.get(written, UNKNOWN))
        # A user's path may begin with up to two folders above that of the dataset. What is left is
        # then a whole source: an end of one may be the photo of another person.
        shorter = ("/".join(parts[start:]) for start in range(1, min(len(parts), 3)))
        return next((self.sources[path] for path in shorter if path in self.sources), UNKNOWN)


def _read_rows(path: Path) -> list[Row]:
    if path.suffix.lower() in {".parquet", ".pq"}:
        return _read_table(path, *_parquet(path))
    with open_list(path, LAYOUT) as file:
        head = file.readline(LONGEST_LINE).split()
    if 1 <= len(head) <= 2 and all(whole_number(field) is not None for field in head):
        pairs = parse_pairs(path)
        own = len({pair.fold for pair in pairs}) > 1  # LFW's view 1 has no folds
        return [(pair.fold if own else None, pair.same, pair.a, pair.b) for pair in pairs]
    rows = [row for _, row in iter_csv(path, LAYOUT)]
    return _read_table(path, rows[0], rows[1:]) if rows else []


def _parquet(path: Path) -> tuple[list[str], list[list[Any]]]:
    with open_parquet(path) as (file, schema):
        columns = [column.to_pylist() for column in file.read().columns]
    return schema.names, [list(row) for row in zip(*columns, strict=True)]


def _read_table(path: Path, header: list[str], rows: list[list[Any]]) -> list[Row]:
    names = [str(name).strip().lower() for name in header]
    label = next((names.index(name) for name in ("label", "same") if name in names), None)
    fold = names.index("fold") if "fold" in names else None
    free = [place for place in range(len(names)) if place not in (label, fold)]
    if label is None or len(free) < 2:
        raise PersonaError(
            f"{path}: expected a header of two paths and a label, such as a,b,label; found "
            f"{','.join(names)[:80]!r}"
        )
    a, b = (names.index("a"), names.index("b")) if {"a", "b"} <= set(names) else free[:2]
    found: list[Row] = []
    for number, row in enumerate(rows, start=2):
        try:
            same = LABELS[str(row[label]).strip().lower()]
            place = None if fold is None else int(row[fold])
            if place is not None and abs(place) > MAX_FOLD:
                raise ValueError
            found.append((place, same, str(row[a]).strip(), str(row[b]).strip()))
        except (KeyError, IndexError, ValueError, TypeError, OverflowError):  # an infinite fold
            raise PersonaError(
                f"{path} row {number}: expected two paths and a label of 0 or 1, found "
                f"{','.join(map(str, row))[:80]!r}"
            ) from None
    return found
