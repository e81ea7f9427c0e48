"""Shards to batches, per rank and worker.

1. order: shards are shuffled by (seed, epoch), alike on all ranks
2. cut: the samples, strung together in that order, are cut into one equal span a rank and these
   into one span a worker, so that any number of ranks and workers has its share of any number of
   shards; what does not fill equal batches is dropped in training and counted
3. read: raw samples stream from the tars of the span
4. shuffle: a buffer of raw bytes, seeded by (seed, epoch, rank, worker)
5. draw: each photo's view; with kept targets one of the kept views and the teacher's vector of it
6. decode: JPEG to uint8, straight into the batch

A batch is a function of (seed, epoch, rank, world size, workers, batch size) and nothing else. It
stays uint8 until it is on the device, where views are applied (persona.data.transforms).

Shapes: B batch, R roles (1 for photos, 3 for triplets), C channel, H W pixels, V numbers of a view,
E embedding.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from persona.config import AugmentConfig
from persona.data.shards import Manifest, Shard, damaged, iter_shard, key_of
from persona.data.targets import TargetReader, Targets, photos_of
from persona.data.transforms import IDENTITY, Views, draw_views, mix_seeds
from persona.data.triplets import ROLES
from persona.errors import PersonaError

SHUFFLE_BUFFER = 4096
"""Raw samples a worker holds: about 40 MB of 160 px crops."""


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


@dataclass(frozen=True)
class Span:
    """Samples [start, stop) of one shard."""

    shard: int
    start: int
    stop: int


def shard_order(num_shards: int, *, seed: int, epoch: int) -> list[int]:
    """The epoch's order of shards, the same on every rank."""
    rng = np.random.default_rng([seed, epoch])
    return [int(number) for number in rng.permutation(num_shards)]


def cut_span(counts: Iterable[tuple[int, int]], start: int, stop: int) -> list[Span]:
    """Samples [start, stop) of shards strung together; `counts` are (shard, samples)."""
    spans = []
    begin = 0
    for shard, samples in counts:
        first, last = max(start - begin, 0), min(stop - begin, samples)
        if first < last:
            spans.append(Span(shard, first, last))
        begin += samples
    return spans


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

    def worker_spans(self, worker: int, workers: int) -> list[Span]:
        """The samples that become batches `worker`, `worker + workers`, … of this rank."""
        start, stop = self.rank_range()
        whole, extra = divmod(self.batches, workers)
        first = worker * whole + min(worker, extra)
        last = first + whole + (worker < extra)
        return cut_span(
            self.counts,
            start + first * self.batch_size,
            min(stop, start + last * self.batch_size),
        )


class ShardStream(IterableDataset[Any]):
    """One epoch of one rank as batches; what a DataLoader's workers iterate."""

    def __init__(
        self,
        folder: Path,
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

    def __iter__(self) -> Iterator[Batch | Failure]:
        """Yields this worker's batches; a damaged shard ends it with a Failure."""
        info = get_worker_info()
        place, workers = (info.id, info.num_workers) if info else (0, 1)
        # The loader asks worker 0 first; after a resume the next batch is worker (skip % W)'s.
        worker = (place + self.skip) % workers
        # Batches worker, worker + W, … below `skip` are done.
        done = (self.skip - worker + workers - 1) // workers
        try:
            samples = self._read(self.plan.worker_spans(worker, workers))
            if self.plan.training:
                samples = shuffle_buffer(
                    samples, SHUFFLE_BUFFER, mix_seeds(*self.seeds, self.plan.rank, worker)
                )
            samples = islice(samples, done * self.plan.batch_size, None)
            reader = TargetReader(self.folder, self.targets) if self.targets else None
            number = worker + done * workers  # of the batch, in this rank's epoch
            while group := list(islice(samples, self.plan.batch_size)):
                yield self._decode(group, number, reader)
                number += workers
        except PersonaError as error:
            yield Failure(str(error))

    def _read(self, spans: list[Span]) -> Iterator[dict[str, Any]]:
        for span in spans:
            path = self.manifest.shard_path(self.folder, span.shard)
            left_out = left_out_of(self.manifest.shards[span.shard], self.plan.training)
            samples = (
                (row, sample)
                for row, sample in enumerate(iter_shard(path))
                if sample["__key__"] not in left_out
            )
            read = 0
            for row, sample in islice(samples, span.start, span.stop):
                sample["__path__"] = path
                sample["__place__"] = (span.shard, row)
                read += 1
                yield sample
            if read != span.stop - span.start:
                raise damaged(path, "it ends early")

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
            chosen = rng.integers(self.targets.views, size=len(places))
        else:
            chosen = views[:, 0].astype(np.int64)  # the same coins as without kept targets
        vectors = np.empty((len(places), self.targets.embedding_size), np.float16)
        for row, ((shard, photo), view) in enumerate(zip(places, chosen.tolist(), strict=True)):
            vectors[row], views[row] = reader.read(shard, photo, view)
        return views, torch.from_numpy(vectors)

    def _decode(
        self, samples: list[dict[str, Any]], number: int, reader: TargetReader | None
    ) -> Batch:
        photos = photos_of(self.manifest)
        suffixes = [f"{role}.jpg" for role in ROLES] if photos > 1 else ["jpg"]
        side = self.manifest.align.image_size
        images = np.empty((len(samples) * photos, side, side, 3), dtype=np.uint8)
        labels = np.empty(len(images), dtype=np.int64)
        keys = np.empty(len(samples), dtype=np.int64)
        landmarks = np.full((len(images), 6, 2), np.nan, dtype=np.float32)
        places = []
        row = 0
        for place, sample in enumerate(samples):
            shard, first = sample["__place__"]
            try:
                meta = json.loads(sample["json"])
                keys[place] = int(sample["__key__"])
                for role, suffix in zip(ROLES, suffixes, strict=False):
                    photo = meta[role] if photos > 1 else meta
                    labels[row] = photo["class"]
                    if photo["landmarks"] is not None:
                        landmarks[row] = photo["landmarks"]
                    decode_into(sample[suffix], images[row])
                    places.append((shard, first * photos + row % photos))
                    row += 1
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                what = f"sample {sample['__key__'][:20]}: {type(error).__name__}"
                raise damaged(sample["__path__"], what) from None
        if labels.min() < 0 or labels.max() >= len(self.manifest.classes):
            raise damaged(samples[0]["__path__"], "a class index outside the manifest's list")
        views, targets = self._views(places, number, reader)
        # A permuted view is channels-last memory: what convolutions want, at no cost.
        return Batch(
            torch.from_numpy(images).permute(0, 3, 1, 2),
            torch.from_numpy(labels),
            torch.from_numpy(keys),
            torch.from_numpy(landmarks),
            torch.from_numpy(views),
            targets,
        )


def left_out_of(shard: Shard, training: bool) -> frozenset[str]:
    """Keys that are not read: in training, centre crops of photos without a face."""
    return frozenset(map(key_of, shard.no_face)) if training else frozenset()


def decode_into(jpeg: bytes, image_HWC: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Decodes a crop into (H, W, 3) uint8 RGB; ValueError if it is not of that size."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
    if (height, width) != image_HWC.shape[:2]:
        raise ValueError("crop of another size")
    simplejpeg.decode_jpeg(jpeg, buffer=image_HWC)


def shuffle_buffer(
    samples: Iterable[dict[str, Any]], size: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Yields in random order through a buffer: a drawn sample's place goes to the next one read."""
    rng = np.random.default_rng(seed)
    buffer: list[dict[str, Any]] = []
    for sample in samples:
        if len(buffer) < size:
            buffer.append(sample)
            continue
        place = int(rng.integers(size))
        yield buffer[place]
        buffer[place] = sample
    for place in rng.permutation(len(buffer)):
        yield buffer[place]


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
        self._workers = min(workers, max(1, stream.plan.batches))

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
            for batch in self._start():
                if isinstance(batch, Failure):
                    raise PersonaError(batch.message)
                yield batch
        except RuntimeError as error:
            if "DataLoader worker" in str(error):
                raise PersonaError(
                    "a loader process was killed, perhaps for memory: run again with fewer workers"
                ) from error
            raise


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
    folder: Path,
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
        folder: the packed set's folder.
        manifest: its manifest.
        batch_size: samples a batch on each rank.
        training: shuffle and drop the tail; else keep order and everything.
        seed: of the shuffling.
        epoch: its number.
        skip: batches that this rank consumed before, read past without decoding.
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
