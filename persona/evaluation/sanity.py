"""Checks that a teacher can tell people apart, before hours of training are spent on it.

If an ONNX file does not do so nearly perfectly, other usual settings are tried as well. A wrong
mean, channel order or alignment makes a strong network weak, and nothing else reveals it. Poor
photos have the same effect, and wrong settings may even do better on them. It is therefore an error
only if other settings tell these people apart nearly perfectly; otherwise it is a warning.

Shapes: N photos, E embedding.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import islice, product

import numpy as np
import torch
from accelerate import Accelerator

from persona.data.align.spec import AlignSpec
from persona.data.sets import FaceSet
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
"""Fewest genuine pairs that the check needs."""
CHANCE = 0.6
"""AUC below which the teacher is refused. With the right settings it is far above this."""
STRONG = 0.99
"""AUC from which the settings count as right."""
BETTER = 0.03
"""AUC that other settings must gain to be mentioned."""
NORMALISATIONS = {
    "mean 127.5, std 128": (127.5,) * 3 + (128.0,) * 3,
    "mean 127.5, std 127.5": (127.5,) * 3 + (127.5,) * 3,
    "ImageNet's mean and std": (123.675, 116.28, 103.53, 58.395, 57.12, 57.375),
    "mean 0, std 255": (0.0,) * 3 + (255.0,) * 3,
    "mean 0, std 1": (0.0,) * 3 + (1.0,) * 3,
}
"""Usual normalisations of face networks: mean and std of R, G and B, for pixels of 0 to 255."""


@torch.inference_mode()
def check_teacher(named: NamedNetwork, faces: FaceSet, accelerator: Accelerator) -> float | None:
    """AUC of a teacher over all pairs of the first 256 photos of a set.

    None means that there are too few genuine pairs, or that the teacher's settings are marked as
    checked.

    Raises:
        PersonaError: the teacher is hardly better than chance, its embeddings are not finite, or it
            is strong only with other settings.
    """
    if isinstance(named.network, OnnxNetwork) and named.network.settings.checked:
        return None
    loader = build_loader(faces, batch_size=32, training=False)
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
            f"teacher {named.name} does not tell the people of {faces.name} apart (AUC "
            f"{auc:.2f}, chance is 0.5): {_hint(named)}"
        )
    if auc < STRONG and isinstance(named.network, OnnxNetwork):
        best, name = auc, ""
        for what, settings in alternatives(named.network.settings, faces.manifest.align):
            found = auc_of(named.network.with_settings(settings))
            if found > best:
                best, name = found, what
            if best > STRONG:
                break
        if best > auc + BETTER:
            told = (
                f"teacher {named.name} tells the people of {faces.name} apart with AUC "
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


def alternatives(settings: OnnxSettings, align: AlignSpec) -> list[tuple[str, OnnxSettings]]:
    """Other usual settings, each with a description. Those with the fewest changes come first."""
    alignments = ["margin", *(["five-point"] if align.has_landmarks else [])]
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
