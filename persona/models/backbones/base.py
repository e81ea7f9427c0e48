"""The base class of backbones: a name, options, and a network from photos to feature maps.

A new backbone is one file with one subclass. Defining the class registers it. It can then be
distilled, saved, evaluated and exported by its name:

    class Plain(Backbone):
        name = "plain"

        def build(self):
            return nn.Sequential(nn.Conv2d(3, 64, 3, 4, 1), nn.BatchNorm2d(64), nn.ReLU()), 64

Pooling, embedding and last layer belong to the student (persona/models/student.py) and are the same
for all backbones. Saved weights use the parameter names of the network that `build` returns, so
these names must not change.
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
    """A kind of backbone, with its options."""

    name: ClassVar[str]
    """The name, for `student.architecture`."""
    family: ClassVar[str]
    """In place of a name: the class stands for every `FAMILY:MEMBER`, as `timm:resnet18`."""
    pooling: ClassVar[str] = "average"
    """The student's pooling if its options name none, see persona/models/student.py."""
    config_class: ClassVar[type[Any]] = NoOptions
    """A frozen dataclass of its options. In a recipe they stand beside those of the student."""
    options: Any

    def __init__(self, options: Any, *, member: str = "", image_size: int = 160) -> None:
        """Keeps what `build` may ask for.

        Args:
            options: an instance of `config_class`.
            member: what follows the name of the family; empty for a class with a name.
            image_size: side of the crops in px. Few networks depend on it.
        """
        self.options, self.member, self.image_size = options, member, image_size

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in vars(cls):
            BACKBONES.add(cls.name, cls)
        if "family" in vars(cls):
            BACKBONE_FAMILIES.add(cls.family, cls)

    @abstractmethod
    def build(self) -> tuple[nn.Module, int]:
        """Builds a network from normalised photos (B, 3, H, W) to maps (B, C, h, w).

        The weights are drawn at random, so seed torch first.

        Returns:
            The network, and C.
        """

    def start(self, network: nn.Module, models: Path) -> None:  # noqa: B027 - few have some
        """Loads pretrained weights if the options ask for them.

        Args:
            network: the network that `build` returned, on the CPU.
            models: the model store, which may hold the weights.

        Raises:
            PersonaError: the weights cannot be had, or belong to another network.
        """


BACKBONES: Registry[type[Backbone]] = registry.BACKBONES
BACKBONE_FAMILIES: Registry[type[Backbone]] = registry.BACKBONE_FAMILIES


def make_backbone(architecture: str, options: Any, image_size: int) -> Backbone:
    """The backbone of a name, as `mobilenet_v3_small` or `timm:resnet18`.

    Raises:
        PersonaError: the name is unknown; the message gives the nearest one.
    """
    member = architecture.partition(":")[2]
    return BACKBONES.find(architecture)(options, member=member, image_size=image_size)
