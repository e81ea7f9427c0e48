"""Students: MobileNetV3 (Howard et al. 2019, arXiv:1905.02244) with FaceNet's head.

The default is the reference: torchvision's convolutions, average pooling, Linear(-> 512, no bias),
batch norm. For faces, by option:

- `pooling: depthwise`: a global depthwise convolution in place of the average (Chen et al. 2018,
  MobileFaceNets, arXiv:1804.07573, section 3.1: the average weighs the face's corners like its
  centre). It fixes the size of the crops.
- `activation: prelu` (the same paper, section 3.2) in place of hard-swish and ReLU
- `first_stride: 1`: twice the resolution in every layer
- `last_stride: 1`: twice the resolution in the last maps, which crops of 112 px need (the same
  paper ends at 7 x 7 places, where MobileNetV3's total stride of 32 would leave 4 x 4)
- `width`: of every layer of the convolutions
- `embedding_size`: fewer numbers a face

Shapes: B batch, C channel, H W pixels, E embedding, K identities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large, mobilenet_v3_small

from persona.config import StudentConfig
from persona.errors import PersonaError, unknown
from persona.models.depthwise import speed_up_depthwise
from persona.models.output import EMBEDDING_SIZE, ClassifierHead, FaceNetwork

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "mobilenet_v3_small": mobilenet_v3_small,
    "mobilenet_v3_large": mobilenet_v3_large,
}
BATCH_NORM_EPS = 0.001
"""As in FaceNet's last_bn (facenet-pytorch 2.5.3, models/inception_resnet_v1.py)."""


class Student(FaceNetwork):
    """Convolutions, pooling, Linear(-> E, no bias), batch norm, logits."""

    def __init__(
        self,
        config: StudentConfig,
        num_classes: int,
        *,
        head: str = "linear",
        image_size: int = 160,
    ) -> None:
        """Seed torch first: the weights are drawn here.

        Args:
            config: what kind of student.
            num_classes: identities of the logits; 0 only with head `none`.
            head: of the logits: `linear`, `cosine` or `none`.
            image_size: of the crops, px; only depthwise pooling depends on it.

        Raises:
            PersonaError: unknown architecture, or no identities for the head.
        """
        super().__init__()
        if config.architecture not in ARCHITECTURES:
            raise unknown("student", config.architecture, ARCHITECTURES)
        if head != "none" and num_classes < 1:
            raise PersonaError(f"a student of {num_classes} identities: it needs at least one")
        self.config = config
        self.num_classes = num_classes
        self.embedding_size = config.embedding_size or EMBEDDING_SIZE
        self.image_size = image_size
        self.backbone = build_backbone(config)
        channels = _channels(self.backbone)
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        if config.pooling == "depthwise":
            self.pool = _depthwise_pooling(self.backbone, channels, image_size)
        self.last_linear = nn.Linear(channels, self.embedding_size, bias=False)
        self.last_bn = nn.BatchNorm1d(self.embedding_size, eps=BATCH_NORM_EPS)
        self.logits = ClassifierHead(self.embedding_size, num_classes, head)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = config.norm_momentum

    def features(self, images_BCHW: Tensor, landmarks_B62: Tensor | None = None) -> Tensor:
        """(B, E) before normalisation."""
        pooled = torch.flatten(self.pool(self.backbone(images_BCHW)), 1)
        features_BE: Tensor = self.last_bn(self.last_linear(pooled))
        return features_BE

    def classify(self, features_BE: Tensor) -> Tensor:
        """(B, K) logits."""
        logits_BK: Tensor = self.logits(features_BE)
        return logits_BK

    def head(self) -> ClassifierHead:
        """The last layer by itself."""
        return self.logits if self.num_classes else super().head()

    def resize_head(self, num_classes: int, kind: str | None = None) -> None:
        """Gives the logits another number of identities: old ones keep their rows, in order.

        New rows are drawn: seed torch first. `kind` None: as it is; linear where there is none. A
        head of another kind is drawn anew.
        """
        same = kind in {None, self.logits.kind}
        kind = kind or ("linear" if self.logits.kind == "none" else self.logits.kind)
        head = ClassifierHead(self.embedding_size, num_classes, kind)
        kept = min(num_classes, self.num_classes)
        if kept and same:
            with torch.no_grad():
                for new, old in zip(head.parameters(), self.logits.parameters(), strict=True):
                    new[:kept] = old[:kept]
        device = self.last_linear.weight.device
        self.logits, self.num_classes = head.to(device), num_classes


def build_backbone(config: StudentConfig) -> nn.Sequential:
    """torchvision's convolutions of this width, stride and activation."""
    network: Any = ARCHITECTURES[config.architecture](weights=None, width_mult=config.width)
    backbone: nn.Sequential = network.features
    convolutions = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    if config.first_stride == 1:
        convolutions[0].stride = (1, 1)
    if config.last_stride == 1:
        next(m for m in reversed(convolutions) if m.stride == (2, 2)).stride = (1, 1)
    if config.activation == "prelu":
        for module in list(backbone.modules()):
            _use_prelu(module)
    speed_up_depthwise(backbone)
    return backbone


def _use_prelu(module: nn.Module) -> None:
    """Replaces the activation that ends a convolution's block by one slope a channel."""
    if isinstance(module, nn.Sequential) and isinstance(module[-1], nn.Hardswish | nn.ReLU):
        norm = next(m for m in reversed(list(module)) if isinstance(m, nn.BatchNorm2d))
        module[-1] = nn.PReLU(norm.num_features)


def _channels(backbone: nn.Sequential) -> int:
    convolutions = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    return convolutions[-1].out_channels


def _depthwise_pooling(backbone: nn.Sequential, channels: int, image_size: int) -> nn.Module:
    """A depthwise convolution as large as the last map."""
    strides = [m.stride[0] for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    side = image_size
    for stride in strides:
        side = -(-side // stride)  # every convolution pads to keep its size
    return nn.Sequential(
        nn.Conv2d(channels, channels, side, groups=channels, bias=False),
        nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS),
    )


def load_imagenet(student: Student, state: dict[str, Tensor]) -> None:
    """Starts the convolutions from torchvision's ImageNet weights.

    Raises:
        PersonaError: they are of another network.
    """
    prefix = "features."
    features = {n[len(prefix) :]: v for n, v in state.items() if n.startswith(prefix)}
    try:
        missing, unexpected = student.backbone.load_state_dict(features, strict=False)
    except RuntimeError:
        missing, unexpected = ["shapes"], []
    slopes = {n for n, m in student.backbone.named_modules() if isinstance(m, nn.PReLU)}
    if unexpected or {name.rpartition(".")[0] for name in missing} - slopes:
        raise PersonaError(
            f"these ImageNet weights are not of {student.config.architecture}: delete the file"
        )


def count_parameters(network: nn.Module) -> int:
    """Parameters, without buffers."""
    return sum(parameter.numel() for parameter in network.parameters())
