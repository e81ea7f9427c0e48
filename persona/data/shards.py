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

import csv
import functools
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from persona.data.align import AlignSpec
from persona.data.align.spec import ARCFACE
from persona.data.storage import (
    NotThereError,
    SetFolder,
    card_file,
)
from persona.data.tars import BLOCK
from persona.errors import CropsError, PersonaError
from persona.files import LARGEST_LIST, read_json, write_json
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
        """Raises CropsError if a network cannot take the crops.

        Args:
            network: The network's name, for the message.
            image_size: Side of the crops in px that it takes. None means any size.
            needs_landmarks: Whether it needs the five-point landmarks.
        """
        if needs_landmarks and not self.align.has_landmarks:
            raise CropsError(
                f"{network} wants five points of each face and set {self.name} has none "
                f"(--align {self.align.method}): pack it with --align mtcnn or "
                "landmarks, or template if its photos are aligned to ArcFace's"
            )
        if image_size not in {None, self.align.image_size}:
            turned = ""
            if image_size == ARCFACE.image_size and self.align.method != ARCFACE.method:
                turned = (
                    "; --align landmarks turns faces to ArcFace's template, which most networks of "
                    "this size take, and --align template packs photos that are turned to it"
                )
            raise CropsError(
                f"set {self.name} has crops of {self.align.image_size} px, {network} was trained "
                f"on {image_size} px: pack the set with --image-size {image_size}{turned}"
            )


def holds_set(folder: Path) -> bool:
    """Whether a folder holds a packed set. Its name may come from elsewhere, and be of any length.

    The name of a mix of sets, for example of a model's train sets, can be longer than a file name
    may be.
    """
    try:
        return (folder / MANIFEST).is_file()
    except OSError:
        return False


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
    sizes = (align.image_size, align.margin, align.min_face)
    counts = (manifest.identities, manifest.pairs or 0, *sizes)
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


def encode_pairs(pairs: list[KeyPair]) -> bytes:
    """The bytes of `pairs.csv`."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["fold", "same", "a", "b"])
    for pair in pairs:
        keys = ("" if key is None else key_of(key) for key in (pair.a, pair.b))
        writer.writerow([pair.fold, int(pair.same), *keys])
    return buffer.getvalue().encode()
