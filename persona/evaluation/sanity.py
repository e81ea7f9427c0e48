"""A look at a teacher from elsewhere before hours are spent on it: does it tell people apart?

Where it does not nearly perfectly, an ONNX file is tried with other usual settings too: a wrong
mean, order of channels or alignment leaves a strong network a weak one, which nothing else shows.
Poor photos do so as well, and on them other settings than the right ones may be better: as long as
none tells these people apart nearly perfectly, that is said and no more.

Shapes: N photos, E embedding.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import islice, product

import numpy as np
import torch
from accelerate import Accelerator

from persona.data.shards import Manifest
from persona.data.storage import SetFolder
from persona.data.stream import build_loader
from persona.data.transforms import normalise
from persona.errors import PersonaError
from persona.evaluation.metrics import roc_auc
from persona.models.onnx import OnnxSettings, find_settings
from persona.models.onnx_network import OnnxNetwork
from persona.models.output import FaceNetwork
from persona.models.sources import NamedNetwork

log = logging.getLogger(__name__)

PHOTOS = 256
MIN_PAIRS = 8
CHANCE = 0.6
"""A network whose settings are right is far above it, on any photos of people."""
STRONG = 0.99
"""Above it nothing is in doubt: settings are right."""
BETTER = 0.03
"""By so much other settings must be better to be spoken of."""
NORMALISATIONS = {
    "mean 127.5, std 128": (127.5,) * 3 + (128.0,) * 3,
    "mean 127.5, std 127.5": (127.5,) * 3 + (127.5,) * 3,
    "ImageNet's mean and std": (123.675, 116.28, 103.53, 58.395, 57.12, 57.375),
    "mean 0, std 255": (0.0,) * 3 + (255.0,) * 3,
    "mean 0, std 1": (0.0,) * 3 + (1.0,) * 3,
}
"""What face networks are fed: InsightFace, torchvision's habit, plain shares, plain pixels."""


@torch.inference_mode()
def check_teacher(
    named: NamedNetwork, folder: SetFolder, manifest: Manifest, accelerator: Accelerator
) -> float | None:
    """AUC over all pairs of the set's first photos; None where too few show one person twice, or
    its settings say that they were checked.

    Raises:
        PersonaError: it is no better than chance, or not finite, or strong with other settings.
    """
    if isinstance(named.network, OnnxNetwork) and named.network.settings.checked:
        return None
    loader = build_loader(folder, manifest, batch_size=32, training=False)
    batches = list(islice(loader, PHOTOS // 32))
    label_N = torch.cat([batch.labels for batch in batches]).numpy()
    first, second = np.triu_indices(len(label_N), k=1)
    same_P = label_N[first] == label_N[second]
    if same_P.sum() < MIN_PAIRS or same_P.all():
        return None

    def auc_of(network: FaceNetwork) -> float:
        embeddings = []
        for batch in batches:
            images = normalise(batch.images.to(accelerator.device))
            embeddings.append(network.embed(images, batch.landmarks).cpu())
        embedding_NE = torch.cat(embeddings).double().numpy()
        return roc_auc((embedding_NE @ embedding_NE.T)[first, second], same_P)

    auc = auc_of(named.network)
    if auc < CHANCE:
        raise PersonaError(
            f"teacher {named.name} does not tell the people of {manifest.name} apart (AUC "
            f"{auc:.2f}, chance is 0.5): {_hint(named)}"
        )
    if auc < STRONG and isinstance(named.network, OnnxNetwork):
        best, name = auc, ""
        for what, settings in alternatives(named.network.settings, manifest):
            found = auc_of(named.network.with_settings(settings))
            if found > best:
                best, name = found, what
            if best > STRONG:
                break
        if best > auc + BETTER:
            told = (
                f"teacher {named.name} tells the people of {manifest.name} apart with AUC "
                f"{auc:.3f}, and with {name} with {best:.3f}: {_hint(named)}"
            )
            if best > STRONG:
                raise PersonaError(f"{told}, or say `checked: true` there")
            if accelerator.is_main_process:
                log.warning("note: %s; poor photos do that too", told)
    return auc


def _hint(named: NamedNetwork) -> str:
    if not isinstance(named.network, OnnxNetwork):
        return "check its weights"
    return f"check channels, mean, std and alignment in {find_settings(named.network.path)[1]}"


def alternatives(settings: OnnxSettings, manifest: Manifest) -> list[tuple[str, OnnxSettings]]:
    """Other usual settings, each with its name; those that change least come first."""
    alignments = ["margin", *(["five-point"] if manifest.align.has_landmarks else [])]
    wanted = []
    for (scaling, numbers), channels, alignment in product(
        NORMALISATIONS.items(), ("rgb", "bgr"), alignments
    ):
        scaled = replace(settings, mean=numbers[:3], std=numbers[3:])
        other = replace(scaled, channels=channels, alignment=alignment)
        changed = (
            scaled != settings,
            channels != settings.channels,
            other.alignment != settings.alignment,
        )
        if any(changed):
            wanted.append((sum(changed), f"{scaling}, {channels}, {alignment} alignment", other))
    return [(name, other) for _, name, other in sorted(wanted, key=lambda item: item[0])]
