"""What a backbone is: a name, its options, and a network from a photo to maps.

Another backbone is one file with one subclass; defining it registers it, and it can be distilled,
saved, evaluated and exported by its name:

    class Plain(Backbone):
        name = "plain"

        def build(self):
            return nn.Sequential(nn.Conv2d(3, 64, 3, 4, 1), nn.BatchNorm2d(64), nn.ReLU()), 64

Pooling, embedding and last layer are the student's (persona/models/student.py), alike for all.
Saved weights are under the names of the network that `build` returns: they must stay.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from persona import registry
from persona.registry import Registry


@dataclass(frozen=True)
class NoOptions:
    """The options of a backbone that has none."""


class Backbone(ABC):
    """A kind of convolutions, with options of its own."""

    name: ClassVar[str]
    """What `student.architecture` calls it."""
    config_class: ClassVar[type[Any]] = NoOptions
    """A frozen dataclass of its options, which stand beside the student's own in a recipe."""
    options: Any

    def __init__(self, options: Any) -> None:
        """`options` is an instance of `config_class`."""
        self.options = options

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in vars(cls):
            BACKBONES.add(cls.name, cls)

    @abstractmethod
    def build(self) -> tuple[nn.Module, int]:
        """A network from normalised photos (B, 3, H, W) to maps (B, C, h, w), and C.

        Seed torch first: the weights are drawn here.
        """

    def start(self, network: nn.Module, models: Path) -> None:  # noqa: B027 - few have some
        """Loads pretrained weights into what `build` returned, where the options ask for them.

        Args:
            network: on the CPU.
            models: the folder of models, where weights may lie.

        Raises:
            PersonaError: the weights cannot be had, or are of another network.
        """


BACKBONES: Registry[type[Backbone]] = registry.BACKBONES
