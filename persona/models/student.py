"""Students: MobileNetV3 (Howard et al. 2019, arXiv:1905.02244) with FaceNet's head.

Shapes: B batch, C channel, H W pixels, E embedding (512), K identities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large, mobilenet_v3_small

from persona.errors import PersonaError, unknown
from persona.models.output import EMBEDDING_SIZE, FaceNetwork

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "mobilenet_v3_small": mobilenet_v3_small,
    "mobilenet_v3_large": mobilenet_v3_large,
}
BATCH_NORM_EPS = 0.001
"""As in FaceNet's last_bn (facenet-pytorch 2.5.3, models/inception_resnet_v1.py)."""


class Student(FaceNetwork):
    """MobileNetV3's convolutions, average pooling, Linear(-> 512, no bias), batch norm, logits."""

    def __init__(self, architecture: str, num_classes: int) -> None:
        """Seed torch first: the weights are drawn here."""
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise unknown("student", architecture, ARCHITECTURES)
        if num_classes < 1:
            raise PersonaError(f"a student of {num_classes} identities: it needs at least one")
        network: Any = ARCHITECTURES[architecture](weights=None)
        self.architecture = architecture
        self.num_classes = num_classes
        self.backbone: nn.Sequential = network.features
        self.pool = nn.AdaptiveAvgPool2d(1)
        channels: int = network.classifier[0].in_features
        self.last_linear = nn.Linear(channels, EMBEDDING_SIZE, bias=False)
        self.last_bn = nn.BatchNorm1d(EMBEDDING_SIZE, eps=BATCH_NORM_EPS)
        self.logits = nn.Linear(EMBEDDING_SIZE, num_classes)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """(B, E) before normalisation."""
        pooled = torch.flatten(self.pool(self.backbone(images_BCHW)), 1)
        features_BE: Tensor = self.last_bn(self.last_linear(pooled))
        return features_BE

    def classify(self, features_BE: Tensor) -> Tensor:
        """(B, K) logits."""
        logits_BK: Tensor = self.logits(features_BE)
        return logits_BK


def count_parameters(network: nn.Module) -> int:
    """Parameters, without buffers."""
    return sum(parameter.numel() for parameter in network.parameters())
