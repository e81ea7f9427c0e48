"""Every backbone in every format: the embeddings of the model, or one line that says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from students import show_faces, write_student
from torch import nn

from persona.config import StudentConfig
from persona.deploy import graph
from persona.deploy.bench import count_macs
from persona.deploy.exports import ExportOptions
from persona.deploy.exports.base import FileFormat
from persona.deploy.exports.litert import Litert
from persona.deploy.exports.onnx import Onnx
from persona.deploy.faces import drawn_faces
from persona.errors import PersonaError
from persona.models.backbones import BACKBONES, Backbone
from persona.models.cards import Card
from persona.models.onnx_graph import count_onnx
from persona.models.student import Student, count_parameters

FORMATS: dict[str, Callable[[], FileFormat]] = {"onnx": Onnx, "litert": Litert}


class Grouped(Backbone):
    """A user's own, with the convolutions that the others do not have."""

    name = "grouped-test"

    def build(self) -> tuple[nn.Module, int]:
        layers = (
            nn.Conv2d(3, 16, 4, 4),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=2, dilation=2, groups=4),
            nn.ReLU6(),
            nn.Conv2d(32, 64, 2, groups=32),
        )
        return nn.Sequential(*layers), 64


CASES: list[tuple[dict[str, Any], int, str, int]] = [
    # options, side of the crops in px, operators that LiteRT refuses, layers that int8 counts
    ({}, 32, "", 50),
    ({"width": 0.35}, 32, "", 50),
    (
        {"width": 0.75, "pooling": "depthwise", "activation": "prelu", "first_stride": 1},
        32,
        "",
        40,
    ),
    ({"architecture": "mobilenet_v3_large"}, 32, "", 60),
    ({"pooling": "full", "embedding_size": 128, "last_stride": 1}, 32, "", 50),
    ({"architecture": "mobilefacenet"}, 32, "", 50),
    ({"architecture": "grouped-test"}, 32, "", 3),
    ({"architecture": "timm:mobilenetv4_conv_small_050"}, 64, "", 50),
    ({"architecture": "timm:ghostnet_050"}, 64, "", 60),
    ({"architecture": "timm:resnet18"}, 32, "MaxPool", 25),
    ({"architecture": "timm:edgenext_xx_small"}, 64, "Transpose", 15),
]


def build(config: dict[str, Any], side: int) -> Student:
    """A student whose norms have seen faces."""
    if ":" in config.get("architecture", ""):
        pytest.importorskip("timm", reason="timm is not installed: the extra `timm`")
    torch.manual_seed(0)
    student = Student(StudentConfig(**config), 0, head="none", image_size=side)
    show_faces(student, side)
    return student


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Card:
    return write_student(tmp_path_factory.mktemp("models"))


@pytest.mark.heavy
@pytest.mark.parametrize(("config", "side", "refused", "layers"), CASES, ids=str)
def test_it_is_exported_in_every_format_that_has_its_operators(
    config: dict[str, Any],
    side: int,
    refused: str,
    layers: int,
    card: Card,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student, faces = build(config, side), drawn_faces(side, 12)
    traced = graph._trace(student, ExportOptions()).SerializeToString()  # once for all four
    monkeypatch.setattr(graph, "_trace", lambda *_: onnx_from(traced))
    sizes, found = {}, {}
    for name, form in FORMATS.items():
        for precision in ("fp32", "int8"):
            path, options = tmp_path / f"{precision}{form().suffix}", ExportOptions(precision)

            def write(form: Any = form, path: Path = path, options: Any = options) -> Any:
                return form().write(student, card, faces, path, options, calibration_NHWC=faces)

            if name == "litert" and refused:
                line = rf"^LiteRT files hold no [^\n]*{refused}[^\n]*: export it as ONNX$"
                with pytest.raises(PersonaError, match=line):
                    write()
                assert not path.exists()
                continue
            done = write()  # checks the embeddings
            if precision == "fp32":
                assert done.worst_cosine > 0.9999
            else:
                assert done.layers >= layers and len(done.floats) < done.layers / 2
            sizes[name, precision] = done.bytes
            found[name, precision] = form().run(path.read_bytes(), faces, options)
    for name in {name for name, _ in sizes}:
        assert sizes[name, "int8"] < 0.5 * sizes[name, "fp32"]
    if not refused:  # one calibration for both formats
        assert (found["onnx", "int8"] * found["litert", "int8"]).sum(axis=1).min() > 0.98
    parameters, macs = count_onnx(tmp_path / "fp32.onnx")
    assert parameters == pytest.approx(count_parameters(student), rel=0.02)
    assert macs == pytest.approx(count_macs(student), rel=0.02)


def onnx_from(data: bytes) -> Any:
    import onnx

    return onnx.load_from_string(data)


def test_every_backbone_of_persona_is_among_them() -> None:
    tried = {config.get("architecture", "mobilenet_v3_small") for config, *_ in CASES}
    families = {name.partition(":")[0] for name in tried if ":" in name}
    for name in BACKBONES.built_in:
        assert name in tried or name.partition(":")[0] in families
