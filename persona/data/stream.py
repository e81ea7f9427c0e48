"""Shards to batches of tensors, by processes beside this one; what is read is
persona.data.samples' matter.

Shapes: B batch, R roles (1 for photos, 3 for triplets), C channel, H W pixels, V numbers of a view,
E embedding.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import warnings
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from persona.config import AugmentConfig
from persona.data.samples import Decoded, Failure, ShardStream, plan_epoch
from persona.data.shards import Manifest
from persona.data.storage import SetFolder
from persona.data.targets import Targets, photos_of
from persona.errors import PersonaError
from persona.workers import no_interrupts

SLABS = 4
"""Batches of photos a worker that may be on their way or looked at before new memory is taken."""
ALIGNMENT, ASIDE = 32, 16
"""libjpeg-turbo writes rows at multiples of 32 bytes past the cache, which takes a fifteenth longer
to decode: photos begin 16 bytes beside."""


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


class _Stream(ShardStream, IterableDataset[Any]):
    """What a DataLoader's workers iterate."""

    @property
    def worker(self) -> tuple[int, int]:  # type: ignore[override]
        """The number of this worker, and how many there are; (0, 1) in the process itself."""
        info = get_worker_info()
        return (info.id, info.num_workers) if info else (0, 1)


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


def as_it_is(decoded: Any) -> Any:
    """In place of torch's collate, which would make tensors of the arrays."""
    return decoded


def step_back(_worker: int) -> None:
    """Lets the training process go first where both want a core: batches are loaded ahead."""
    with contextlib.suppress(OSError):
        os.nice(5)


class EpochLoader:
    """The batches of one epoch on this rank."""

    def __init__(self, stream: _Stream, workers: int) -> None:
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
                stream.drop_after(number)
        except RuntimeError as error:
            if "shared memory" in str(error):
                raise PersonaError(NO_SHARED_MEMORY) from error
            if "DataLoader worker" in str(error):
                raise PersonaError(
                    "a loader process was killed, perhaps for memory: run again with fewer workers"
                ) from error
            raise


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
    if workers < 0:
        raise PersonaError(f"{workers} workers: choose 0 or more")
    plan = plan_epoch(
        manifest,
        batch_size=batch_size,
        training=training,
        seed=seed,
        epoch=epoch,
        rank=rank,
        world_size=world_size,
        multiple=multiple,
    )
    stream = _Stream(folder, manifest, plan, (seed, epoch), skip, augment, targets)
    return EpochLoader(stream, workers)
