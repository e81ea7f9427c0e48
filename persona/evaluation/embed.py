"""A packed set through a network, on all processes, each sample once.

Shapes: B batch, R roles (1 for photos, 3 for triplets), C channel, H W pixels, N samples,
E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor

from persona.data.shards import Manifest
from persona.data.storage import SetFolder
from persona.data.stream import build_loader
from persona.data.transforms import normalise
from persona.errors import PersonaError
from persona.memory import keep_freed_memory
from persona.models.output import FaceNetwork
from persona.progress import progress_bar


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
    """(N, R) class indices of the highest logit; (N, 0) where not asked for."""


@torch.inference_mode()
def embed_set(
    network: FaceNetwork,
    folder: SetFolder,
    manifest: Manifest,
    accelerator: Accelerator,
    *,
    batch_size: int = 128,
    workers: int = 0,
    classify: bool = False,
    quiet: bool = False,
) -> Embedded:
    """Embeds every sample of a set; all processes get all of it.

    Args:
        network: in any mode; it is put into eval mode, and back after.
        folder: where the packed set lies.
        manifest: its manifest.
        accelerator: device and processes.
        batch_size: samples a forward on each process.
        workers: loader processes of each process.
        classify: fill `predicted`.
        quiet: no progress bar.

    Raises:
        PersonaError: a damaged shard.
    """
    loader = build_loader(
        folder,
        manifest,
        batch_size=batch_size,
        training=False,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        workers=workers,
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    was_training = network.training
    network.eval()
    roles = 3 if manifest.kind == "triplets" else 1
    keys = [torch.empty(0, dtype=torch.int64)]
    embeddings = [torch.empty(0, roles, network.embedding_size)]
    labels, predicted = [torch.empty(0, roles, dtype=torch.int64)], [_no_predictions(0, roles)]
    show = accelerator.is_main_process and not quiet
    title = f"evaluating on {manifest.name}"
    with progress_bar(title, total=manifest.samples, unit="samples", enabled=show) as advance:
        for batch in loader:
            images = normalise(batch.images.to(accelerator.device, non_blocking=True))
            features = network.features(images, batch.landmarks).float()
            embedding = torch.nn.functional.normalize(features, dim=1)
            keys.append(batch.keys)
            labels.append(batch.labels.view(-1, roles))
            embeddings.append(embedding.cpu().view(len(batch.keys), roles, -1))
            if classify:
                top = network.classify(features).argmax(dim=1).cpu()
                predicted.append(top.view(-1, roles))
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
        if classify
        else torch.empty(len(order), 0, dtype=torch.int64)
    )
    return Embedded(
        keys=all_keys[order].numpy(),
        embeddings=gather_rows(torch.cat(embeddings), accelerator)[order].numpy(),
        labels=gather_rows(torch.cat(labels), accelerator)[order].numpy(),
        predicted=all_predicted.numpy(),
    )


def _no_predictions(rows: int, roles: int) -> Tensor:
    return torch.empty(rows, roles, dtype=torch.int64)


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
