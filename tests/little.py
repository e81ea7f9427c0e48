"""A backbone of two layers, for tests of what is done with a student, whichever it is.

A step, a checkpoint and an evaluation cost as much as there are parameters. MobileNetV3 has 240.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from persona.config import Checked, between
from persona.models.backbones import Backbone

LITTLE = "little"


@dataclass(frozen=True)
class LittleConfig(Checked):
    channels: int = between(4, 64, default=8)


class Little(Backbone):
    name, config_class = LITTLE, LittleConfig

    def build(self) -> tuple[nn.Module, int]:
        channels = self.options.channels
        first, second = nn.Conv2d(3, channels, 3, 4, 1), nn.Conv2d(channels, 16, 3, 2, 1)
        norms = nn.BatchNorm2d(channels), nn.BatchNorm2d(16)
        return nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1], nn.ReLU()), 16
