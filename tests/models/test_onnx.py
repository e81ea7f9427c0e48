"""Teachers from ONNX files: small ones, written on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_files import SETTINGS, SIDE, write_model

from persona.data.transforms import normalise
from persona.errors import PersonaError
from persona.landmarks import TEMPLATE_52
from persona.models.onnx import (
    CONFIGS,
    OnnxRunner,
    find_settings,
    open_session,
    parse_settings,
)
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
    lines = (folder / "net.yaml").read_text().splitlines()
    lines = [line for line in lines if line.partition(":")[0] not in changed]
    lines += [f"{name}: {value}" for name, value in changed.items()]
    (folder / "net.yaml").write_text("\n".join(lines) + "\n")
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


@pytest.mark.parametrize("batch", ["batch", 1, 3])
def test_lanes_give_the_same_vectors(folder: Path, batch: int | str) -> None:
    write_model(folder / "net.onnx", batch=batch)
    alone = open_session(folder / "net.onnx", 1)
    lanes = open_session(folder / "net.onnx", 2)
    for count in (1, 15, 16, 37):
        images = pixels(count).numpy().astype(np.float32)
        np.testing.assert_allclose(lanes.run(images), alone.run(images), rtol=1e-5, atol=1e-5)
        assert lanes.run(images).shape == (count, 9)


def rewrite(path: Path, operator: str, shape: list[int] | None = None) -> None:
    """Puts another operator in place of the model's Flatten."""
    model = onnx.load(str(path))
    (flat,) = (node for node in model.graph.node if node.op_type == "Flatten")
    if shape is not None:
        stored = onnx.numpy_helper.from_array(np.array(shape, np.int64), "shape")
        model.graph.initializer.append(stored)
    inputs = ["pooled"] if shape is None else ["pooled", "shape"]
    flat.CopyFrom(onnx.helper.make_node(operator, inputs, ["flat"]))
    onnx.save(model, str(path))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fixed_batch_is_made_free(folder: Path, batch: int) -> None:
    path = folder / "net.onnx"
    write_model(path, batch=batch)
    rewrite(path, "Reshape", [batch, -1])
    before = path.read_bytes()
    images = pixels(7).numpy().astype(np.float32)
    fixed, freed = open_session(path, 1), open_session(path, 1)
    assert freed.free() and not freed.free()  # there is nothing to free a second time
    np.testing.assert_allclose(freed.run(images), fixed.run(images), rtol=1e-5)
    assert freed._session.get_inputs()[0].shape[0] == "batch"
    assert path.read_bytes() == before


def test_a_batch_that_the_graph_fixes_stays_fixed(folder: Path, tmp_path: Path) -> None:
    path = folder / "net.onnx"
    write_model(path, batch=1)
    rewrite(path, "Reshape", [3, 1])  # fails for more than one photo
    model = onnx.load(str(path))
    turned = onnx.helper.make_node("Transpose", ["turn"], ["flat"], perm=[1, 0])
    model.graph.node[1].output[0] = "turn"
    model.graph.node.insert(2, turned)
    onnx.save(model, str(path))
    session, images = open_session(path, 1), pixels(3).numpy().astype(np.float32)
    wanted = session.run(images)
    assert not session.free()
    np.testing.assert_array_equal(session.run(images), wanted)
    # One that mixes its photos gives other embeddings together than alone.
    write_model(path, batch=1)
    model = onnx.load(str(path))
    mean = onnx.helper.make_node("ReduceMean", ["faces"], ["mean"], axes=[0], keepdims=1)
    mixed = onnx.helper.make_node("Mul", ["faces", "mean"], ["mixed"])
    model.graph.node[0].input[0] = "mixed"
    for node in (mixed, mean):
        model.graph.node.insert(0, node)
    onnx.save(model, str(path))
    assert not open_session(path, 1).free()
    write_model(path)
    assert not open_session(path, 1).free()  # it is free already


def test_a_huge_batch_is_refused_before_it_is_run(folder: Path) -> None:
    write_model(folder / "net.onnx", batch=100_000)
    for open_file in (lambda: load(folder), lambda: OnnxRunner(folder / "net.onnx", 1)):
        with pytest.raises(PersonaError, match=r"takes \[100000, 3, 16, 16\] at once.*export it"):
            open_file()


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


def write_flat(path: Path, dims: list[int | str] | None, kind: int = TensorProto.FLOAT) -> Path:
    """A network of faces of SIDE px, whatever the sides of its input say."""
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    given = [] if dims is None else [helper.make_tensor_value_info("faces", kind, dims)]
    weight = numpy_helper.from_array(np.ones((3 * SIDE * SIDE, 9), np.float32), "weight")
    ones = numpy_helper.from_array(np.ones((1, 3 * SIDE * SIDE), np.float32), "ones")
    nodes = [
        helper.make_node("Cast", [given[0].name if given else "ones"], ["floats"], to=1),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["out"]),
    ]
    graph = helper.make_graph(nodes, "face", given, [out], [weight, ones])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize(
    ("dims", "kind", "message"),
    [
        (["b", 3, "h", "w"], TensorProto.FLOAT, r"failed on faces of shape \(1, 3, 160, 160\)"),
        (["b", 3, SIDE, SIDE], TensorProto.INT64, r"its input is tensor\(int64\)"),
        ([0, 3, SIDE, SIDE], TensorProto.FLOAT, r"of shape \[0, 3"),
        (["b", 3 * SIDE * SIDE], TensorProto.FLOAT, "one input of four axes"),
        (None, TensorProto.FLOAT, "one input of four axes"),
    ],
)
def test_a_file_that_cannot_be_measured_is_one_line(
    tmp_path: Path, dims: list[int | str] | None, kind: int, message: str
) -> None:
    path = write_flat(tmp_path / "net.onnx", dims, kind)
    with pytest.raises(PersonaError, match=rf"net\.onnx.*{message}"):
        OnnxRunner(path, 1).on(2)()


def test_a_file_of_free_sides_is_measured_at_those_of_its_settings(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "net.onnx", ["b", 3, "h", "w"])
    path.with_suffix(".yaml").write_text(SETTINGS)
    OnnxRunner(path, 1).on(2)()


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
