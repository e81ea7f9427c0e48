"""Networks of timm as students. timm is optional: without it these tests are skipped."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from persona.config import StudentConfig, from_dict, to_dict
from persona.errors import PersonaError
from persona.models.backbones import BACKBONES
from persona.models.backbones.timm import LastMaps
from persona.models.cards import new_id
from persona.models.student import Student


def student(name: str, image_size: int = 64, **options: Any) -> Student:
    return Student(StudentConfig(f"timm:{name}", **options), 3, image_size=image_size)


def test_without_timm_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(PersonaError, match=r"students of timm need timm: .*install .*\[timm\]"):
        student("resnet18")


def test_a_family_is_one_name_among_the_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    # Errors show the first twelve names, and other tests of this process register students.
    own = {name: item for name, item in BACKBONES._items.items() if not name.endswith("-test")}
    monkeypatch.setattr(BACKBONES, "_items", own)
    assert "timm:NAME" in list(BACKBONES) and "timm:resnet18" in BACKBONES
    assert "timm" not in BACKBONES and "timm:" not in BACKBONES and "tim:a" not in BACKBONES
    with pytest.raises(PersonaError, match=r"unknown student 'tim:resnet18'; .*timm:NAME"):
        StudentConfig("tim:resnet18")
    config = StudentConfig("timm:resnet18", pretrained=True)
    assert from_dict(StudentConfig, to_dict(config), where="a test") == config
    assert new_id("timm:resnet18").startswith("timm-resnet18-2")


def test_maps_with_channels_last_are_turned() -> None:
    class Backwards(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [images, images.permute(0, 2, 3, 1)]

    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(LastMaps(Backwards(), 3)(images), images)


class TestNetworks:
    """What needs timm itself."""

    @pytest.fixture(autouse=True)
    def _timm(self) -> None:
        pytest.importorskip("timm", reason="timm is not installed: the extra `timm`")

    def test_names_are_looked_up_among_its_own_alone(self) -> None:
        line = r"unknown network of timm 'edgenext_xx_smal'; did you mean 'edgenext_xx_small'\?.*x_"
        with pytest.raises(PersonaError, match=line):
            student("edgenext_xx_smal")
        for name in ("hf-hub:timm/resnet18", "local-dir:/tmp", "../x", "qqqqqq"):
            with pytest.raises(PersonaError, match=r"timm has no network|timm .* has no network"):
                student(name)

    @pytest.mark.parametrize(
        ("name", "size", "side"),
        [("edgenext_xx_small", 64, 2), ("ghostnet_050", 64, 2), ("vit_tiny_patch16_224", 32, 2)],
    )
    def test_its_last_maps_are_the_students(self, name: str, size: int, side: int) -> None:
        torch.manual_seed(0)
        network = student(name, size, embedding_size=16)
        assert network.maps_side() == side
        assert network(torch.zeros(2, 3, size, size)).features.shape == (2, 16)
        network(torch.randn(2, 3, size, size)).features.square().mean().backward()
        last = list(network.backbone.parameters())[-1]
        assert last.grad is not None

    def test_a_network_without_maps_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise RuntimeError("features_only not implemented\nfor this one")

        monkeypatch.setattr("timm.create_model", refuse)
        line = r"timm's resnet18 gives no maps of crops of 64 px \('RuntimeError: .*implemented'\)"
        with pytest.raises(PersonaError, match=line):
            student("resnet18", 64)

    def test_weights_that_cannot_be_had_are_one_line(self, tmp_path: Any) -> None:
        network = student("ghostnet_050", pretrained=True)
        with pytest.raises(PersonaError, match="timm cannot load the weights of 'ghostnet_050'"):
            network.start(tmp_path)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        plain = student("ghostnet_050")
        plain.load_state_dict(before)
        plain.start(tmp_path)
        assert all(torch.equal(v, before[n]) for n, v in plain.state_dict().items())
