"""MobileFaceNet (Chen et al. 2018, arXiv:1804.07573, table 1).

The table's last two layers belong to the student: the global depthwise convolution is its pooling,
and the linear 1 x 1 convolution its embedding. With 128 dimensions and crops of 112 px the network
is the paper's, of 0.99 million parameters.
"""

from __future__ import annotations

from torch import Tensor, nn

from persona.models.backbones.base import Backbone

BLOCKS = (
    # factor of the expansion t, channels c, repetitions n, stride s of the first of them
    (2, 64, 5, 2),
    (4, 128, 1, 2),
    (2, 128, 6, 1),
    (4, 128, 1, 2),
    (2, 128, 2, 1),
)
"""The bottlenecks of table 1."""
FIRST, LAST = 64, 512
"""Channels of the first two layers and of the last map."""


class MobileFaceNet(Backbone):
    """The convolutions of MobileFaceNet: crops of 112 px become maps of 512 x 7 x 7."""

    name = "mobilefacenet"
    pooling = "depthwise"

    def build(self) -> tuple[nn.Module, int]:
        """Builds the layers of table 1 up to the last 1 x 1 convolution."""
        layers: list[nn.Module] = [
            _convolution(3, FIRST, 3, stride=2),
            _convolution(FIRST, FIRST, 3, groups=FIRST),
        ]
        channels = FIRST
        for expansion, width, count, stride in BLOCKS:
            for place in range(count):
                layers.append(Bottleneck(channels, width, expansion, 1 if place else stride))
                channels = width
        network = nn.Sequential(*layers, _convolution(channels, LAST, 1))
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                # By the inputs: by the outputs, depthwise layers would shrink the signal, and an
                # evaluation before batch norm's statistics have settled would see none of it.
                nn.init.kaiming_normal_(module.weight, mode="fan_in")
        return network, LAST


class Bottleneck(nn.Module):
    """Expands, convolves each channel, and projects; adds its input where the shapes are equal."""

    def __init__(self, channels: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.layers = nn.Sequential(
            *_convolution(channels, inner, 1),
            *_convolution(inner, inner, 3, stride=stride, groups=inner),
            nn.Conv2d(inner, width, 1, bias=False),  # the projection is linear
            nn.BatchNorm2d(width),
        )
        self.adds = stride == 1 and channels == width

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """Computes maps (B, width, H / stride, W / stride)."""
        found_BCHW: Tensor = self.layers(maps_BCHW)
        return found_BCHW + maps_BCHW if self.adds else found_BCHW


def _convolution(
    channels: int, width: int, side: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution with batch norm and PReLU, one slope per channel."""
    return nn.Sequential(
        nn.Conv2d(channels, width, side, stride, side // 2, groups=groups, bias=False),
        nn.BatchNorm2d(width),
        nn.PReLU(width),
    )
