"""The format of a packed set: a folder of webdataset tars and a manifest.

    shards/lfw/
        000000.tar      00000042.jpg 00000042.json 00000007.jpg …
        manifest.json   what the set holds, with a SHA-256 a shard
        targets/        a teacher's vectors of these crops, see targets.py
        pairs.csv       fold,same,a,b (keys), where the dataset has verification pairs

A sample of a triplet set holds `anchor.jpg`, `positive.jpg`, `negative.jpg` and one `json`.
Shards open with plain `webdataset.WebDataset`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from persona.data.align import AlignSpec
from persona.data.triplets import CARD
from persona.errors import PersonaError, unknown
from persona.files import read_json, sha256_file, write_atomically, write_json

MANIFEST = "manifest.json"
PAIRS = "pairs.csv"
VERSION = 2
TAR_BLOCK = tarfile.BLOCKSIZE
KEY_DIGITS = 8

KINDS = ("photos", "triplets")


def key_of(place: int) -> str:
    """A sample's key: digits alone, because webdataset splits keys at the first dot."""
    return f"{place:0{KEY_DIGITS}d}"


@dataclass(frozen=True)
class Shard:
    """One tar of a set."""

    name: str
    samples: int
    bytes: int
    sha256: str
    no_face: tuple[int, ...] = ()
    """Keys of photos without a face, kept as centre crops for evaluation; no training sees them."""


@dataclass(frozen=True)
class Skipped:
    """A photo that was not packed, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class KeyPair:
    """A verification pair by sample keys."""

    fold: int
    same: bool
    a: int | None
    b: int | None
    """None: the dataset does not have that photo."""


@dataclass(frozen=True)
class PairTable:
    """Verification pairs as columns: ten million of them are 240 MB."""

    fold: npt.NDArray[np.int64]
    same: npt.NDArray[np.bool_]
    a: npt.NDArray[np.int64]
    b: npt.NDArray[np.int64]
    """(P,) keys; -1: the dataset does not have that photo."""

    def __len__(self) -> int:
        return len(self.fold)

    def __iter__(self) -> Iterator[KeyPair]:
        for fold, same, a, b in zip(self.fold, self.same, self.a, self.b, strict=True):
            keys = (None if key < 0 else int(key) for key in (a, b))
            yield KeyPair(int(fold), bool(same), *keys)


@dataclass(frozen=True)
class Manifest:
    """What a packed set holds. Equal input gives an equal manifest: it has no date."""

    name: str
    kind: str
    """`photos` or `triplets`."""
    dataset: str
    split: str
    align: AlignSpec
    samples: int
    identities: int
    classes: tuple[str, ...]
    """The dataset's full identity list, sorted; a label is a place in it."""
    shards: tuple[Shard, ...]
    skipped: tuple[Skipped, ...] = ()
    pairs: int | None = None
    pairs_sha256: str | None = None
    version: int = field(default=VERSION)

    def shard_path(self, folder: Path, number: int) -> Path:
        """The path of shard `number` below the set's folder."""
        return folder / self.shards[number].name

    @property
    def no_face(self) -> tuple[int, ...]:
        """Keys of the centre crops, sorted."""
        return tuple(sorted(key for shard in self.shards for key in shard.no_face))

    def knows(self, trained_on: str, num_classes: int, classes: tuple[str, ...] | None) -> bool:
        """Whether a network's logits stand for this set's identities, in the same order.

        `classes` None: its classes are known by number and raw dataset alone.
        """
        if classes is not None:
            return classes == self.classes
        found = (self.dataset, len(self.classes))
        return (trained_on, num_classes) == found and self.split != "test"

    def check_crops(self, network: str, image_size: int | None, needs_landmarks: bool) -> None:
        """Raises PersonaError if the crops are not what a network takes; None: any size."""
        if needs_landmarks and not self.align.has_landmarks:
            raise PersonaError(
                f"{network} wants five points of each face and set {self.name} has none "
                f"(--align {self.align.method}): pack it with --align mtcnn or landmarks"
            )
        if image_size not in {None, self.align.image_size}:
            raise PersonaError(
                f"set {self.name} has crops of {self.align.image_size} px, {network} was trained "
                f"on {image_size} px: pack the set with --image-size {image_size}"
            )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest: the set exists from this moment on."""
    write_json(folder / MANIFEST, asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks a manifest, which may come from a stranger.

    Raises:
        PersonaError: missing, damaged, of another version, or naming files outside its folder.
    """
    path = folder / MANIFEST
    value = read_json(path, what="manifest")
    version = value.get("version") if isinstance(value, dict) else None
    if version != VERSION:
        raise PersonaError(
            f"{path} has version {version}, this is version {VERSION}: pack the set again"
        )
    try:
        manifest = Manifest(
            **{
                **value,
                "align": AlignSpec(**value["align"]),
                "classes": tuple(str(name) for name in value["classes"]),
                "shards": tuple(
                    Shard(**{**shard, "no_face": tuple(map(int, shard.get("no_face", ())))})
                    for shard in value["shards"]
                ),
                "skipped": tuple(Skipped(**photo) for photo in value["skipped"]),
            }
        )
        samples = sum(shard.samples for shard in manifest.shards)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise PersonaError(f"{path} is no manifest: pack the set again") from None
    if manifest.kind not in KINDS or samples != manifest.samples:
        raise PersonaError(f"{path} contradicts itself: pack the set again")
    for shard in manifest.shards:
        if not re.fullmatch(r"\d{6}\.tar", shard.name):
            raise PersonaError(
                f"{path} names a shard {shard.name!r}: expected 000000.tar and so on"
            )
    return manifest


def list_sets(shards: Path) -> list[Manifest]:
    """Every packed set below `shards`, by folder name."""
    return [read_manifest(path.parent) for path in sorted(shards.glob(f"*/{MANIFEST}"))]


def open_set(name: str, shards: Path) -> tuple[Path, Manifest]:
    """Finds a packed set by name, triplet ID, folder or dataset (whose default split it is).

    Raises:
        PersonaError: there is none, with what to run, or a shard is missing or cut.
    """
    from persona.data.raw import datasets

    folder = Path(name) if (Path(name) / MANIFEST).is_file() else shards / name
    dataset = datasets().get(name.lower())
    if not (folder / MANIFEST).is_file() and dataset is not None:
        split = dataset.splits[0]
        folder = shards / (dataset.name if len(dataset.splits) == 1 else f"{dataset.name}-{split}")
    if not (folder / MANIFEST).is_file():
        if (folder / CARD).is_file():
            from persona.data.triplets import read_card

            card = read_card(folder)
            raise PersonaError(
                f"triplet set {card.id} is not packed yet: run "
                f"`persona shard {card.dataset} --split {card.split} --triplets {card.id}`"
            )
        if dataset is not None:
            raise PersonaError(
                f"{dataset.name} is not packed below {shards}: run `persona shard {dataset.name}`"
            )
        known = [path.parent.name for path in shards.glob(f"*/{MANIFEST}")]
        raise unknown("set", name, known, where=str(shards))
    manifest = read_manifest(folder)
    for number, shard in enumerate(manifest.shards):
        path = manifest.shard_path(folder, number)
        if not path.is_file():
            raise PersonaError(f"shard {path} is missing: restore it or pack the set again")
        if path.stat().st_size != shard.bytes:
            raise PersonaError(
                f"shard {path} has {path.stat().st_size:,} bytes, its manifest says "
                f"{shard.bytes:,}: restore it or pack the set again"
            )
    if not manifest.samples:
        raise PersonaError(f"set {manifest.name} holds no sample")
    return folder, manifest


def verify_set(
    folder: Path, manifest: Manifest, *, advance: Callable[[int], None] = lambda _: None
) -> None:
    """Re-reads every shard and the pairs against their checksums.

    Raises:
        PersonaError: naming every file that does not match.
    """
    bad = []
    for number, shard in enumerate(manifest.shards):
        path = manifest.shard_path(folder, number)
        if not path.is_file():
            bad.append(f"{path} is missing")
        elif sha256_file(path) != shard.sha256:
            bad.append(f"{path} does not match its checksum")
        advance(1)
    if manifest.pairs_sha256 is not None:
        path = folder / PAIRS
        if not path.is_file() or sha256_file(path) != manifest.pairs_sha256:
            bad.append(f"{path} is missing or does not match its checksum")
    if bad:
        raise PersonaError("; ".join(bad) + ": restore these files or pack the set again")


def tar_member(name: str, data: bytes) -> bytes:
    """One tar member with fixed owner, mode and time: same name and data, same bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    padding = -len(data) % TAR_BLOCK
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(padding)


def tar_sample(key: str, parts: dict[str, bytes]) -> bytes:
    """The members of one sample, in the order of their suffixes."""
    return b"".join(tar_member(f"{key}.{suffix}", parts[suffix]) for suffix in sorted(parts))


def tar_end(size: int) -> bytes:
    """What ends a tar of `size` bytes: two empty blocks, filled up to a whole record."""
    end = 2 * TAR_BLOCK
    return bytes(end + -(size + end) % tarfile.RECORDSIZE)


def encode_json(value: object) -> bytes:
    """Compact canonical JSON for a sample's metadata."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def iter_shard(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the samples of one shard as webdataset does: `__key__` and raw bytes a suffix.

    Raises:
        PersonaError: the tar is damaged, naming it.
    """
    import webdataset.tariterators  # imports torch, which listing and verifying do without

    try:
        with path.open("rb") as stream:
            files = webdataset.tariterators.tar_file_iterator(stream)
            named = ({**file, "__url__": path.name} for file in files)
            yield from webdataset.tariterators.group_by_keys(named)
    except (tarfile.TarError, EOFError, ValueError, AttributeError) as error:
        raise damaged(path, f"{type(error).__name__}") from None


def damaged(path: Path, what: str) -> PersonaError:
    """The error for a shard that does not read as its manifest says."""
    return PersonaError(
        f"shard {path} is damaged ({what}): check the set with `persona shards verify` "
        "and restore it or pack it again"
    )


@dataclass(frozen=True)
class Member:
    """Where one file of a shard lies."""

    shard: int
    offset: int
    size: int

    def read(self, stream: BinaryIO) -> bytes:
        """Its bytes, from the open shard."""
        stream.seek(self.offset)
        return stream.read(self.size)


def index_members(folder: Path, manifest: Manifest) -> dict[str, Member]:
    """Member name to place, from the tar headers alone: no image is read."""
    members: dict[str, Member] = {}
    for number in range(len(manifest.shards)):
        path = manifest.shard_path(folder, number)
        try:
            with tarfile.open(path, mode="r:") as tar:
                for info in tar:
                    members[info.name] = Member(number, info.offset_data, info.size)
                    tar.members = []  # type: ignore[attr-defined]  # keeps memory flat
        except tarfile.TarError as error:
            raise damaged(path, type(error).__name__) from None
    return members


def write_pairs(folder: Path, pairs: list[KeyPair]) -> str:
    """Writes `pairs.csv` and returns its SHA-256."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["fold", "same", "a", "b"])
    for pair in pairs:
        keys = ("" if key is None else key_of(key) for key in (pair.a, pair.b))
        writer.writerow([pair.fold, int(pair.same), *keys])
    write_atomically(folder / PAIRS, buffer.getvalue().encode())
    return sha256_file(folder / PAIRS)


def read_metas(folder: Path, manifest: Manifest) -> dict[int, dict[str, Any]]:
    """Every sample's json by key, from the tars; no image is read.

    Raises:
        PersonaError: a damaged shard.
    """
    metas: dict[int, dict[str, Any]] = {}
    streams: dict[int, BinaryIO] = {}
    with contextlib.ExitStack() as stack:
        for name, member in index_members(folder, manifest).items():
            if not name.endswith(".json"):
                continue
            path = manifest.shard_path(folder, member.shard)
            if member.shard not in streams:
                streams[member.shard] = stack.enter_context(path.open("rb"))
            try:
                meta = json.loads(member.read(streams[member.shard]))
                metas[int(meta["key"])] = meta
            except (ValueError, TypeError, KeyError) as error:
                raise damaged(path, f"{name}: {type(error).__name__}") from None
    return metas


def read_pairs(folder: Path, manifest: Manifest) -> PairTable:
    """The set's verification pairs.

    Raises:
        PersonaError: the set has none, or the file does not match the manifest.
    """
    path = folder / PAIRS
    if manifest.pairs is None:
        raise PersonaError(f"set {manifest.name} has no verification pairs")
    if not path.is_file() or sha256_file(path) != manifest.pairs_sha256:
        raise PersonaError(f"{path} is missing or does not match its checksum: pack the set again")
    text = path.read_bytes().replace(b",\n", b",-1\n").replace(b",,", b",-1,")
    rows = np.loadtxt(io.BytesIO(text), np.int64, delimiter=",", skiprows=1, ndmin=2)
    rows = rows.reshape(-1, 4)
    return PairTable(rows[:, 0], rows[:, 1] == 1, rows[:, 2], rows[:, 3])
