"""A backbone that Persona does not know, from a recipe to an exported file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import NO_ALIGN, SIZE_PX, write_lfw, write_vggface2
from helpers import distill_error, distill_here, persona_here
from torch import nn

import persona
from persona.config import Checked, StudentConfig, among, between, from_dict, to_dict
from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.deploy.bench import count_macs
from persona.errors import PersonaError
from persona.models.backbones import Backbone
from persona.models.cards import find_model
from persona.models.store import load_model
from persona.models.student import Student, count_parameters
from persona.workspace import Workspace


@dataclass(frozen=True)
class TinyConfig(Checked):
    channels: int = between(4, 64, default=8)
    padding: str = among(("zeros", "reflect"), default="zeros")


class Tiny(Backbone):
    name, config_class = "tiny-test", TinyConfig

    def build(self) -> tuple[nn.Module, int]:
        channels = self.options.channels
        first = nn.Conv2d(3, channels, 3, 4, 1, padding_mode=self.options.padding)
        layers = first, nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 1)
        return nn.Sequential(*layers), channels

    def start(self, network: nn.Module, models: Path) -> None:
        if self.options.padding == "reflect":
            nn.init.constant_(network.get_parameter("3.bias"), 7)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_vggface2(folder / "raw")
    dataset = open_dataset("vggface2", folder / "raw")
    pack_photos(dataset, folder / "shards" / dataset.set_name, NO_ALIGN)
    return folder


def test_it_is_distilled_saved_loaded_and_exported(home: Path) -> None:
    options = ("-o", "student.channels=12", "-o", "student.pooling=depthwise")
    model_id = distill_here("tiny-test", "--teacher", "none", "-e", "1", *options, home=home)
    card = find_model(model_id, home / "models")
    assert model_id.startswith("tiny-test-") and card.architecture == "tiny-test"
    assert card.student == {
        "architecture": "tiny-test",
        "channels": 12,
        "padding": "zeros",
        "pooling": "depthwise",
        "embedding_size": 512,
        "norm_momentum": 0.1,
    }
    student = load_model(card, home / "models").eval()
    assert student.pool.get_submodule("0").kernel_size == (SIZE_PX // 4, SIZE_PX // 4)
    assert {"backbone.0.weight", "pool.0.weight", "last_linear.weight"} <= set(student.state_dict())
    persona_here("export", model_id, "--out", str(home / "tiny.onnx"), home=home)
    images = torch.rand(4, 3, SIZE_PX, SIZE_PX) * 2 - 1
    place = Workspace.locate(home=home)
    ours, theirs = (
        persona.load(name, workspace=place).in_torch().network.eval().embed(images).detach()
        for name in (model_id, f"onnx:{home / 'tiny.onnx'}")
    )
    assert float((ours * theirs).sum(dim=1).min()) > 0.9999


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name", ["mobilenet_v3_large", "mobilefacenet", "timm:ghostnet_050", "timm:edgenext_xx_small"]
)
def test_each_kind_is_distilled_evaluated_and_has_its_costs(name: str, home: Path) -> None:
    if ":" in name:
        pytest.importorskip("timm", reason="timm is not installed: the extra `timm`")
    if not (home / "shards" / "lfw").exists():
        write_lfw(home / "raw")
        pack_photos(open_dataset("lfw", home / "raw"), home / "shards" / "lfw", NO_ALIGN)
    options = ("-e", "1", "-o", "student.pooling=average")
    model_id = distill_here(name, "--teacher", "none", *options, home=home)
    found = persona_here("evaluate", "--set", "lfw", "--student", model_id, home=home)
    assert found["pairs"] == 12
    costs = persona_here("bench", model_id, "--rounds", "1", "--runs", "1", home=home)["models"]
    assert [cost["runtime"] for cost in costs] == ["torch", "onnxruntime"]
    student = load_model(find_model(model_id, home / "models"), home / "models")
    for cost in costs:
        assert cost["latency_p50_ms"] > 0 and cost["macs"] == count_macs(student)
        assert cost["parameters"] == count_parameters(student)


def test_its_options_are_its_own(home: Path) -> None:
    assert "channels 3: choose 4 to 64" in distill_error(
        "tiny-test", "-o", "student.channels=3", home=home
    )
    assert "unknown padding 'zero'; did you mean 'zeros'" in distill_error(
        "tiny-test", "-o", "student.padding=zero", home=home
    )
    line = distill_error("tiny-test", "-o", "student.width=0.5", home=home)
    assert "unknown key 'student.width'" in line and "student.channels" in line
    assert "unknown key 'student.channels'" in distill_error(
        "mobilenet_v3_small", "-o", "student.channels=8", home=home
    )
    with pytest.raises(TypeError, match="width"):
        StudentConfig("tiny-test", width=0.5)


def test_pretrained_weights_are_its_own_too(tmp_path: Path) -> None:
    for padding, wanted in (("zeros", False), ("reflect", True)):
        student = Student(StudentConfig("tiny-test", padding=padding), 0, head="none")
        student.start(tmp_path)
        assert bool((student.backbone.get_parameter("3.bias") == 7).all()) == wanted


def test_a_config_is_changed_written_and_read_with_its_options() -> None:
    config = replace(StudentConfig("tiny-test", channels=16), embedding_size=32)
    assert config.backbone == TinyConfig(channels=16)
    assert from_dict(StudentConfig, to_dict(config), where="a test") == config


def test_cards_and_recipes_of_earlier_versions_are_read() -> None:
    """Before last_stride was there, and with every option beside the others."""
    old = {
        "architecture": "mobilenet_v3_large",
        "width": 0.75,
        "first_stride": 1,
        "pooling": "depthwise",
        "activation": "prelu",
        "embedding_size": 128,
        "norm_momentum": 0.01,
        "imagenet": False,
    }
    config = from_dict(StudentConfig, old, where="a card")
    assert to_dict(config) == {**old, "last_stride": 2}
    with pytest.raises(
        PersonaError, match=r"unknown student 'resnet'; known: .*mobilenet_v3_small"
    ):
        from_dict(StudentConfig, {"architecture": "resnet"}, where="a card")


def test_mobilefacenet_is_the_papers() -> None:
    """Table 1 and section 4: 0.99 million parameters and 221 million MACs at 112 px."""
    config = StudentConfig("mobilefacenet", embedding_size=128)
    assert config.pooling == "depthwise"
    student = Student(config, 0, head="none", image_size=112).eval()
    assert (student.maps_side(), student.channels) == (7, 512)
    assert student.pool.get_submodule("0").kernel_size == (7, 7)
    # The paper's head folds its batch norms; the rest are slopes and norms of every layer.
    assert 0.98e6 < count_parameters(student) < 1.01e6
    assert round(count_macs(student) / 1e6) == 221
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = nn.functional.interpolate(images, (112, 112), mode="bicubic")
    one, two = student.embed(images).detach()
    assert float(one @ two) < 0.999  # a signal comes through before the first step
    adding = [module for module in student.modules() if getattr(module, "adds", False)]
    assert len(adding) == 4 + 0 + 6 + 0 + 2


def test_a_backbone_that_gives_no_maps_is_refused_in_one_line(home: Path) -> None:
    class Wrong(Backbone):
        name = "wrong-test"

        def build(self) -> tuple[nn.Module, int]:
            return nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.Flatten()), 8

    class Small(Backbone):
        name = "small-test"

        def build(self) -> tuple[nn.Module, int]:
            return nn.Conv2d(3, 8, SIZE_PX), 8

    class Larger(Backbone):
        name = "larger-test"

        def build(self) -> tuple[nn.Module, int]:
            return nn.Conv2d(3, 8, 2 * SIZE_PX), 8

    short = ("--teacher", "none", "-e", "1")
    line = distill_error("wrong-test", *short, home=home)
    assert "wrong-test gives (1, 512) of a crop of 32 px, where maps (1, 8, h, h) are" in line
    line = distill_error("larger-test", *short, home=home)
    assert "larger-test fails on a crop of 32 px (" in line and "RuntimeError" in line
    line = distill_error("small-test", *short, "-o", "student.pooling=depthwise", home=home)
    assert "small-test leaves one place of a crop of 32 px: choose average" in line


def test_maps_of_one_place_are_told_once(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Coarse(Backbone):
        name = "coarse-test"

        def build(self) -> tuple[nn.Module, int]:
            return nn.Conv2d(3, 8, SIZE_PX), 8

    distill_here("coarse-test", "--teacher", "none", "-e", "1", home=home)
    line = "coarse-test leaves one place of a crop of 32 px, so no part of a face has a place"
    assert [line in message for message in caplog.messages].count(True) == 1
    caplog.clear()
    distill_here("tiny-test", "--teacher", "none", "-e", "1", home=home)
    assert not any("leaves one place" in message for message in caplog.messages)


def test_a_card_cannot_name_a_backbone_that_its_file_does_not_hold(home: Path) -> None:
    class Huge(Backbone):
        name = "huge-test"
        built: ClassVar[list[torch.device]] = []

        def build(self) -> tuple[nn.Module, int]:
            network = nn.Conv2d(3, 1 << 20, 64)
            self.built.append(network.weight.device)
            return network, 1 << 20

    model_id = distill_here("tiny-test", "--teacher", "none", "-e", "1", home=home)
    card = find_model(model_id, home / "models")
    student = {"architecture": "huge-test", "embedding_size": 8}
    forged = replace(card, architecture="huge-test", student=student)
    with pytest.raises(PersonaError, match="does not hold a huge-test"):
        load_model(forged, home / "models")
    assert Huge.built == [torch.device("meta")]  # no memory was taken


@pytest.mark.parametrize(("architecture", "count"), [("small", 240), ("large", 308)])
def test_the_names_of_saved_weights_stay(architecture: str, count: int) -> None:
    torch.manual_seed(0)
    names = Student(StudentConfig(f"mobilenet_v3_{architecture}"), 3).state_dict()
    heads = {"logits.weight", "logits.bias", "last_linear.weight"}
    heads |= {f"last_bn.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
    convolutions = names.keys() - heads - {"last_bn.num_batches_tracked"}
    assert len(convolutions) == count
    assert all(name.startswith("backbone.") for name in convolutions)
    assert names["backbone.0.0.weight"].shape == (16, 3, 3, 3)
