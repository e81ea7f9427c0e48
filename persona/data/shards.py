"""The format of a packed set: a folder of webdataset tars and a manifest.

    shards/lfw/
        000000.tar      00000042.jpg 00000042.json 00000007.jpg …
        manifest.json   what the set holds, with a SHA-256 a shard
        targets/        a teacher's embeddings of these crops, see targets.py
        pairs.csv       fold,same,a,b (keys), where the dataset has verification pairs

A sample of a triplet set holds `anchor.jpg`, `positive.jpg`, `negative.jpg` and one `json`.
Plain `webdataset.WebDataset` can read the shards.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from persona.data.align import AlignSpec
from persona.data.storage import (
    NotThereError,
    SetFolder,
    card_file,
    checked,
    drop_file,
    is_remote,
    is_url,
    local_file,
    on_disk,
    open_remote,
)
from persona.data.tars import BLOCK, ShardReader, TarError, damaged, drop_indexes, iter_members
from persona.data.triplets import CARD
from persona.errors import PersonaError, unknown
from persona.files import LARGEST_LIST, read_json, sha256_file, write_json
from persona.names import hidden

MANIFEST = "manifest.json"
PAIRS = "pairs.csv"
VERSION = 3
KEY_DIGITS = 8

KINDS = ("photos", "triplets")


def key_of(place: int) -> str:
    """A sample's key. It has digits alone, because webdataset splits keys at the first dot."""
    return f"{place:0{KEY_DIGITS}d}"


@dataclass(frozen=True)
class Shard:
    """One tar of a set."""

    name: str
    samples: int
    bytes: int
    sha256: str
    no_face: tuple[int, ...] = ()
    """Keys of photos in which no face was found. They are kept as centre crops for evaluation;
    training leaves them out."""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Shard:
        """The shard that a JSON object describes.

        Raises:
            KeyError, TypeError, ValueError: If the object does not describe a shard.
        """
        return cls(
            name=str(value["name"]),
            samples=int(value["samples"]),
            bytes=int(value["bytes"]),
            sha256=str(value["sha256"]),
            no_face=tuple(map(int, value["no_face"])),
        )


NO_CLASS = -1
"""Class index of a photo without an identity."""
FACELESS = -2
"""Stands in for the key of a photo that was skipped because no face was found in it."""
OF_NOBODY = "labelled -1, which is nobody"
"""Reason for skipping a photo that shows none of the dataset's identities."""


@dataclass(frozen=True)
class Skipped:
    """A photo that was not packed, and the reason."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True, order=True)
class Mended:
    """A photo that was packed although its file has a fault, and the fault."""

    source: str
    reason: str


@dataclass(frozen=True)
class KeyPair:
    """A verification pair, given by sample keys."""

    fold: int
    same: bool
    a: int | None
    b: int | None
    """`a` or `b` is None if the dataset does not have that photo."""


@dataclass(frozen=True)
class PairTable:
    """Verification pairs as columns. Ten million pairs take 240 MB."""

    fold: npt.NDArray[np.int64]
    same: npt.NDArray[np.bool_]
    a: npt.NDArray[np.int64]
    b: npt.NDArray[np.int64]
    """(P,) keys. -1: the dataset does not have that photo. FACELESS: the set left it out."""

    def __len__(self) -> int:
        return len(self.fold)

    def __iter__(self) -> Iterator[KeyPair]:
        for fold, same, a, b in zip(self.fold, self.same, self.a, self.b, strict=True):
            keys = (None if key < 0 else int(key) for key in (a, b))
            yield KeyPair(int(fold), bool(same), *keys)


@dataclass(frozen=True)
class Manifest:
    """What a packed set holds. It has no date, so that equal input gives an equal manifest."""

    name: str
    kind: str
    """`photos` or `triplets`."""
    dataset: str
    split: str
    align: AlignSpec
    samples: int
    identities: int
    classes: tuple[str, ...]
    """The dataset's full identity list, sorted. A label is an index into it. It is empty if the
    photos are unlabelled; every label is then `NO_CLASS`."""
    shards: tuple[Shard, ...]
    skipped: tuple[Skipped, ...] = ()
    mended: tuple[Mended, ...] = ()
    pairs: int | None = None
    pairs_sha256: str | None = None
    version: int = field(default=VERSION)

    def shard_path(self, folder: SetFolder, number: int) -> Path:
        """The local path of shard `number`. A remote shard is downloaded first."""
        shard = self.shards[number]
        return local_file(folder, shard.name, shard.sha256, shard.bytes)

    @property
    def digest(self) -> str:
        """SHA-256 over the shards' checksums. Equal digests mean equal photos in equal order."""
        return hashlib.sha256("".join(s.sha256 for s in self.shards).encode()).hexdigest()

    @property
    def no_face(self) -> tuple[int, ...]:
        """Keys of the photos without a face (kept as centre crops), sorted."""
        return tuple(sorted(key for shard in self.shards for key in shard.no_face))

    @property
    def faceless(self) -> tuple[str, ...]:
        """Sources of the photos that were skipped because no face was found in them."""
        return tuple(photo.source for photo in self.skipped if photo.reason.startswith("no face"))

    @property
    def left_out(self) -> tuple[int, int]:
        """Two counts of skipped photos: without a face, and absent or impossible to pack.

        Photos labelled as nobody are in neither count. A skipped triplet is in the first count,
        whatever the reason.
        """
        reasons = [photo.reason for photo in self.skipped if photo.reason != OF_NOBODY]
        faceless = sum(reason.startswith(("no face", "no crop")) for reason in reasons)
        return faceless, len(reasons) - faceless

    def knows(self, trained_on: str, num_classes: int, classes: tuple[str, ...] | None) -> bool:
        """Whether a network's logits stand for this set's identities, in the same order.

        With `classes` None, the raw dataset's name and the number of classes must be equal, and the
        split must not be `test`.
        """
        if classes is not None:
            return classes == self.classes
        found = (self.dataset, len(self.classes))
        return (trained_on, num_classes) == found and self.split != "test"

    def check_labelled(self, what: str) -> None:
        """Raises PersonaError if the photos have no identities; `what` names what needs them."""
        if not self.classes:
            raise PersonaError(
                f"{what} wants identities, and set {self.name} was packed without: pack it without "
                "--unlabelled, or choose what wants embeddings alone"
            )

    def check_crops(self, network: str, image_size: int | None, needs_landmarks: bool) -> None:
        """Raises PersonaError if a network cannot take the crops.

        Args:
            network: The network's name, for the message.
            image_size: Side of the crops in px that it takes. None means any size.
            needs_landmarks: Whether it needs the five-point landmarks.
        """
        if needs_landmarks and not self.align.has_landmarks:
            raise PersonaError(
                f"{network} wants five points of each face and set {self.name} has none "
                f"(--align {self.align.method}): pack it with --align mtcnn or "
                "landmarks, or template if its photos are aligned to ArcFace's"
            )
        if image_size not in {None, self.align.image_size}:
            raise PersonaError(
                f"set {self.name} has crops of {self.align.image_size} px, {network} was trained "
                f"on {image_size} px: pack the set with --image-size {image_size}"
            )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest. The set exists from this moment on."""
    write_json(folder / MANIFEST, manifest)


def read_manifest(folder: SetFolder) -> Manifest:
    """Reads and checks a manifest. The file is not trusted.

    Raises:
        PersonaError: If the manifest is missing, damaged, of another version, or names files
            outside its folder.
    """
    try:
        path = card_file(folder, MANIFEST)
    except NotThereError:
        raise PersonaError(f"no {MANIFEST} at {folder}: give the URL of a packed set") from None
    return parse_manifest(read_json(path, what="manifest", limit=LARGEST_LIST), path)


def parse_manifest(value: Any, path: Path) -> Manifest:
    """The manifest in the JSON `value`, which was read from `path`.

    Raises:
        PersonaError: If the value is not a valid manifest of this version.
    """
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
                "shards": tuple(map(Shard.from_json, value["shards"])),
                "skipped": tuple(Skipped(**photo) for photo in value["skipped"]),
                "mended": tuple(Mended(**photo) for photo in value.get("mended", ())),
            }
        )
        samples = sum(shard.samples for shard in manifest.shards)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise PersonaError(f"{path} is no manifest: remove it and pack the set again") from None
    align = manifest.align
    texts = (manifest.name, manifest.dataset, manifest.split)
    counts = (manifest.identities, manifest.pairs or 0, align.image_size, align.margin)
    if not (
        all(type(text) is str and hidden(text) is None for text in texts)
        and all(type(count) is int and count >= 0 for count in counts)
    ):
        raise PersonaError(f"{path} is no manifest: remove it and pack the set again")
    if manifest.kind not in KINDS or samples != manifest.samples:
        raise PersonaError(f"{path} contradicts itself: remove it and pack the set again")
    digests = [shard.sha256 for shard in manifest.shards]
    if manifest.pairs_sha256 is not None:
        digests.append(str(manifest.pairs_sha256))
    if not all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in digests):
        raise PersonaError(f"{path} has checksums that are none: remove it and pack the set again")
    for shard in manifest.shards:
        # A sample has at least two members, and each takes a header and a block.
        if not 0 <= shard.samples * 4 * BLOCK <= shard.bytes or min(shard.no_face, default=0) < 0:
            raise PersonaError(
                f"{path}: {shard.samples:,} samples cannot be in {shard.bytes:,} bytes of "
                f"{shard.name}: remove it and pack the set again"
            )
        if not re.fullmatch(r"\d{6}\.tar", shard.name):
            raise PersonaError(
                f"{path} names a shard {shard.name!r}: expected 000000.tar and so on"
            )
    return manifest


def list_sets(shards: Path) -> tuple[list[Manifest], list[str]]:
    """Every readable packed set below `shards`, by folder name, and the errors of the others."""
    sets, wrong = [], []
    for path in sorted(shards.glob(f"*/{MANIFEST}")):
        try:
            sets.append(read_manifest(path.parent))
        except PersonaError as error:
            wrong.append(str(error))
    return sets, wrong


def open_set(
    name: str, shards: Path, cache: Path | None = None, *, verify: bool = True
) -> tuple[SetFolder, Manifest]:
    """Opens a packed set.

    Args:
        name: The set's name, triplet ID, folder or URL, or a dataset's name (its default split).
        shards: Folder that holds the packed sets.
        cache: Folder in which files of a remote set are kept. None deletes them after reading.
        verify: Check each file of a local set before its first use. Files of a remote set are
            always checked.

    Raises:
        PersonaError: If there is no such set (the message says what to run), or if a shard is
            missing or cut.
    """
    if is_url(name):
        remote = open_remote(name, cache)
        return remote, _with_samples(read_manifest(remote))
    folder, manifest = _open_local(name, shards)
    return (checked(folder) if verify else folder), manifest


_MENDED = "restore it, or run the `persona shard` that made the set again"


def _with_samples(manifest: Manifest) -> Manifest:
    if not manifest.samples:
        raise PersonaError(f"set {manifest.name} holds no sample")
    return manifest


def _open_local(name: str, shards: Path) -> tuple[Path, Manifest]:
    from persona.data.raw import DATASETS

    folder = Path(name) if (Path(name) / MANIFEST).is_file() else shards / name
    dataset = DATASETS.get(name.lower())
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
            raise PersonaError(f"shard {path} is missing: {_MENDED}")
        if path.stat().st_size != shard.bytes:
            raise PersonaError(
                f"shard {path} has {path.stat().st_size:,} bytes, its manifest says "
                f"{shard.bytes:,}: {_MENDED}"
            )
    return folder, _with_samples(manifest)


def verify_set(
    folder: SetFolder, manifest: Manifest, *, advance: Callable[[int], None] = lambda _: None
) -> None:
    """Re-reads every shard and the pairs and compares their checksums.

    Raises:
        PersonaError: If files do not match. The message names all of them.
    """
    if is_remote(folder):
        _fetch_all(folder, manifest, advance)
        return
    drop_indexes(on_disk(folder, "verifying"))
    bad = []
    for number, shard in enumerate(manifest.shards):
        path = manifest.shard_path(folder, number)
        if not path.is_file():
            bad.append(f"{path} is missing")
        elif sha256_file(path) != shard.sha256:
            bad.append(f"{path} does not match its checksum")
        advance(1)
    if manifest.pairs_sha256 is not None:
        path = local_file(folder, PAIRS, manifest.pairs_sha256)
        if not path.is_file() or sha256_file(path) != manifest.pairs_sha256:
            bad.append(f"{path} is missing or does not match its checksum")
    if bad:
        raise PersonaError(
            "; ".join(bad) + ": restore these files, or remove them and run the `persona shard` "
            "that made the set again"
        )


def _fetch_all(folder: SetFolder, manifest: Manifest, advance: Callable[[int], None]) -> None:
    """Downloads every file of a remote set, which checks its checksum."""
    for number, shard in enumerate(manifest.shards):
        manifest.shard_path(folder, number)
        drop_file(folder, shard.name, shard.sha256)
        advance(1)
    if manifest.pairs is not None:
        read_pairs(folder, manifest)


def tar_member(name: str, data: bytes) -> bytes:
    """One tar member with fixed owner, mode and time: equal name and data give equal bytes."""
    padding = -len(data) % BLOCK
    return _tar_header(name.encode("ascii"), len(data)) + data + bytes(padding)


@functools.cache
def _empty_header() -> tuple[bytes, int]:
    """A tar header without name, size and checksum, and the sum of its bytes.

    The checksum field counts as eight blanks, as the tar format says.
    """
    info = tarfile.TarInfo()
    info.mode = 0o644
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[124:135] = bytes(11)
    header[148:156] = b" " * 8
    return bytes(header), sum(header)


def _tar_header(name: bytes, size: int) -> bytes:
    """The same bytes as `TarInfo.tobuf` for a short name, in a fraction of the time."""
    assert 0 < len(name) <= 100
    empty, total = _empty_header()
    digits = b"%011o" % size
    checksum = b"%06o\0 " % (total + sum(name) + sum(digits))
    before, between, after = empty[len(name) : 124], empty[135:148], empty[156:]
    return b"".join((name, before, digits, between, checksum, after))


def tar_sample(key: str, parts: dict[str, bytes]) -> bytes:
    """The tar members of one sample, sorted by suffix."""
    return b"".join(tar_member(f"{key}.{suffix}", parts[suffix]) for suffix in sorted(parts))


def tar_end(size: int) -> bytes:
    """The end of a tar of `size` bytes: two empty blocks, and zeros up to a whole record."""
    end = 2 * BLOCK
    return bytes(end + -(size + end) % tarfile.RECORDSIZE)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def encode_json(value: object) -> bytes:
    """Encodes a sample's metadata as compact canonical JSON."""
    return _ENCODER.encode(value).encode()


@dataclass(frozen=True)
class Member:
    """The position of one file in a shard, in bytes."""

    shard: int
    offset: int
    size: int

    def read(self, stream: BinaryIO) -> bytes:
        """Reads the file from the open shard."""
        stream.seek(self.offset)
        return stream.read(self.size)


def index_members(folder: SetFolder, manifest: Manifest) -> dict[str, Member]:
    """Maps each member name to its position. It reads the tar headers alone, no images."""
    members: dict[str, Member] = {}
    for number in range(len(manifest.shards)):
        path = manifest.shard_path(folder, number)
        try:
            with path.open("rb") as stream:
                for name, offset, size in iter_members(stream):
                    members[name.decode(errors="replace")] = Member(number, offset, size)
        except TarError as error:
            raise damaged(path, str(error)) from None
    return members


def open_faces(folder: SetFolder, manifest: Manifest, number: int) -> ShardReader:
    """Opens the JPEG and JSON members of a shard of photos, without the photos that show no face.

    Raises:
        PersonaError: If the shard is damaged.
    """
    shard = manifest.shards[number]
    no_face = frozenset(key_of(key).encode() for key in shard.no_face)
    path = manifest.shard_path(folder, number)
    return ShardReader(path, ("jpg", "json"), shard.samples - len(no_face), no_face)


def encode_pairs(pairs: list[KeyPair]) -> bytes:
    """The bytes of `pairs.csv`."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["fold", "same", "a", "b"])
    for pair in pairs:
        keys = ("" if key is None else key_of(key) for key in (pair.a, pair.b))
        writer.writerow([pair.fold, int(pair.same), *keys])
    return buffer.getvalue().encode()


def read_metas(folder: SetFolder, manifest: Manifest) -> dict[int, dict[str, Any]]:
    """Reads every sample's JSON from the tars, by key. It reads no images.

    Raises:
        PersonaError: If a shard is damaged.
    """
    metas: dict[int, dict[str, Any]] = {}
    streams: dict[int, BinaryIO] = {}
    with contextlib.ExitStack() as stack:
        for name, member in index_members(folder, manifest).items():
            if not name.endswith(".json"):
                continue
            if member.shard not in streams:
                path = manifest.shard_path(folder, member.shard)
                streams[member.shard] = stack.enter_context(path.open("rb"))
            stream = streams[member.shard]
            try:
                meta = json.loads(member.read(stream))
                metas[int(meta["key"])] = meta
            except (ValueError, TypeError, KeyError) as error:
                raise damaged(Path(stream.name), f"{name}: {type(error).__name__}") from None
    return metas


def read_pairs(folder: SetFolder, manifest: Manifest) -> PairTable:
    """Reads the set's verification pairs.

    Raises:
        PersonaError: If the set has no pairs, or the file does not match the manifest.
    """
    if manifest.pairs is None or manifest.pairs_sha256 is None:
        raise PersonaError(f"set {manifest.name} has no verification pairs")
    path = local_file(folder, PAIRS, manifest.pairs_sha256)
    if not path.is_file() or sha256_file(path) != manifest.pairs_sha256:
        raise PersonaError(f"{path} is missing or does not match its checksum: {_MENDED}")
    text = path.read_bytes().replace(b",\n", b",-1\n").replace(b",,", b",-1,")
    try:
        rows = np.loadtxt(io.BytesIO(text), np.int64, delimiter=",", skiprows=1, ndmin=2)
        rows = rows.reshape(-1, 4)
    except ValueError:
        raise PersonaError(f"{path} holds no pairs of keys: pack the set again") from None
    return PairTable(rows[:, 0], rows[:, 1] == 1, rows[:, 2], rows[:, 3])
