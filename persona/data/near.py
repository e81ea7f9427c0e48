"""Finds photos that are nearly the same, by a teacher's embeddings that are kept beside the sets.

The cosine similarity of two embeddings tells how near two photos are. Of kept views only the first
is read, the photo as it is.

Shapes: N photos of a shard, M photos to compare with, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from persona.data.kept_targets import (
    Targets,
    check_targets,
    drop_targets,
    open_array,
    target_paths,
)
from persona.data.sets import FaceSet, open_faces
from persona.data.storage import drop_file
from persona.errors import PersonaError
from persona.landmarks import unit
from persona.names import command_line

BLOCK, OTHERS = 1024, 16_384
"""Photos of each side that are compared at once. Their similarities take 64 MiB."""

Ints = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Near:
    """A photo, the nearest photo that it was compared with, and their cosine similarity."""

    key: int
    shard: int
    """Number of the shard of `key`."""
    other: int
    """Key of the nearest photo."""
    cosine: float


def kept_vectors(faces: FaceSet, teacher: str) -> Targets:
    """The teacher's targets of a set of photos, checked.

    Raises:
        PersonaError: the set holds triplets or keeps no targets of the teacher, or they do not
            belong to it.
    """
    if faces.manifest.kind != "photos":
        raise PersonaError(f"set {faces.name} holds triplets: near photos are found among photos")
    targets = faces.targets(teacher)
    if targets is None:
        raise PersonaError(
            f"near photos are found by kept embeddings, and set {faces.name} keeps none of "
            f"{teacher}: run `{command_line('targets', faces.name, '--teacher', teacher)}`"
        )
    check_targets(faces, targets, deep=False)
    return targets


def check_one_teacher(kept: Mapping[FaceSet, Targets]) -> None:
    """Raises PersonaError if the targets of several sets are of teachers with other weights."""
    (first, targets), *others = kept.items()
    for faces, other in others:
        if other.weights_sha256 != targets.weights_sha256:
            raise PersonaError(
                f"sets {first.name} and {faces.name} keep embeddings of two teachers called "
                f"{targets.teacher}, with other weights or settings: make one of them again"
            )


def find_near(
    mine: tuple[FaceSet, Targets],
    theirs: tuple[FaceSet, Targets],
    cosine: float,
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Near]:
    """The photos of one set that are at least as near as `cosine` to a photo of another set.

    Both sets are given with their targets of the same teacher.

    Raises:
        PersonaError: a file is damaged.
    """
    shards = [vectors for _, *vectors in iter_vectors(*theirs)]
    key_M, vector_ME = (np.concatenate(column) for column in zip(*shards, strict=True))
    found = []
    for number, key_N, vector_NE in iter_vectors(*mine):
        for start in range(0, len(key_N), BLOCK):
            rows = slice(start, start + BLOCK)
            best, which = _nearest(vector_NE[rows], vector_ME)
            for row in np.flatnonzero(best >= cosine).tolist():
                key, near = int(key_N[start + row]), int(key_M[which[row]])
                found.append(Near(key, number, near, float(best[row])))
        advance(len(key_N))
    return found


def find_duplicates(
    faces: FaceSet,
    targets: Targets,
    cosine: float,
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Near]:
    """The photos of a set that are at least as near as `cosine` to an earlier photo of the set.

    Of photos that are nearly the same, the one that is first in the set is not among them.

    Raises:
        PersonaError: a file is damaged.
    """
    shards = list(iter_vectors(faces, targets))
    number_N = np.concatenate([np.full(len(keys), number) for number, keys, _ in shards])
    key_N = np.concatenate([keys for _, keys, _ in shards])
    vector_NE = np.concatenate([vectors for *_, vectors in shards])
    found = []
    for start in range(0, len(key_N), BLOCK):
        block_BE = vector_NE[start : start + BLOCK]
        earlier_BB = np.tri(len(block_BE), k=-1, dtype=bool)
        within_BB = np.where(earlier_BB, block_BE @ block_BE.T, np.float32(-2))
        best, which = within_BB.max(axis=1), start + within_BB.argmax(axis=1)
        if start:
            earlier, place = _nearest(block_BE, vector_NE[:start])
            which = np.where(earlier >= best, place, which)
            best = np.maximum(best, earlier)
        for row in np.flatnonzero(best >= cosine).tolist():
            key, near = int(key_N[start + row]), int(key_N[which[row]])
            found.append(Near(key, int(number_N[start + row]), near, float(best[row])))
        advance(len(block_BE))
    return found


def iter_vectors(faces: FaceSet, targets: Targets) -> Iterator[tuple[int, Ints, Vectors]]:
    """Yields each shard's number, keys (N,), and embeddings (N, E) scaled to unit length.

    Photos without a face are left out.

    Raises:
        PersonaError: a file is damaged, or an embedding is not finite.
    """
    for number in range(len(faces.manifest.shards)):
        reader = open_faces(faces, number)
        features, _ = target_paths(faces.folder, targets, number)
        vector_NE = np.asarray(open_array(features)[reader.places, 0], np.float32)
        if not np.isfinite(vector_NE).all():
            raise PersonaError(f"{features} holds numbers that are not finite: make them again")
        yield number, reader.numbers(), unit(vector_NE)
        shard = faces.manifest.shards[number]
        drop_file(faces.folder, shard.name, shard.sha256)
        drop_targets(faces.folder, targets, number)


def _nearest(vector_NE: Vectors, others_ME: Vectors) -> tuple[Vectors, Ints]:
    """(N,) cosine of each photo to its nearest among the others, and (N,) its place there."""
    best = np.full(len(vector_NE), -2, np.float32)
    which = np.zeros(len(vector_NE), np.int64)
    for start in range(0, len(others_ME), OTHERS):
        similarity = vector_NE @ others_ME[start : start + OTHERS].T
        place = similarity.argmax(axis=1)
        nearest = similarity[np.arange(len(place)), place]
        nearer = nearest > best
        best, which = np.where(nearer, nearest, best), np.where(nearer, start + place, which)
    return best, which
