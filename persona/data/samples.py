"""Shards to decoded batches, per rank and worker. No torch.

1. order: shards are shuffled by (seed, epoch), in the same way on all ranks
2. cut: the samples in that order are cut into one equal span per rank, so that any number of ranks
   can share any number of shards. In training, the samples that do not fill equal batches are
   dropped and counted
3. windows: a rank's span is cut into windows of whole batches, of about SHUFFLE_BUFFER samples.
   Each is shuffled by (seed, epoch, rank, window)
4. fetch: a window's shards are opened. Shards of a remote set are downloaded, one shard ahead
5. read: each worker reads the samples of its own batches at their positions in the tars
6. draw: a view of each photo is drawn. With kept targets it is one of the kept views, and the
   teacher's embedding of that view is read
7. decode: the JPEG is decoded to uint8, straight into the batch

A batch depends on (seed, epoch, rank, world size, batch size) alone. Any number of workers take
the batches in turns, and a resumed epoch can begin with any batch. Photos stay uint8 until they are
on the device, where the views are applied (persona.data.transforms). persona.data.stream makes
tensors of the batches, in loader processes.

Shapes: B batch, R roles (1 for photos, 3 for triplets), C channel, H W pixels, V numbers of a view,
E embedding.
"""

from __future__ import annotations

import contextlib
import copy
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt
import orjson
import simplejpeg

from persona.config import AugmentConfig
from persona.data.align.jpeg import check_crop
from persona.data.ensembles import (
    KeptTargets,
    Reader,
    drop_kept,
    fetch_targets,
    open_reader,
)
from persona.data.kept_targets import Features, photos_of
from persona.data.shards import NO_CLASS, Manifest, key_of
from persona.data.storage import SetFolder, drop_file, is_remote
from persona.data.tars import ShardReader, damaged
from persona.data.triplets import ROLES
from persona.data.views import IDENTITY, VIEW, Views, draw_views, mix_seeds
from persona.errors import PersonaError

SHUFFLE_BUFFER = 10_000
"""Samples per window. A worker holds their positions, not their bytes."""
NO_LANDMARKS = [[math.nan, math.nan]] * 6


class BatchMemory(Protocol):
    """Allocates the memory that photos are decoded into."""

    def take(self, worker: int, count: int) -> tuple[Any, npt.NDArray[np.uint8]]:
        """Returns what `DecodedBatch.photos` holds, and its (count, side, side, 3) uint8 array."""


@dataclass(frozen=True)
class NewMemory:
    """Allocates a new array for each batch."""

    side_px: int

    def take(self, worker: int, count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Returns the same (count, side, side, 3) uint8 array twice: to give away, and to fill."""
        photos = np.empty((count, self.side_px, self.side_px, 3), np.uint8)
        return photos, photos


class DecodedBatch(NamedTuple):
    """A batch as a worker sends it. It holds arrays, because each tensor would travel by a file."""

    photos: Any
    """What the memory gave away: an array (B * R, H, W, 3), or the number of a slab."""
    labels: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]
    landmarks: npt.NDArray[np.float32]
    views: Views
    targets: Features | None


@dataclass(frozen=True)
class Failure:
    """A worker's error, sent as a value. A raised error would arrive wrapped in its traceback."""

    message: str


def shard_order(num_shards: int, *, seed: int, epoch: int) -> list[int]:
    """The order of the shards in one epoch, the same on every rank."""
    rng = np.random.default_rng([seed, epoch])
    return [int(number) for number in rng.permutation(num_shards)]


@dataclass(frozen=True)
class EpochPlan:
    """Decides which rank reads which samples in one epoch, and in which batches."""

    counts: tuple[tuple[int, int], ...]
    """(shard, samples) pairs in the epoch's order."""
    batch_size: int
    rank: int
    world_size: int
    training: bool
    multiple: int = 1
    """In training, the number of batches per rank is a multiple of this (gradient accumulation)."""

    @cached_property
    def samples(self) -> int:
        """Number of samples in the set."""
        return sum(samples for _, samples in self.counts)

    @cached_property
    def batches(self) -> int:
        """Number of batches of this rank. In training it is the same on all ranks."""
        if self.training:
            step = self.world_size * self.batch_size * self.multiple
            return self.samples // step * self.multiple
        start, stop = self.rank_range()
        return -(-(stop - start) // self.batch_size)

    @property
    def dropped(self) -> int:
        """Number of samples that no rank sees this epoch."""
        if not self.training:
            return 0
        return self.samples - self.batches * self.world_size * self.batch_size

    def rank_range(self) -> tuple[int, int]:
        """The span [start, stop) of this rank's samples in the epoch's order."""
        if self.training:
            share = self.batches * self.batch_size
            return self.rank * share, (self.rank + 1) * share
        # The cut is between batches. A batch then holds the same samples on any number of ranks,
        # and the network gives bit-identical embeddings.
        whole = -(-self.samples // self.batch_size)
        first, last = (whole * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return first * self.batch_size, min(last * self.batch_size, self.samples)

    @cached_property
    def _bounds(self) -> npt.NDArray[np.int64]:
        """Start of each shard in the epoch's order, and the end of the last one."""
        return np.cumsum([0, *(samples for _, samples in self.counts)])

    @cached_property
    def windows(self) -> int:
        """Number of windows of this rank. Their sizes differ by at most one batch."""
        return -(-self.batches * self.batch_size // SHUFFLE_BUFFER)

    def window_of(self, batch: int) -> int:
        """The window that holds this rank's batch number `batch`."""
        return ((batch + 1) * self.windows - 1) // self.batches

    def first_batch(self, window: int) -> int:
        """The number of the first batch of a window."""
        return window * self.batches // self.windows

    def _window_range(self, window: int) -> tuple[int, int]:
        start, stop = self.rank_range()
        first, last = (self.first_batch(number) for number in (window, window + 1))
        return start + first * self.batch_size, min(start + last * self.batch_size, stop)

    def window_shards(self, window: int) -> range:
        """The shards of a window, as positions in the epoch's order."""
        first, last = self._window_range(window)
        begin, end = np.searchsorted(self._bounds, (first, last - 1), side="right") - 1
        return range(int(begin), int(end) + 1)

    def window_samples(self, window: int, *seeds: int) -> npt.NDArray[np.int64]:
        """(samples, 2) shard and position in it, in the order in which the samples are seen."""
        flat = np.arange(*self._window_range(window))
        if self.training:
            np.random.default_rng(mix_seeds(*seeds, self.rank, window)).shuffle(flat)
        place = np.searchsorted(self._bounds, flat, side="right") - 1
        shards, samples = np.array(self.counts).T
        within = flat - self._bounds[place]
        if self.training:
            # Each shard is read from a drawn start. Otherwise a set of one shard would drop the
            # same tail, and give each rank the same samples, in every epoch.
            begin = np.array(
                [mix_seeds(*seeds, shard) % max(count, 1) for shard, count in self.counts]
            )
            within = (within + begin[place]) % samples[place]
        return np.stack([shards[place], within], axis=1)

    def samples_of(self, place: int) -> int:
        """How many samples of the shard at position `place` of the order this rank may read."""
        if self.training:
            return self.counts[place][1]
        _, stop = self.rank_range()
        return int(min(stop, self._bounds[place + 1]) - self._bounds[place])


class Window:
    """The opened shards of one window."""

    def __init__(self, stream: ShardStream, number: int, before: Window | None) -> None:
        """Opens the shards of window `number`. Shards that `before` has open are taken over."""
        plan = stream.plan
        self.number = number
        self.samples = plan.window_samples(number, *stream.seeds)
        self.first_batch = plan.first_batch(number)
        self.shards: dict[int, ShardReader] = {}
        places = list(plan.window_shards(number))
        # Workers that all open shards for the first time begin at different ones.
        turn = stream.worker[0] % max(len(places), 1)
        for place in places[turn:] + places[:turn]:
            shard, _ = plan.counts[place]
            reader = before.shards.get(shard) if before else None
            self.shards[shard] = reader or ShardReader(
                stream.fetch(shard),
                stream.suffixes,
                plan.samples_of(place),
                stream.left_out(shard),
            )

    def batch(self, number: int, batch_size: int) -> npt.NDArray[np.int64]:
        """(B, 2) shard and position in it, for batch `number` of this rank."""
        start = (number - self.first_batch) * batch_size
        return self.samples[start : start + batch_size]

    def read(
        self, chosen: npt.NDArray[np.int64]
    ) -> tuple[list[list[memoryview]], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Reads samples: their members, (B,) keys, and (B,) positions in their shards.

        The positions count the samples that are left out.

        Raises:
            PersonaError: If a shard is damaged. The message names it.
        """
        members: list[list[memoryview]] = [[]] * len(chosen)
        keys, places = np.empty((2, len(chosen)), np.int64)
        for shard in np.unique(chosen[:, 0]).tolist():
            here = np.flatnonzero(chosen[:, 0] == shard)
            reader, rows = self.shards[shard], chosen[here, 1]
            keys[here] = reader.numbers(rows)
            places[here] = reader.places[rows]
            for place, found in zip(here.tolist(), reader.read(rows), strict=True):
                members[place] = found
        return members, keys, places


class ShardStream:
    """Iterates one epoch of one rank as decoded batches."""

    memory: BatchMemory
    worker = (0, 1)
    """(number of this worker, number of workers)."""

    def __init__(
        self,
        folder: SetFolder,
        manifest: Manifest,
        plan: EpochPlan,
        seeds: tuple[int, int],
        skip: int,
        augment: AugmentConfig | None,
        targets: KeptTargets | None,
    ) -> None:
        """`seeds` are (seed, epoch). `skip` batches of this rank were consumed before."""
        self.folder = folder
        self.manifest = manifest
        self.plan = plan
        self.seeds = seeds
        self.skip = skip
        self.augment = augment
        self.targets = targets

    def read_into(self, memory: BatchMemory) -> Self:
        """A copy of the stream for one reading, which decodes photos into `memory`."""
        stream = copy.copy(self)
        stream.memory = memory
        return stream

    @property
    def suffixes(self) -> list[str]:
        """Suffixes of a sample's members: the photos, then the JSON."""
        photos = photos_of(self.manifest)
        return [*(f"{role}.jpg" for role in ROLES), "json"] if photos > 1 else ["jpg", "json"]

    def __iter__(self) -> Iterator[DecodedBatch | Failure]:
        """Yields this worker's batches. A damaged shard ends it with a Failure."""
        place, workers = self.worker
        try:
            reader = open_reader(self.folder, self.targets) if self.targets else None
            window: Window | None = None
            ahead = threading.Thread()
            # The loader asks its workers in turns, beginning with the first.
            for number in range(self.skip + place, self.plan.batches, workers):
                wanted = self.plan.window_of(number)
                if window is None or window.number != wanted:
                    ahead = self._fetch_ahead(wanted)
                    window = Window(self, wanted, window)
                    if reader is not None:
                        reader.keep(window.shards)
                decoded = self._decode(window, number, reader)
                # After its last batch a window's shards are dropped, and a late fetch would
                # bring them back.
                if ahead.is_alive() and self.plan.window_of(number + workers) != wanted:
                    ahead.join()
                yield decoded
        except PersonaError as error:
            yield Failure(str(error))

    def left_out(self, shard: int) -> frozenset[bytes]:
        """Keys that are not read: in training, those of centre crops without a face."""
        if not self.plan.training:
            return frozenset()
        return frozenset(key_of(key).encode() for key in self.manifest.shards[shard].no_face)

    def fetch(self, shard: int) -> Path:
        """Makes a shard's tar and its targets local if they are remote. Returns the tar's path."""
        if self.targets is not None:
            fetch_targets(self.folder, self.targets, shard)
        return self.manifest.shard_path(self.folder, shard)

    def drop(self, shard: int) -> None:
        """Deletes the local copies that `fetch` made, unless a cache keeps them."""
        known = self.manifest.shards[shard]
        drop_file(self.folder, known.name, known.sha256)
        if self.targets is not None:
            drop_kept(self.folder, self.targets, shard)

    def drop_after(self, batch: int) -> None:
        """Deletes the local copies of shards that no batch after this one needs."""
        window = self.plan.window_of(batch)
        if not is_remote(self.folder) or batch + 1 != self.plan.first_batch(window + 1):
            return
        done = set(self.plan.window_shards(window))
        if window + 1 < self.plan.windows:
            done -= set(self.plan.window_shards(window + 1))
        for place in done:
            self.drop(self.plan.counts[place][0])

    def _fetch_ahead(self, window: int) -> threading.Thread:
        """Fetches what follows the window, in a thread. Workers share the shards among them."""
        open_now = self.plan.window_shards(window)
        following = self.plan.window_shards(self.plan.windows - 1).stop
        place, workers = self.worker
        mine = [
            self.plan.counts[other][0]
            for other in range(open_now.start, min(open_now.stop + 1, following))
            if other % workers == place
        ]

        def fetch() -> None:
            with contextlib.suppress(PersonaError):  # reported when the shard is opened
                for shard in mine:
                    self.fetch(shard)

        thread = threading.Thread(target=fetch, daemon=True)
        if is_remote(self.folder):
            thread.start()
        return thread

    def _views(
        self,
        shards: npt.NDArray[np.int64],
        photos: npt.NDArray[np.int64],
        number: int,
        reader: Reader | None,
    ) -> tuple[Views, Features | None]:
        """Each photo's view in batch `number`, and the teacher's embedding of it if it is kept.

        `photos` are positions in their `shards`.
        """
        if self.augment is None:
            return np.tile(IDENTITY, (len(photos), 1)), None
        seeds = (*self.seeds, self.plan.rank, number)
        views = draw_views(self.augment, len(photos), *seeds)
        if reader is None or self.targets is None:
            return views, None
        if self.augment.beyond_flip:
            rng = np.random.default_rng(mix_seeds(*seeds))
            mirrors = 0 if self.augment.options["flip"] else 1  # view 1 is the mirror image
            chosen = rng.integers(self.targets.views - mirrors, size=len(photos))
            chosen += mirrors * (chosen >= 1)
        else:
            # The same coin flips as without kept targets.
            chosen = views[:, VIEW.index("flip")].astype(np.int64)
        vectors, views = reader.read(shards, photos, chosen)
        return views, vectors

    def _decode(self, window: Window, number: int, reader: Reader | None) -> DecodedBatch:
        chosen = window.batch(number, self.plan.batch_size)
        photos = photos_of(self.manifest)
        # Each stage runs over the whole batch: decoding is fastest when nothing comes between.
        members, keys_B, places_B = window.read(chosen)
        photos_memory, images_BHWC = self.memory.take(self.worker[0], len(chosen) * photos)
        labels: list[int] = []
        landmarks: list[Any] = []
        jpegs: list[memoryview] = []
        sample = 0
        try:
            for sample, (*found, text) in enumerate(members):  # noqa: B007 - the error names it
                meta = orjson.loads(text)
                for photo in [meta[role] for role in ROLES] if photos > 1 else (meta,):
                    labels.append(int(photo["class"]))
                    landmarks.append(photo["landmarks"] or NO_LANDMARKS)
                jpegs += found
            labels_B = np.array(labels, dtype=np.int64)
            landmarks_B = np.array(landmarks, dtype=np.float32).reshape(-1, 6, 2)
            for place, image_HWC in enumerate(images_BHWC):
                sample = place // photos
                decode_into(jpegs[place], image_HWC)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            shard, row = chosen[sample].tolist()
            raise window.shards[shard].damaged(row, type(error).__name__) from None
        count = len(self.manifest.classes)
        low, high = (0, count - 1) if count else (NO_CLASS, NO_CLASS)
        if labels_B.min() < low or labels_B.max() > high:
            where = window.shards[int(chosen[0, 0])].path
            raise damaged(where, "a class index outside the manifest's list")
        photos_B = (places_B[:, None] * photos + np.arange(photos)).reshape(-1)
        shards_B = chosen[:, 0].repeat(photos)
        views, targets = self._views(shards_B, photos_B, number, reader)
        return DecodedBatch(photos_memory, labels_B, keys_B, landmarks_B, views, targets)


def decode_into(jpeg: bytes | memoryview, image_HWC: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Decodes a JPEG crop into `image_HWC`, (H, W, 3) uint8 RGB.

    Raises:
        ValueError: If the crop has another size.
    """
    check_crop(jpeg)  # the file is not trusted
    decoded = simplejpeg.decode_jpeg(jpeg, buffer=image_HWC)  # refuses a larger crop
    if decoded.shape != image_HWC.shape:
        raise ValueError("crop of another size")


def plan_epoch(
    manifest: Manifest,
    *,
    batch_size: int,
    training: bool = False,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    multiple: int = 1,
) -> EpochPlan:
    """Plans one epoch. The options are those of `persona.data.stream.build_loader`.

    Raises:
        PersonaError: If the batch size is below 1, or there is not one batch for every rank.
    """
    if batch_size < 1:
        raise PersonaError(f"batch size {batch_size}: choose at least 1")
    numbers = list(range(len(manifest.shards)))
    order = shard_order(len(numbers), seed=seed, epoch=epoch) if training else numbers
    counts = tuple(
        (number, manifest.shards[number].samples - training * len(manifest.shards[number].no_face))
        for number in order
    )
    plan = EpochPlan(counts, batch_size, rank, world_size, training, multiple)
    if training and not plan.batches:
        raise PersonaError(
            f"set {manifest.name} has {plan.samples} samples, fewer than one step's "
            f"{batch_size} on each of {world_size} processes"
            + (f" times {multiple} accumulated" if multiple > 1 else "")
            + ": choose a smaller --batch-size"
        )
    return plan


def read_batches(
    folder: SetFolder, manifest: Manifest, *, batch_size: int, rank: int = 0, world_size: int = 1
) -> Iterator[DecodedBatch]:
    """Yields the batches of a set in order, without augmentation. `DecodedBatch.photos` are arrays.

    Raises:
        PersonaError: If a shard is damaged. The message names it.
    """
    plan = plan_epoch(manifest, batch_size=batch_size, rank=rank, world_size=world_size)
    stream = ShardStream(folder, manifest, plan, (0, 0), 0, None, None)
    for number, decoded in enumerate(stream.read_into(NewMemory(manifest.align.image_size))):
        if isinstance(decoded, Failure):
            raise PersonaError(decoded.message)
        yield decoded
        stream.drop_after(number)
