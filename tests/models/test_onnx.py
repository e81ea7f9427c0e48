"""Teachers from ONNX files: small ones, written on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx_files import SETTINGS, SIDE, write_model

from persona.data.transforms import normalise
from persona.errors import PersonaError
from persona.landmarks import TEMPLATE_52
from persona.models.onnx import CONFIGS, find_settings, parse_settings
from persona.models.onnx_network import OnnxNetwork, open_network
from persona.models.sources import load_network, network_digest


def by_hand(pixels: torch.Tensor, channels: str = "rgb") -> np.ndarray:
    weight = np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32)
    images = pixels.double().numpy()
    if channels == "bgr":
        images = images[:, ::-1]
    means = np.array([10, 20, 30])[:, None, None]
    stds = np.array([2, 4, 5])[:, None, None]
    return np.asarray(((images - means) / stds).mean(axis=(2, 3)) @ weight)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "net.onnx")
    (tmp_path / "net.yaml").write_text(SETTINGS)
    return tmp_path


def load(folder: Path, **changed: Any) -> OnnxNetwork:
    text = (folder / "net.yaml").read_text()
    text += "".join(f"{name}: {value}\n" for name, value in changed.items())
    (folder / "net.yaml").write_text(text)
    return open_network(folder / "net.onnx")


def pixels(count: int = 5, side: int = SIDE) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize("batch", ["batch", 1, 2])
def test_normalisation_channels_and_batches(folder: Path, channels: str, batch: int | str) -> None:
    write_model(folder / "net.onnx", batch=batch)
    network = load(folder, channels=channels)
    assert (network.embedding_size, network.num_classes) == (9, 0)
    images = pixels()
    found = network.features(normalise(images))
    np.testing.assert_allclose(found.numpy(), by_hand(images, channels), rtol=1e-3, atol=1e-3)
    assert network(normalise(images)).logits.shape == (5, 0)


def test_flip_average_adds_the_mirror_image(folder: Path) -> None:
    images = normalise(pixels())
    plain = load(folder).features(images)
    torch.testing.assert_close(load(folder, flip_average="true").features(images), 2 * plain)


def test_margin_crops_of_another_size_are_resized(folder: Path) -> None:
    images = pixels(side=64)
    found = load(folder).features(normalise(images))
    np.testing.assert_allclose(found.numpy(), by_hand(images), rtol=0.05, atol=3)


def test_five_points_are_wanted_and_used(folder: Path) -> None:
    (folder / "net.yaml").write_text(SETTINGS.replace("margin", "five-point"))
    network = load(folder)
    assert network.uses_landmarks
    images = normalise(pixels(2, side=40))
    for missing in (None, torch.full((2, 6, 2), torch.nan)):
        with pytest.raises(PersonaError, match="wants five points of each face"):
            network.features(images, missing)
    points = torch.tensor(np.vstack([TEMPLATE_52 * 40 / 112, [[1, 1]]])).float().repeat(2, 1, 1)
    found = network.features(images, points)
    shifted = network.features(
        images, points + torch.tensor([4.0, 0]) * torch.tensor([[1.0]] * 5 + [[0]])
    )
    assert found.shape == (2, 9) and bool((found - shifted).abs().max() > 0.1)


def test_the_store_knows_onnx_files(folder: Path) -> None:
    name = f"onnx:{folder / 'net.onnx'}"
    named = load_network(name, folder)
    assert (named.name, named.classes, named.image_size) == (name, (), None)
    assert named.digest == network_digest(name, folder)
    (folder / "net.yaml").write_text(SETTINGS + "flip_average: true\n")
    assert named.digest != network_digest(name, folder)  # other settings: other vectors
    assert network_digest("onnx:nowhere.onnx", folder) is None
    with pytest.raises(PersonaError, match=r"no ONNX file at .*nowhere\.onnx"):
        load_network("onnx:nowhere.onnx", folder)
    with pytest.raises(PersonaError, match="embeddings and no logits"):
        named.network.head()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input_size": 20}, r"has input .*16, 16\], the settings say \(batch, 3, 20, 20\)"),
        ({"output": "embedding"}, "unknown output 'embedding'.*out0"),
        ({"channels": "gbr"}, r"unknown channels 'gbr'; did you mean 'rgb'.*net\.yaml"),
        ({"alignment": "five"}, "unknown alignment 'five'"),
        ({"std": "[0, 1, 1]"}, "std above 0"),
        ({"std": "[1, 1]"}, "three numbers each"),
        ({"std": "[.inf, 1, 1]"}, "three numbers each"),
        ({"mean": "[.nan, 1, 1]"}, "three numbers each"),
        ({"alignment": "2020-99-99"}, "not valid YAML"),
        ({"mean": "grey"}, "expected a list, found 'grey'"),
        ({"input_size": 4}, "choose 16 to 1024"),
        ({"channel": "rgb"}, "unknown key 'channel'.*'channels'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    folder: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(PersonaError, match=message):
        load(folder, **changed)


def test_several_outputs_want_a_name(folder: Path) -> None:
    write_model(folder / "net.onnx", outputs=2)
    with pytest.raises(PersonaError, match="outputs out0, out1: name one as `output`"):
        load(folder)
    assert load(folder, output="out1").embedding_size == 9


def test_an_output_that_is_no_embedding_is_refused(folder: Path) -> None:
    write_model(folder / "net.onnx", width=2)
    with pytest.raises(PersonaError, match=r"output out0 of shape \(2, 2\)"):
        load(folder)


@pytest.mark.parametrize("data", [b"", b"no onnx at all", b"\x08\x09" * 1000])
def test_files_that_are_no_onnx_are_refused(folder: Path, data: bytes) -> None:
    (folder / "net.onnx").write_bytes(data)
    with pytest.raises(PersonaError, match="cannot be loaded as ONNX"):
        load(folder)


def test_settings_are_looked_for_beside_the_file_in_it_and_in_configs(tmp_path: Path) -> None:
    known = write_model(tmp_path / "w600k_r50.onnx")
    assert find_settings(known)[1] == str(CONFIGS / "w600k_r50.yaml")
    path = write_model(tmp_path / "mine.onnx")
    with pytest.raises(PersonaError, match=r"has no settings: copy .*mobilefacenet\.yaml"):
        find_settings(path)
    write_model(path, settings=SETTINGS)
    assert find_settings(path) == (SETTINGS, str(path))
    for text, message in (
        ("- 1", "must be a mapping"),
        ("a: b: c", "not valid YAML"),
        ("{}", "mean"),
    ):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(PersonaError, match=message):
            open_network(path)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_settings_of_configs_are_valid(path: Path) -> None:
    settings = parse_settings(path.read_text(), str(path))
    assert settings.input_size == (160 if path.stem == "facenet" else 112)
