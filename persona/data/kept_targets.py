"""A teacher's embeddings of a packed set, kept beside its shards, so that the teacher runs once.

    shards/lfw/targets/<teacher>/
        targets.json        the teacher, a hash of its weights, the views, a SHA-256 a file
        head.safetensors    the teacher's last layer, which turns the embeddings into logits
        000000.features.npy (photos, views, E) float16: before normalisation, in the shard's order
        000000.views.npy    (photos, views, V) float32: what was done to it, see views.py

View 0 is the photo and view 1 its mirror image. `augment` draws the others, different ones for each
photo. In an epoch the student is shown one of the kept views of each photo, replayed from its row.
Teacher and student then see the same image (Beyer et al. 2022, arXiv:2106.05237; reinforced as in
Faghri et al. 2023, arXiv:2303.08983). A triplet is three photos in a row.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from persona.config import AugmentConfig, from_dict, to_dict
from persona.data.shards import Manifest
from persona.data.storage import (
    NotThereError,
    SetFolder,
    UnreachableError,
    card_file,
    drop_file,
    is_remote,
    keeps,
    local_file,
    on_disk,
)
from persona.data.triplets import ROLES
from persona.data.views import (
    Views,
    draw_views,
    identity_view,
    mirror_view,
    sound_views,
    view_columns,
)
from persona.errors import PersonaError
from persona.files import LARGEST_LIST, read_json, sha256_file, write_json
from persona.names import command_line, public_name

if TYPE_CHECKING:
    from persona.data.sets import FaceSet

log = logging.getLogger(__name__)

FOLDER = "targets"
CARD = "targets.json"
HEAD = "head.safetensors"
VERSION = 2
MAX_VIEWS = 1000
MAX_WIDTH = 65_536
"""Largest embedding size that is accepted."""

Features = npt.NDArray[np.float16]


@dataclass(frozen=True)
class TargetFile:
    """The kept embeddings of one shard."""

    shard_sha256: str
    photos: int
    features_sha256: str
    views_sha256: str


@dataclass(frozen=True)
class Targets:
    """The card of one teacher's targets for one set."""

    teacher: str
    weights_sha256: str
    """SHA-256 of everything that the embeddings depend on. Another hash is another teacher."""
    embedding_size: int
    head: str
    """Kind of the last layer. `none` means that only embeddings are kept."""
    num_classes: int
    trained_on: str
    classes: tuple[str, ...] | None
    """The identities of the logits. None means that only their number and dataset are known."""
    views: int
    augment: AugmentConfig
    """The augmentation that drew the views from the third on. All views have its columns."""
    seed: int
    files: tuple[TargetFile, ...]
    head_sha256: str | None = None
    """SHA-256 of the last layer's file, if there is one."""
    version: int = field(default=VERSION)


def short_name(teacher: str) -> str:
    """A teacher's name without the folders of its file: `onnx:FILE` wherever the file is."""
    return public_name(teacher)


def targets_name(teacher: str) -> str:
    """Path of a teacher's targets in the set's folder. Any storage can hold such a name."""
    return f"{FOLDER}/" + re.sub(r"[^\w.-]+", "-", short_name(teacher)).strip("-.")[-100:]


def targets_folder(folder: Path, teacher: str) -> Path:
    """The local folder of a teacher's targets."""
    return folder / targets_name(teacher)


def head_path(folder: SetFolder, targets: Targets) -> Path:
    """The local path of the teacher's last layer. A remote file is downloaded first.

    Raises:
        PersonaError: If the file is missing or does not match its checksum.
    """
    name = f"{targets_name(targets.teacher)}/{HEAD}"
    known = targets.head_sha256
    path = local_file(folder, name, known) if known else Path(f"{folder}/{name}")
    if known is None or not path.is_file() or sha256_file(path) != known:
        raise PersonaError(
            f"{path} is missing or does not match its checksum: remove {path.parent} and make the "
            "targets again"
        )
    return path


def target_paths(folder: SetFolder, targets: Targets, shard: int) -> list[Path]:
    """The local paths of a shard's embeddings and views. Remote files are downloaded first."""
    return [local_file(folder, *named) for named in _named_files(targets, shard)]


def drop_targets(folder: SetFolder, targets: Targets, shard: int) -> None:
    """Deletes the local copies that `target_paths` made, unless a cache keeps them."""
    for named in _named_files(targets, shard):
        drop_file(folder, *named)


def _named_files(targets: Targets, shard: int) -> list[tuple[str, str]]:
    """Name in the set's folder and checksum of each of a shard's two files."""
    file, place = targets.files[shard], targets_name(targets.teacher)
    features, views = file_names(shard)
    return [
        (f"{place}/{features}", file.features_sha256),
        (f"{place}/{views}", file.views_sha256),
    ]


def photos_of(manifest: Manifest) -> int:
    """Number of photos per sample: 3 for triplets, otherwise 1."""
    return len(ROLES) if manifest.kind == "triplets" else 1


def file_names(number: int) -> tuple[str, str]:
    """File names of shard `number`: its embeddings and its views."""
    return f"{number:06d}.features.npy", f"{number:06d}.views.npy"


def photo_views(augment: AugmentConfig, views: int, seed: int, key: int, role: int) -> Views:
    """(views, V) float32 views of one photo: the photo, its mirror image, then drawn views.

    They depend on the arguments alone.
    """
    drawn = draw_views(augment, max(views - 2, 0), seed, key, role)
    return np.concatenate([identity_view(augment)[None], mirror_view(augment)[None], drawn])[:views]


def write_targets(folder: Path, targets: Targets) -> None:
    """Writes the card. The targets exist from this moment on."""
    # `asdict` would not write the options of an augmentation as a recipe holds them.
    write_json(folder / CARD, asdict(targets) | {"augment": to_dict(targets.augment)})


def read_targets(folder: Path) -> Targets:
    """Reads and checks the card. The file is not trusted.

    Raises:
        PersonaError: If the card is damaged or of another version.
    """
    path = folder / CARD
    value = read_json(path, what="card of targets", limit=LARGEST_LIST)
    if not isinstance(value, dict) or value.get("version") != VERSION:
        raise PersonaError(f"{path} is no card of targets of version {VERSION}: make them again")
    try:
        targets = from_dict(Targets, value, where=str(path))
    except TypeError:
        raise PersonaError(f"{path} is not complete: make the targets again") from None
    digests = [targets.head_sha256 or "0" * 64]
    digests += [d for file in targets.files for d in (file.features_sha256, file.views_sha256)]
    if not (
        2 <= targets.views <= MAX_VIEWS
        and 1 <= targets.embedding_size <= MAX_WIDTH
        and targets.num_classes >= 0
        and all(file.photos >= 0 for file in targets.files)
        and all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in digests)
    ):
        raise PersonaError(f"{path} contradicts itself: make the targets again")
    return targets


def find_targets(folder: SetFolder, teacher: str) -> Targets | None:
    """The finished targets of a teacher, if the set has them.

    If the remote source of a set cannot be reached and the set is kept in a local cache, the
    function warns and returns None.
    """
    try:
        card = card_file(folder, f"{targets_name(teacher)}/{CARD}")
    except NotThereError:
        return None
    except UnreachableError as error:
        if not keeps(folder):
            raise
        log.warning("%s: going on as if it had no embeddings of %s", error, teacher)
        return None
    return read_targets(card.parent) if card.is_file() else None


def kept_teachers(folder: SetFolder) -> list[str]:
    """Names of the teachers whose finished targets lie beside a set on this machine, sorted.

    Raises:
        PersonaError: If the set is remote, whose files cannot be listed, or a card is damaged.
    """
    place = on_disk(folder, "listing targets") / FOLDER
    return sorted(read_targets(card.parent).teacher for card in place.glob(f"*/{CARD}"))


def check_targets(faces: FaceSet, targets: Targets, *, deep: bool) -> None:
    """Compares the kept files with the set's shards and with their own card.

    Args:
        faces: The set.
        targets: The card.
        deep: Re-read every file and compare its checksum.

    Raises:
        PersonaError: If the targets were made for other crops, lack photos, have another embedding
            size, or were changed.
    """
    folder, manifest = faces.folder, faces.manifest
    place = f"{folder}/{targets_name(targets.teacher)}"
    make = command_line("targets", manifest.name, "--teacher", targets.teacher)
    remedy = f"remove {place} and run `{make}`"
    if [file.shard_sha256 for file in targets.files] != [s.sha256 for s in manifest.shards]:
        raise PersonaError(f"the targets at {place} are of other crops than the set's: {remedy}")
    if targets.head_sha256 is not None:
        head_path(folder, targets)
    if is_remote(folder):
        return  # each file is checked when it is fetched
    for number, (shard, file) in enumerate(zip(manifest.shards, targets.files, strict=True)):
        photos = shard.samples * photos_of(manifest)
        shapes = (
            (photos, targets.views, targets.embedding_size),
            (photos, targets.views, len(view_columns(targets.augment))),
        )
        digests = (file.features_sha256, file.views_sha256)
        # Their checksums are compared when they are read, so that the first read need not wait.
        paths = target_paths(on_disk(folder, "checking"), targets, number)
        for path, wanted, digest in zip(paths, shapes, digests, strict=True):
            shape = open_array(path).shape
            if shape[:1] != wanted[:1]:
                lacking = wanted[0] - (shape[0] if shape else 0)
                raise PersonaError(f"{path} lacks {lacking} of {photos} photos: {remedy}")
            if shape != wanted:
                raise PersonaError(
                    f"{path} holds {shape[1:]} numbers a photo, its card says "
                    f"{wanted[1:]}: {remedy}"
                )
            if deep and sha256_file(path) != digest:
                raise PersonaError(f"{path} does not match its checksum: {remedy}")


def open_array(path: Path) -> npt.NDArray[Any]:
    """Maps a kept array into memory, without reading it.

    Raises:
        PersonaError: If the file is missing, cut, or no array of float16 or float32.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise PersonaError(
            f"{path} is missing: remove {path.parent} and make the targets again"
        ) from None
    except (OSError, ValueError, EOFError, SyntaxError):
        raise PersonaError(
            f"{path} is damaged: remove {path.parent} and make the targets again"
        ) from None
    if array.dtype not in {np.dtype(np.float16), np.dtype(np.float32)}:
        raise PersonaError(f"{path} holds {array.dtype}, not embeddings: make the targets again")
    return np.asarray(array)


class TargetReader:
    """Reads one kept view of each photo, from the files of one set. Each worker makes its own."""

    def __init__(self, folder: SetFolder, targets: Targets) -> None:
        self.folder = folder
        self.targets = targets
        self._columns = len(view_columns(targets.augment))
        self._open: dict[int, tuple[Features, Views]] = {}

    def keep(self, shards: Collection[int]) -> None:
        """Closes the files of all shards but these."""
        self._open = {shard: files for shard, files in self._open.items() if shard in shards}

    def _files(self, shard: int) -> tuple[Features, Views]:
        if shard not in self._open:
            features, views = map(open_array, target_paths(self.folder, self.targets, shard))
            shape = (self.targets.files[shard].photos, self.targets.views)
            sizes = (self.targets.embedding_size, self._columns)
            if (features.shape, views.shape) != tuple((*shape, size) for size in sizes):
                raise PersonaError(
                    f"the targets of shard {shard} at {self._place} are not what their card says: "
                    "make them again"
                )
            self._open[shard] = features, views
        return self._open[shard]

    @property
    def _place(self) -> str:
        return f"{self.folder}/{targets_name(self.targets.teacher)}"

    def read(
        self,
        shards: npt.NDArray[np.int64],
        photos: npt.NDArray[np.int64],
        chosen: npt.NDArray[np.int64],
    ) -> tuple[Features, Views]:
        """Reads the teacher's embeddings (B, E) float16 and the views (B, V) float32.

        Args:
            shards: (B,) the shard of each photo.
            photos: (B,) the photo's position in its shard.
            chosen: (B,) which of its kept views to read.

        Raises:
            PersonaError: If an embedding is not finite, or a view is out of bounds.
        """
        features = np.empty((len(photos), self.targets.embedding_size), np.float16)
        views = np.empty((len(photos), self._columns), np.float32)
        for shard in np.unique(shards).tolist():
            here = shards == shard
            kept_features, kept_views = self._files(shard)
            features[here] = kept_features[photos[here], chosen[here]]
            views[here] = kept_views[photos[here], chosen[here]]
        good = np.isfinite(features).all(axis=1) & sound_views(views, self.targets.augment)
        if not good.all():
            first = int(np.argmin(good))
            name, photo = file_names(int(shards[first]))[0], photos[first]
            raise PersonaError(
                f"{self._place}/{name}, or the views beside it, holds numbers that "
                f"are not finite, or out of range, for photo {photo}: remove {self._place} and "
                "make the targets again"
            )
        return features, views
