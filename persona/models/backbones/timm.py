"""Any network of timm, as `timm:NAME`: EdgeNeXt as `timm:edgenext_xx_small`, GhostNet and others.

The maps are the last of timm's `features_only`. For a network of convolutions they are what its
classifier pools, in many without the wide layer before it. For a transformer they are its tokens by
position. The weights are drawn at random, and nothing is downloaded unless `pretrained` is set.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from persona.errors import PersonaError, shown, unknown
from persona.extras import missing
from persona.models.backbones.base import Backbone
from persona.models.depthwise import speed_up_depthwise

NEAREST = 5
"""Most names that the error for an unknown one suggests."""


@dataclass(frozen=True)
class TimmConfig:
    """Options of timm's networks."""

    pretrained: bool = False
    """Whether training starts from the weights that timm downloads from the Hugging Face hub. A
    name may end in the tag of the weights: `timm:resnet18.a1_in1k`."""


class Timm(Backbone):
    """A network of timm."""

    family = "timm"
    config_class = TimmConfig
    options: TimmConfig

    def build(self) -> tuple[nn.Module, int]:
        """Builds the network with random weights.

        Raises:
            PersonaError: timm is not installed, has no network of this name, or the network gives
                no maps.
        """
        network = self._create(pretrained=False)
        channels = int(network.feature_info.channels()[-1])
        speed_up_depthwise(network)
        return LastMaps(network, channels), channels

    def start(self, network: nn.Module, models: Path) -> None:
        """Loads timm's weights if `pretrained` is set. timm downloads them once.

        Raises:
            PersonaError: there are no such weights, or they cannot be had.
        """
        if not self.options.pretrained:
            return
        assert isinstance(network, LastMaps)
        # A hub gives errors of many packages: requests, huggingface_hub, timm, safetensors, torch.
        try:
            trained = self._create(pretrained=True)
        except PersonaError:
            raise
        except Exception as error:
            raise PersonaError(
                f"timm cannot load the weights of {shown(self.member)} ({_line(error)}): leave "
                "student.pretrained out, or fill the cache of the Hugging Face hub on this machine"
            ) from None
        network.network.load_state_dict(trained.state_dict())

    def _create(self, *, pretrained: bool) -> Any:
        timm = _import_timm()
        name, _, tag = self.member.partition(".")
        # Only names of its own networks: timm's create_model also opens folders and repositories.
        if not timm.is_model(name) or "/" in self.member:
            nearest = difflib.get_close_matches(name, timm.list_models(), n=NEAREST)
            if nearest:
                raise unknown("network of timm", name, nearest)
            raise PersonaError(
                f"timm {timm.__version__} has no network {shown(name)}: timm.list_models() names "
                "all that it has"
            )
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
        sized = {"img_size": self.image_size} if config and config.fixed_input_size else {}
        try:
            return timm.create_model(
                f"{name}.{tag}" if tag and pretrained else name,
                pretrained=pretrained,
                features_only=True,
                out_indices=(-1,),
                **sized,
            )
        except Exception as error:  # each network refuses in its own way
            if pretrained:
                raise
            raise PersonaError(
                f"timm's {name} gives no maps of crops of {self.image_size} px "
                f"({_line(error)}): choose another network or another --image-size"
            ) from None


class LastMaps(nn.Module):
    """The last maps of a network of timm's `features_only`, channels first."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network, self.channels = network, channels

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Computes maps (B, C, h, w)."""
        maps: Tensor = self.network(images_BCHW)[-1]
        if maps.shape[1] != self.channels:  # some networks compute channels last
            maps = maps.permute(0, 3, 1, 2)
        return maps


def _import_timm() -> Any:
    try:
        import timm
    except ImportError:
        raise missing("students of timm need timm", "timm") from None
    return timm


def _line(error: Exception) -> str:
    return shown(f"{type(error).__name__}: {error}".partition("\n")[0])
