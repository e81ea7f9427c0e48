"""Embeds a packed set with a torch network, for persona/evaluation/embed.py.

Shapes: B batch, R roles (1 for photos, 3 for triplets), C channel, H W pixels, E embedding,
T highest classes kept of each photo.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from persona.data.sets import FaceSet
from persona.data.stream import Batch, build_loader
from persona.data.transforms import normalise, view_landmarks
from persona.data.views import MIRROR
from persona.evaluation.embed import CORES_A_WORKER, EmbeddedBatch
from persona.memory import keep_freed_memory
from persona.models.output import FaceNetwork, for_inference

MAX_LANES = 4
"""Most batches computed at once on the CPU. Each needs memory for its activations."""
GPU_WORKERS = 4
"""Loader processes for a GPU."""


def embed_in_torch(
    network: FaceNetwork,
    faces: FaceSet,
    accelerator: Any,
    *,
    batch_size: int,
    workers: int | None,
    top: int,
    flip: bool,
) -> Iterator[EmbeddedBatch]:
    """Yields this process's batches in order. See `embed_set` for the options."""
    loader = build_loader(
        faces,
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
    work = partial(_embed_batch, folded, device=accelerator.device, top=top, flip=flip)
    # A network without torch parameters runs in another runtime, which has its own threads.
    spread = accelerator.device.type == "cpu" and any(True for _ in network.parameters())
    lanes = min(torch.get_num_threads(), MAX_LANES) if spread else 1
    try:
        for batch, (embedding, best) in _in_lanes(loader, work, lanes):
            yield EmbeddedBatch(
                *(batch.keys.numpy(), batch.labels.numpy(), embedding.numpy(), best.numpy())
            )
    finally:
        network.train(was_training)


@torch.inference_mode()
def _embed_batch(
    network: FaceNetwork, batch: Batch, *, device: torch.device, top: int, flip: bool
) -> tuple[Tensor, Tensor]:
    """(B * R, E) embeddings of unit length and (B * R, T) predicted classes, on the CPU.

    With `flip` the embeddings of the photo and of its mirror image are added, and so are the
    logits, which for a head of cosines is the same.
    """
    images = normalise(batch.images.to(device, non_blocking=True))
    views = [network.features(images, batch.landmarks).float()]
    embedding = F.normalize(views[0], dim=1)
    if flip:
        views.append(_mirrored(network, images, batch))
        embedding = F.normalize(embedding + F.normalize(views[1], dim=1), dim=1)
    if not top:
        return embedding.cpu(), torch.empty(len(embedding), 0, dtype=torch.int64)
    logits = torch.stack([network.classify(features) for features in views]).sum(dim=0)
    return embedding.cpu(), logits.topk(top, dim=1).indices.cpu()


def _in_lanes(
    batches: Iterable[Batch], work: Callable[[Batch], tuple[Tensor, Tensor]], lanes: int
) -> Iterator[tuple[Batch, tuple[Tensor, Tensor]]]:
    """Yields each batch with its result in order, and computes `lanes` batches at once.

    On the CPU a lane is a thread with its share of torch's threads. This is faster than all threads
    on one batch: they would wait for each other at every layer, and a loader that needs a core for
    a moment would delay them all.
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
                    del first, done  # the loader reuses their memory
            for first, done in under_way:
                yield first, done.result()
    finally:
        torch.set_num_threads(threads)  # new threads would start with a lane's setting


def _fitting_workers(device: torch.device) -> int:
    """Number of loader processes that the device needs. 0 decodes here, beside the lanes."""
    return torch.get_num_threads() // CORES_A_WORKER if device.type == "cpu" else GPU_WORKERS


def _mirrored(network: FaceNetwork, images_BCHW: Tensor, batch: Batch) -> Tensor:
    """(B, E) features of the mirrored photos."""
    side = images_BCHW.shape[3]
    mirror = np.tile(MIRROR, (len(images_BCHW), 1))
    landmarks = view_landmarks(batch.landmarks, mirror, side)
    return network.features(images_BCHW.flip(3), landmarks).float()


def gather_rows(rows: Tensor, accelerator: Any) -> Tensor:
    """Rows of all processes in the order of their rank. Processes may have different row counts."""
    if accelerator.num_processes == 1:
        return rows
    gather: Any = accelerator.gather
    counts = gather(torch.tensor([len(rows)], device=accelerator.device)).tolist()
    if not max(counts):
        return rows
    padded = torch.zeros(max(counts), *rows.shape[1:], dtype=rows.dtype)
    padded[: len(rows)] = rows
    gathered = gather(padded.to(accelerator.device)).cpu()
    parts = gathered.split(max(counts))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
