"""LiteRT files: the embeddings of the ONNX graph that they were translated from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from graphs import images, small_graph

from persona.deploy.litert import to_litert
from persona.deploy.quantise import find_ranges, lower, open_session, quantise
from persona.errors import PersonaError
from persona.landmarks import template
from persona.models.litert import LitertSession, open_litert, run_litert
from persona.models.sources import load_embedder, load_network


def test_the_guide_names_the_layout_of_each_file() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "phone.md").read_text()
    assert "(1, 3, 112, 112) for an ONNX file and (1, 112, 112, 3) for a LiteRT file" in guide


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize(
    ("floats", "integers"),
    [
        (None, False),
        ([], True),
        (["stem", "stem hard-swish", "se squeeze-excite"], True),
        (["deep", "project"], True),
    ],
)
def test_the_embeddings_are_those_of_the_graph(
    floats: list[str] | None, integers: bool, weights: bool
) -> None:
    model: Any = small_graph()
    if floats is not None:
        ranges = find_ranges(lower(model).model, [images(16)]) | find_ranges(model, [images(16)])
        model = quantise(model, ranges, floats, weights=weights)
    faces = images(6, 3)
    wanted = open_session(model).run(["embedding"], {"images": faces})[0]
    data = to_litert(model, "embedding", {"persona.model": "small"})
    found = run_litert(open_litert(data), faces)
    assert (found * wanted).sum(axis=1).min() > (0.999 if integers else 1 - 1e-6)
    kinds = {tensor.type for tensor in unpack(data).subgraphs[0].tensors}
    assert (schema.TensorType.INT8 in kinds) == integers
    swishes = schema.BuiltinOperator.HARD_SWISH
    codes = {code.builtinCode for code in unpack(data).operatorCodes}
    assert (swishes in codes) == (floats is None or "stem hard-swish" in floats)


@pytest.mark.parametrize("extra", ["PRelu", "HardSigmoid", "Clip", "Concat", "Identity"])
def test_an_operator_without_integers_is_in_floats_between_integers(extra: str) -> None:
    """LiteRT's kernel of a PReLU read the bytes of float32 slopes as integers."""
    model: Any = small_graph(extra=extra)
    ranges = find_ranges(lower(model).model, [images(16)]) | find_ranges(model, [images(16)])
    faces = images(6, 3)
    for graph in (model, quantise(model, ranges, [])):
        found = run_litert(open_litert(to_litert(graph, "embedding", {})), faces)
        assert (found * literally(graph, faces)).sum(axis=1).min() > 1 - 1e-6


def literally(model: Any, faces: Any) -> Any:
    """The embeddings of a graph as it stands, operator by operator.

    onnxruntime's own kernels of integers add in 16 bits on a processor without VNNI, and saturate.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(["embedding"], {"images": faces})[0]


def test_a_dead_squeeze_excite_can_be_run() -> None:
    """XNNPACK ended the process for the factor that its tiny steps asked for."""
    model: Any = small_graph(dead=True)
    ranges = find_ranges(lower(model).model, [images(16)]) | find_ranges(model, [images(16)])
    model = quantise(model, ranges, [])
    faces = images(6, 3)
    wanted = open_session(model).run(["embedding"], {"images": faces})[0]
    found = run_litert(open_litert(to_litert(model, "embedding", {})), faces)
    assert (found * wanted).sum(axis=1).min() > 0.99


def test_equal_vectors_are_written_once() -> None:
    model: Any = small_graph()
    ranges = find_ranges(lower(model).model, [images(16)]) | find_ranges(model, [images(16)])
    data = to_litert(quantise(model, ranges, []), "embedding", {})
    tensors = unpack(data).subgraphs[0].tensors
    zeros = [t.quantization.zeroPoint for t in tensors if t.quantization is not None]
    by_channel = [zero for zero in zeros if zero is not None and len(zero) > 1]
    lengths = {len(zero) for zero in by_channel}
    assert len(by_channel) > 2 * len(lengths)
    for length in lengths:
        vector = length.to_bytes(4, "little") + bytes(8 * length)
        assert data.count(vector) == 1


def test_the_file_says_what_it_is() -> None:
    file = unpack(to_litert(small_graph(), "embedding", {"persona.model": "small"}))
    entry = file.metadata[0]
    assert entry.name == b"persona.model"
    assert bytes(file.buffers[entry.buffer].data) == b"small"


def test_what_cannot_be_translated_or_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PersonaError, match="hold no Sin, which this student has"):
        to_litert(small_graph(extra="Sin"), "embedding", {})
    with pytest.raises(PersonaError, match="hold no Shape, which"):  # no name of a helper
        to_litert(small_graph(), "batch", {})
    path = tmp_path / "a.tflite"
    path.write_bytes(b"none")
    with pytest.raises(PersonaError, match=r"a\.tflite is no LiteRT file"):
        open_litert(path)
    whole = to_litert(small_graph(), "embedding", {})
    with pytest.raises(PersonaError, match="no LiteRT file"):
        open_litert(whole[:2000])


def test_a_file_is_a_network_by_name(tmp_path: Path) -> None:
    path = tmp_path / "small.tflite"
    path.write_bytes(to_litert(small_graph(), "embedding", {}))
    network = load_network(f"litert:{path}", tmp_path).network
    faces = images(3)
    wanted = run_litert(open_litert(path), faces)
    np.testing.assert_allclose(network.embed(torch.from_numpy(faces)), wanted, atol=1e-6)
    twice = torch.from_numpy(faces).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert (network.embed(twice).numpy() * wanted).sum(axis=1).min() > 0.9
    with pytest.raises(PersonaError, match="no LiteRT file at"):
        load_network("litert:nowhere", tmp_path)


@pytest.mark.parametrize("method", ["template", "landmarks", "mtcnn"])
def test_faces_are_aligned_as_the_card_in_the_file_says(tmp_path: Path, method: str) -> None:
    path = tmp_path / "small.tflite"
    alignment = {"method": method, "image_size": 112, "margin": 8}
    card = json.dumps({"alignment": alignment})
    path.write_bytes(to_litert(small_graph(), "embedding", {"a": "b", "persona.card": card}))
    session, network = LitertSession(path, 1), load_network(f"litert:{path}", tmp_path).network
    assert load_embedder(f"litert:{path}", tmp_path).alignment == alignment
    five_point = method != "mtcnn"
    assert session.uses_landmarks is network.uses_landmarks is five_point
    rng = np.random.default_rng(0)
    crops_BHW3 = rng.integers(0, 256, (2, 160, 160, 3), np.uint8)
    # A face that lies upside down in its crop.
    lying_B62 = np.stack([np.vstack([template(160), [[1, 1]]])] * 2)
    points_B62 = lying_B62.copy()
    points_B62[:, :5] = 159 - points_B62[:, :5]
    found = session.embed(crops_BHW3, points_B62)
    upright = np.ascontiguousarray(crops_BHW3[:, ::-1, ::-1])
    wanted = session.embed(upright, lying_B62)
    assert np.allclose(found, wanted, atol=1e-3) is five_point
    pixels = torch.from_numpy(crops_BHW3.transpose(0, 3, 1, 2).astype(np.float32))
    normalised = (pixels - 127.5) / 128
    by_torch = network.features(normalised, torch.from_numpy(points_B62)).numpy()
    np.testing.assert_allclose(by_torch, found, atol=2e-3)
    if five_point:
        for landmarks in (None, np.full((2, 6, 2), np.nan)):
            with pytest.raises(PersonaError, match=r"small\.tflite wants five points of each face"):
                session.embed(crops_BHW3, landmarks)


def unpack(data: bytes) -> Any:
    """The file as objects."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(np.frombuffer(data, np.uint8), 0))
