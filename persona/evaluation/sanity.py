"""A look at a teacher from elsewhere before hours are spent on it: does it tell people apart?

Shapes: N photos, E embedding.
"""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator

from persona.data.shards import Manifest
from persona.data.storage import SetFolder
from persona.data.stream import build_loader
from persona.data.transforms import normalise
from persona.errors import PersonaError
from persona.evaluation.metrics import roc_auc
from persona.models.store import NamedNetwork

PHOTOS = 256
MIN_PAIRS = 8
CHANCE = 0.6
"""A network whose settings are right is far above it, on any photos of people."""


@torch.inference_mode()
def check_teacher(
    named: NamedNetwork, folder: SetFolder, manifest: Manifest, accelerator: Accelerator
) -> float | None:
    """AUC over all pairs of the set's first photos; None where too few show one person twice.

    Raises:
        PersonaError: it is no better than chance, or not finite.
    """
    loader = build_loader(folder, manifest, batch_size=32, training=False)
    embeddings, labels = [], []
    for batch in islice(loader, PHOTOS // 32):
        images = normalise(batch.images.to(accelerator.device))
        embeddings.append(named.network.embed(images, batch.landmarks).cpu())
        labels.append(batch.labels)
    embedding_NE, label_N = torch.cat(embeddings).double().numpy(), torch.cat(labels).numpy()
    first, second = np.triu_indices(len(label_N), k=1)
    same_P = label_N[first] == label_N[second]
    if same_P.sum() < MIN_PAIRS or same_P.all():
        return None
    auc = roc_auc((embedding_NE @ embedding_NE.T)[first, second], same_P)
    if auc < CHANCE:
        raise PersonaError(
            f"teacher {named.name} does not tell the people of {manifest.name} apart (AUC "
            f"{auc:.2f}, chance is 0.5): check channels, mean, std and alignment in its settings"
        )
    return auc
