"""Shards to decoded batches, per rank and worker. No torch.

1. order: the shards of each set are shuffled by (seed, epoch), in the same way on all ranks. The
   photos of a set with a weight come in passes over it: with weight 2 an epoch has two passes, and
   with weight 0.5 it has half of one
2. cut: the samples in that order are cut into one equal span per rank, so that any number of ranks
   can share any number of shards. Of a mix, each span has its share of each set. In training, the
   samples that do not fill equal batches are dropped and counted
3. windows: a rank's span is cut into windows of whole batches, of about SHUFFLE_BUFFER samples,
   each again with its share of each set. Each is shuffled as one by (seed, epoch, rank, window).
   If a run is resumed inside an epoch on another number of ranks, steps 2 and 3 are done again with
   the samples that no rank has seen (`Rest`)
4. fetch: a window's shards are opened. Shards of a remote set are downloaded, one shard ahead
5. read: each worker reads the samples of its own batches at their positions in the tars
6. draw: a view of each photo is drawn. With kept targets it is one of the kept views, and the
   teacher's embedding of that view is read
7. decode: the JPEG is decoded to uint8, straight into the batch

A batch depends on (seed, epoch, rank, world size, batch size) and on such cuts alone. Any number of
workers take the batches in turns, and a resumed epoch can begin with any batch. Photos stay uint8
until they are on the device, where the views are applied (persona.data.transforms).
persona.data.stream makes tensors of the batches, in loader processes.

Shapes: B batch, R roles (1 for photos, 3 for triplets), C channel, H W pixels, V numbers of a view,
E embedding.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
import threading
from collections.abc import Collection, Iterator, Sequence
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
    drop_kept,
    fetch_targets,
    open_reader,
    shared_augment,
)
from persona.data.kept_targets import Features
from persona.data.mixed import KEYS, MixedSet, Part
from persona.data.sets import FaceSet, shard_path
from persona.data.shards import NO_CLASS, key_of
from persona.data.storage import drop_file, is_remote
from persona.data.tars import ShardReader, damaged
from persona.data.triplets import ROLES
from persona.data.views import IDENTITY, VIEW, Views, draw_views, mix_seeds, view_columns
from persona.errors import PersonaError
from persona.figure_names import counted

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


class Span(NamedTuple):
    """Samples of one shard that come one after the other in an epoch's order."""

    shard: int
    """Number of the shard. Shards of a mix are numbered through all its sets."""
    samples: int
    begin: int
    """Place of the first sample in the shard. After the shard's last sample comes its first."""
    whole: int
    """Number of samples in the shard."""


@dataclass(frozen=True)
class EpochPlan:
    """Decides which rank reads which samples in one epoch, and in which batches.

    A sample's place in the plan counts the samples of the first set, then those of the next set.
    In the epoch's order the sets alternate, so that every stretch of it has its share of each.
    """

    parts: tuple[tuple[Span, ...], ...]
    """The spans of each set, in the epoch's order."""
    batch_size: int
    rank: int
    world_size: int
    training: bool
    multiple: int = 1
    """In training, the number of batches per rank is a multiple of this (gradient accumulation)."""
    rest: Rest | None = None
    """What an earlier part of the epoch left, on another number of ranks. This part plans it."""

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """The spans of all sets, one set after the other."""
        return tuple(itertools.chain(*self.parts))

    @cached_property
    def _ends(self) -> list[int]:
        """Number of samples in the first set, in the first two, and so on."""
        counts = [sum(span.samples for span in spans) for spans in self.parts]
        return list(itertools.accumulate(counts))

    @cached_property
    def samples(self) -> int:
        """Number of samples in the epoch, or in the rest of it."""
        return self._ends[-1] if self.rest is None else self.rest.samples

    @cached_property
    def batches(self) -> int:
        """Number of batches of this rank. In training it is the same on all ranks."""
        if self.training:
            step = self.world_size * self.batch_size * self.multiple
            return self.samples // step * self.multiple
        start, stop = self.rank_range(self.rank)
        return -(-(stop - start) // self.batch_size)

    @property
    def dropped(self) -> int:
        """Number of samples that no rank sees this epoch."""
        if not self.training:
            return 0
        return self.samples - self.batches * self.world_size * self.batch_size

    def rank_range(self, rank: int) -> tuple[int, int]:
        """The span [start, stop) of a rank's samples in the epoch's order."""
        if self.training:
            share = self.batches * self.batch_size
            return rank * share, (rank + 1) * share
        # The cut is between batches. A batch then holds the same samples on any number of ranks,
        # and the network gives bit-identical embeddings.
        whole = -(-self.samples // self.batch_size)
        first, last = (whole * part // self.world_size for part in (rank, rank + 1))
        return first * self.batch_size, min(last * self.batch_size, self.samples)

    @cached_property
    def _bounds(self) -> npt.NDArray[np.int64]:
        """Place of each span's first sample, and the end of the last span."""
        return np.cumsum([0, *(span.samples for span in self.spans)])

    def _places(self, position: int) -> list[int]:
        """For each set, the place of its next sample after the first `position` of the order.

        Of the samples so far, the sets up to any of them have their share, rounded down. A share
        never falls while `position` rises, and at the end of the epoch no sample is left.
        """
        places, ends = [0] * len(self.parts), [0, *self._ends]
        for part in reversed(range(len(self.parts))):
            before = position * ends[part] // ends[part + 1]
            places[part] = ends[part] + position - before
            position = before
        return places

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

    def window_range(self, window: int, rank: int) -> tuple[int, int]:
        """The span [start, stop) of a window of a rank in the epoch's order."""
        start, stop = self.rank_range(rank)
        first, last = (self.first_batch(number) for number in (window, window + 1))
        return start + first * self.batch_size, min(start + last * self.batch_size, stop)

    def _set_ranges(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The places [start, stop) of each set's samples between two positions of the order."""
        return list(zip(self._places(start), self._places(stop), strict=True))

    def places_between(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The places of the samples between two positions of the epoch's order."""
        if self.rest is not None:
            return self.rest.places_between(start, stop)
        ranges = self._set_ranges(start, stop)
        return np.concatenate([np.arange(*places, dtype=np.int64) for places in ranges])

    def _ranges_of_spans(self, window: int) -> list[range]:
        """`window_spans` of an epoch that is planned as a whole."""
        bounds = self.window_range(window, self.rank)
        return [self._spans_between(*places) for places in self._set_ranges(*bounds)]

    def window_spans(self, window: int) -> list[Sequence[int]]:
        """The spans of each set that a window has samples of, as places in `spans`."""
        if self.rest is None:
            return [*self._ranges_of_spans(window)]
        bounds = self.window_range(window, self.rank)
        here = np.unique(self._span_of(self.places_between(*bounds)))
        cuts = np.searchsorted(here, np.cumsum([len(spans) for spans in self.parts]))
        return [spans.tolist() for spans in np.split(here, cuts[:-1])]

    def _spans_between(self, start: int, stop: int) -> range:
        first, last = np.searchsorted(self._bounds, (start, stop - 1), side="right") - 1
        return range(int(first), int(last) + 1 if start < stop else int(first))

    def shards_of(self, window: int) -> list[int]:
        """The shards of a window, each once."""
        places = itertools.chain(*self.window_spans(window))
        return list(dict.fromkeys(self.spans[place].shard for place in places))

    def shards_ahead(self, window: int) -> list[int]:
        """The shards of a window, and the next one of each set that a later window reads."""
        if self.rest is not None:
            return self._shards_ahead_of_rest(window)
        ends = [spans.stop for spans in self._ranges_of_spans(self.windows - 1)]
        places = itertools.chain(
            *(
                range(spans.start, max(spans.stop, min(spans.stop + 1, end)))
                for spans, end in zip(self._ranges_of_spans(window), ends, strict=True)
            )
        )
        return list(dict.fromkeys(self.spans[place].shard for place in places))

    def _shards_ahead_of_rest(self, window: int) -> list[int]:
        """The shards of a window, and the first one of each set that only the next window reads."""
        here = self.window_spans(window)
        following = self.window_spans(min(window + 1, self.windows - 1))
        fresh = [
            [place for place in after if place not in now][:1]
            for now, after in zip(here, following, strict=True)
        ]
        places = itertools.chain(*here, *fresh)
        return list(dict.fromkeys(self.spans[place].shard for place in places))

    def window_places(self, window: int, rank: int, *seeds: int) -> npt.NDArray[np.int64]:
        """The places of a rank's samples in a window, in the order in which they are seen."""
        places = self.places_between(*self.window_range(window, rank))
        if self.training:
            np.random.default_rng(mix_seeds(*seeds, rank, window)).shuffle(places)
        return places

    def _span_of(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The span of each sample, as place in `spans`."""
        return np.searchsorted(self._bounds, places, side="right") - 1

    def window_samples(self, window: int, *seeds: int) -> npt.NDArray[np.int64]:
        """(samples, 2) shard and position in it, in the order in which the samples are seen."""
        flat = self.window_places(window, self.rank, *seeds)
        place = self._span_of(flat)
        shards, _, begin, whole = self._columns
        within = (flat - self._bounds[place] + begin[place]) % whole[place]
        return np.stack([shards[place], within], axis=1)

    @cached_property
    def _columns(self) -> npt.NDArray[np.int64]:
        """(4, spans) the fields of the spans."""
        return np.array(self.spans).T

    @cached_property
    def _place_of(self) -> dict[int, int]:
        """A span of each shard, as place in `spans`."""
        return {span.shard: place for place, span in enumerate(self.spans)}

    def samples_of(self, shard: int) -> int:
        """How many samples of a shard this rank may read, counted from the first."""
        place = self._place_of[shard]
        if self.training:
            return self.spans[place].whole
        _, stop = self.rank_range(self.rank)
        return int(min(stop, self._bounds[place + 1]) - self._bounds[place])


class Rest:
    """The samples of an epoch that no rank has seen when a part of it ends, in an order of its own.

    1. of each rank: the rest of the window that it was in, as that was shuffled, then the later
       windows
    2. the samples that would have been dropped
    """

    def __init__(self, plan: EpochPlan, done: int, *seeds: int) -> None:
        """Takes stock after `done` batches of each rank.

        Args:
            plan: the plan of the part that ends, of any of its ranks.
            done: batches that each rank has seen of that part.
            seeds: (seed, epoch).
        """
        self._plan = plan
        pieces: list[tuple[int, int] | npt.NDArray[np.int64]] = []
        for rank in range(plan.world_size if done < plan.batches else 0):
            window = plan.window_of(done)
            seen = (done - plan.first_batch(window)) * plan.batch_size
            pieces.append(plan.window_places(window, rank, *seeds)[seen:])
            pieces.append((plan.window_range(window, rank)[1], plan.rank_range(rank)[1]))
        pieces.append((plan.rank_range(plan.world_size - 1)[1], plan.samples))
        self._pieces = pieces
        lengths = [len(p) if isinstance(p, np.ndarray) else p[1] - p[0] for p in pieces]
        self._ends = np.cumsum(lengths)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return int(self._ends[-1])

    def places_between(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The places of the samples between two positions of this order."""
        found = [np.empty(0, np.int64)]
        number = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            piece, end = self._pieces[number], int(self._ends[number])
            count = min(stop, end) - start
            if isinstance(piece, np.ndarray):
                first = len(piece) - (end - start)
                found.append(piece[first : first + count])
            else:
                first = piece[1] - (end - start)
                found.append(self._plan.places_between(first, first + count))
            start, number = start + count, number + 1
        return np.concatenate(found)


class Window:
    """The opened shards of one window."""

    def __init__(self, stream: ShardStream, number: int, before: Window | None) -> None:
        """Opens the shards of window `number`. Shards that `before` has open are taken over."""
        plan = stream.plan
        self.number = number
        self.samples = plan.window_samples(number, *stream.seeds)
        self.first_batch = plan.first_batch(number)
        self.first_key = stream.first_key
        self.shards: dict[int, ShardReader] = {}
        shards = plan.shards_of(number)
        # Workers that all open shards for the first time begin at different ones.
        turn = stream.worker[0] % max(len(shards), 1)
        for shard in shards[turn:] + shards[:turn]:
            reader = before.shards.get(shard) if before else None
            self.shards[shard] = reader or ShardReader(
                stream.fetch(shard),
                stream.suffixes,
                plan.samples_of(shard),
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
            keys[here] = reader.numbers(rows) + self.first_key[shard]
            places[here] = reader.places[rows]
            for place, found in zip(here.tolist(), reader.read(rows), strict=True):
                members[place] = found
        return members, keys, places


class MixedTargets:
    """Reads the kept targets of the sets of a mix. Each worker makes its own."""

    def __init__(self, stream: ShardStream, targets: Sequence[KeptTargets]) -> None:
        self.part_of, self.first_shard = stream.part_of, stream.first_shard
        self.readers = [
            open_reader(part.faces.folder, kept)
            for part, kept in zip(stream.mix.parts, targets, strict=True)
        ]
        self._columns = len(view_columns(shared_augment(targets)))

    def keep(self, shards: Collection[int]) -> None:
        """Closes the files of all shards but these."""
        for part, reader in enumerate(self.readers):
            first = int(self.first_shard[part])
            reader.keep({shard - first for shard in shards if self.part_of[shard] == part})

    def _parts(
        self, shards_B: npt.NDArray[np.int64]
    ) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """Yields each set that has photos among these, and their places."""
        parts_B = self.part_of[shards_B]
        for part in np.unique(parts_B).tolist():
            yield part, np.flatnonzero(parts_B == part)

    def draw(
        self, rng: np.random.Generator, shards_B: npt.NDArray[np.int64], less: int
    ) -> npt.NDArray[np.int64]:
        """Draws (B,) one of the kept views of each photo, without the last `less` views."""
        drawn = np.empty(len(shards_B), np.int64)
        for part, here in self._parts(shards_B):
            drawn[here] = rng.integers(self.readers[part].targets.views - less, size=len(here))
        return drawn

    def read(
        self,
        shards_B: npt.NDArray[np.int64],
        photos_B: npt.NDArray[np.int64],
        chosen_B: npt.NDArray[np.int64],
    ) -> tuple[Features, Views]:
        """Reads the teacher's embeddings (B, E) and the views (B, V), as `TargetReader.read`.

        The views have the columns of `shared_augment`.
        """
        size = self.readers[0].targets.embedding_size
        features = np.empty((len(photos_B), size), np.float16)
        views = np.empty((len(photos_B), self._columns), np.float32)
        for part, here in self._parts(shards_B):
            own = shards_B[here] - self.first_shard[part]
            features[here], own_views = self.readers[part].read(own, photos_B[here], chosen_B[here])
            views[here] = own_views[:, : self._columns]
        return features, views


class ShardStream:
    """Iterates one epoch of one rank as decoded batches."""

    memory: BatchMemory
    worker = (0, 1)
    """(number of this worker, number of workers)."""

    def __init__(
        self,
        mix: MixedSet,
        plan: EpochPlan,
        seeds: tuple[int, int],
        skip: int,
        augment: AugmentConfig | None,
        targets: Sequence[KeptTargets] | None,
    ) -> None:
        """Prepares the stream.

        Args:
            mix: the sets.
            plan: the plan of the epoch.
            seeds: (seed, epoch).
            skip: batches of this rank that were consumed before.
            augment: how views are drawn. None leaves every photo as it is.
            targets: kept targets of each set. None reads none.
        """
        self.mix = mix
        counts = [len(part.faces.manifest.shards) for part in mix.parts]
        self.part_of = np.repeat(np.arange(len(counts)), counts)
        """(shards,) the set of each shard, as place in the mix."""
        self.first_shard = np.cumsum([0, *counts[:-1]])
        """(parts,) number of each set's first shard."""
        self.first_key = self.part_of * KEYS
        """(shards,) what is added to the keys of each shard."""
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
        roles = self.mix.roles
        return [*(f"{role}.jpg" for role in ROLES), "json"] if roles > 1 else ["jpg", "json"]

    def __iter__(self) -> Iterator[DecodedBatch | Failure]:
        """Yields this worker's batches. A damaged shard ends it with a Failure."""
        place, workers = self.worker
        try:
            reader = MixedTargets(self, self.targets) if self.targets else None
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
        """Keys that are not read: in training, those of centre crops without a face, and others."""
        if not self.plan.training:
            return frozenset()
        part, number = self.locate(shard)
        return frozenset(key_of(key).encode() for key in self.mix.parts[part].left_out(number))

    def locate(self, shard: int) -> tuple[int, int]:
        """The set of a shard, as place in the mix, and the shard's number in that set."""
        part = int(self.part_of[shard])
        return part, shard - int(self.first_shard[part])

    def fetch(self, shard: int) -> Path:
        """Makes a shard's tar and its targets local if they are remote. Returns the tar's path."""
        part, number = self.locate(shard)
        faces = self.mix.parts[part].faces
        if self.targets is not None:
            fetch_targets(faces.folder, self.targets[part], number)
        return shard_path(faces, number)

    def drop(self, shard: int) -> None:
        """Deletes the local copies that `fetch` made, unless a cache keeps them."""
        part, number = self.locate(shard)
        faces = self.mix.parts[part].faces
        known = faces.manifest.shards[number]
        drop_file(faces.folder, known.name, known.sha256)
        if self.targets is not None:
            drop_kept(faces.folder, self.targets[part], number)

    def _is_remote(self, shard: int) -> bool:
        return is_remote(self.mix.parts[self.part_of[shard]].faces.folder)

    def drop_after(self, batch: int) -> None:
        """Deletes the local copies of shards that no batch after this one needs."""
        window = self.plan.window_of(batch)
        if batch + 1 != self.plan.first_batch(window + 1):
            return
        done = set(self.plan.shards_of(window))
        if window + 1 < self.plan.windows:
            done -= set(self.plan.shards_of(window + 1))
        for shard in done:
            self.drop(shard)

    def _fetch_ahead(self, window: int) -> threading.Thread:
        """Fetches what follows the window, in a thread. Workers share the shards among them."""
        place, workers = self.worker
        wanted = filter(self._is_remote, self.plan.shards_ahead(window))
        mine = [shard for number, shard in enumerate(wanted) if number % workers == place]

        def fetch() -> None:
            with contextlib.suppress(PersonaError):  # reported when the shard is opened
                for shard in mine:
                    self.fetch(shard)

        thread = threading.Thread(target=fetch, daemon=True)
        if mine:
            thread.start()
        return thread

    @cached_property
    def _labels(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(parts,) number of identities of each set, and the label of its first one."""
        counts = [len(part.faces.identities) for part in self.mix.parts]
        return np.array(counts), self.mix.first_labels

    def _views(
        self,
        shards: npt.NDArray[np.int64],
        photos: npt.NDArray[np.int64],
        number: int,
        reader: MixedTargets | None,
    ) -> tuple[Views, Features | None]:
        """Each photo's view in batch `number`, and the teacher's embedding of it if it is kept.

        `photos` are positions in their `shards`.
        """
        if self.augment is None:
            return np.tile(IDENTITY, (len(photos), 1)), None
        seeds = (*self.seeds, self.plan.rank, number)
        views = draw_views(self.augment, len(photos), *seeds)
        if reader is None:
            return views, None
        if self.augment.beyond_flip:
            rng = np.random.default_rng(mix_seeds(*seeds))
            mirrors = 0 if self.augment.options["flip"] else 1  # view 1 is the mirror image
            chosen = reader.draw(rng, shards, mirrors)
            chosen += mirrors * (chosen >= 1)
        else:
            # The same coin flips as without kept targets.
            chosen = views[:, VIEW.index("flip")].astype(np.int64)
        vectors, views = reader.read(shards, photos, chosen)
        return views, vectors

    def _decode(self, window: Window, number: int, reader: MixedTargets | None) -> DecodedBatch:
        chosen = window.batch(number, self.plan.batch_size)
        photos = self.mix.roles
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
        photos_B = (places_B[:, None] * photos + np.arange(photos)).reshape(-1)
        shards_B = chosen[:, 0].repeat(photos)
        count_B, first_B = (of_part[self.part_of[shards_B]] for of_part in self._labels)
        wrong_B = (labels_B >= count_B) | (labels_B < np.where(count_B == 0, NO_CLASS, 0))
        if wrong_B.any():
            where = window.shards[int(shards_B[np.argmax(wrong_B)])].path
            raise damaged(where, "a class index outside the manifest's list")
        labels_B = np.where(labels_B == NO_CLASS, NO_CLASS, labels_B + first_B)
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
    mix: MixedSet,
    *,
    batch_size: int,
    training: bool = False,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    multiple: int = 1,
    earlier: Sequence[Sequence[int]] = (),
) -> EpochPlan:
    """Plans one epoch. The options are those of `persona.data.stream.build_loader`.

    Raises:
        PersonaError: If the batch size is below 1, no photo of a set would come, or there is not
            one batch for every rank.
    """
    if batch_size < 1:
        raise PersonaError(f"batch size {batch_size}: choose at least 1")
    assert training or len(mix.parts) == 1  # only training mixes
    parts, first_shard = [], 0
    for part in mix.parts:
        spans = training_spans(part, first_shard, seed, epoch) if training else all_spans(part)
        parts.append(tuple(spans))
        first_shard += len(part.faces.manifest.shards)
    plan = EpochPlan(tuple(parts), batch_size, rank, world_size, training, multiple)
    for ranks, done in earlier:
        before = dataclasses.replace(plan, rank=0, world_size=ranks)
        plan = dataclasses.replace(plan, rest=Rest(before, done, seed, epoch))
    if training and not plan.batches and not earlier:
        where = "" if world_size == 1 else f" on each of {world_size} processes"
        raise PersonaError(
            f"set {mix.name} has {counted(plan.samples, 'sample')}, fewer than one step's "
            f"{batch_size}{where}"
            + (f" times {multiple} accumulated" if multiple > 1 else "")
            + ": choose a smaller --batch-size"
        )
    return plan


def all_spans(part: Part) -> Iterator[Span]:
    """All samples of a set, in order."""
    for number, shard in enumerate(part.faces.manifest.shards):
        if shard.samples:
            yield Span(number, shard.samples, 0, shard.samples)


def training_spans(part: Part, first_shard: int, seed: int, epoch: int) -> Iterator[Span]:
    """The samples of a set that come in an epoch: weight times the set's photos with a face.

    They are the next ones of an endless order: one pass over the set after the other, each with its
    own order of shards. Photos of a set with weight 0.5 thus come every second epoch.

    Raises:
        PersonaError: If no photo would come.
    """
    shards = part.faces.manifest.shards
    counts = [shard.samples - len(part.left_out(n)) for n, shard in enumerate(shards)]
    photos = sum(counts)
    wanted = round(part.weight * photos)
    if not wanted:
        raise PersonaError(
            f"set {part.name} has {photos} photos to train on, and by its weight none of them "
            "comes in an epoch: choose a larger weight, or leave the set out"
            if photos
            else f"set {part.name} has no photo to train on: leave it out"
        )
    start, stop = epoch * wanted, (epoch + 1) * wanted
    for turn in range(start // photos, -(-stop // photos)):
        place = turn * photos
        for number in shard_order(len(counts), seed=seed, epoch=turn):
            count, shard = counts[number], first_shard + number
            low, high = max(start - place, 0), min(stop - place, count)
            place += count
            if low < high:
                # Each shard is read from a drawn start. Otherwise a set of one shard would drop the
                # same tail, and give each rank the same samples, in every epoch.
                begin = (mix_seeds(seed, turn, shard) + low) % count
                yield Span(shard, high - low, begin, count)


def read_batches(
    faces: FaceSet, *, batch_size: int, rank: int = 0, world_size: int = 1
) -> Iterator[DecodedBatch]:
    """Yields the batches of a set in order, without augmentation. `DecodedBatch.photos` are arrays.

    Raises:
        PersonaError: If a shard is damaged. The message names it.
    """
    mix = MixedSet.of(faces)
    plan = plan_epoch(mix, batch_size=batch_size, rank=rank, world_size=world_size)
    stream = ShardStream(mix, plan, (0, 0), 0, None, None)
    for number, decoded in enumerate(stream.read_into(NewMemory(mix.align.image_size))):
        if isinstance(decoded, Failure):
            raise PersonaError(decoded.message)
        yield decoded
        stream.drop_after(number)
