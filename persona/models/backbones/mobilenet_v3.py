"""MobileNetV3 (Howard et al. 2019, arXiv:1905.02244) with torchvision's convolutions.

The default is the reference. Options for faces:

- `activation: prelu`: PReLU instead of hard-swish and ReLU (Chen et al. 2018, MobileFaceNets,
  arXiv:1804.07573, section 3.2)
- `first_stride: 1`: twice the resolution in every layer
- `last_stride: 1`: twice the resolution in the last maps. Crops of 112 px need it: MobileFaceNets
  ends with maps of 7 x 7, and MobileNetV3's total stride of 32 would leave 4 x 4.
- `width`: multiplier of the channels of every layer
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large, mobilenet_v3_small

from persona.config import Checked, among, between
from persona.errors import PersonaError
from persona.models.backbones.base import Backbone
from persona.models.depthwise import speed_up_depthwise
from persona.models.teacher import load_release
from persona.models.weights import TORCHVISION, Release

ACTIVATIONS = ("default", "prelu")


@dataclass(frozen=True)
class MobileNetV3Config(Checked):
    """Options of MobileNetV3."""

    width: float = between(0.35, 1.0, default=1.0)
    """Multiplier of the channels of every layer."""
    first_stride: int = between(1, 2, default=2)
    """Stride of the first convolution. 1 doubles the resolution at about four times the cost."""
    last_stride: int = between(1, 2, default=2)
    """Stride of the last reduction. With 1, the last maps of a crop of 112 px are 7 x 7 instead of
    4 x 4, at about 1.6 times the multiplications."""
    activation: str = among(ACTIVATIONS, default="default")
    """`default` (hard-swish and ReLU) or `prelu`, which replaces both."""
    imagenet: bool = False
    """Whether training starts from torchvision's ImageNet weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.imagenet and self.width != 1.0:
            raise PersonaError(
                f"ImageNet weights are of width 1.0, not {self.width:g}: leave one of them out"
            )


class MobileNetV3(Backbone):
    """The common base of MobileNetV3 small and large."""

    config_class = MobileNetV3Config
    options: MobileNetV3Config
    architecture: ClassVar[Callable[..., nn.Module]]
    imagenet: ClassVar[Release]
    """MobileNet_V3_{Small,Large}_Weights.IMAGENET1K_V1 of torchvision 0.29."""

    def build(self) -> tuple[nn.Module, int]:
        """Builds torchvision's convolutions of the given width, strides and activation."""
        options = self.options
        network: Any = type(self).architecture(weights=None, width_mult=options.width)
        features: nn.Sequential = network.features
        convolutions = [m for m in features.modules() if isinstance(m, nn.Conv2d)]
        if options.first_stride == 1:
            convolutions[0].stride = (1, 1)
        if options.last_stride == 1:
            next(m for m in reversed(convolutions) if m.stride == (2, 2)).stride = (1, 1)
        if options.activation == "prelu":
            for module in list(features.modules()):
                _use_prelu(module)
        speed_up_depthwise(features)
        return features, convolutions[-1].out_channels

    def start(self, network: nn.Module, models: Path) -> None:
        """Loads torchvision's ImageNet weights if `imagenet` is set. They are downloaded once.

        Raises:
            PersonaError: the weights cannot be had, or belong to another network.
        """
        if self.options.imagenet:
            load_release(self.imagenet, models, self.name, partial(self.load_imagenet, network))

    def load_imagenet(self, network: nn.Module, state: dict[str, Tensor]) -> None:
        """Loads the state dict of torchvision's whole network into the convolutions.

        Raises:
            PersonaError: the state dict belongs to another network.
        """
        prefix = "features."
        features = {n[len(prefix) :]: v for n, v in state.items() if n.startswith(prefix)}
        try:
            missing, unexpected = network.load_state_dict(features, strict=False)
        except RuntimeError:
            missing, unexpected = ["shapes"], []
        slopes = {n for n, m in network.named_modules() if isinstance(m, nn.PReLU)}
        if unexpected or {name.rpartition(".")[0] for name in missing} - slopes:
            raise PersonaError(f"these ImageNet weights are not of {self.name}: delete the file")


class MobileNetV3Small(MobileNetV3):
    """MobileNetV3 small."""

    name = "mobilenet_v3_small"
    architecture = staticmethod(mobilenet_v3_small)
    imagenet = Release("mobilenet_v3_small-047dcff4.pth", 1000, "imagenet", TORCHVISION)


class MobileNetV3Large(MobileNetV3):
    """MobileNetV3 large."""

    name = "mobilenet_v3_large"
    architecture = staticmethod(mobilenet_v3_large)
    imagenet = Release("mobilenet_v3_large-8738ca79.pth", 1000, "imagenet", TORCHVISION)


def _use_prelu(module: nn.Module) -> None:
    """Replaces the activation at the end of a convolution block by PReLU, one slope per channel."""
    if isinstance(module, nn.Sequential) and isinstance(module[-1], nn.Hardswish | nn.ReLU):
        norm = next(m for m in reversed(list(module)) if isinstance(m, nn.BatchNorm2d))
        module[-1] = nn.PReLU(norm.num_features)
