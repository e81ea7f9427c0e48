"""Several teachers as one: their kept targets, and the projection that joins their embeddings.

1. Each teacher's embedding is brought to unit length, and all are concatenated. The cosine of two
   such vectors is the mean of the teachers' cosines.
2. A projection brings them to the size of the student. It is a principal component analysis over
   the set without subtracting the mean: of all linear maps to that size it keeps the cosines best.
   It is fitted on the first FIT_PHOTOS photos, of which each shard is a fair sample.
3. The result is brought to unit length again. It has no norm that could be learned.

    shards/lfw/targets/ensemble-<digest>.bin    D and E as text, then (D, E) float32

This module does not import torch.

Shapes: B batch, D sizes of all embeddings together, E embedding of the ensemble.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from persona.config import AugmentConfig
from persona.data.kept_targets import (
    FOLDER,
    Features,
    TargetReader,
    Targets,
    drop_targets,
    open_array,
    target_paths,
)
from persona.data.sets import FaceSet
from persona.data.storage import SetFolder, on_disk
from persona.data.views import FLIP_ONLY, Views
from persona.errors import PersonaError
from persona.files import write_atomically
from persona.landmarks import unit

FIT_PHOTOS = 10_000
"""Most photos of the set on which a projection is fitted."""

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EnsembleTargets:
    """The kept targets of several teachers for one set, read as those of one teacher."""

    members: tuple[Targets, ...]
    projection: Vectors
    """(D, E) float32, see `fit_projection`."""

    @property
    def teacher(self) -> str:
        """The names of the teachers."""
        return ",".join(member.teacher for member in self.members)

    num_classes = 0
    trained_on = "embeddings alone"
    classes = ()

    @property
    def views(self) -> int:
        """Views per photo, the same of all."""
        return self.members[0].views

    @property
    def augment(self) -> AugmentConfig:
        """The augmentation of the views, the same of all."""
        return self.members[0].augment

    @property
    def embedding_size(self) -> int:
        """Dimensions of the joined embedding."""
        return int(self.projection.shape[1])

    @cached_property
    def weights_sha256(self) -> str:
        """Hash of everything that the joined embeddings depend on."""
        return joined_digest([m.weights_sha256 for m in self.members], self.projection)


KeptTargets = Targets | EnsembleTargets


def members_of(targets: KeptTargets) -> tuple[Targets, ...]:
    """The targets of the single teachers."""
    return targets.members if isinstance(targets, EnsembleTargets) else (targets,)


def shared_augment(targets: Sequence[KeptTargets]) -> AugmentConfig:
    """The augmentation whose columns the views of several sets have, as one batch holds them.

    The sets may keep views of different augmentations if the recipe only mirrors. Such views have
    the standard columns, which come first in all of them.
    """
    first = targets[0].augment
    return first if all(other.augment == first for other in targets) else FLIP_ONLY


def fetch_targets(folder: SetFolder, targets: KeptTargets, shard: int) -> None:
    """Downloads a shard's targets if they are remote."""
    for member in members_of(targets):
        target_paths(folder, member, shard)


def drop_kept(folder: SetFolder, targets: KeptTargets, shard: int) -> None:
    """Deletes the local copies that `fetch_targets` made, unless a cache keeps them."""
    for member in members_of(targets):
        drop_targets(folder, member, shard)


class EnsembleReader:
    """Reads the kept targets of several teachers as those of one. See TargetReader."""

    def __init__(self, folder: SetFolder, targets: EnsembleTargets) -> None:
        self.targets = targets
        self._readers = [TargetReader(folder, member) for member in targets.members]

    def keep(self, shards: Collection[int]) -> None:
        """Closes the files of all shards but these."""
        for reader in self._readers:
            reader.keep(shards)

    def read(
        self,
        shards: npt.NDArray[np.int64],
        photos: npt.NDArray[np.int64],
        chosen: npt.NDArray[np.int64],
    ) -> tuple[Features, Views]:
        """Reads the joined embeddings (B, E) float16 and the views (B, V) float32.

        Raises:
            PersonaError: the views of two teachers differ, or an embedding is not finite.
        """
        found = [reader.read(shards, photos, chosen) for reader in self._readers]
        views = found[0][1]
        if any(not np.array_equal(views, others) for _, others in found[1:]):
            raise PersonaError(
                f"the targets of {self.targets.teacher} hold other views of the same photos: "
                "make all of them with the same --views, --seed and --config"
            )
        joined = project([features for features, _ in found], self.targets.projection)
        return joined.astype(np.float16), views


Reader = TargetReader | EnsembleReader


def open_reader(folder: SetFolder, targets: KeptTargets) -> Reader:
    """Opens a reader of the kept targets. Each worker makes its own."""
    if isinstance(targets, EnsembleTargets):
        return EnsembleReader(folder, targets)
    return TargetReader(folder, targets)


def check_same_views(members: Sequence[Targets]) -> None:
    """Checks, by the cards, that several targets hold the same views of each photo.

    Raises:
        PersonaError: they do not.
    """
    first = members[0]
    for other in members[1:]:
        same = other.views == first.views and (
            first.views <= 2 or (other.augment, other.seed) == (first.augment, first.seed)
        )
        if not same:
            raise PersonaError(
                f"the targets of {first.teacher} and {other.teacher} hold other views "
                f"({first.views} and {other.views}): make both with the same --views, --seed and "
                "--config"
            )


def concatenate(features: Sequence[npt.NDArray[np.floating[Any]]]) -> Vectors:
    """(B, D) float32: the embeddings of all teachers, each brought to unit length."""
    return np.concatenate([unit(one.astype(np.float32)) for one in features], axis=1)


def project(features: Sequence[npt.NDArray[np.floating[Any]]], projection_DE: Vectors) -> Vectors:
    """(B, E) float32 of unit length: the joined embeddings."""
    return unit(concatenate(features) @ projection_DE)


def fit_projection(batches: Iterable[Vectors], size: int) -> Vectors:
    """The principal components of concatenated embeddings, (D, size) float32.

    The sums are in float64, and the largest number of each component is positive, so that the
    result depends on the embeddings alone.

    Args:
        batches: (B, D) float32 concatenated embeddings.
        size: number of components, at most D.

    Raises:
        PersonaError: there are no embeddings, or one is not finite.
    """
    moment: npt.NDArray[np.float64] | None = None
    for batch in batches:
        rows = batch.astype(np.float64)
        moment = rows.T @ rows if moment is None else moment + rows.T @ rows
    if moment is None:
        raise PersonaError("the set has no photos to fit the ensemble's projection on")
    if not np.isfinite(moment).all():
        raise PersonaError("a teacher of the ensemble gives numbers that are not finite")
    _, components = np.linalg.eigh(moment)  # in rising order
    found = components[:, ::-1][:, :size]
    largest = np.abs(found).argmax(axis=0)
    found = found * np.sign(found[largest, np.arange(found.shape[1])])
    return np.ascontiguousarray(found, np.float32)


def kept_embeddings(faces: FaceSet, members: Sequence[Targets]) -> Iterable[Vectors]:
    """Yields the concatenated embeddings of the set's first photos, from kept targets."""
    left = FIT_PHOTOS
    for shard in range(len(faces.manifest.shards)):
        arrays = [open_array(target_paths(faces.folder, member, shard)[0]) for member in members]
        yield concatenate([array[:left, 0] for array in arrays])
        left -= len(arrays[0])
        if left <= 0:
            break


def projection_path(faces: FaceSet, digests: Sequence[str], size: int) -> Path:
    """Path of the projection of these teachers for this set and size.

    Raises:
        PersonaError: the set is remote.
    """
    shards = [shard.sha256 for shard in faces.manifest.shards]
    facts = {"teachers": list(digests), "shards": shards, "size": size, "photos": FIT_PHOTOS}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return on_disk(faces.folder, "an ensemble") / FOLDER / f"ensemble-{digest[:16]}.bin"


def write_projection(path: Path, projection_DE: Vectors) -> None:
    """Writes a projection."""
    header = f"{projection_DE.shape[0]} {projection_DE.shape[1]}\n".encode()
    write_atomically(path, header + projection_DE.astype("<f4").tobytes())


def read_projection(path: Path, width: int, size: int) -> Vectors | None:
    """Reads a projection, (width, size) float32. None means that there is none yet.

    Raises:
        PersonaError: the file is damaged.
    """
    if not path.is_file():
        return None
    data = path.read_bytes()
    header = f"{width} {size}\n".encode()
    if not data.startswith(header) or len(data) != len(header) + 4 * width * size:
        raise PersonaError(f"{path} is damaged: remove it, it is fitted again")
    found = np.frombuffer(data, "<f4", offset=len(header)).reshape(width, size)
    if not np.isfinite(found).all():
        raise PersonaError(f"{path} is damaged: remove it, it is fitted again")
    return found.astype(np.float32)


def joined_digest(digests: Sequence[str], projection_DE: Vectors) -> str:
    """Hash of the teachers' weights and their projection."""
    digest = hashlib.sha256(",".join(digests).encode())
    digest.update(np.ascontiguousarray(projection_DE, "<f4").tobytes())
    return digest.hexdigest()
