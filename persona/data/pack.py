"""Raw photos to shards, or a packed set's photos to triplet shards.

1. plan: the photos in a fixed order, cut into shards. The plan does not depend on the number of
   workers or machines, so neither do the bytes of the set
2. make: a chunk of photos becomes tar bytes, or a chunk of triplets is copied
3. pack: an engine (persona.data.engines) runs the shards that do not exist yet. Each is written
   whole, with a record beside it (persona.data.journal)
4. merge: the plan and the records make the manifest, and with it the set exists

A packing that was killed at any moment can be run again and gives the same bytes. Photos are packed
in the order of a hash of their source. Every shard is then a fair sample of the set, which the
shuffle buffer of training needs. Photos that can only be read in blocks (the row groups of parquet)
are mixed within a window of blocks, and the blocks are in the order of a hash. A shard of many
windows is nearly as fair.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from persona.data.align import AlignSpec, Box, Crop, RawPhoto, build_aligner, centre_photo
from persona.data.align.boxes import read_boxes
from persona.data.engines import ENGINES, Engine, Job, Pack, ShardTask, Share
from persona.data.journal import (
    PLAN,
    Chunk,
    Plan,
    Record,
    clear_journals,
    differing,
    iter_records,
    read_plan,
    read_record,
    shard_name,
)
from persona.data.raw.base import DATASETS, UNLABELLED, Index, Pair, Photo, RawDataset
from persona.data.sets import FaceSet, open_faces, open_set
from persona.data.shards import (
    MANIFEST,
    NO_CLASS,
    OF_NOBODY,
    PAIRS,
    VERSION,
    KeyPair,
    Manifest,
    Mended,
    Skipped,
    encode_json,
    encode_pairs,
    key_of,
    parse_manifest,
    read_manifest,
    tar_sample,
    write_manifest,
)
from persona.data.storage import checked
from persona.data.triplets import ROLES, check_index, load_triplets
from persona.errors import NoFace, PersonaError, SkipPhoto, unknown
from persona.files import LARGEST_LIST, folder_lock, read_json, write_atomically, write_json
from persona.names import command_line
from persona.progress import progress_bar
from persona.workers import tell_done, told_in_all

log = logging.getLogger(__name__)

DRAFT = ".packing-set.json"
"""Name of the file with the manifest, without its shards, and the number of shards."""
CROPS = ".crops"
"""Folder below a triplet set that holds its photos until the set is packed."""
CHUNK = 64
"""Photos per task. They take MTCNN one second, which is what a killed worker can lose."""
BYTES_PER_SHARD = 100_000_000
BYTES_PER_PIXEL = 0.4
"""Size of a face crop as JPEG at quality 95, in bytes per pixel (measured: 0.3 to 0.45)."""
SKIPS_ALWAYS_ALLOWED = 20
NAMED = 10
"""How many shards an error names."""
OUT_OF_REACH = frozenset(
    {
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
    }
)
"""Errors of a network disk or of this machine, which say nothing about a photo."""
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class PackOptions:
    """The options of packing that a user can choose."""

    align: AlignSpec = field(default_factory=AlignSpec)
    shard_size: int | None = None
    """Samples per shard. None makes shards of about 100 MB."""
    workers: int | None = 1
    """Processes, or concurrent shards on a cluster. 0 works in this process, None uses all CPUs."""
    max_skipped: float = 0.5
    """Fraction of the photos that may be skipped before packing stops."""
    engine: str = "local"
    address: str | None = None
    """Address of a Ray cluster. None starts one."""
    boxes: Path | None = None
    """CSV of face boxes. None uses the dataset's own boxes."""
    device: str = "auto"
    """Device of the face detector: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise unknown("engine", self.engine, ENGINES)
        if self.address is not None and self.engine != "ray":
            raise PersonaError("--address is a Ray cluster's: add --engine ray")
        if self.workers is not None and self.workers < 0:
            raise PersonaError(f"{self.workers} workers: choose at least 1")
        if self.shard_size is not None and not 1 <= self.shard_size <= 10_000_000:
            raise PersonaError(f"shard size {self.shard_size}: choose 1 to 10,000,000 samples")
        if not 0 <= self.max_skipped <= 1:
            raise PersonaError(f"skip limit {self.max_skipped}: choose a share from 0 to 1")
        if self.boxes is not None and self.align.method != "boxes":
            raise PersonaError(f"--boxes goes with --align boxes, not with {self.align.method}")
        if self.device not in DEVICES:
            raise unknown("device", self.device, DEVICES)

    def samples_per_shard(self, photos_per_sample: int) -> int:
        """`shard_size`, or the number of samples that makes about 100 MB."""
        crop_bytes = BYTES_PER_PIXEL * self.align.image_size**2
        return self.shard_size or max(1, int(BYTES_PER_SHARD / crop_bytes / photos_per_sample))

    def build_engine(self) -> Engine:
        """Builds the engine that runs the shards."""
        if self.engine == "ray":
            from persona.data.engines.ray_cluster import run_ray

            return functools.partial(run_ray, address=self.address, workers=self.workers)
        from persona.data.engines.local import run_local

        return functools.partial(run_local, workers=self.workers)


@dataclass(frozen=True)
class Packed:
    """A finished set and its folder."""

    folder: Path
    manifest: Manifest
    fresh: bool
    """False if the set existed already."""

    @property
    def faces(self) -> FaceSet:
        """The set, to be read."""
        return FaceSet(self.folder, self.manifest)


@dataclass(frozen=True)
class PackedShare:
    """A finished share of a set that has no manifest yet."""

    folder: Path
    share: Share
    shards: int
    """Number of shards in this share."""
    of_shards: int


# --- 1. plan ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packing:
    """A set to be packed: shard `n` holds items `n * size` to `(n + 1) * size`."""

    folder: Path
    plan: Plan
    draft: Manifest
    """The manifest without the shards and the counts that depend on them."""
    items: Callable[[int, int], Sequence[Any]]
    """Makes items [start, stop) on demand, so that millions need not be held at once."""
    count: int
    size: int
    unit: str
    build: Callable[..., Pack]
    arguments: Callable[[bool], tuple[Any, ...]]
    """Makes the arguments of `build`, once the folder is claimed. It is told whether this process
    packs the whole set."""
    pairs: bytes | None = None
    needs: tuple[Path, ...] = ()
    preload: tuple[str, ...] = ()
    copies: bool = False
    may_be_empty: bool = False

    @property
    def num_shards(self) -> int:
        """Number of shards of the set."""
        return -(-self.count // self.size)

    def bounds(self, number: int) -> tuple[int, int]:
        """The items [start, stop) of a shard."""
        return number * self.size, min((number + 1) * self.size, self.count)


def packing_order(dataset: RawDataset, photos: Sequence[Photo]) -> npt.NDArray[np.int64]:
    """(N,) positions in the index, sorted by a hash of the photo's source: a fixed shuffle.

    Photos in blocks are sorted by window first. A window has as many blocks as a worker holds.
    """
    blocks = {block for photo in photos if (block := dataset.block(photo)) is not None}
    window_of: dict[str | None, int] = {
        block: number // dataset.blocks_at_once
        for number, block in enumerate(sorted(blocks, key=_shuffled))
    }
    keys = bytearray()  # takes an eighth of the memory of a list
    for photo in photos:
        keys += window_of.get(dataset.block(photo), 0).to_bytes(4, "big") + _shuffled(photo.source)
    return np.argsort(np.frombuffer(keys, "S20"), kind="stable")


def _shuffled(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def plan_photos(
    dataset: RawDataset,
    folder: Path,
    options: PackOptions,
    *,
    index: Index | None = None,
    only: Sequence[int] | None = None,
) -> Packing:
    """Plans the packing of a raw split. See `pack_photos`."""
    index = index or dataset.index()
    class_index = {identity: label for label, identity in enumerate(index.classes)}
    if not index.classes:
        class_index[UNLABELLED] = NO_CLASS
    boxes, boxes_digest = _face_boxes(dataset, options)
    listed_pairs = dataset.pairs() if only is None and index.classes else None
    absent = set(index.missing) if only is None else set()
    nobody = index.nobody if only is None else ()
    boxes_alone = _boxes_without_photo(index, boxes, options) if only is None else set()
    pairs: list[KeyPair] | None = None
    if listed_pairs is not None:
        pairs, unknown_photos = _key_pairs(index, listed_pairs, options.max_skipped)
        absent |= unknown_photos
    places = packing_order(dataset, index.photos)
    if only is not None:
        places = places[np.isin(places, np.asarray(only, np.int64))]
    annotated = None
    if any(photo.attributes for photo in index.photos):
        annotations = [photo.attributes for photo in index.photos]
        annotated = hashlib.sha256(encode_json(annotations)).hexdigest()
    encoded = None if pairs is None else encode_pairs(pairs)
    photos = index.photos

    def tasks(start: int, stop: int) -> list[PhotoTask]:
        mine = ((place, photos[place]) for place in places[start:stop].tolist())
        return [
            PhotoTask(place, photo, class_index[photo.identity], boxes.get(photo.source))
            for place, photo in mine
        ]

    return Packing(
        folder=folder,
        plan={
            "kind": "photos",
            "dataset": dataset.name,
            "split": dataset.split,
            "alignment": options.align.facts,
            "boxes": boxes_digest,
            "shard size": options.samples_per_shard(1),
            "photos": index.digest,
            "selection": hashlib.sha256(places.tobytes()).hexdigest(),
            "annotations": annotated,
            "version": VERSION,
            "identities": index.labels_digest if index.classes else None,
        },
        draft=Manifest(
            name=folder.name,
            kind="photos",
            dataset=dataset.name,
            split=dataset.split,
            align=options.align,
            samples=0,
            identities=0,
            classes=index.classes,
            shards=(),
            skipped=(
                *(Skipped(source, dataset.why_missing(source)) for source in sorted(absent)),
                *(Skipped(source, OF_NOBODY) for source in nobody),
                *(
                    Skipped(source, "it has a box, but is not there")
                    for source in sorted(boxes_alone)
                ),
            ),
            pairs=None if pairs is None else len(pairs),
            pairs_sha256=None if encoded is None else hashlib.sha256(encoded).hexdigest(),
        ),
        items=tasks,
        count=len(places),
        size=options.samples_per_shard(1),
        unit="photos",
        build=PhotoPacker,
        arguments=lambda _: (dataset, options.align, options.device, pairs is not None),
        pairs=encoded,
        needs=(dataset.root,),
        preload=(__name__, *(("facenet_pytorch",) if options.align.detects else ())),
        may_be_empty=only is not None,
    )


def sample_photos(dataset: RawDataset, packing: Packing, count: int) -> list[RawPhoto]:
    """The first photos in packing order, which are a fair sample of the set."""
    tasks = packing.items(0, min(count, packing.count))
    return [RawPhoto(functools.partial(dataset.read, task.photo)) for task in tasks]


def _face_boxes(dataset: RawDataset, options: PackOptions) -> tuple[dict[str, Box], str | None]:
    """The face box of each source, and a digest of all boxes. Empty and None without `boxes`.

    Raises:
        PersonaError: If there are no boxes, or their file is not valid.
    """
    if options.align.method != "boxes":
        return {}, None
    boxes = dataset.boxes() if options.boxes is None else read_boxes(options.boxes)
    if boxes is None:
        raise PersonaError(
            f"{dataset.name} has no face boxes of its own: name a CSV of them with --boxes, or "
            "choose --align mtcnn"
        )
    digest = hashlib.sha256()
    for source in sorted(boxes):
        digest.update(encode_json([source, *boxes[source]]))
    return boxes, digest.hexdigest()


def _boxes_without_photo(index: Index, boxes: dict[str, Box], options: PackOptions) -> set[str]:
    """Sources of boxes for photos that do not exist.

    A dataset's own box file covers the whole dataset. Of that file only the folders on disk count.

    Raises:
        PersonaError: If they are more than `max_skipped` of the boxes.
    """
    absent = set(boxes).difference(photo.source for photo in index.photos)
    if options.boxes is None:
        folders = {photo.source.rpartition("/")[0] for photo in index.photos}
        absent = {source for source in absent if source.rpartition("/")[0] in folders}
        absent.difference_update(index.missing, index.nobody)  # counted already
    elif len(absent) > options.max_skipped * len(boxes):
        raise PersonaError(
            f"{options.boxes}: {len(absent)} of {len(boxes)} boxes are of photos that are not "
            f"there, the first is {min(absent)}: a source is a path below the dataset's folder, "
            f"like {index.photos[0].source}. --max-skipped 1 packs what there is"
        )
    return absent


def _key_pairs(index: Index, pairs: Sequence[Pair], limit: float) -> tuple[list[KeyPair], set[str]]:
    """The pairs by key, and the sources in them that are no photo of the dataset.

    Raises:
        PersonaError: If more than `limit` of the pairs name such a photo.
    """
    named = {source for p in pairs for source in (p.a, p.b)}
    place_of = {p.source: place for place, p in enumerate(index.photos) if p.source in named}
    keyed = [KeyPair(p.fold, p.same, place_of.get(p.a), place_of.get(p.b)) for p in pairs]
    absent = named.difference(place_of)
    lost = sum(pair.a is None or pair.b is None for pair in keyed)
    if lost > limit * len(pairs):
        raise PersonaError(
            f"{lost} of {len(pairs)} pairs name photos that are not there, the first is "
            f"{min(absent)}: unpack the whole dataset, or mend its list of pairs"
        )
    return keyed, absent


def plan_triplets(
    dataset: RawDataset, set_id: str, shards: Path, options: PackOptions, folder: Path | None = None
) -> Packing:
    """Plans the packing of a triplet set. See `pack_triplets`."""
    card, indices = load_triplets(set_id, shards)
    if (card.dataset, card.split) != (dataset.spec, dataset.split):
        raise PersonaError(
            f"{set_id} was drawn from {card.dataset} ({card.split}), not from {dataset.spec} "
            f"({dataset.split}): run `{card.packing_command}`"
        )
    index = dataset.index()
    check_index(card, index)
    folder = folder or shards / set_id
    _, boxes_digest = _face_boxes(dataset, options)

    def crops(alone: bool) -> tuple[FaceSet]:
        split = _packed_split(dataset, shards, options.align, index, boxes_digest)
        if split is None and not alone:  # otherwise each machine would align all the photos
            first = command_line("shard", card.dataset, "--split", card.split)
            raise PersonaError(
                f"triplets are copied from the packed split: run `{first}` with the same alignment "
                "first"
            )
        only = np.unique(indices).tolist()
        found = split or pack_photos(dataset, folder / CROPS, options, index=index, only=only)
        return (FaceSet(checked(found.folder), found.manifest),)

    return Packing(
        folder=folder,
        plan={
            "kind": "triplets",
            "dataset": dataset.name,
            "split": dataset.split,
            "alignment": options.align.facts,
            "boxes": boxes_digest,
            "shard size": options.samples_per_shard(len(ROLES)),
            "photos": card.index_sha256,
            "triplets": card.indices_sha256,
            "version": VERSION,
            "identities": index.labels_digest,
        },
        draft=Manifest(
            name=folder.name,
            kind="triplets",
            dataset=dataset.name,
            split=dataset.split,
            align=options.align,
            samples=0,
            identities=0,
            classes=index.classes,
            shards=(),
        ),
        items=lambda start, stop: list(enumerate(indices[start:stop].tolist(), start)),
        count=len(indices),
        size=options.samples_per_shard(len(ROLES)),
        unit="triplets",
        build=TripletCopier,
        arguments=crops,
        copies=True,
    )


def _packed_split(
    dataset: RawDataset, shards: Path, align: AlignSpec, index: Index, boxes_digest: str | None
) -> Packed | None:
    """The split's own packed set, if it exists and has these crops."""
    folder = shards / dataset.set_name
    if not ((folder / MANIFEST).is_file() and (folder / PLAN).is_file()):
        return None
    earlier = read_plan(folder)
    labels = earlier.get("identities", index.labels_digest)  # older plans do not have them
    found = (earlier.get("photos"), earlier.get("boxes"), labels)
    if found != (index.digest, boxes_digest, index.labels_digest):
        return None
    manifest = open_set(dataset.set_name, shards).manifest
    if (manifest.align, manifest.classes) != (align, index.classes):
        return None
    return Packed(folder, manifest, fresh=False)


# --- 2. make ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class PhotoTask:
    """One photo to align.

    `place` is its place in the index, which is its key. `label` is its class index, or NO_CLASS if
    it has no identity. `box` is its face box, or None if that is not known.
    """

    place: int
    photo: Photo
    label: int
    box: Box | None = None


class PhotoPacker:
    """Aligns chunks of photos. Each worker builds one."""

    def __init__(
        self,
        dataset: RawDataset,
        spec: AlignSpec,
        device: str = "auto",
        keep_faceless: bool = False,
    ) -> None:
        """With `keep_faceless`, a photo without a face becomes a centre crop for evaluation."""
        self.dataset = dataset
        self.spec = spec
        self.keep_faceless = keep_faceless
        self.align = build_aligner(spec, device)

    def __call__(self, tasks: Sequence[PhotoTask]) -> Chunk:
        """Aligns photos and packs each as the tar bytes of its sample."""
        data: list[bytes] = []
        labels: set[int] = set()
        skipped = []
        mended = []
        no_face = []
        photos = (self._photo(task) for task in tasks)
        for task, crop in zip(tasks, _counted(self.align(photos)), strict=True):
            faceless = isinstance(crop, NoFace) and self.keep_faceless
            kept = self._centre(task) if faceless else crop
            if isinstance(kept, SkipPhoto):
                skipped.append(Skipped(task.photo.source, str(kept)))
                continue
            data.append(pack_crop(task, kept, no_face=faceless))
            if faceless:
                no_face.append(task.place)
            if kept.mended is not None:
                mended.append(Mended(task.photo.source, kept.mended))
            if task.label != NO_CLASS:
                labels.add(task.label)
        return Chunk(
            b"".join(data),
            len(data),
            tuple(sorted(labels)),
            tuple(skipped),
            tuple(no_face),
            tuple(mended),
        )

    def _centre(self, task: PhotoTask) -> Crop | SkipPhoto:
        """The centre crop, or why there is none. A photo without a box has not been read yet."""
        try:
            return centre_photo(self._photo(task), self.spec)
        except SkipPhoto as reason:
            return reason

    def _photo(self, task: PhotoTask) -> RawPhoto:
        return RawPhoto(functools.partial(self._read, task.photo), task.box)

    def _read(self, photo: Photo) -> bytes:
        try:
            return self.dataset.read(photo)
        except OSError as error:
            root = self.dataset.root
            if error.errno in OUT_OF_REACH or not os.path.exists(root):  # noqa: PTH110 - never raises
                raise PersonaError(
                    f"{root} cannot be read ({error.strerror}): see that its disk is there and run "
                    "the command again; it goes on where it was"
                ) from None
            raise SkipPhoto(f"unreadable: {error.strerror}") from None


def _counted(crops: Iterable[Crop | SkipPhoto]) -> Iterator[Crop | SkipPhoto]:
    """Passes crops on and reports each as done, unless the detector has already reported it."""
    with told_in_all() as done:
        for number, crop in enumerate(crops, start=1):
            done(number)
            yield crop


def pack_crop(task: PhotoTask, crop: Crop, *, no_face: bool = False) -> bytes:
    """The tar bytes of a crop and its metadata."""
    face, points = crop.face, crop.landmarks_62
    probability = None if face is None else face.probability
    meta = {
        "key": key_of(task.place),
        "identity": task.photo.identity or None,
        "class": task.label,
        "source": task.photo.source,
        "box": None if face is None else [round(edge, 2) for edge in face.box],
        "probability": None if probability is None else round(probability, 6),
        "landmarks": None if points is None else points.round(4).tolist(),
        **({"no_face": True} if no_face else {}),
        **({"attributes": dict(task.photo.attributes)} if task.photo.attributes else {}),
    }
    return tar_sample(key_of(task.place), {"jpg": crop.jpeg, "json": encode_json(meta)})


class TripletCopier:
    """Copies crops from a packed set into triplet samples. Each worker builds one."""

    def __init__(self, faces: FaceSet) -> None:
        self.shards = [open_faces(faces, n) for n in range(len(faces.manifest.shards))]
        counts = [len(shard.keys) for shard in self.shards]
        keys = np.concatenate([shard.numbers() for shard in self.shards])
        order = np.argsort(keys, kind="stable")
        self.keys = keys[order]
        """Places in the index of the photos that have a crop, sorted."""
        self.shard = np.repeat(np.arange(len(counts), dtype=np.int32), counts)[order]
        self.row = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])[order]

    def __call__(self, numbered: Sequence[tuple[int, list[int]]]) -> Chunk:
        """Packs each `(number, three places)` as the tar bytes of a sample."""
        data: list[bytes] = []
        labels: set[int] = set()
        skipped = []
        for number, places in numbered:
            found = np.searchsorted(self.keys, places).tolist()
            lost = [
                role
                for role, place, at in zip(ROLES, places, found, strict=True)
                if at == len(self.keys) or self.keys[at] != place
            ]
            if lost:
                skipped.append(Skipped(f"triplet {number}", f"no crop of its {' and '.join(lost)}"))
                continue
            key = key_of(number)
            parts: dict[str, bytes] = {}
            metas = {"key": encode_json(key)}
            for role, at in zip(ROLES, found, strict=True):
                parts[f"{role}.jpg"], metas[role], label = self._crop(at)
                labels.add(label)
            # A crop's JSON is copied as it is, because it is canonical already.
            meta = b",".join(b'"%s":%s' % (k.encode(), metas[k]) for k in sorted(metas))
            data.append(tar_sample(key, {**parts, "json": b"{%s}" % meta}))
        tell_done(len(numbered))
        return Chunk(b"".join(data), len(data), tuple(sorted(labels)), tuple(skipped))

    def _crop(self, at: int) -> tuple[bytes, bytes, int]:
        """A crop's JPEG, JSON and class index."""
        shard = self.shards[self.shard[at]]
        jpeg, meta = shard.read_one(self.row[at])
        try:
            return bytes(jpeg), bytes(meta), int(orjson.loads(meta)["class"])
        except (KeyError, TypeError, ValueError) as error:
            raise shard.damaged(self.row[at], type(error).__name__) from None


# --- 3. pack ---------------------------------------------------------------------------------


def pack_photos(
    dataset: RawDataset,
    folder: Path,
    options: PackOptions,
    *,
    index: Index | None = None,
    only: Sequence[int] | None = None,
) -> Packed:
    """Aligns and packs a raw split into `folder`. Run it again to continue after an interruption.

    Args:
        dataset: An opened raw dataset.
        folder: Folder of the set. Its name becomes the name of the set.
        options: Alignment, shard size, workers, engine.
        index: The dataset's index, if the caller has it.
        only: Places in the index of the photos to pack. None packs all photos. With a selection the
            pairs are left out.

    Raises:
        PersonaError: If there is nothing to pack, too many photos are skipped, or the folder holds
            something else.
    """
    return pack_set(plan_photos(dataset, folder, options, index=index, only=only), options)


def pack_triplets(dataset: RawDataset, set_id: str, shards: Path, options: PackOptions) -> Packed:
    """Packs triplet set `set_id`: anchor, positive and negative in one sample.

    The crops are copied from the packed split if it exists with the same alignment. Otherwise each
    photo that the triplets name is first aligned once.

    Raises:
        PersonaError: If the ID is unknown, the triplets are of another dataset, or the raw photos
            have changed.
    """
    return pack_set(plan_triplets(dataset, set_id, shards, options), options)


def pack_set(packing: Packing, options: PackOptions) -> Packed:
    """Packs the shards that do not exist yet, and merges."""
    folder = packing.folder
    with folder_lock(folder, doing="packing into"):
        finished = _claim(packing, share=None)
        alone = options.engine == "local"
        if finished is not None:
            _restore(packing, options, finished, alone=alone)
            packed = Packed(folder, finished, fresh=False)
        else:
            _run(packing, options, range(packing.num_shards), alone=alone)
            packed = merge_set(folder, may_be_empty=packing.may_be_empty)
    shutil.rmtree(folder / CROPS, ignore_errors=True)
    return packed


def pack_share(packing: Packing, options: PackOptions, share: Share) -> PackedShare:
    """Packs one share of a set, independently of the others. `merge_set` makes the set of them.

    Raises:
        PersonaError: As in `pack_photos`, and if the split of a triplet set is not packed.
    """
    mine = share.of_shards(packing.num_shards)
    if _claim(packing, share) is None:  # otherwise the set is merged already
        _run(packing, options, mine, alone=False)
    return PackedShare(packing.folder, share, len(mine), packing.num_shards)


def _claim(packing: Packing, share: Share | None) -> Manifest | None:
    """Claims the folder for this plan. Returns the manifest if the same plan has finished in it.

    Raises:
        PersonaError: If it holds a set of another plan, or unrelated files.
    """
    folder, plan = packing.folder, packing.plan
    # Listed before the plan is read, because another task may write the plan in between.
    others = sorted(path.name for path in (*folder.glob("[0-9]*.tar"), *folder.glob(PAIRS)))
    if (folder / PLAN).is_file():
        earlier = read_plan(folder)
        differs = differing(earlier, plan)
        if not differs and "identities" not in earlier:  # the list of them is known at least
            known = _classes_in(folder)
            differs = "" if known in {None, packing.draft.classes} else "identities"
        if differs:
            raise _other_set(folder, differs)
        if (folder / MANIFEST).is_file():
            finished = read_manifest(folder)
            if finished.pairs_sha256 != packing.draft.pairs_sha256:
                raise _other_set(folder, "its verification pairs")
            return finished
    elif (folder / MANIFEST).is_file():
        raise PersonaError(
            f"{folder} holds a set from elsewhere: remove that folder or name another with --out"
        )
    elif others:
        raise PersonaError(
            f"{folder} has {others[0]}, which is of no set packed here and would be written over: "
            "name another folder with --out"
        )
    else:
        write_json(folder / PLAN, plan)
    draft = {
        "manifest": packing.draft,
        "shards": packing.num_shards,
        "tasks": share.of if share else None,
    }
    if packing.pairs is not None:
        write_atomically(folder / PAIRS, packing.pairs)
    write_json(folder / DRAFT, draft)
    return None


def _other_set(folder: Path, differs: str) -> PersonaError:
    return PersonaError(
        f"{folder} holds a set that differs in {differs}: "
        "remove that folder or name another one with --out"
    )


def _classes_in(folder: Path) -> tuple[str, ...] | None:
    """The identities of a set, finished or not. None if it was killed before it named them."""
    if (folder / MANIFEST).is_file():
        return read_manifest(folder).classes
    return _read_draft(folder)[0].classes if (folder / DRAFT).is_file() else None


def _read_draft(folder: Path) -> tuple[Manifest, int, int | None]:
    """The manifest of an unfinished set without its shards, their number, and that of the tasks."""
    draft = read_json(folder / DRAFT, what="unfinished set", limit=LARGEST_LIST)
    manifest = parse_manifest(draft["manifest"], folder / DRAFT)
    return manifest, draft["shards"], draft["tasks"]


def _restore(packing: Packing, options: PackOptions, manifest: Manifest, *, alone: bool) -> None:
    """Packs the lost shards of a finished set again.

    Raises:
        PersonaError: If a shard's bytes differ from the manifest.
    """
    folder = packing.folder
    if packing.pairs is not None:
        write_atomically(folder / PAIRS, packing.pairs)
    lost = [
        number
        for number, shard in enumerate(manifest.shards)
        if _size(folder / shard.name) != shard.bytes
    ]
    if not lost:
        return
    log.info("packing %d lost shards of %s again", len(lost), folder)
    _run(packing, options, lost, alone=alone)
    records = [read_record(folder, number) for number in lost]
    clear_journals(folder, len(manifest.shards))
    changed = [
        folder / manifest.shards[number].name
        for number, record in zip(lost, records, strict=True)
        if record is None or record.shard != manifest.shards[number]
    ]
    for path in changed:
        path.unlink(missing_ok=True)
    if changed:
        raise PersonaError(
            f"{changed[0]} is not what it was: photos, versions or devices have changed; remove "
            "its folder and pack the set again"
        )


def _size(path: Path) -> int | None:
    """Size of a file in bytes. None if it does not exist."""
    return path.stat().st_size if path.is_file() else None


def _run(packing: Packing, options: PackOptions, mine: Sequence[int], *, alone: bool) -> None:
    """Runs every shard of `mine` that does not exist yet.

    Raises:
        PersonaError: If too many photos are skipped.
    """
    todo = []
    total = done = skipped = 0
    for number in mine:
        start, stop = packing.bounds(number)
        total += stop - start
        record = read_record(packing.folder, number)
        if record is not None and not differing(record.plan, packing.plan):
            done += stop - start
            skipped += len(record.skipped) + len(record.shard.no_face)
        else:
            todo.append(number)
    if done:
        log.info("going on after %d of %d %s", done, total, packing.unit)
    if not todo:
        return
    job = Job(
        folder=packing.folder,
        plan=packing.plan,
        build=packing.build,
        arguments=packing.arguments(alone),
        chunk=CHUNK,
        needs=(packing.folder / PLAN, *packing.needs),
        preload=packing.preload,
        copies=packing.copies,
    )
    tasks = (ShardTask(number, packing.items(*packing.bounds(number))) for number in todo)
    title = f"packing {packing.folder.name}"
    with progress_bar(title, total=total, unit=packing.unit, done=done) as advance:
        for result in options.build_engine()(job, tasks, advance):
            new = len(result.skipped) + result.no_face
            skipped += new
            if new and skipped > max(SKIPS_ALWAYS_ALLOWED, options.max_skipped * total):
                # The photos are mostly not faces: stopping now saves hours.
                last = result.skipped[-1] if result.skipped else None
                which = (
                    f"the last is {last.source} ({last.reason})" if last else "they show no face"
                )
                raise PersonaError(
                    f"{skipped} photos were skipped, more than {options.max_skipped:.0%} of "
                    f"{total}; {which}: is this the right --align? --max-skipped 1 packs what "
                    "there is"
                )


# --- 4. merge --------------------------------------------------------------------------------


def merge_set(folder: Path, *, may_be_empty: bool = False) -> Packed:
    """Writes the manifest of a folder in which all shards exist.

    Raises:
        PersonaError: If there is nothing to merge, shards are missing or of another plan, or no
            photo could be packed.
    """
    if (folder / MANIFEST).is_file():
        return Packed(folder, read_manifest(folder), fresh=False)
    manifest, num_shards, tasks = _read_draft(folder)
    shards = _whole(folder, read_plan(folder), num_shards, tasks)
    samples = sum(record.shard.samples for record in shards)
    skipped = [photo for record in shards for photo in record.skipped]
    if not samples and not may_be_empty:
        raise PersonaError(
            f"{manifest.dataset} ({manifest.split}): none of {len(skipped)} {manifest.kind} could "
            f"be packed; the first, {skipped[0].source}, was skipped because: {skipped[0].reason}; "
            f"mend what they have in common, remove {folder} and run again"
        )
    mended = sorted(photo for record in shards for photo in record.mended)
    if manifest.kind == "photos":
        skipped = sorted((*skipped, *manifest.skipped), key=lambda photo: photo.source)
    manifest = replace(
        manifest,
        name=folder.name,
        samples=samples,
        identities=len({label for record in shards for label in record.identities}),
        shards=tuple(record.shard for record in shards),
        skipped=tuple(skipped),
        mended=tuple(mended),
    )
    write_manifest(folder, manifest)
    (folder / DRAFT).unlink(missing_ok=True)  # a concurrent merge may have removed it
    clear_journals(folder, len(shards))
    return Packed(folder, manifest, fresh=True)


def find_unmerged(name: str, shards: Path) -> Path:
    """Finds the folder of an unmerged set by name, folder or dataset (its default split).

    Raises:
        PersonaError: If there is none.
    """
    dataset = DATASETS.get(name.lower())
    names = [name] if dataset is None else [name, f"{name.lower()}-{dataset.splits[0]}"]
    for folder in (Path(name), *(shards / each for each in names)):
        if (folder / PLAN).is_file():
            return folder
    known = sorted(path.parent.name for path in shards.glob(f"*/{DRAFT}"))
    raise unknown("unmerged set", name, known, where=str(shards))


def _whole(folder: Path, plan: Plan, num_shards: int, tasks: int | None) -> list[Record]:
    """The records of all shards, in order.

    Raises:
        PersonaError: If some are missing or of another plan. The message says what to run.
    """
    records = []
    missing: list[int] = []
    for number, record in iter_records(folder, num_shards):
        if record is None:
            missing.append(number)
        elif differs := differing(record.plan, plan):
            raise PersonaError(
                f"{folder / shard_name(number)} differs from the set in {differs}: "
                f"remove it and run {_command([number], tasks)} again"
            )
        else:
            records.append(record)
    if missing:
        named = ", ".join(map(shard_name, missing[:NAMED])) + (", …" if missing[NAMED:] else "")
        raise PersonaError(
            f"{folder} lacks {len(missing)} of {num_shards} shards ({named}): run "
            f"{_command(missing, tasks)} again, then merge"
        )
    return records


def _command(shards: Sequence[int], tasks: int | None) -> str:
    """The command that makes these shards, for an error message."""
    if tasks is None:
        return "the same `persona shard`"
    shares = sorted({number % tasks + 1 for number in shards})
    named = ", ".join(f"{share}/{tasks}" for share in shares[:NAMED])
    return f"`persona shard` with --task {named}" + (", …" if shares[NAMED:] else "")
