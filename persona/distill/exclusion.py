"""Leaves photos out of a training: those near a photo of another set, and near-duplicates.

Both are found by the kept embeddings of the teacher (persona/data/near.py). The photos are counted
in the log and listed in the run's folder, in `excluded.csv`.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator

from persona.config import DistillConfig
from persona.data.kept_targets import targets_name
from persona.data.mixed import MixedSet
from persona.data.near import (
    Near,
    check_one_teacher,
    find_duplicates,
    find_near,
    kept_vectors,
)
from persona.data.sets import open_set
from persona.data.shards import key_of
from persona.errors import PersonaError
from persona.files import PRIVATE, write_atomically
from persona.models.sources import NamedNetwork, teacher_names
from persona.names import command_line
from persona.progress import progress_bar
from persona.training.devices import agree
from persona.training.teacher import teacher_digest
from persona.workspace import Workspace, user_path

LIST = "excluded.csv"
NEAR = 0.5
"""Cosine similarity from which a photo is near, if the option gives none."""


class Excluded(NamedTuple):
    """A photo that is left out."""

    part: int
    """Its train set, as place in the mix."""
    near: Near
    other: str
    """Name of the set of the photo that it is near."""


@dataclass(frozen=True)
class Exclusion:
    """The photos that a training leaves out. A photo is listed twice if it has two reasons."""

    photos: Sequence[Excluded] = ()

    @property
    def _keys(self) -> list[tuple[int, int]]:
        """Train set and key of each photo, sorted."""
        return sorted({(one.part, one.near.key) for one in self.photos})

    def __len__(self) -> int:
        """Number of photos."""
        return len(self._keys)

    @property
    def digest(self) -> str:
        """SHA-256 of the photos, which a resumed run compares."""
        return hashlib.sha256(repr(self._keys).encode()).hexdigest()

    def of_part(self, part: int) -> dict[int, frozenset[int]]:
        """Keys of the photos of one train set, by shard."""
        keys = defaultdict(set)
        for one in self.photos:
            if one.part == part:
                keys[one.near.shard].add(one.near.key)
        return {shard: frozenset(those) for shard, those in keys.items()}

    def write(self, folder: Path, train: MixedSet) -> Path:
        """Writes the list to `excluded.csv`; returns the file's path."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["set", "key", "near_set", "near_key", "cosine"])
        for one in self.photos:
            own, near = train.parts[one.part].faces.name, one.near
            row = [own, key_of(near.key), one.other, key_of(near.other), f"{near.cosine:.4f}"]
            writer.writerow(row)
        write_atomically(folder / LIST, buffer.getvalue().encode(), PRIVATE)
        return folder / LIST


def exclude(
    config: DistillConfig,
    workspace: Workspace,
    train: MixedSet,
    accelerator: Accelerator,
    teacher: NamedNetwork | None = None,
) -> tuple[MixedSet, Exclusion]:
    """Leaves out what the config asks for; returns the train sets without it, and what it is.

    The main process looks for the photos, and all processes must call this function. `teacher` is
    the network that `config.teacher` names, if it is already loaded.

    Raises:
        PersonaError: the option does not read as `SET` or `SET:COSINE`, or a set keeps no
            embeddings of the teacher, or those of another teacher of its name, or there are several
            teachers.
    """
    if config.exclude_near is None and config.exclude_duplicates is None:
        return train, Exclusion()
    if config.teacher == "none":
        raise PersonaError(
            "--exclude-near and --exclude-duplicates compare embeddings of the teacher: name one "
            "with --teacher"
        )
    if len(teacher_names(config.teacher, workspace.models)) > 1:
        raise PersonaError(
            "--exclude-near and --exclude-duplicates compare embeddings of one teacher, and "
            f"--teacher {config.teacher} names several: choose one, or leave these options out"
        )
    other, bound = None, NEAR
    if config.exclude_near is not None:
        name, bound = read_near(config.exclude_near)
        cache = user_path(config.cache) if config.cache else None
        other = open_set(name, workspace.shards, cache, verify=config.verify)
    # On all processes: an error of the main process alone would leave the others waiting.
    sets = [part.faces for part in train.parts]
    kept = {
        faces: kept_vectors(faces, config.teacher) for faces in (*sets, other) if faces is not None
    }
    check_one_teacher(kept)
    digest = teacher_digest(config, workspace, teacher)
    for faces, targets in kept.items():
        if digest not in {None, targets.weights_sha256}:
            kept_at = f"{faces.folder}/{targets_name(config.teacher)}"
            make = command_line("targets", faces.name, "--teacher", config.teacher)
            raise PersonaError(
                f"set {faces.name} keeps embeddings of another {config.teacher}, with other "
                f"weights or settings: remove {kept_at} and run `{make}`"
            )
    found: list[Excluded] = []
    if accelerator.is_main_process:
        total = sum(map(len, sets)) * (
            (other is not None) + (config.exclude_duplicates is not None)
        )
        with progress_bar("comparing photos", total=total, unit="photos") as advance:
            for place, faces in enumerate(sets):
                if other is not None:
                    pairs = ((faces, kept[faces]), (other, kept[other]))
                    near = find_near(*pairs, bound, advance=advance)
                    found += [Excluded(place, one, other.name) for one in near]
                if (least := config.exclude_duplicates) is not None:
                    near = find_duplicates(faces, kept[faces], least, advance=advance)
                    found += [Excluded(place, one, faces.name) for one in near]
    exclusion = Exclusion(agree(accelerator, found))
    return train.without([exclusion.of_part(place) for place in range(len(sets))]), exclusion


def read_near(text: str) -> tuple[str, float]:
    """The set and the cosine similarity of `SET` or `SET:COSINE`.

    Raises:
        PersonaError: the similarity is not from above -1 to 1.
    """
    name, colon, cosine = text.rpartition(":")
    try:
        bound = float(cosine) if colon else NEAR
    except ValueError:  # the colon belongs to the name, as in a URL
        name, bound = text, NEAR
    if not colon:
        name = text
    if not name or not -1 < bound <= 1:
        raise PersonaError(
            f"--exclude-near {text}: write SET:COSINE, with a cosine similarity above -1 and at "
            "most 1, as in lfw:0.5"
        )
    return name, bound
