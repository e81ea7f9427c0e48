"""Embeds a packed set with a network, on all processes, each sample once.

This module works without torch; `embed_torch` holds what needs it.

Shapes: B batch, R roles (1 for photos, 3 for triplets), C channel, H W pixels, N samples, P keys,
E embedding, T highest classes kept of each photo.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from persona.data.samples import read_batches
from persona.data.sets import FaceSet
from persona.data.views import mirror_landmarks
from persona.errors import PersonaError
from persona.evaluation.processes import Processes, gather_arrays
from persona.landmarks import unit
from persona.memory import keep_freed_memory
from persona.models.embedder import Embedder, own_threads
from persona.progress import progress_bar

if TYPE_CHECKING:
    from persona.models.output import FaceNetwork

T = TypeVar("T")

CORES_A_WORKER = 8
"""Cores per loader process or reading thread: one core decodes about as many faces as eight cores
embed with the small student."""


class EmbeddedBatch(NamedTuple):
    """The embeddings of one batch of one process."""

    keys: npt.NDArray[np.int64]
    """(B,) sample keys."""
    labels: npt.NDArray[np.int64]
    """(B * R,) class indices."""
    embeddings: npt.NDArray[np.float32]
    """(B * R, E) embeddings of unit length."""
    predicted: npt.NDArray[np.int64]
    """(B * R, T) class indices of the T highest logits, best first."""


@dataclass(frozen=True)
class Embedded:
    """The embeddings of a whole set, sorted by key whatever the number of processes."""

    keys: npt.NDArray[np.int64]
    """(N,) sample keys, rising."""
    embeddings: npt.NDArray[np.float32]
    """(N, R, E) embeddings of unit length."""
    labels: npt.NDArray[np.int64]
    """(N, R) class indices."""
    predicted: npt.NDArray[np.int64]
    """(N, R, T) class indices of the T highest logits, best first. T is 0 if not asked for."""

    def rows_of(self, keys_P: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(P,) row of each key; -1 where the set has no such sample."""
        place = np.minimum(np.searchsorted(self.keys, keys_P), len(self.keys) - 1)
        return np.where(self.keys[place] == keys_P, place, -1)


def embed_set(
    network: FaceNetwork | Embedder,
    faces: FaceSet,
    processes: Processes,
    *,
    batch_size: int = 128,
    workers: int | None = None,
    top: int = 0,
    flip: bool = False,
    quiet: bool = False,
) -> Embedded:
    """Embeds every sample of a set. Every process gets the embeddings of the whole set.

    Args:
        network: the network in any mode. It is put into eval mode and back afterwards.
        faces: the packed set.
        processes: Accelerate's processes with their device, or `Alone` for a network without torch.
        batch_size: samples in one forward pass on each process.
        workers: loader processes of each process. None chooses the number by the device. For a
            network without torch, any number above 0 means one thread that reads ahead.
        top: number of highest classes of each photo to keep in `predicted`.
        flip: add the embedding of the mirrored photo, then scale the sum to unit length. The
            classes in `predicted` are of the sum of both logits.
        quiet: show no progress bar.

    Raises:
        PersonaError: a shard is damaged, samples are missing or doubled, or embeddings are not
            finite.
    """
    manifest = faces.manifest
    roles = 3 if manifest.kind == "triplets" else 1
    top = min(top, network.num_classes)
    options: Any = {"batch_size": batch_size, "workers": workers, "flip": flip}
    if isinstance(network, Embedder):
        batches = _embed(network, faces, processes, **options)
    else:
        from persona.evaluation.embed_torch import embed_in_torch

        batches = embed_in_torch(network, faces, processes, top=top, **options)
    keys = [np.zeros(0, np.int64)]
    embeddings = [np.zeros((0, roles, network.embedding_size), np.float32)]
    labels = [np.zeros((0, roles), np.int64)]
    predicted = [np.zeros((0, roles, top), np.int64)]
    show = processes.is_main_process and not quiet
    title = f"evaluating on {manifest.name}"
    with progress_bar(title, total=manifest.samples, unit="samples", enabled=show) as advance:
        for batch in batches:
            count = len(batch.keys)
            keys.append(batch.keys)
            labels.append(batch.labels.reshape(-1, roles))
            embeddings.append(batch.embeddings.reshape(count, roles, -1))
            predicted.append(batch.predicted.reshape(count, roles, top))
            advance(count * processes.num_processes)

    all_keys = gather_arrays(np.concatenate(keys), processes)
    order = np.argsort(all_keys, kind="stable")
    if len(all_keys) != manifest.samples or (np.diff(all_keys[order]) == 0).any():
        raise PersonaError(
            f"set {manifest.name} gave {len(all_keys)} samples with {len(set(all_keys.tolist()))} "
            f"keys, its manifest says {manifest.samples}: pack it again"
        )
    all_predicted = (
        gather_arrays(np.concatenate(predicted), processes)[order]
        if top
        else np.zeros((len(order), roles, 0), np.int64)
    )
    embedding_NRE = gather_arrays(np.concatenate(embeddings), processes)[order]
    broken = int((~np.isfinite(embedding_NRE).all(axis=(1, 2))).sum())
    if broken:
        raise PersonaError(
            f"{broken} of {len(order)} embeddings of set {manifest.name} are not finite: the "
            "network's weights or its precision are at fault"
        )
    return Embedded(
        keys=all_keys[order],
        embeddings=embedding_NRE,
        labels=gather_arrays(np.concatenate(labels), processes)[order],
        predicted=all_predicted,
    )


def _embed(
    network: Embedder,
    faces: FaceSet,
    processes: Processes,
    *,
    batch_size: int,
    workers: int | None,
    flip: bool,
) -> Iterator[EmbeddedBatch]:
    """Yields this process's batches in the order of its shards, for a network without torch."""
    keep_freed_memory()
    side_px = faces.manifest.align.image_size
    batches = read_batches(
        faces,
        batch_size=batch_size,
        rank=processes.process_index,
        world_size=processes.num_processes,
    )
    beside = own_threads() // CORES_A_WORKER if workers is None else workers
    for batch in _one_ahead(batches) if beside else batches:
        embedding = network.embed(batch.photos, batch.landmarks)
        if flip:
            points = mirror_landmarks(batch.landmarks, side_px)
            embedding = unit(embedding + network.embed(batch.photos[:, :, ::-1], points))
        none = np.zeros((len(embedding), 0), np.int64)
        yield EmbeddedBatch(batch.keys, batch.labels, embedding, none)


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yields the same items, while a thread already fetches the next one."""
    with ThreadPoolExecutor(1, "ahead") as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item
