"""Reads shards as batches of tensors, in loader processes.

persona.data.samples decides what each batch holds and decodes it.

Shapes: B batch, R roles (1 for photos, 3 for triplets), C channel, H W pixels, V numbers of a view,
E embedding.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from persona.config import AugmentConfig
from persona.data.ensembles import KeptTargets
from persona.data.mixed import MixedSet
from persona.data.samples import DecodedBatch, Failure, ShardStream, plan_epoch
from persona.data.sets import FaceSet
from persona.errors import PersonaError
from persona.workers import no_interrupts

SLABS = 4
"""Slabs per worker: batches in transit or in use before new memory is allocated."""
ALIGNMENT, ASIDE = 32, 16
"""Bytes. libjpeg-turbo writes rows at multiples of 32 bytes past the cache, which makes decoding
about 7 % slower. The photos therefore begin 16 bytes off such a multiple."""

GRACE_S = 60
"""Seconds that a loader process goes on after SIGTERM, at most. SIGALRM then ends it."""


class Batch(NamedTuple):
    """A batch of samples."""

    images: Tensor
    """(B * R, 3, H, W) uint8 RGB, channels last in memory. A triplet has three photos in a row."""
    labels: Tensor
    """(B * R,) int64 class indices."""
    keys: Tensor
    """(B,) int64 sample keys."""
    landmarks: Tensor
    """(B * R, 6, 2) float32 points and scale (persona/landmarks.py). NaN where a crop has none."""
    views: Tensor
    """(B * R, V) float32 views: the augmentation of each photo."""
    targets: Tensor | None
    """(B * R, E) float16 teacher embeddings of these views. None if no targets are kept."""


class _Stream(ShardStream, IterableDataset[Any]):
    """The dataset that the DataLoader's workers iterate."""

    @property
    def worker(self) -> tuple[int, int]:  # type: ignore[override]
        """(number of this worker, number of workers); (0, 1) in the main process."""
        info = get_worker_info()
        return (info.id, info.num_workers) if info else (0, 1)


NO_SHARED_MEMORY = (
    "loader processes share memory, for which /dev/shm is too small, not writable or not there: "
    "enlarge it (in Docker --shm-size=2g), or choose --workers 0"
)


class Slabs:
    """A pool of memory for batches of photos. A slab is used again once no tensor refers to it.

    New pages must be zeroed, and between processes also mapped; reuse saves both.

    Each worker has its own slabs. Only the worker takes them, and only the reader of the batches
    gives them back. The processes therefore share only one byte of state per slab.
    """

    def __init__(self, workers: int, photos: int, side: int) -> None:
        """Slabs of `photos` photos each. With 0 workers the memory belongs to this process."""
        self._shared = workers > 0
        self._memory = self._photos(max(workers, 1) * SLABS, photos, side, side, 3)
        self._busy = self._new(max(workers, 1) * SLABS).zero_()

    def _new(self, size: int) -> Tensor:
        """Uninitialised uint8 memory. Pages that are never touched cost nothing."""
        if not self._shared:  # numpy allocates huge pages, torch does not
            return torch.from_numpy(np.empty(size, np.uint8))
        share: Any = torch.UntypedStorage._new_shared  # as torch's own collate does
        storage: torch.UntypedStorage = share(size, device="cpu")
        return torch.empty(0, dtype=torch.uint8).set_(storage)

    def _photos(self, *shape: int) -> Tensor:
        """Memory with the alignment that decodes fastest."""
        size = math.prod(shape)
        memory = self._new(size + ALIGNMENT)
        start = (ASIDE - memory.data_ptr()) % ALIGNMENT
        return memory[start : start + size].view(shape)

    def take(self, worker: int, count: int) -> tuple[int | Tensor, npt.NDArray[np.uint8]]:
        """Returns a slab's number or a new tensor, and its (count, side, side, 3) uint8 to fill."""
        mine = self._busy[worker * SLABS : (worker + 1) * SLABS].numpy()
        free = np.flatnonzero(mine == 0)
        if not len(free):  # the reader keeps many batches
            more = self._photos(count, *self._memory.shape[2:])
            return more, more.numpy()
        mine[free[0]] = 1
        slab = worker * SLABS + int(free[0])
        return slab, self._memory[slab, :count].numpy()

    def look(self, photos: int | Tensor, count: int) -> Tensor:
        """A slab's photos, (count, side, side, 3). It is free again once they are deleted."""
        if isinstance(photos, Tensor):
            return photos
        seen = self._memory[photos, :count].numpy().view()  # lives as long as any tensor of it
        weakref.finalize(seen, self._busy.numpy().__setitem__, photos, 0).atexit = False
        return torch.from_numpy(seen)


def as_it_is(decoded: Any) -> Any:
    """Replaces torch's collate function, which would turn the arrays into tensors."""
    return decoded


def step_back(_worker: int) -> None:
    """Lowers a worker's priority, and leaves signals that ask the run to end to its process.

    The training process gets the core first. Batches are loaded ahead, so a worker can wait.

    A cluster sends its signals to all processes of a job. The training process still needs batches
    until its next step (persona/training/preemption.py). The DataLoader ends a worker that hangs by
    SIGTERM, too, so the worker does end, but later.
    """
    with contextlib.suppress(OSError):
        os.nice(5)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))


class EpochLoader:
    """Iterates the batches of one epoch on this rank."""

    def __init__(self, stream: _Stream, workers: int) -> None:
        self.plan = stream.plan
        self.remaining = max(0, stream.plan.batches - stream.skip)
        self._stream = stream
        # A worker without a batch would be started for nothing.
        self._workers = min(workers, max(1, self.remaining))

    def _start(self, slabs: Slabs) -> Iterator[DecodedBatch | Failure]:
        stream = self._stream.read_into(slabs)
        if not self._workers:
            return iter(stream)
        # As many queues as the loader makes. Failing here leaves no half-started loader behind.
        tried: list[Any] = [multiprocessing.Queue() for _ in range(self._workers + 1)]
        for queue in tried:
            queue.close()
        # Ctrl-C belongs to this process, also while a worker is starting.
        with no_interrupts(), warnings.catch_warnings():
            # The user decides how many processes the machine can bear.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            return iter(
                DataLoader(
                    stream,
                    batch_size=None,  # the stream yields batches
                    num_workers=self._workers,
                    prefetch_factor=2,
                    worker_init_fn=step_back,
                    collate_fn=as_it_is,
                    # Its own generator: starting workers must not advance the global one.
                    generator=torch.Generator(),
                )
            )

    def __len__(self) -> int:
        """The number of batches still to come on this rank."""
        return self.remaining

    def __iter__(self) -> Iterator[Batch]:
        """Yields batches.

        Raises:
            PersonaError: If a shard is damaged (the message names it), or a worker was killed.
        """
        stream = self._stream
        photos = self.plan.batch_size * stream.mix.roles
        batches: Iterator[DecodedBatch | Failure] = iter(())
        try:
            with _shared_memory():
                # New slabs for each reading: batches of an earlier one may still be in use.
                slabs = Slabs(self._workers, photos, stream.mix.align.image_size)
                batches = self._start(slabs)
            for number, decoded in enumerate(batches, start=stream.skip):
                if isinstance(decoded, Failure):
                    raise PersonaError(decoded.message)
                images_BHWC = slabs.look(decoded.photos, len(decoded.labels))
                yield Batch(
                    # A permuted view has the channels-last layout that convolutions want.
                    images_BHWC.permute(0, 3, 1, 2),
                    torch.from_numpy(decoded.labels),
                    torch.from_numpy(decoded.keys),
                    torch.from_numpy(decoded.landmarks),
                    torch.from_numpy(decoded.views),
                    None if decoded.targets is None else torch.from_numpy(decoded.targets),
                )
                del images_BHWC  # otherwise its slab would stay busy until the next batch
                stream.drop_after(number)
        except RuntimeError as error:
            if "shared memory" in str(error):
                raise PersonaError(NO_SHARED_MEMORY) from error
            if "DataLoader worker" in str(error):
                raise PersonaError(
                    "a loader process was killed, perhaps for memory: run again with fewer workers"
                ) from error
            raise
        finally:
            # Ends the workers now, also when the trace of an error keeps this frame. The garbage
            # collector may take torch's queues first, and torch then waits 5 s for each worker.
            batches = iter(())


@contextlib.contextmanager
def _shared_memory() -> Iterator[None]:
    """Turns the system's errors about /dev/shm into a PersonaError.

    The operating system reports that there is no room for the locks of the queues. torch reports
    that there is no room for memory, which `EpochLoader` handles.
    """
    try:
        yield
    except OSError as error:
        raise PersonaError(NO_SHARED_MEMORY) from error


def to_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yields batches whose photos, labels and targets are on the device, one batch ahead.

    On CUDA the copies run on their own stream, beside the current optimizer step. Views, keys and
    landmarks stay on the CPU, where they are used.
    """
    if device.type != "cuda":
        yield from batches
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(batch: Batch) -> Batch:
        with torch.cuda.stream(side):
            return batch._replace(
                # Pinned here, not in a worker, so that the worker's slab is free again at once.
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
            if tensor is not None:  # keeps its memory from being reused before the step is done
                tensor.record_stream(torch.cuda.current_stream(device))
        waiting = sent
    if waiting is not None:
        yield waiting


def build_loader(
    faces: FaceSet | MixedSet,
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
    earlier: Sequence[Sequence[int]] = (),
    augment: AugmentConfig | None = None,
    targets: KeptTargets | Sequence[KeptTargets] | None = None,
) -> EpochLoader:
    """Builds a loader for the batches of one epoch, starting at batch `skip`.

    Args:
        faces: The packed set, or several sets to be mixed.
        batch_size: Samples per batch on each rank.
        training: Shuffle, and drop the samples that do not fill a batch on every rank. Otherwise
            keep the order and all samples.
        seed: Seed of the shuffling.
        epoch: Number of the epoch.
        skip: Batches that this rank consumed before. Shards that only they need are not read.
        rank: Rank of this process.
        world_size: Number of processes.
        workers: Loader processes of this rank. 0 decodes in this process.
        multiple: In training, the number of batches per rank is a multiple of this.
        earlier: Parts of this epoch that were trained on other numbers of processes: of each the
            number of processes, and the batches of each process. The loader has what they left.
        augment: How views are drawn. None leaves every photo as it is.
        targets: Kept targets to read along, already checked against the set. Of a mix, those of
            each set.

    Raises:
        PersonaError: If there is not one batch for every rank.
    """
    if workers < 0:
        raise PersonaError(f"{workers} workers: choose 0 or more")
    mix = faces if isinstance(faces, MixedSet) else MixedSet.of(faces)
    kept = (targets,) if isinstance(targets, KeptTargets) else targets
    plan = plan_epoch(
        mix,
        batch_size=batch_size,
        training=training,
        seed=seed,
        epoch=epoch,
        rank=rank,
        world_size=world_size,
        multiple=multiple,
        earlier=earlier,
    )
    stream = _Stream(mix, plan, (seed, epoch), skip, augment, kept)
    return EpochLoader(stream, workers)
