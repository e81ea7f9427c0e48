"""Raw photos to shards, or a packed set's photos to triplet shards.

1. plan: the photos in a fixed order, cut into shards and these into chunks; nothing here depends
   on the number of workers, so neither do the bytes
2. align: worker processes turn a chunk of photos into tar bytes, or copy a chunk of triplets
3. append: one writer appends chunks in order to `000000.tar.partial` and notes each in a journal
4. finish: a full shard is renamed into place; the manifest, written last, makes the set exist

Killed at any moment and run again, it cuts the partial shard back to the journal's last line and
goes on from there, to the same bytes. Photos are packed in the order of a hash of their source:
every shard is then a fair sample of the set, which training needs from its shuffle buffer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from persona.data.align import AlignSpec, FaceFinder, align_photo, build_finder, centre_photo
from persona.data.raw.base import Index, Pair, Photo, RawDataset
from persona.data.shards import (
    MANIFEST,
    VERSION,
    KeyPair,
    Manifest,
    Member,
    Shard,
    Skipped,
    encode_json,
    index_members,
    key_of,
    open_set,
    read_manifest,
    tar_end,
    tar_sample,
    write_manifest,
    write_pairs,
)
from persona.data.triplets import ROLES, check_index, index_digest, load_triplets
from persona.errors import NoFace, PersonaError, SkipPhoto
from persona.files import folder_lock, read_json, write_json
from persona.progress import progress_bar
from persona.workers import worker_pool

log = logging.getLogger(__name__)

PLAN = ".packing.json"
JOURNAL = ".packing.jsonl"
CHUNK = 64
"""Photos a task: a second or two of MTCNN, which is what a kill can lose a worker."""
BYTES_PER_SHARD = 100_000_000
BYTES_PER_PIXEL = 0.4
"""Of a face crop as JPEG at quality 95 (measured: 0.3 to 0.45)."""
SKIPS_ALWAYS_ALLOWED = 20

T = TypeVar("T")


@dataclass(frozen=True)
class PackOptions:
    """What a user may choose about packing."""

    align: AlignSpec = field(default_factory=AlignSpec)
    shard_size: int | None = None
    """Samples a shard; None: about 100 MB."""
    workers: int = 1
    """Processes; 0 works in this one."""
    max_skipped: float = 0.5
    """Share of photos that may be skipped before packing stops."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise PersonaError(f"{self.workers} workers: choose at least 1")
        if self.shard_size is not None and not 1 <= self.shard_size <= 10_000_000:
            raise PersonaError(f"shard size {self.shard_size}: choose 1 to 10,000,000 samples")
        if not 0 <= self.max_skipped <= 1:
            raise PersonaError(f"skip limit {self.max_skipped}: choose a share from 0 to 1")

    def samples_per_shard(self, photos_per_sample: int) -> int:
        """`shard_size`, or what makes about 100 MB."""
        crop_bytes = BYTES_PER_PIXEL * self.align.image_size**2
        return self.shard_size or max(1, int(BYTES_PER_SHARD / crop_bytes / photos_per_sample))


@dataclass(frozen=True)
class Packed:
    """A finished set and where it lies."""

    folder: Path
    manifest: Manifest
    fresh: bool
    """False: it had been there already."""


@dataclass(frozen=True)
class Chunk:
    """What a worker made of its samples."""

    data: bytes
    samples: int
    identities: tuple[int, ...]
    skipped: tuple[Skipped, ...]
    no_face: tuple[int, ...] = ()
    """Keys of its centre crops."""


# --- 1. plan ---------------------------------------------------------------------------------


def packing_order(photos: Sequence[Photo]) -> list[int]:
    """Places in the index, in the order of a hash of their source: a shuffle that never changes."""
    return sorted(
        range(len(photos)),
        key=lambda place: hashlib.blake2b(photos[place].source.encode(), digest_size=16).digest(),
    )


def cut(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Consecutive pieces of at most `size`."""
    return [items[start : start + size] for start in range(0, len(items), size)]


# --- 2. align --------------------------------------------------------------------------------


@dataclass(frozen=True)
class PhotoTask:
    """One photo to align: its key, itself, its class index."""

    place: int
    photo: Photo
    label: int


class PhotoPacker:
    """Aligns chunks of photos; built once in every worker."""

    def __init__(self, dataset: RawDataset, spec: AlignSpec, keep_faceless: bool) -> None:
        """`keep_faceless`: a photo without a face becomes its centre, for evaluation to count."""
        self.dataset = dataset
        self.spec = spec
        self.keep_faceless = keep_faceless
        self.find: FaceFinder = build_finder(
            spec, dataset.boxes() if spec.method == "boxes" else None
        )

    def __call__(self, tasks: Sequence[PhotoTask]) -> Chunk:
        """Turns photos into the tar bytes of their samples."""
        data: list[bytes] = []
        labels: set[int] = set()
        skipped = []
        no_face: list[int] = []
        for task in tasks:
            try:
                sample = self._sample(task, no_face)
            except SkipPhoto as reason:
                skipped.append(Skipped(task.photo.source, str(reason)))
                continue
            data.append(sample)
            labels.add(task.label)
        return Chunk(
            b"".join(data), len(data), tuple(sorted(labels)), tuple(skipped), tuple(no_face)
        )

    def _sample(self, task: PhotoTask, no_face: list[int]) -> bytes:
        source = task.photo.source
        try:
            raw = self.dataset.read(task.photo)
        except OSError as error:
            raise SkipPhoto(f"unreadable: {error.strerror}") from None
        faceless = {}
        try:
            crop = align_photo(raw, source, self.find, self.spec)
        except NoFace:
            if not self.keep_faceless:
                raise
            crop = centre_photo(raw, self.spec)
            no_face.append(task.place)
            faceless = {"no_face": True}
        face, points = crop.face, crop.landmarks_62
        probability = None if face is None else face.probability
        meta = {
            "key": key_of(task.place),
            "identity": task.photo.identity,
            "class": task.label,
            "source": source,
            "box": None if face is None else [round(edge, 2) for edge in face.box],
            "probability": None if probability is None else round(probability, 6),
            "landmarks": None if points is None else points.round(4).tolist(),
            **faceless,
        }
        if task.photo.attributes:
            meta["attributes"] = dict(task.photo.attributes)
        return tar_sample(key_of(task.place), {"jpg": crop.jpeg, "json": encode_json(meta)})


# --- 3. append -------------------------------------------------------------------------------


class SetWriter:
    """Appends chunks to shards and keeps the journal that a later run goes on from."""

    def __init__(self, folder: Path, chunks_per_shard: Sequence[int]) -> None:
        """`chunks_per_shard[s]`: how many chunks make shard `s`."""
        self.folder = folder
        self.chunks_per_shard = chunks_per_shard
        self.done = 0
        """Chunks appended, over all shards and runs."""
        self.samples = 0
        self.labels: set[int] = set()
        self.skipped: list[Skipped] = []
        self.shards: list[Shard] = []
        self._chunks = 0  # of the open shard
        self._shard_samples = 0
        self._no_face: list[int] = []  # of the open shard
        self._size = 0
        self._digest = hashlib.sha256()
        self._tar: IO[bytes] | None = None
        self._replay()
        self._journal = (folder / JOURNAL).open("ab")

    def __enter__(self) -> SetWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()
        if self._tar is not None:
            self._tar.close()

    @property
    def _name(self) -> str:
        return f"{len(self.shards):06d}.tar"

    def _replay(self) -> None:
        """Takes up the journal of an interrupted run."""
        path = self.folder / JOURNAL
        kept = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except json.JSONDecodeError:
                entry = None
            if entry is None or not self._apply(entry):
                break
            kept += len(line)
        if path.exists():
            os.truncate(path, kept)
        self._reopen()

    def _apply(self, entry: dict[str, Any]) -> bool:
        """Counts one journal line; False if the disk does not hold what it says."""
        if "finished" in entry:
            shard = Shard(**{**entry["finished"], "no_face": tuple(entry["finished"]["no_face"])})
            path = self.folder / shard.name
            if not path.is_file() or path.stat().st_size != shard.bytes:
                return False
            self._finish_counts(shard)
            return True
        for name in (self._name, f"{self._name}.partial"):
            path = self.folder / name
            if path.is_file() and path.stat().st_size >= entry["size"]:
                break
        else:
            return False
        skipped = tuple(Skipped(**photo) for photo in entry["skipped"])
        self._count(entry["samples"], entry["labels"], skipped, entry["no_face"])
        self._size = entry["size"]
        return True

    def _reopen(self) -> None:
        """Cuts the open shard back to the journal's last line, hashing what stays."""
        final, partial = self.folder / self._name, self.folder / f"{self._name}.partial"
        if final.exists():  # killed between the rename and the journal line that tells of it
            final.replace(partial)
        if self._size and partial.exists():
            os.truncate(partial, self._size)
            self._digest = hashlib.sha256()
            with partial.open("rb") as file:
                while block := file.read(1 << 20):
                    self._digest.update(block)

    @property
    def faceless(self) -> int:
        """Centre crops of photos without a face."""
        return len(self._no_face) + sum(len(shard.no_face) for shard in self.shards)

    def _count(
        self,
        samples: int,
        labels: Iterable[int],
        skipped: tuple[Skipped, ...],
        no_face: Iterable[int],
    ) -> None:
        self.done += 1
        self._chunks += 1
        self._shard_samples += samples
        self.samples += samples
        self.labels.update(labels)
        self.skipped.extend(skipped)
        self._no_face.extend(no_face)

    def _finish_counts(self, shard: Shard) -> None:
        self.shards.append(shard)
        self._chunks = self._shard_samples = self._size = 0
        self._no_face = []
        self._digest = hashlib.sha256()

    def append(self, chunk: Chunk) -> None:
        """Appends a chunk, then says so in the journal; ends the shard when it is full."""
        if self._tar is None:
            mode = "ab" if self._size else "wb"
            self._tar = (self.folder / f"{self._name}.partial").open(mode)
        self._tar.write(chunk.data)
        self._tar.flush()
        self._digest.update(chunk.data)
        self._size += len(chunk.data)
        self._count(chunk.samples, chunk.identities, chunk.skipped, chunk.no_face)
        self._log(
            {
                "size": self._size,
                "samples": chunk.samples,
                "labels": chunk.identities,
                "skipped": [asdict(photo) for photo in chunk.skipped],
                "no_face": chunk.no_face,
            }
        )
        self.finish_full_shard()

    def finish_full_shard(self) -> None:
        """Ends the open shard if it has all its chunks (also called after a resume)."""
        number = len(self.shards)
        if number == len(self.chunks_per_shard) or self._chunks < self.chunks_per_shard[number]:
            return
        partial = self.folder / f"{self._name}.partial"
        if self._tar is None:
            self._tar = partial.open("ab")
        end = tar_end(self._size)
        self._tar.write(end)
        self._tar.flush()
        os.fsync(self._tar.fileno())
        self._tar.close()
        self._tar = None
        self._digest.update(end)
        shard = Shard(
            self._name,
            self._shard_samples,
            self._size + len(end),
            self._digest.hexdigest(),
            tuple(sorted(self._no_face)),
        )
        partial.replace(self.folder / self._name)
        self._log({"finished": asdict(shard)})
        self._finish_counts(shard)

    def _log(self, entry: dict[str, Any]) -> None:
        self._journal.write(encode_json(entry) + b"\n")
        self._journal.flush()


def _check_skips(writer: SetWriter, photos: int, limit: float) -> None:
    """Stops a run whose photos are mostly not faces, before it takes all day."""
    skipped = len(writer.skipped) + writer.faceless
    if skipped > max(SKIPS_ALWAYS_ALLOWED, limit * photos):
        last = writer.skipped[-1] if writer.skipped else None
        which = f"the last is {last.source} ({last.reason})" if last else "they show no face"
        raise PersonaError(
            f"{skipped} photos were skipped, more than {limit:.0%} of {photos}; {which}: "
            "is this the right --align? --max-skipped 1 packs what there is"
        )


def _write_shards(
    folder: Path,
    shards: Sequence[Sequence[T]],
    pack: Callable[[Iterable[Sequence[T]]], Iterator[Chunk]],
    *,
    title: str,
    unit: str,
    max_skipped: float,
) -> SetWriter:
    """Runs every chunk that the journal does not have yet."""
    chunked = [cut(shard, CHUNK) for shard in shards]
    flat = [chunk for shard in chunked for chunk in shard]
    total = sum(map(len, flat))
    with SetWriter(folder, [len(chunks) for chunks in chunked]) as writer:
        writer.finish_full_shard()
        behind = sum(map(len, flat[: writer.done]))
        if behind:
            log.info("going on after %d of %d %s", behind, total, unit)
        with progress_bar(title, total=total, unit=unit, done=behind) as advance:
            sizes = iter([len(chunk) for chunk in flat[writer.done :]])
            for chunk in pack(flat[writer.done :]):
                writer.append(chunk)
                advance(next(sizes))
                _check_skips(writer, total, max_skipped)
        return writer


def _claim(folder: Path, plan: dict[str, Any]) -> Manifest | None:
    """Makes the folder this plan's: a finished set of the same plan, or an unfinished one, or new.

    Raises:
        PersonaError: it holds a set of another plan.
    """
    known = folder / PLAN
    if known.is_file():
        earlier = read_json(known, what="packing plan")
        differing = sorted(k for k in plan if earlier.get(k) != plan[k])
        if differing:
            raise PersonaError(
                f"{folder} holds a set packed with another {', '.join(differing)}: "
                "remove that folder or name another one with --out"
            )
        if (folder / MANIFEST).is_file():
            return read_manifest(folder)
    elif (folder / MANIFEST).is_file():
        raise PersonaError(
            f"{folder} holds a set from elsewhere: remove that folder or name another with --out"
        )
    else:
        write_json(known, plan)
    return None


def _finish(folder: Path, manifest: Manifest) -> Packed:
    """Writes the manifest and clears what only an unfinished set needs."""
    write_manifest(folder, manifest)
    (folder / JOURNAL).unlink(missing_ok=True)
    return Packed(folder, manifest, fresh=True)


# --- 4. the two kinds of set -------------------------------------------------------------------


def pack_photos(
    dataset: RawDataset,
    folder: Path,
    options: PackOptions,
    *,
    index: Index | None = None,
    only: Sequence[int] | None = None,
) -> Packed:
    """Aligns and packs a raw split into `folder`; run again, it goes on where it was.

    Args:
        dataset: an opened raw dataset.
        folder: where the set goes; its name is the set's.
        options: alignment, shard size, workers.
        index: the dataset's index, if the caller has it.
        only: places in the index to pack, rather than all; the pairs are then left out.

    Raises:
        PersonaError: nothing to pack, too many skips, or the folder holds something else.
    """
    index = index or dataset.index()
    class_index = {identity: label for label, identity in enumerate(index.classes)}
    if options.align.method == "boxes" and dataset.boxes() is None:
        build_finder(options.align, None)  # raises: better now than in every worker
    listed_pairs = dataset.pairs() if only is None else None
    absent = set(index.missing) if only is None else set()
    pairs: list[KeyPair] | None = None
    if listed_pairs is not None:
        pairs, unknown_photos = _key_pairs(index, listed_pairs, options.max_skipped)
        absent |= unknown_photos
    order = packing_order(index.photos)
    if only is not None:
        wanted = set(only)
        order = [place for place in order if place in wanted]
    plan = {
        "kind": "photos",
        "dataset": dataset.name,
        "split": dataset.split,
        "alignment": asdict(options.align),
        "shard size": options.samples_per_shard(1),
        "photos": index_digest(index),
        "selection": hashlib.sha256(np.asarray(order, np.int64).tobytes()).hexdigest(),
        "version": VERSION,
    }
    annotations = [photo.attributes for photo in index.photos]
    if any(annotations):
        plan["annotations"] = hashlib.sha256(encode_json(annotations)).hexdigest()
    with folder_lock(folder, doing="packing into"):
        finished = _claim(folder, plan)
        if finished is not None:
            return Packed(folder, finished, fresh=False)
        tasks = [
            PhotoTask(place, index.photos[place], class_index[index.photos[place].identity])
            for place in order
        ]
        preload = ["facenet_pytorch"] if options.align.has_landmarks else []
        packer = (dataset, options.align, pairs is not None)
        with worker_pool(PhotoPacker, packer, options.workers, preload=preload) as pack:
            writer = _write_shards(
                folder,
                cut(tasks, options.samples_per_shard(1)),
                pack,
                title=f"packing {folder.name}",
                unit="photos",
                max_skipped=options.max_skipped,
            )
        if only is None and not writer.samples:
            raise PersonaError(
                f"{dataset.name} ({dataset.split}): none of {len(order)} photos could be packed; "
                f"the first was skipped because: {writer.skipped[0].reason}"
            )
        missing = [Skipped(source, "listed, not on disk") for source in absent]
        manifest = Manifest(
            name=folder.name,
            kind="photos",
            dataset=dataset.name,
            split=dataset.split,
            align=options.align,
            samples=writer.samples,
            identities=len(writer.labels),
            classes=index.classes,
            shards=tuple(writer.shards),
            skipped=tuple(sorted((*writer.skipped, *missing), key=lambda s: s.source)),
            pairs=None if pairs is None else len(pairs),
            pairs_sha256=None if pairs is None else write_pairs(folder, pairs),
        )
        return _finish(folder, manifest)


def _key_pairs(index: Index, pairs: Sequence[Pair], limit: float) -> tuple[list[KeyPair], set[str]]:
    """The pairs by key, and the sources they name that are no photo of the dataset.

    Raises:
        PersonaError: more than `limit` of the pairs name such a photo.
    """
    place_of = {photo.source: place for place, photo in enumerate(index.photos)}
    keyed = [KeyPair(p.fold, p.same, place_of.get(p.a), place_of.get(p.b)) for p in pairs]
    absent = {source for p in pairs for source in (p.a, p.b) if source not in place_of}
    lost = sum(pair.a is None or pair.b is None for pair in keyed)
    if lost > limit * len(pairs):
        raise PersonaError(
            f"{lost} of {len(pairs)} pairs name photos that are not there, the first is "
            f"{min(absent)}: unpack the whole dataset, or mend its list of pairs"
        )
    return keyed, absent


def pack_triplets(
    dataset: RawDataset, set_id: str, shards: Path, options: PackOptions, folder: Path | None = None
) -> Packed:
    """Packs triplet set `set_id`: anchor, positive and negative in one sample.

    The crops come from the packed split if it is there with the same alignment; else the photos
    that the triplets name are aligned first, each once.

    Raises:
        PersonaError: unknown ID, another dataset, or raw photos that have changed.
    """
    card, indices = load_triplets(set_id, shards)
    if (card.dataset, card.split) != (dataset.name, dataset.split):
        raise PersonaError(
            f"{set_id} was drawn from {card.dataset} ({card.split}), not from {dataset.name} "
            f"({dataset.split}): run `persona shard {card.dataset} --split {card.split} "
            f"--triplets {set_id}`"
        )
    index = dataset.index()
    check_index(card, index)
    folder = folder or shards / set_id
    plan = {
        "kind": "triplets",
        "dataset": dataset.name,
        "split": dataset.split,
        "alignment": asdict(options.align),
        "shard size": options.samples_per_shard(len(ROLES)),
        "photos": card.index_sha256,
        "triplets": card.indices_sha256,
        "version": VERSION,
    }
    with folder_lock(folder, doing="packing into"):
        finished = _claim(folder, plan)
        if finished is not None:
            return Packed(folder, finished, fresh=False)
        crops = _packed_split(dataset, shards, options.align, index) or pack_photos(
            dataset, folder / ".crops", options, index=index, only=np.unique(indices).tolist()
        )
        numbered = list(enumerate(indices.tolist()))
        copier = TripletCopier(crops)
        with copier:
            writer = _write_shards(
                folder,
                cut(numbered, options.samples_per_shard(len(ROLES))),
                lambda chunks: map(copier, chunks),
                title=f"packing {folder.name}",
                unit="triplets",
                max_skipped=options.max_skipped,
            )
        manifest = Manifest(
            name=folder.name,
            kind="triplets",
            dataset=dataset.name,
            split=dataset.split,
            align=options.align,
            samples=writer.samples,
            identities=len(writer.labels),
            classes=index.classes,
            shards=tuple(writer.shards),
            skipped=tuple(writer.skipped),
        )
        packed = _finish(folder, manifest)
    shutil.rmtree(folder / ".crops", ignore_errors=True)
    return packed


def _packed_split(
    dataset: RawDataset, shards: Path, align: AlignSpec, index: Index
) -> Packed | None:
    """The split's own packed set, if its crops are the ones wanted."""
    folder = shards / dataset.set_name
    plan = folder / PLAN
    if not ((folder / MANIFEST).is_file() and plan.is_file()):
        return None
    if read_json(plan, what="packing plan").get("photos") != index_digest(index):
        return None
    _, manifest = open_set(dataset.set_name, shards)
    return Packed(folder, manifest, fresh=False) if manifest.align == align else None


class TripletCopier:
    """Copies crops out of a packed set into triplet samples."""

    def __init__(self, crops: Packed) -> None:
        self.members: dict[str, Member] = index_members(crops.folder, crops.manifest)
        self.no_face = frozenset(crops.manifest.no_face)
        self._paths = [
            crops.manifest.shard_path(crops.folder, n) for n in range(len(crops.manifest.shards))
        ]
        self._open: dict[int, IO[bytes]] = {}

    def __enter__(self) -> TripletCopier:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._open.values():
            stream.close()

    def _read(self, name: str) -> bytes:
        member = self.members[name]
        if member.shard not in self._open:
            self._open[member.shard] = self._paths[member.shard].open("rb")
        return member.read(self._open[member.shard])  # type: ignore[arg-type]

    def __call__(self, numbered: Sequence[tuple[int, list[int]]]) -> Chunk:
        """Turns `(number, three places)` into the tar bytes of their samples."""
        data: list[bytes] = []
        labels: set[int] = set()
        skipped = []
        for number, places in numbered:
            keys = dict(zip(ROLES, map(key_of, places), strict=True))
            lost = [
                role
                for role, key in keys.items()
                if f"{key}.jpg" not in self.members or int(key) in self.no_face
            ]
            if lost:
                skipped.append(Skipped(f"triplet {number}", f"no crop of its {' and '.join(lost)}"))
                continue
            metas = {role: json.loads(self._read(f"{key}.json")) for role, key in keys.items()}
            parts = {f"{role}.jpg": self._read(f"{key}.jpg") for role, key in keys.items()}
            meta = encode_json({"key": key_of(number), **metas})
            data.append(tar_sample(key_of(number), {**parts, "json": meta}))
            labels.update(meta["class"] for meta in metas.values())
        return Chunk(b"".join(data), len(data), tuple(sorted(labels)), tuple(skipped))
