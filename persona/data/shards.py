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

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Shard:
        """What JSON stands for; raises KeyError, TypeError or ValueError where it is none."""
        return cls(
            name=str(value["name"]),
            samples=int(value["samples"]),
            bytes=int(value["bytes"]),
            sha256=str(value["sha256"]),
            no_face=tuple(map(int, value["no_face"])),
        )


NO_CLASS = -1
"""The class index of a photo without an identity."""
FACELESS = -2
"""In place of the key of a photo that was skipped because no face was found in it."""
OF_NOBODY = "labelled -1, which is nobody"
"""Why a photo is skipped that shows none of the dataset's people."""


@dataclass(frozen=True)
class Skipped:
    """A photo that was not packed, and why."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True, order=True)
class Mended:
    """A photo that was packed although its file has a fault, and which."""

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
    """(P,) keys; -1: the dataset does not have that photo; FACELESS: the set left it out."""

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
    """The dataset's full identity list, sorted; a label is a place in it. Empty: the photos are
    unlabelled, and every label is `NO_CLASS`."""
    shards: tuple[Shard, ...]
    skipped: tuple[Skipped, ...] = ()
    mended: tuple[Mended, ...] = ()
    pairs: int | None = None
    pairs_sha256: str | None = None
    version: int = field(default=VERSION)

    def shard_path(self, folder: SetFolder, number: int) -> Path:
        """The path of shard `number`, brought here first where the set is elsewhere."""
        shard = self.shards[number]
        return local_file(folder, shard.name, shard.sha256, shard.bytes)

    @property
    def digest(self) -> str:
        """SHA-256 over the shards': equal digests, equal photos in equal order."""
        return hashlib.sha256("".join(s.sha256 for s in self.shards).encode()).hexdigest()

    @property
    def no_face(self) -> tuple[int, ...]:
        """Keys of the centre crops, sorted."""
        return tuple(sorted(key for shard in self.shards for key in shard.no_face))

    @property
    def faceless(self) -> tuple[str, ...]:
        """Sources of the photos that were skipped because no face was found in them."""
        return tuple(photo.source for photo in self.skipped if photo.reason.startswith("no face"))

    @property
    def left_out(self) -> tuple[int, int]:
        """How many skipped photos show no face, and how many are absent or could not be packed.

        Photos of nobody are neither. A triplet is among the first, whatever its photo lacks.
        """
        reasons = [photo.reason for photo in self.skipped if photo.reason != OF_NOBODY]
        faceless = sum(reason.startswith(("no face", "no crop")) for reason in reasons)
        return faceless, len(reasons) - faceless

    def knows(self, trained_on: str, num_classes: int, classes: tuple[str, ...] | None) -> bool:
        """Whether a network's logits stand for this set's identities, in the same order.

        `classes` None: its classes are known by number and raw dataset alone.
        """
        if classes is not None:
            return classes == self.classes
        found = (self.dataset, len(self.classes))
        return (trained_on, num_classes) == found and self.split != "test"

    def check_labelled(self, what: str) -> None:
        """Raises PersonaError if the photos have no identities, which `what` wants."""
        if not self.classes:
            raise PersonaError(
                f"{what} wants identities, and set {self.name} was packed without: pack it without "
                "--unlabelled, or choose what wants embeddings alone"
            )

    def check_crops(self, network: str, image_size: int | None, needs_landmarks: bool) -> None:
        """Raises PersonaError if the crops are not what a network takes; None: any size."""
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
    """Writes the manifest: the set exists from this moment on."""
    write_json(folder / MANIFEST, manifest)


def read_manifest(folder: SetFolder) -> Manifest:
    """Reads and checks a manifest, which may come from a stranger.

    Raises:
        PersonaError: missing, damaged, of another version, or naming files outside its folder.
    """
    try:
        path = card_file(folder, MANIFEST)
    except NotThereError:
        raise PersonaError(f"no {MANIFEST} at {folder}: give the URL of a packed set") from None
    return parse_manifest(read_json(path, what="manifest", limit=LARGEST_LIST), path)


def parse_manifest(value: Any, path: Path) -> Manifest:
    """The manifest that JSON `value`, read from `path`, stands for; raises as `read_manifest`."""
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
        # A sample is two members at least, and each of them a header and a block.
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
    """Every packed set below `shards`, by folder name, and what is wrong with the others."""
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
    """Finds a packed set.

    Args:
        name: its name, triplet ID, folder, URL, or a dataset (whose default split it is).
        shards: where packed sets lie.
        cache: where files of a set that is elsewhere stay; None: they go when they were read.
        verify: check each file of a set that is here before its first use; of one elsewhere it
            always is.

    Raises:
        PersonaError: there is none, with what to run, or a shard is missing or cut.
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
    """Re-reads every shard and the pairs against their checksums.

    Raises:
        PersonaError: naming every file that does not match.
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
    """Brings every file of a set here, which checks it."""
    for number, shard in enumerate(manifest.shards):
        manifest.shard_path(folder, number)
        drop_file(folder, shard.name, shard.sha256)
        advance(1)
    if manifest.pairs is not None:
        read_pairs(folder, manifest)


def tar_member(name: str, data: bytes) -> bytes:
    """One tar member with fixed owner, mode and time: same name and data, same bytes."""
    padding = -len(data) % BLOCK
    return _tar_header(name.encode("ascii"), len(data)) + data + bytes(padding)


@functools.cache
def _empty_header() -> tuple[bytes, int]:
    """A header without name, size and checksum, and the sum of its bytes: eight blanks for that."""
    info = tarfile.TarInfo()
    info.mode = 0o644
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[124:135] = bytes(11)
    header[148:156] = b" " * 8
    return bytes(header), sum(header)


def _tar_header(name: bytes, size: int) -> bytes:
    """What `TarInfo.tobuf` gives for a short name, in a fraction of its time."""
    assert 0 < len(name) <= 100
    empty, total = _empty_header()
    digits = b"%011o" % size
    checksum = b"%06o\0 " % (total + sum(name) + sum(digits))
    before, between, after = empty[len(name) : 124], empty[135:148], empty[156:]
    return b"".join((name, before, digits, between, checksum, after))


def tar_sample(key: str, parts: dict[str, bytes]) -> bytes:
    """The members of one sample, in the order of their suffixes."""
    return b"".join(tar_member(f"{key}.{suffix}", parts[suffix]) for suffix in sorted(parts))


def tar_end(size: int) -> bytes:
    """What ends a tar of `size` bytes: two empty blocks, filled up to a whole record."""
    end = 2 * BLOCK
    return bytes(end + -(size + end) % tarfile.RECORDSIZE)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def encode_json(value: object) -> bytes:
    """Compact canonical JSON for a sample's metadata."""
    return _ENCODER.encode(value).encode()


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


def index_members(folder: SetFolder, manifest: Manifest) -> dict[str, Member]:
    """Member name to place, from the tar headers alone: no image is read."""
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
    """JPEG and json of the samples of a shard of photos, but for those without a face.

    Raises:
        PersonaError: the shard is damaged.
    """
    shard = manifest.shards[number]
    no_face = frozenset(key_of(key).encode() for key in shard.no_face)
    path = manifest.shard_path(folder, number)
    return ShardReader(path, ("jpg", "json"), shard.samples - len(no_face), no_face)


def encode_pairs(pairs: list[KeyPair]) -> bytes:
    """What `pairs.csv` holds."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["fold", "same", "a", "b"])
    for pair in pairs:
        keys = ("" if key is None else key_of(key) for key in (pair.a, pair.b))
        writer.writerow([pair.fold, int(pair.same), *keys])
    return buffer.getvalue().encode()


def read_metas(folder: SetFolder, manifest: Manifest) -> dict[int, dict[str, Any]]:
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
    """The set's verification pairs.

    Raises:
        PersonaError: the set has none, or the file does not match the manifest.
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
