"""A packed set through a network, on all processes, each sample once.

Shapes: B batch, R roles (1 for photos, 3 for triplets), C channel, H W pixels, N samples,
E embedding,
T classes kept of each photo.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from persona.data.shards import Manifest
from persona.data.storage import SetFolder
from persona.data.stream import Batch, build_loader
from persona.data.transforms import MIRROR, normalise, view_landmarks
from persona.errors import PersonaError
from persona.memory import keep_freed_memory
from persona.models.output import FaceNetwork, for_inference
from persona.progress import progress_bar

MAX_LANES = 4
"""Batches under way at once on the CPU: each has activations of its own."""
CORES_A_WORKER = 8
"""One core decodes about as many faces as eight embed with the small student."""
GPU_WORKERS = 4


@dataclass(frozen=True)
class Embedded:
    """What a network makes of a set, in key order, whatever the number of processes."""

    keys: npt.NDArray[np.int64]
    """(N,)."""
    embeddings: npt.NDArray[np.float32]
    """(N, R, E), of unit length."""
    labels: npt.NDArray[np.int64]
    """(N, R) class indices."""
    predicted: npt.NDArray[np.int64]
    """(N, R, T) class indices of the T highest logits, best first; T is 0 where not asked for."""

    def rows_of(self, keys_P: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(P,) the row of each key; -1 where the set has no such sample."""
        place = np.minimum(np.searchsorted(self.keys, keys_P), len(self.keys) - 1)
        return np.where(self.keys[place] == keys_P, place, -1)


@torch.inference_mode()
def embed_set(
    network: FaceNetwork,
    folder: SetFolder,
    manifest: Manifest,
    accelerator: Accelerator,
    *,
    batch_size: int = 128,
    workers: int | None = None,
    top: int = 0,
    flip: bool = False,
    quiet: bool = False,
) -> Embedded:
    """Embeds every sample of a set; all processes get all of it.

    Args:
        network: in any mode; it is put into eval mode, and back after.
        folder: where the packed set lies.
        manifest: its manifest.
        accelerator: device and processes.
        batch_size: samples a forward on each process.
        workers: loader processes of each process; None: as many as the device wants.
        top: how many classes of each photo to keep in `predicted`.
        flip: the sum of the embeddings of a photo and of its mirror image, of unit length.
        quiet: no progress bar.

    Raises:
        PersonaError: a damaged shard, or embeddings that are not finite.
    """
    loader = build_loader(
        folder,
        manifest,
        batch_size=batch_size,
        training=False,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        workers=_fitting_workers(accelerator.device) if workers is None else workers,
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    was_training = network.training
    folded = for_inference(network)
    roles = 3 if manifest.kind == "triplets" else 1
    keys = [torch.empty(0, dtype=torch.int64)]
    embeddings = [torch.empty(0, roles, network.embedding_size)]
    labels = [torch.empty(0, roles, dtype=torch.int64)]
    top = min(top, network.num_classes)
    predicted = [torch.empty(0, roles, top, dtype=torch.int64)]
    work = partial(_embed_batch, folded, device=accelerator.device, top=top, flip=flip)
    # A network of another runtime, which has no parameters here, has threads of its own.
    spread = accelerator.device.type == "cpu" and any(True for _ in network.parameters())
    lanes = min(torch.get_num_threads(), MAX_LANES) if spread else 1
    show = accelerator.is_main_process and not quiet
    title = f"evaluating on {manifest.name}"
    with progress_bar(title, total=manifest.samples, unit="samples", enabled=show) as advance:
        for batch, (embedding, best) in _in_lanes(loader, work, lanes):
            keys.append(batch.keys)
            labels.append(batch.labels.view(-1, roles))
            embeddings.append(embedding.view(len(batch.keys), roles, -1))
            predicted.append(best.view(len(batch.keys), roles, top))
            advance(len(batch.keys) * accelerator.num_processes)
    network.train(was_training)

    all_keys = gather_rows(torch.cat(keys), accelerator)
    order = torch.argsort(all_keys)
    if len(all_keys) != manifest.samples or bool((all_keys[order].diff() == 0).any()):
        raise PersonaError(
            f"set {manifest.name} gave {len(all_keys)} samples with {len(set(all_keys.tolist()))} "
            f"keys, its manifest says {manifest.samples}: pack it again"
        )
    all_predicted = (
        gather_rows(torch.cat(predicted), accelerator)[order]
        if top
        else torch.empty(len(order), roles, 0, dtype=torch.int64)
    )
    embedding_NRE = gather_rows(torch.cat(embeddings), accelerator)[order].numpy()
    broken = int((~np.isfinite(embedding_NRE).all(axis=(1, 2))).sum())
    if broken:
        raise PersonaError(
            f"{broken} of {len(order)} embeddings of set {manifest.name} are not finite: the "
            "network's weights or its precision are at fault"
        )
    return Embedded(
        keys=all_keys[order].numpy(),
        embeddings=embedding_NRE,
        labels=gather_rows(torch.cat(labels), accelerator)[order].numpy(),
        predicted=all_predicted.numpy(),
    )


@torch.inference_mode()
def _embed_batch(
    network: FaceNetwork, batch: Batch, *, device: torch.device, top: int, flip: bool
) -> tuple[Tensor, Tensor]:
    """(B * R, E) embeddings and (B * R, T) predicted classes."""
    images = normalise(batch.images.to(device, non_blocking=True))
    features = network.features(images, batch.landmarks).float()
    embedding = F.normalize(features, dim=1)
    if flip:
        embedding = F.normalize(embedding + _mirrored(network, images, batch), dim=1)
    if not top:
        return embedding.cpu(), torch.empty(len(embedding), 0, dtype=torch.int64)
    return embedding.cpu(), network.classify(features).topk(top, dim=1).indices.cpu()


def _in_lanes(
    batches: Iterable[Batch], work: Callable[[Batch], tuple[Tensor, Tensor]], lanes: int
) -> Iterator[tuple[Batch, tuple[Tensor, Tensor]]]:
    """Yields each batch with what comes of it, in order, so many of them under way at once.

    On the CPU a lane is a thread with its share of torch's threads: threads that share a batch wait
    for each other at every layer, and a loader that wants a core for a moment then holds up all.
    """
    if lanes == 1:
        for batch in batches:
            yield batch, work(batch)
        return
    threads = torch.get_num_threads()
    take_share = partial(torch.set_num_threads, threads // lanes)
    try:
        with ThreadPoolExecutor(lanes, "lane", initializer=take_share) as pool:
            under_way: deque[tuple[Batch, Future[tuple[Tensor, Tensor]]]] = deque()
            for batch in batches:
                under_way.append((batch, pool.submit(work, batch)))
                if len(under_way) > lanes:
                    first, done = under_way.popleft()
                    yield first, done.result()
                    del first, done  # their memory is the loader's
            for first, done in under_way:
                yield first, done.result()
    finally:
        torch.set_num_threads(threads)  # what a lane set is what threads to come start from


def _fitting_workers(device: torch.device) -> int:
    """Loader processes that keep up; decoding in this one runs beside the lanes."""
    return torch.get_num_threads() // CORES_A_WORKER if device.type == "cpu" else GPU_WORKERS


def _mirrored(network: FaceNetwork, images_BCHW: Tensor, batch: Batch) -> Tensor:
    """(B, E) embeddings of the mirror images."""
    side = images_BCHW.shape[3]
    mirror = np.tile(MIRROR, (len(images_BCHW), 1))
    landmarks = view_landmarks(batch.landmarks, mirror, side)
    return network.embed(images_BCHW.flip(3), landmarks)


def gather_rows(rows: Tensor, accelerator: Accelerator) -> Tensor:
    """Every process's rows, strung together by rank; their numbers may differ."""
    if accelerator.num_processes == 1:
        return rows
    gather: Any = accelerator.gather
    counts = gather(torch.tensor([len(rows)], device=accelerator.device)).tolist()
    padded = torch.zeros(max(counts), *rows.shape[1:], dtype=rows.dtype)
    padded[: len(rows)] = rows
    gathered = gather(padded.to(accelerator.device)).cpu()
    parts = gathered.split(max(counts)) if max(counts) else ()
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
