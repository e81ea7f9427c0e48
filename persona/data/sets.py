"""A packed set as one object: its folder, its manifest, and what they give.

`open_set` finds a set by name, folder or URL. The format is persona/data/shards.py.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import shlex
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from persona.data.align.spec import ARCFACE, AlignSpec
from persona.data.shards import (
    MANIFEST,
    PAIRS,
    Manifest,
    Member,
    PairTable,
    key_of,
    read_manifest,
)
from persona.data.storage import (
    RemoteFolder,
    SetFolder,
    checked,
    drop_file,
    is_remote,
    is_url,
    local_file,
    on_disk,
    open_remote,
)
from persona.data.tars import ShardReader, TarError, damaged, drop_indexes, iter_members
from persona.data.triplets import CARD
from persona.errors import NotPacked, PersonaError, unknown
from persona.extras import needing
from persona.files import sha256_file
from persona.workspace import Workspace

if TYPE_CHECKING:
    from persona.data.kept_targets import Targets
    from persona.data.stream import EpochLoader

_MENDED = "restore it, or run the `persona shard` that made the set again"

_NEEDED = "identity", "source"
"""Fields of a photo's JSON that must be there, besides its key."""


class FaceSet:
    """A packed set of aligned crops: a folder of tar shards, on this machine or behind a URL.

    Make one with `persona.open_set`.
    """

    def __init__(self, folder: SetFolder, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest

    @property
    def name(self) -> str:
        """The set's name, as commands take it."""
        return self.manifest.name

    @property
    def digest(self) -> str:
        """SHA-256 digest over the shards: equal digests mean equal photos in equal order."""
        return self.manifest.digest

    @property
    def identities(self) -> tuple[str, ...]:
        """The sorted names of the identities; a label is an index into this tuple."""
        return self.manifest.classes

    def __len__(self) -> int:
        return self.manifest.samples

    def __repr__(self) -> str:
        align = self.manifest.align
        return (
            f"FaceSet({self.name!r}, {len(self):,} samples, {self.manifest.identities:,} "
            f"identities, crops of {align.image_size} px by {align.method})"
        )

    def place(self, workspace: Workspace) -> str:
        """The set as a run's config names it.

        That is its name where it lies among the workspace's packed sets, and its folder or URL
        elsewhere.
        """
        own = workspace.shards / self.name
        return self.name if str(self.folder) == str(own) else str(self.folder)

    def loader(
        self,
        *,
        batch_size: int,
        training: bool = False,
        seed: int = 0,
        epoch: int = 0,
        skip: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ) -> EpochLoader:
        """Returns a loader of the batches of one epoch.

        A batch's `images` are (B, 3, H, W) uint8 tensors, channels last in memory. Its `labels`
        are (B,) int64 indices into `identities`. Its `keys` name the samples.

        Args:
            batch_size: samples per batch on each rank.
            training: whether to shuffle, and to drop the last samples where they do not fill a
                batch. Otherwise every sample comes, in order.
            seed: seed for shuffling.
            epoch: number of the epoch. Each epoch has its own order.
            skip: batches to skip at the beginning, to resume an epoch.
            rank: rank of this process.
            world_size: number of processes that read the set together.
            workers: loader processes; with 0, this process decodes.

        Raises:
            PersonaError: the set has fewer batches than there are ranks.
        """
        with needing("a loader of batches"):
            from persona.data.stream import build_loader

        return build_loader(
            self,
            batch_size=batch_size,
            training=training,
            seed=seed,
            epoch=epoch,
            skip=skip,
            rank=rank,
            world_size=world_size,
            workers=workers,
        )

    def pairs(self) -> PairTable:
        """Reads the verification pairs as columns: folds, keys, and whether a pair is one person.

        Raises:
            PersonaError: the set has no pairs.
        """
        manifest = self.manifest
        if manifest.pairs is None or manifest.pairs_sha256 is None:
            raise PersonaError(
                f"set {self.name} has no verification pairs: choose a set with pairs, like lfw"
            )
        path = local_file(self.folder, PAIRS, manifest.pairs_sha256)
        if not path.is_file() or sha256_file(path) != manifest.pairs_sha256:
            raise PersonaError(f"{path} is missing or does not match its checksum: {_MENDED}")
        text = path.read_bytes().replace(b",\n", b",-1\n").replace(b",,", b",-1,")
        try:
            rows = np.loadtxt(io.BytesIO(text), np.int64, delimiter=",", skiprows=1, ndmin=2)
            rows = rows.reshape(-1, 4)
        except ValueError:
            raise PersonaError(f"{path} holds no pairs of keys: pack the set again") from None
        return PairTable(rows[:, 0], rows[:, 1] == 1, rows[:, 2], rows[:, 3])

    def metas(self) -> dict[int, dict[str, Any]]:
        """Reads the metadata of each sample (identity, source and box), by its key.

        Raises:
            PersonaError: the set holds triplets, or a shard is damaged.
        """
        if self.manifest.kind != "photos":
            raise PersonaError(
                f"set {self.name} holds {self.manifest.kind}: choose a set of single photos"
            )
        metas: dict[int, dict[str, Any]] = {}
        streams: dict[int, BinaryIO] = {}
        with contextlib.ExitStack() as stack:
            for name, member in index_members(self).items():
                if not name.endswith(".json"):
                    continue
                if member.shard not in streams:
                    path = shard_path(self, member.shard)
                    streams[member.shard] = stack.enter_context(path.open("rb"))
                stream = streams[member.shard]
                try:
                    meta = json.loads(member.read(stream))
                    metas[int(meta["key"])] = {name: meta[name] for name in _NEEDED} | meta
                except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
                    raise damaged(Path(stream.name), f"{name}: {type(error).__name__}") from None
        return metas

    def check_people(self, what: str) -> None:
        """Raises PersonaError if the set names nobody, so that two identities may be one person.

        It is packed from a `bin:` file, whose identities are photos of its pairs. `what` names what
        needs people.
        """
        if not self.manifest.pairs:
            return
        metas = self.metas().values()
        if {meta["identity"] for meta in metas} <= {meta["source"] for meta in metas}:
            raise PersonaError(
                f"{what} wants people, and set {self.name} is of a file of pairs that names "
                "nobody: two of its identities may be one person; choose a set with names"
            )

    def verify(self) -> None:
        """Reads the whole set and compares it with its checksums.

        Raises:
            PersonaError: files are missing or damaged; the message names each of them.
        """
        verify_set(self)

    def targets(self, teacher: str) -> Targets | None:
        """Returns a teacher's embeddings from beside the set, or None if none are stored."""
        from persona.data.kept_targets import find_targets

        return find_targets(self.folder, teacher)

    def webdataset(self) -> Any:
        """Returns the set as a plain `webdataset.WebDataset`, in order and undecoded."""
        with needing("a plain webdataset"):
            import webdataset

        paths = [str(shard_path(self, number)) for number in range(len(self.manifest.shards))]
        return webdataset.WebDataset(paths, shardshuffle=False)


def open_set(
    name: str,
    shards: Path,
    cache: Path | None = None,
    *,
    verify: bool = True,
    like: AlignSpec | None = None,
) -> FaceSet:
    """Opens a packed set.

    Args:
        name: the set's name, triplet ID, folder or URL, or a dataset's name (its default split).
        shards: folder that holds the packed sets.
        cache: folder in which files of a remote set are kept. None deletes them after reading.
        verify: check each file of a local set before its first use. Files of a remote set are
            always checked.
        like: the crops that are wanted, if they are known. The message on a set that is not packed
            names them.

    Raises:
        NotPacked: there is no such set. The message says what to run.
        PersonaError: a shard is missing or cut, or the set holds no sample.
    """
    if is_url(name):
        remote = open_remote(name, cache)
        found = FaceSet(remote, read_manifest(remote))
    else:
        folder = _find_local(name, shards, like)
        found = FaceSet(folder, read_manifest(folder))
        _check_sizes(found)
        if verify:
            found = FaceSet(checked(folder), found.manifest)
    if not len(found):
        raise PersonaError(f"set {found.name} holds no sample")
    return found


def _find_local(name: str, shards: Path, like: AlignSpec | None) -> Path:
    """Folder of a packed set on this machine."""
    from persona.data.raw import DATASETS

    folder = Path(name) if (Path(name) / MANIFEST).is_file() else shards / name
    dataset = DATASETS.get(name.lower())
    if not (folder / MANIFEST).is_file() and dataset is not None:
        split = dataset.splits[0]
        folder = shards / (dataset.name if len(dataset.splits) == 1 else f"{dataset.name}-{split}")
    if (folder / MANIFEST).is_file():
        return folder
    raise _not_packed(name, folder, shards, like)


def _not_packed(name: str, folder: Path, shards: Path, like: AlignSpec | None) -> PersonaError:
    """The error for a set that is not here, with the command that packs it."""
    if (folder / CARD).is_file():
        from persona.data.triplets import read_card

        card = read_card(folder)
        return NotPacked(f"triplet set {card.id} is not packed yet: run `{card.packing_command}`")
    from persona.data.raw import DATASETS

    known = [path.parent.name for path in shards.glob(f"*/{MANIFEST}")]
    if (raw := _raw_of(name, known)) is not None:
        command = f"persona shard {raw}"
        how = f"run `{command} {(like or ARCFACE).options}`"
        if like is None:
            how += f" for Persona-S and most networks, or `{command}` for FaceNet"
        return NotPacked(f"{name} is not packed below {shards}: {how}")
    line = str(unknown("set", name, known, where=str(shards)))
    nearest = difflib.get_close_matches(name.lower(), DATASETS, n=1)
    dataset = nearest[0] if nearest else "DATASET"
    return NotPacked(line if known else f"{line}: `persona shard {dataset}` packs one")


def _raw_of(name: str, known: Sequence[str]) -> str | None:
    """What `persona shard` packs as the set of this name. None if only the user knows."""
    from persona.data.raw import DATASET_KINDS, DATASETS

    kind, _, path = name.partition(":")
    if kind in DATASET_KINDS:  # it is packed as a set without this word
        return None if Path(path).stem in known else shlex.quote(name)
    if (dataset := DATASETS.get(name.lower())) is not None:
        return dataset.name
    whole, _, split = name.lower().rpartition("-")
    dataset = DATASETS.get(whole)
    split_of = dataset is not None and len(dataset.splits) > 1 and split in dataset.splits
    return f"{whole} --split {split}" if split_of else None


def _check_sizes(found: FaceSet) -> None:
    """Raises PersonaError if a shard of a local set is missing or has another size."""
    for number, shard in enumerate(found.manifest.shards):
        path = shard_path(found, number)
        if not path.is_file():
            raise PersonaError(f"shard {path} is missing: {_MENDED}")
        if path.stat().st_size != shard.bytes:
            raise PersonaError(
                f"shard {path} has {path.stat().st_size:,} bytes, its manifest says "
                f"{shard.bytes:,}: {_MENDED}"
            )


def of_shards(faces: FaceSet, which: slice) -> FaceSet:
    """The set with some of its shards alone, which are numbered from 0 again."""
    shards = faces.manifest.shards[which]
    samples = sum(shard.samples for shard in shards)
    return FaceSet(faces.folder, replace(faces.manifest, shards=shards, samples=samples))


def shard_path(faces: FaceSet, number: int) -> Path:
    """The local path of shard `number`. A remote shard is downloaded first."""
    shard = faces.manifest.shards[number]
    return local_file(faces.folder, shard.name, shard.sha256, shard.bytes)


def index_members(faces: FaceSet) -> dict[str, Member]:
    """Maps each member's name to its position. It reads the tar headers alone, no images.

    Raises:
        PersonaError: a shard is damaged.
    """
    members: dict[str, Member] = {}
    for number in range(len(faces.manifest.shards)):
        path = shard_path(faces, number)
        try:
            with path.open("rb") as stream:
                for name, offset, size in iter_members(stream):
                    members[name.decode(errors="replace")] = Member(number, offset, size)
        except TarError as error:
            raise damaged(path, str(error)) from None
    return members


def iter_jpegs(faces: FaceSet, keys: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """Yields the key and the JPEG bytes of some samples, in the order of the keys.

    Raises:
        PersonaError: a shard is damaged.
    """
    members = index_members(faces)
    for key in sorted(keys):
        member = members[f"{key_of(key)}.jpg"]
        with shard_path(faces, member.shard).open("rb") as stream:
            yield key, member.read(stream)


def open_faces(faces: FaceSet, number: int) -> ShardReader:
    """Opens the JPEG and JSON members of a shard of photos, without the photos that show no face.

    Raises:
        PersonaError: the shard is damaged.
    """
    shard = faces.manifest.shards[number]
    no_face = frozenset(key_of(key).encode() for key in shard.no_face)
    path = shard_path(faces, number)
    return ShardReader(path, ("jpg", "json"), shard.samples - len(no_face), no_face)


def verify_set(faces: FaceSet, *, advance: Callable[[int], None] = lambda _: None) -> None:
    """Reads the whole set and compares it with its checksums; calls `advance` after each shard.

    Raises:
        PersonaError: files are missing or damaged; the message names each of them.
    """
    if is_remote(faces.folder):
        _fetch_all(faces, advance)
        return
    folder = on_disk(faces.folder, "verifying")
    drop_indexes(folder)
    faults = []
    for shard in faces.manifest.shards:
        faults.append(_fault_of(folder / shard.name, shard.sha256))
        advance(1)
    if (known := faces.manifest.pairs_sha256) is not None:
        faults.append(_fault_of(folder / PAIRS, known))
    if bad := [fault for fault in faults if fault is not None]:
        raise PersonaError(
            "; ".join(bad) + ": restore these files, or remove them and run the `persona shard` "
            "that made the set again"
        )


def _fault_of(path: Path, sha256: str) -> str | None:
    """What is wrong with a file of a set, if anything is."""
    try:
        if not path.is_file():
            return f"{path} is missing"
        return None if sha256_file(path) == sha256 else f"{path} does not match its checksum"
    except OSError as error:  # the disk is damaged there, and perhaps not elsewhere
        return f"{path} cannot be read ({error.strerror})"


def _fetch_all(faces: FaceSet, advance: Callable[[int], None]) -> None:
    """Downloads every file of a remote set, which checks its checksum.

    Files of a cache are read, also those that were compared earlier in this run. One that does not
    match is downloaded again.
    """
    assert isinstance(faces.folder, RemoteFolder)
    drop_indexes(faces.folder.local)
    with tempfile.TemporaryDirectory() as marks:
        fresh = FaceSet(replace(faces.folder, marks=Path(marks)), faces.manifest)
        for number, shard in enumerate(faces.manifest.shards):
            shard_path(fresh, number)
            drop_file(faces.folder, shard.name, shard.sha256)
            advance(1)
        if faces.manifest.pairs is not None:
            fresh.pairs()
