"""FaceNet as a teacher: InceptionResnetV1 of facenet-pytorch 2.5.3 with its released weights.

The embedding is by Schroff et al. 2015 (arXiv:1503.03832), the weights are by David Sandberg. The
logits are linear in the 512-d embedding before L2 normalisation: `logits(last_bn(...))`.

Shapes: B batch, C channel, H W pixels, E embedding (512), K identities.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from persona.errors import PersonaError
from persona.models.output import EMBEDDING_SIZE, ClassifierHead, FaceNetwork
from persona.models.weights import FACENETS, Release, download_weights, find_weights, weight_places


class FaceNet(FaceNetwork):
    """An InceptionResnetV1 that returns features and logits from one forward pass."""

    def __init__(self, num_classes: int) -> None:
        from facenet_pytorch import InceptionResnetV1

        super().__init__()
        self.num_classes = num_classes
        self.embedding_size = EMBEDDING_SIZE
        self.network: Any = InceptionResnetV1(classify=True, num_classes=num_classes)
        self._head = ClassifierHead(EMBEDDING_SIZE, num_classes, "linear")
        # facenet-pytorch's forward ends in the logits. Without that layer it ends in the features.
        self.network.logits = nn.Identity()

    def features(self, images_BCHW: Tensor, landmarks_B62: Tensor | None = None) -> Tensor:
        """Computes the embeddings before normalisation, (B, E)."""
        features_BE: Tensor = self.network(images_BCHW)
        return features_BE

    def classify(self, features_BE: Tensor) -> Tensor:
        """Computes the logits, (B, K), of features."""
        logits_BK: Tensor = self._head(features_BE)
        return logits_BK

    def head(self) -> ClassifierHead:
        """The last layer."""
        return self._head

    def load_release(self, state: dict[str, Tensor]) -> None:
        """Loads a state dict that has facenet-pytorch's names."""
        head = {name: value for name, value in state.items() if name.startswith("logits.")}
        rest = {name: value for name, value in state.items() if name not in head}
        self._head.load_state_dict({name[len("logits.") :]: value for name, value in head.items()})
        self.network.load_state_dict(rest)


def load_facenet(name: str, models: Path) -> FaceNet:
    """Loads FaceNet with its released weights, from a local file or downloaded once.

    Raises:
        PersonaError: the weights cannot be had (the message says where to put the file), or the
            file is damaged.
    """
    release = FACENETS[name]
    network = FaceNet(release.num_classes)
    load_release(release, models, name, network.load_release)
    return network


def load_release(
    release: Release, models: Path, name: str, load: Callable[[dict[str, Tensor]], None]
) -> None:
    """Passes the state dict of a release to `load`. The file is downloaded if it is not here.

    Raises:
        PersonaError: the file cannot be had (the message says where to put it), or is damaged.
    """
    path = find_weights(release, models)
    if path is None:  # the last place is shared by all projects, if there is one
        path = download_weights(release, weight_places(release, models)[-1])
    try:
        load(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, AttributeError, TypeError):
        raise PersonaError(
            f"{path} does not hold the weights of {name}: delete it, and download it again from "
            f"{release.base}/{release.file}"
        ) from None
