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
import json
import math
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
import simplejpeg
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from persona.config import AugmentConfig
from persona.data.shards import Manifest, key_of
from persona.data.storage import SetFolder, drop_file, is_remote
from persona.data.targets import (
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

SHUFFLE_BUFFER = 10_000
"""Samples of a window. A worker holds their places, not their bytes."""


decode_json = json.JSONDecoder().raw_decode


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

    @property
    def samples(self) -> int:
        """Samples in the set."""
        return sum(samples for _, samples in self.counts)

    @property
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

    @property
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
        for place in plan.window_shards(number):
            shard, _ = plan.counts[place]
            reader = before.shards.get(shard) if before else None
            self.shards[shard] = reader or ShardReader(
                stream.fetch(shard),
                stream.suffixes,
                plan.samples_of(place),
                stream.left_out(shard),
            )

    def batch(self, number: int, batch_size: int) -> npt.NDArray[np.int64]:
        """(B, 2) shard and place in it of this rank's batch number `number`."""
        start = (number - self.first_batch) * batch_size
        return self.samples[start : start + batch_size]


class ShardStream(IterableDataset[Any]):
    """One epoch of one rank as batches; what a DataLoader's workers iterate."""

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

    @property
    def suffixes(self) -> list[str]:
        """Of a sample's members: photos, then what is known of them."""
        photos = photos_of(self.manifest)
        return [*(f"{role}.jpg" for role in ROLES), "json"] if photos > 1 else ["jpg", "json"]

    def __iter__(self) -> Iterator[Batch | Failure]:
        """Yields this worker's batches; a damaged shard ends it with a Failure."""
        info = get_worker_info()
        place, workers = (info.id, info.num_workers) if info else (0, 1)
        try:
            reader = TargetReader(self.folder, self.targets) if self.targets else None
            images = Images(self.manifest.align.image_size)
            window: Window | None = None
            # The loader asks its workers in turns, the first one first.
            for number in range(self.skip + place, self.plan.batches, workers):
                wanted = self.plan.window_of(number)
                if window is None or window.number != wanted:
                    self._fetch_ahead(wanted, place, workers)
                    window = Window(self, wanted, window)
                    if reader is not None:
                        reader.keep(window.shards)
                yield self._decode(window, number, images, reader)
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

    def _fetch_ahead(self, window: int, place: int, workers: int) -> None:
        """Begins to fetch what follows the window; workers share the shards among themselves."""
        if not is_remote(self.folder):
            return
        open_now = self.plan.window_shards(window)
        following = self.plan.window_shards(self.plan.windows - 1).stop
        mine = [
            self.plan.counts[other][0]
            for other in range(open_now.start, min(open_now.stop + 1, following))
            if other % workers == place
        ]

        def fetch() -> None:
            with contextlib.suppress(PersonaError):  # said where the shard is opened
                for shard in mine:
                    self.fetch(shard)

        threading.Thread(target=fetch, daemon=True).start()

    def _views(
        self, places: list[tuple[int, int]], number: int, reader: TargetReader | None
    ) -> tuple[Views, Tensor | None]:
        """Each photo's view in batch `number`, and the teacher's vector of it where kept.

        `places` are (shard, photo in it).
        """
        if self.augment is None:
            return np.tile(IDENTITY, (len(places), 1)), None
        seeds = (*self.seeds, self.plan.rank, number)
        views = draw_views(self.augment, len(places), *seeds)
        if reader is None or self.targets is None:
            return views, None
        if self.augment.beyond_flip:
            rng = np.random.default_rng(mix_seeds(*seeds))
            mirrors = 0 if self.augment.flip else 1  # view 1, which a recipe may not want
            chosen = rng.integers(self.targets.views - mirrors, size=len(places))
            chosen += mirrors * (chosen >= 1)
        else:
            chosen = views[:, 0].astype(np.int64)  # the same coins as without kept targets
        vectors = np.empty((len(places), self.targets.embedding_size), np.float16)
        for row, ((shard, photo), view) in enumerate(zip(places, chosen.tolist(), strict=True)):
            vectors[row], views[row] = reader.read(shard, photo, view)
        return views, torch.from_numpy(vectors)

    def _decode(
        self, window: Window, number: int, images: Images, reader: TargetReader | None
    ) -> Batch:
        chosen = window.batch(number, self.plan.batch_size).tolist()
        photos = photos_of(self.manifest)
        landmarks = np.full((len(chosen) * photos, 6, 2), np.nan, dtype=np.float32)
        images_BHWC = images.take(len(landmarks))
        labels: list[int] = []
        keys: list[int] = []
        jpegs: list[memoryview] = []
        shard, sample = chosen[0]
        try:
            # One thing at a time for all of them: decoding is fastest when nothing comes between.
            for shard, sample in chosen:
                *found, text = window.shards[shard].read(sample)
                meta, _ = decode_json(str(text, "utf-8"))
                keys.append(int(window.shards[shard].key(sample)))
                for photo in [meta[role] for role in ROLES] if photos > 1 else [meta]:
                    if photo["landmarks"] is not None:
                        landmarks[len(labels)] = photo["landmarks"]
                    labels.append(int(photo["class"]))
                jpegs += found
            for row, image_HWC in enumerate(images_BHWC.numpy()):
                shard, sample = chosen[row // photos]
                decode_into(jpegs[row], image_HWC)
            labels_B, keys_B = np.array(labels, dtype=np.int64), np.array(keys, dtype=np.int64)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reader_of = window.shards[shard]
            key = reader_of.key(sample)[:20].decode(errors="replace")
            raise damaged(reader_of.path, f"sample {key}: {type(error).__name__}") from None
        if labels_B.min() < 0 or labels_B.max() >= len(self.manifest.classes):
            where = window.shards[chosen[0][0]].path
            raise damaged(where, "a class index outside the manifest's list")
        places = [
            (shard, window.shards[shard].place(row) * photos + role)
            for shard, row in chosen
            for role in range(photos)
        ]
        views, targets = self._views(places, number, reader)
        return Batch(
            # A permuted view is channels-last memory: what convolutions want, at no cost.
            images_BHWC.permute(0, 3, 1, 2),
            torch.from_numpy(labels_B),
            torch.from_numpy(keys_B),
            torch.from_numpy(landmarks),
            torch.from_numpy(views),
            targets,
        )


class Images:
    """Memory for photos that is used again once nobody looks at them: new pages cost a zeroing."""

    def __init__(self, side: int) -> None:
        self._side = side
        self._free: dict[int, list[npt.NDArray[np.uint8]]] = {}

    def take(self, count: int) -> Tensor:
        """(count, side, side, 3) uint8, of any content."""
        shape = (count, self._side, self._side, 3)
        if get_worker_info() is not None:
            # Memory that is shared with who reads from this worker: other would be copied there.
            share: Any = torch.UntypedStorage._new_shared  # as torch's own collate does
            storage: torch.UntypedStorage = share(math.prod(shape), device="cpu")
            return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
        free = self._free.setdefault(count, [])
        memory = free.pop() if free else np.empty(shape, dtype=np.uint8)
        seen = memory.view()  # lives as long as any tensor of it
        weakref.finalize(seen, free.append, memory).atexit = False
        return torch.from_numpy(seen)


def decode_into(jpeg: bytes | memoryview, image_HWC: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Decodes a crop into (H, W, 3) uint8 RGB; ValueError if it is not of that size."""
    decoded = simplejpeg.decode_jpeg(jpeg, buffer=image_HWC)  # refuses what is larger
    if decoded.shape != image_HWC.shape:
        raise ValueError("crop of another size")


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

    def _start(self) -> Iterator[Batch | Failure]:
        with warnings.catch_warnings():
            # How many processes a machine bears is the user's to say.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            return iter(
                DataLoader(
                    self._stream,
                    batch_size=None,  # the stream yields batches
                    num_workers=self._workers,
                    prefetch_factor=2 if self._workers else None,
                    worker_init_fn=step_back,
                    pin_memory=torch.cuda.is_available(),
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
        try:
            for number, batch in enumerate(self._start(), start=self._stream.skip):
                if isinstance(batch, Failure):
                    raise PersonaError(batch.message)
                yield batch
                self._drop_after(number)
        except RuntimeError as error:
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
                images=batch.images.to(device, non_blocking=True),
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
