"""Shards to batches, per rank and worker.

1. order: shards are shuffled by (seed, epoch), alike on all ranks
2. cut: the samples, strung together in that order, are cut into one equal span a rank, so that any
   number of ranks has its share of any number of shards; what does not fill equal batches is
   dropped in training and counted
3. windows: a rank's span is cut into windows of about SHUFFLE_BUFFER samples, of whole batches,
   each shuffled by (seed, epoch, rank, window)
4. fetch: a window's shards are opened, and of a remote set brought here, the next one ahead of time
5. read: each worker reads the samples of its own batches where they lie in the tars
6. draw: each photo's view; with kept targets one of the kept views and the teacher's vector of it
7. decode: JPEG to uint8, straight into the batch

A batch is a function of (seed, epoch, rank, world size, batch size) and nothing else: workers take
the batches in turns, however many they are, and a resumed epoch begins with any batch. It stays
uint8 until it is on the device, where views are applied (persona.data.transforms).

Shapes: B batch, R roles (1 for photos, 3 for triplets), C channel, H W pixels, V numbers of a view,
E embedding.
"""

from __future__ import annotations

import contextlib
import copy
import math
import multiprocessing
import os
import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import simplejpeg
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from persona.config import AugmentConfig
from persona.data.align.jpeg import check_crop
from persona.data.shards import NO_CLASS, Manifest, key_of
from persona.data.storage import SetFolder, drop_file, is_remote
from persona.data.targets import (
    Features,
    TargetReader,
    Targets,
    drop_targets,
    photos_of,
    target_paths,
)
from persona.data.tars import ShardReader, damaged
from persona.data.transforms import IDENTITY, Views, draw_views, mix_seeds
from persona.data.triplets import ROLES
from persona.errors import PersonaError
from persona.workers import no_interrupts

SHUFFLE_BUFFER = 10_000
"""Samples of a window. A worker holds their places, not their bytes."""
SLABS = 4
"""Batches of photos a worker that may be on their way or looked at before new memory is taken."""
ALIGNMENT, ASIDE = 32, 16
"""libjpeg-turbo writes rows at multiples of 32 bytes past the cache, which takes a fifteenth longer
to decode: photos begin 16 bytes beside."""
NO_LANDMARKS = [[math.nan, math.nan]] * 6


class Batch(NamedTuple):
    """Samples on their way to the device."""

    images: Tensor
    """(B * R, 3, H, W) uint8 RGB, channels last in memory; a triplet's three photos in a row."""
    labels: Tensor
    """(B * R,) int64 class indices."""
    keys: Tensor
    """(B,) int64 sample keys."""
    landmarks: Tensor
    """(B * R, 6, 2) float32 points and scale (persona/landmarks.py); NaN where there are none."""
    views: Tensor
    """(B * R, V) float32: what is to be done to each photo."""
    targets: Tensor | None
    """(B * R, E) float16: the teacher's vectors of these views, where they are kept."""


class Decoded(NamedTuple):
    """A batch as its worker gives it away: arrays, because tensors would each go by a file."""

    photos: int | Tensor
    """The slab that holds them, or where none was free (B * R, H, W, 3)."""
    labels: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]
    landmarks: npt.NDArray[np.float32]
    views: Views
    targets: Features | None


@dataclass(frozen=True)
class Failure:
    """A worker's error as a value: raised, it would arrive wrapped in the worker's trace."""

    message: str


def shard_order(num_shards: int, *, seed: int, epoch: int) -> list[int]:
    """The epoch's order of shards, the same on every rank."""
    rng = np.random.default_rng([seed, epoch])
    return [int(number) for number in rng.permutation(num_shards)]


@dataclass(frozen=True)
class EpochPlan:
    """Who reads what in one epoch."""

    counts: tuple[tuple[int, int], ...]
    """(shard, samples) in the epoch's order."""
    batch_size: int
    rank: int
    world_size: int
    training: bool
    multiple: int = 1
    """In training, batches a rank come in multiples of this (gradient accumulation)."""

    @cached_property
    def samples(self) -> int:
        """Samples in the set."""
        return sum(samples for _, samples in self.counts)

    @cached_property
    def batches(self) -> int:
        """Batches of this rank; in training the same on all."""
        if self.training:
            step = self.world_size * self.batch_size * self.multiple
            return self.samples // step * self.multiple
        start, stop = self.rank_range()
        return -(-(stop - start) // self.batch_size)

    @property
    def dropped(self) -> int:
        """Samples that no rank sees this epoch."""
        if not self.training:
            return 0
        return self.samples - self.batches * self.world_size * self.batch_size

    def rank_range(self) -> tuple[int, int]:
        """This rank's samples [start, stop) in the epoch's order."""
        if self.training:
            share = self.batches * self.batch_size
            return self.rank * share, (self.rank + 1) * share
        # Cut between batches: a batch then holds the same samples on any number of ranks, and
        # the network gives the same digits.
        whole = -(-self.samples // self.batch_size)
        first, last = (whole * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return first * self.batch_size, min(last * self.batch_size, self.samples)

    @cached_property
    def _bounds(self) -> npt.NDArray[np.int64]:
        """Where each shard begins in the epoch's order, and where the last one ends."""
        return np.cumsum([0, *(samples for _, samples in self.counts)])

    @cached_property
    def windows(self) -> int:
        """Windows of this rank: of whole batches, equal to one batch."""
        return -(-self.batches * self.batch_size // SHUFFLE_BUFFER)

    def window_of(self, batch: int) -> int:
        """The window that holds this rank's batch number `batch`."""
        return ((batch + 1) * self.windows - 1) // self.batches

    def first_batch(self, window: int) -> int:
        """The first batch of a window."""
        return window * self.batches // self.windows

    def _window_range(self, window: int) -> tuple[int, int]:
        start, stop = self.rank_range()
        first, last = (self.first_batch(number) for number in (window, window + 1))
        return start + first * self.batch_size, min(start + last * self.batch_size, stop)

    def window_shards(self, window: int) -> range:
        """The shards of a window, as places in the epoch's order."""
        first, last = self._window_range(window)
        begin, end = np.searchsorted(self._bounds, (first, last - 1), side="right") - 1
        return range(int(begin), int(end) + 1)

    def window_samples(self, window: int, *seeds: int) -> npt.NDArray[np.int64]:
        """(samples, 2) shard and place in it, in the order in which they are seen."""
        flat = np.arange(*self._window_range(window))
        if self.training:
            np.random.default_rng(mix_seeds(*seeds, self.rank, window)).shuffle(flat)
        place = np.searchsorted(self._bounds, flat, side="right") - 1
        shards, samples = np.array(self.counts).T
        within = flat - self._bounds[place]
        if self.training:
            # A shard begins anywhere: the tail that is dropped, and what falls to a rank, are
            # others each epoch, also where one shard is the whole set.
            begin = np.array(
                [mix_seeds(*seeds, shard) % max(count, 1) for shard, count in self.counts]
            )
            within = (within + begin[place]) % samples[place]
        return np.stack([shards[place], within], axis=1)

    def samples_of(self, place: int) -> int:
        """How many samples of the shard at this place of the order this rank may read."""
        if self.training:
            return self.counts[place][1]
        _, stop = self.rank_range()
        return int(min(stop, self._bounds[place + 1]) - self._bounds[place])


class Window:
    """The shards of one window, opened."""

    def __init__(self, stream: ShardStream, number: int, before: Window | None) -> None:
        """Opens what `before` has not opened already."""
        plan = stream.plan
        self.number = number
        self.samples = plan.window_samples(number, *stream.seeds)
        self.first_batch = plan.first_batch(number)
        self.shards: dict[int, ShardReader] = {}
        places = list(plan.window_shards(number))
        # Workers that all walk shards for the first time begin at different ones.
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
        """(B, 2) shard and sample in it of this rank's batch number `number`."""
        start = (number - self.first_batch) * batch_size
        return self.samples[start : start + batch_size]

    def read(
        self, chosen: npt.NDArray[np.int64]
    ) -> tuple[list[list[memoryview]], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Samples' members, (B,) keys, and (B,) places in their shards, what is left out counted.

        Raises:
            PersonaError: a shard is damaged, naming it.
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


class ShardStream(IterableDataset[Any]):
    """One epoch of one rank as batches; what a DataLoader's workers iterate."""

    slabs: Slabs

    def __init__(
        self,
        folder: SetFolder,
        manifest: Manifest,
        plan: EpochPlan,
        seeds: tuple[int, int],
        skip: int,
        augment: AugmentConfig | None,
        targets: Targets | None,
    ) -> None:
        """`seeds` are (seed, epoch); `skip` batches of this rank were consumed before."""
        self.folder = folder
        self.manifest = manifest
        self.plan = plan
        self.seeds = seeds
        self.skip = skip
        self.augment = augment
        self.targets = targets

    def read_into(self, slabs: Slabs) -> ShardStream:
        """The same stream for one reading, which puts its photos there."""
        stream = copy.copy(self)
        stream.slabs = slabs
        return stream

    @property
    def worker(self) -> tuple[int, int]:
        """The number of this worker, and how many there are; (0, 1) in the process itself."""
        info = get_worker_info()
        return (info.id, info.num_workers) if info else (0, 1)

    @property
    def suffixes(self) -> list[str]:
        """Of a sample's members: photos, then what is known of them."""
        photos = photos_of(self.manifest)
        return [*(f"{role}.jpg" for role in ROLES), "json"] if photos > 1 else ["jpg", "json"]

    def __iter__(self) -> Iterator[Decoded | Failure]:
        """Yields this worker's batches; a damaged shard ends it with a Failure."""
        place, workers = self.worker
        try:
            reader = TargetReader(self.folder, self.targets) if self.targets else None
            window: Window | None = None
            ahead = threading.Thread()
            # The loader asks its workers in turns, the first one first.
            for number in range(self.skip + place, self.plan.batches, workers):
                wanted = self.plan.window_of(number)
                if window is None or window.number != wanted:
                    ahead = self._fetch_ahead(wanted)
                    window = Window(self, wanted, window)
                    if reader is not None:
                        reader.keep(window.shards)
                decoded = self._decode(window, number, reader)
                # After a window's last batch its shards are dropped: nothing may bring them again.
                if ahead.is_alive() and self.plan.window_of(number + workers) != wanted:
                    ahead.join()
                yield decoded
        except PersonaError as error:
            yield Failure(str(error))

    def left_out(self, shard: int) -> frozenset[bytes]:
        """Keys that are not read: in training, centre crops of photos without a face."""
        if not self.plan.training:
            return frozenset()
        return frozenset(key_of(key).encode() for key in self.manifest.shards[shard].no_face)

    def fetch(self, shard: int) -> Path:
        """The tar of a shard, on this machine, and beside it the targets that are read along."""
        if self.targets is not None:
            target_paths(self.folder, self.targets, shard)
        return self.manifest.shard_path(self.folder, shard)

    def drop(self, shard: int) -> None:
        """Lets go of what `fetch` brought."""
        known = self.manifest.shards[shard]
        drop_file(self.folder, known.name, known.sha256)
        if self.targets is not None:
            drop_targets(self.folder, self.targets, shard)

    def _fetch_ahead(self, window: int) -> threading.Thread:
        """Begins to fetch what follows the window; workers share the shards among themselves."""
        open_now = self.plan.window_shards(window)
        following = self.plan.window_shards(self.plan.windows - 1).stop
        place, workers = self.worker
        mine = [
            self.plan.counts[other][0]
            for other in range(open_now.start, min(open_now.stop + 1, following))
            if other % workers == place
        ]

        def fetch() -> None:
            with contextlib.suppress(PersonaError):  # said where the shard is opened
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
        reader: TargetReader | None,
    ) -> tuple[Views, Features | None]:
        """Each photo's view in batch `number`, and the teacher's vector of it where kept.

        `photos` are places in their `shards`.
        """
        if self.augment is None:
            return np.tile(IDENTITY, (len(photos), 1)), None
        seeds = (*self.seeds, self.plan.rank, number)
        views = draw_views(self.augment, len(photos), *seeds)
        if reader is None or self.targets is None:
            return views, None
        if self.augment.beyond_flip:
            rng = np.random.default_rng(mix_seeds(*seeds))
            mirrors = 0 if self.augment.flip else 1  # view 1, which a recipe may not want
            chosen = rng.integers(self.targets.views - mirrors, size=len(photos))
            chosen += mirrors * (chosen >= 1)
        else:
            chosen = views[:, 0].astype(np.int64)  # the same coins as without kept targets
        vectors, views = reader.read(shards, photos, chosen)
        return views, vectors

    def _decode(self, window: Window, number: int, reader: TargetReader | None) -> Decoded:
        chosen = window.batch(number, self.plan.batch_size)
        photos = photos_of(self.manifest)
        # One thing at a time for all of them: decoding is fastest when nothing comes between.
        members, keys_B, places_B = window.read(chosen)
        memory, images_BHWC = self.slabs.take(self.worker[0], len(chosen) * photos)
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
        return Decoded(memory, labels_B, keys_B, landmarks_B, views, targets)


NO_SHARED_MEMORY = (
    "loader processes share memory, for which /dev/shm is too small, not writable or not there: "
    "enlarge it (in Docker --shm-size=2g), or choose --workers 0"
)


class Slabs:
    """Memory for batches of photos, used again once nobody looks at it: new pages cost a zeroing,
    and between processes a mapping.

    Each worker has slabs of its own. It alone takes them, and only who reads the batches gives them
    back, so that a byte a slab is all they share.
    """

    def __init__(self, workers: int, photos: int, side: int) -> None:
        """Slabs of `photos` photos each; 0 workers: for this process alone."""
        self._shared = workers > 0
        self._memory = self._photos(max(workers, 1) * SLABS, photos, side, side, 3)
        self._busy = self._new(max(workers, 1) * SLABS).zero_()

    def _new(self, size: int) -> Tensor:
        """uint8 of any content; pages that are never touched cost nothing."""
        if not self._shared:  # numpy's is of huge pages, torch's is not
            return torch.from_numpy(np.empty(size, np.uint8))
        share: Any = torch.UntypedStorage._new_shared  # as torch's own collate does
        storage: torch.UntypedStorage = share(size, device="cpu")
        return torch.empty(0, dtype=torch.uint8).set_(storage)

    def _photos(self, *shape: int) -> Tensor:
        """Memory that is written fast."""
        size = math.prod(shape)
        memory = self._new(size + ALIGNMENT)
        start = (ASIDE - memory.data_ptr()) % ALIGNMENT
        return memory[start : start + size].view(shape)

    def take(self, worker: int, count: int) -> tuple[int | Tensor, npt.NDArray[np.uint8]]:
        """What to give away, and in it (count, side, side, 3) to fill."""
        mine = self._busy[worker * SLABS : (worker + 1) * SLABS].numpy()
        free = np.flatnonzero(mine == 0)
        if not len(free):  # the reader keeps many
            more = self._photos(count, *self._memory.shape[2:])
            return more, more.numpy()
        mine[free[0]] = 1
        slab = worker * SLABS + int(free[0])
        return slab, self._memory[slab, :count].numpy()

    def look(self, photos: int | Tensor, count: int) -> Tensor:
        """What a worker gave away, (count, side, side, 3); its slab is free when it goes."""
        if isinstance(photos, Tensor):
            return photos
        seen = self._memory[photos, :count].numpy().view()  # lives as long as any tensor of it
        weakref.finalize(seen, self._busy.numpy().__setitem__, photos, 0).atexit = False
        return torch.from_numpy(seen)


def decode_into(jpeg: bytes | memoryview, image_HWC: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Decodes a crop into (H, W, 3) uint8 RGB; ValueError if it is not of that size."""
    check_crop(jpeg)  # a set may come from a stranger
    decoded = simplejpeg.decode_jpeg(jpeg, buffer=image_HWC)  # refuses what is larger
    if decoded.shape != image_HWC.shape:
        raise ValueError("crop of another size")


def as_it_is(decoded: Any) -> Any:
    """In place of torch's collate, which would make tensors of the arrays."""
    return decoded


def step_back(_worker: int) -> None:
    """Lets the training process go first where both want a core: batches are loaded ahead."""
    with contextlib.suppress(OSError):
        os.nice(5)


class EpochLoader:
    """The batches of one epoch on this rank."""

    def __init__(self, stream: ShardStream, workers: int) -> None:
        self.plan = stream.plan
        self.remaining = max(0, stream.plan.batches - stream.skip)
        self._stream = stream
        # A worker without a batch would be started for nothing.
        self._workers = min(workers, max(1, self.remaining))

    def _start(self, slabs: Slabs) -> Iterator[Decoded | Failure]:
        stream = self._stream.read_into(slabs)
        if not self._workers:
            return iter(stream)
        # As many as the loader makes: what lacks room for them leaves no half of a loader here.
        tried: list[Any] = [multiprocessing.Queue() for _ in range(self._workers + 1)]
        for queue in tried:
            queue.close()
        # Ctrl-C is this process's to handle, also before a worker is ready to be asked to end.
        with no_interrupts(), warnings.catch_warnings():
            # How many processes a machine bears is the user's to say.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            return iter(
                DataLoader(
                    stream,
                    batch_size=None,  # the stream yields batches
                    num_workers=self._workers,
                    prefetch_factor=2,
                    worker_init_fn=step_back,
                    collate_fn=as_it_is,
                    # Its own: starting workers must not move the global one.
                    generator=torch.Generator(),
                )
            )

    def __len__(self) -> int:
        """Batches still to come, on this rank."""
        return self.remaining

    def __iter__(self) -> Iterator[Batch]:
        """Yields batches.

        Raises:
            PersonaError: a shard is damaged, naming it, or a worker process was killed.
        """
        stream = self._stream
        photos = self.plan.batch_size * photos_of(stream.manifest)
        try:
            with _shared_memory():
                # Of this reading alone: what an earlier one left half-way may still be looked at.
                slabs = Slabs(self._workers, photos, stream.manifest.align.image_size)
                batches = self._start(slabs)
            for number, decoded in enumerate(batches, start=stream.skip):
                if isinstance(decoded, Failure):
                    raise PersonaError(decoded.message)
                images_BHWC = slabs.look(decoded.photos, len(decoded.labels))
                yield Batch(
                    # A permuted view is channels-last memory: what convolutions want, at no cost.
                    images_BHWC.permute(0, 3, 1, 2),
                    torch.from_numpy(decoded.labels),
                    torch.from_numpy(decoded.keys),
                    torch.from_numpy(decoded.landmarks),
                    torch.from_numpy(decoded.views),
                    None if decoded.targets is None else torch.from_numpy(decoded.targets),
                )
                del images_BHWC  # else its slab would wait for the next batch
                self._drop_after(number)
        except RuntimeError as error:
            if "shared memory" in str(error):
                raise PersonaError(NO_SHARED_MEMORY) from error
            if "DataLoader worker" in str(error):
                raise PersonaError(
                    "a loader process was killed, perhaps for memory: run again with fewer workers"
                ) from error
            raise

    def _drop_after(self, batch: int) -> None:
        """Lets go of the shards that were fetched for this batch and are not wanted any more."""
        window = self.plan.window_of(batch)
        if not is_remote(self._stream.folder) or batch + 1 != self.plan.first_batch(window + 1):
            return
        done = set(self.plan.window_shards(window))
        if window + 1 < self.plan.windows:
            done -= set(self.plan.window_shards(window + 1))
        for place in done:
            self._stream.drop(self.plan.counts[place][0])


@contextlib.contextmanager
def _shared_memory() -> Iterator[None]:
    """Makes a PersonaError of what the system says where /dev/shm lacks room, or is not there.

    torch says it of memory, which `EpochLoader` looks for, the system of the locks of its queues.
    """
    try:
        yield
    except OSError as error:
        raise PersonaError(NO_SHARED_MEMORY) from error


def to_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yields batches whose photos, labels and targets are on the device, one batch ahead.

    On CUDA the copies run on a stream of their own, beside the step that is under way; views, keys
    and landmarks stay on the CPU, where they are looked at.
    """
    if device.type != "cuda":
        yield from batches
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(batch: Batch) -> Batch:
        with torch.cuda.stream(side):
            return batch._replace(
                # Pinned here, not in a worker: its slab is free again at once.
                images=batch.images.pin_memory().to(device, non_blocking=True),
                labels=batch.labels.to(device, non_blocking=True),
                targets=None
                if batch.targets is None
                else batch.targets.to(device, non_blocking=True),
            )

    waiting: Batch | None = None
    for batch in batches:
        sent = send(batch)
        if waiting is not None:
            yield waiting
        torch.cuda.current_stream(device).wait_stream(side)
        for tensor in (sent.images, sent.labels, sent.targets):
            if tensor is not None:  # its memory is not reused before the step is done with it
                tensor.record_stream(torch.cuda.current_stream(device))
        waiting = sent
    if waiting is not None:
        yield waiting


def build_loader(
    folder: SetFolder,
    manifest: Manifest,
    *,
    batch_size: int,
    training: bool,
    seed: int = 0,
    epoch: int = 0,
    skip: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    multiple: int = 1,
    augment: AugmentConfig | None = None,
    targets: Targets | None = None,
) -> EpochLoader:
    """The batches of one epoch, from batch `skip` on.

    Args:
        folder: where the packed set lies.
        manifest: its manifest.
        batch_size: samples a batch on each rank.
        training: shuffle and drop the tail; else keep order and everything.
        seed: of the shuffling.
        epoch: its number.
        skip: batches that this rank consumed before; what only they held is not read.
        rank: this process.
        world_size: how many processes there are.
        workers: loader processes of this rank; 0 decodes in this one.
        multiple: in training, a rank's batches come in multiples of this.
        augment: how views are drawn; None: every photo as it is.
        targets: kept targets to read along, already checked against the set.

    Raises:
        PersonaError: not one batch for every rank.
    """
    if batch_size < 1:
        raise PersonaError(f"batch size {batch_size}: choose at least 1")
    if workers < 0:
        raise PersonaError(f"{workers} workers: choose 0 or more")
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
    stream = ShardStream(folder, manifest, plan, (seed, epoch), skip, augment, targets)
    return EpochLoader(stream, workers)
