"""What models cost: the figures are there and plausible; how large they are is no test's matter."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from graphs import images, small_graph
from helpers import persona_error
from onnx_files import write_model
from students import write_student

from persona.deploy.bench import bench, versions
from persona.deploy.litert import to_litert
from persona.deploy.quantise import find_ranges, lower, quantise
from persona.errors import PersonaError
from persona.models.onnx_graph import count_onnx


def test_models_are_measured_side_by_side(tmp_path: Path) -> None:
    path = write_model(tmp_path / "net.onnx", batch=1)
    file, network = bench(
        [f"onnx:{path}", "mobilenet_v3_small"], tmp_path / "models", rounds=2, runs=2
    )
    assert (file.runtime, network.runtime) == ("onnxruntime", "torch")
    assert (file.bytes, file.latency_ratio) == (path.stat().st_size, 1.0)
    # Howard et al. 2019, table 4: 56 M at 224 px, of which 160 px has about half; ours has a head.
    assert network.macs is not None and 25e6 < network.macs < 32e6
    assert network.latency_ratio > 1
    for cost in (file, network):
        assert 0 < cost.latency_p50_ms <= cost.latency_p95_ms and cost.faces_per_s > 0
    # Without torch a process is small.
    assert 10 < file.peak_memory_mb < network.peak_memory_mb / 2


def test_versions_are_those_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the light installation there is no torch."""
    found = versions()
    assert list(found) == ["cores", "machine", "python", "torch", "onnxruntime"]
    assert found["torch"] == torch.__version__
    monkeypatch.setitem(sys.modules, "torch", None)
    del found["torch"]
    assert versions() == found


@pytest.mark.parametrize("fails", [False, True])
def test_torch_has_as_many_threads_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """A program that goes on afterwards must not run on another number of threads."""
    if fails:
        monkeypatch.setattr("persona.deploy.bench._timed", lambda run: 1 / 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with contextlib.suppress(ZeroDivisionError):
            bench([f"onnx:{write_model(tmp_path / 'net.onnx')}"], tmp_path, rounds=1, runs=1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_a_model_of_a_folder_leaves_the_files_beside_it_alone(tmp_path: Path) -> None:
    write_student(tmp_path / "sent")
    kept = tmp_path / "sent" / "small.onnx"
    kept.write_bytes(b"mine")
    found = bench([str(tmp_path / "sent" / "small")], tmp_path / "models", rounds=1, runs=1)
    assert [one.runtime for one in found] == ["torch", "onnxruntime"]
    assert kept.read_bytes() == b"mine"
    assert {path.name for path in (tmp_path / "sent").iterdir()} == {"small", "small.onnx"}


def test_files_are_counted_by_their_shapes(tmp_path: Path) -> None:
    # GlobalAveragePool, then (3, 9) weights once a face: 27 of each.
    assert count_onnx(write_model(tmp_path / "net.onnx")) == (27, 27)
    model: Any = small_graph()
    onnx.save(model, tmp_path / "small.onnx")
    weights = 8 * 27 + 8 * 25 + 2 * 4 * 8 + 64 + 128 + 16 * 12
    biases = 8 + 8 + 4 + 16 + 12  # two convolutions have none
    macs = 8 * 64 * 27 + 8 * 64 * 25 + 2 * 32 + 64 * 64 + 64 * 128 + 16 * 12
    assert count_onnx(tmp_path / "small.onnx") == (weights + biases, macs)
    ranges = find_ranges(lower(model).model, [images(2)]) | find_ranges(model, [images(2)])
    onnx.save(quantise(model, ranges, set()), tmp_path / "int8.onnx")
    parameters, found = count_onnx(tmp_path / "int8.onnx")
    assert found == macs and parameters == pytest.approx(weights + biases, rel=0.05)


def test_products_of_shapes_that_the_graph_computes_are_counted(tmp_path: Path) -> None:
    """As those of attention are. Where a size is unknown, so is the number."""
    for axes, macs in (([0], 3 * 16 * 3), ([2], None)):
        h = onnx.helper
        nodes = [
            h.make_node("Shape", ["images"], ["shape"], start=axes[0], end=axes[0] + 1),
            h.make_node("Concat", ["shape", "rest"], ["wanted"], axis=0),
            h.make_node("Reshape", ["images", "wanted"], ["flat"]),
            h.make_node("Transpose", ["flat"], ["turned"], perm=[0, 2, 1]),
            h.make_node("MatMul", ["flat", "turned"], ["embedding"]),
        ]
        given = h.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["b", 3, "h", "w"])
        if macs is not None:
            given = h.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["b", 3, 4, 4])
        found = h.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, ["b", 3, 3])
        rest = h.make_tensor("rest", onnx.TensorProto.INT64, [2], [3, 16 if macs else -1])
        graph = h.make_graph(nodes, "products", [given], [found], [rest])
        onnx.save(h.make_model(graph), tmp_path / "a.onnx")
        assert count_onnx(tmp_path / "a.onnx")[1] == macs


def test_a_litert_file_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "small.tflite"
    path.write_bytes(to_litert(small_graph(), "embedding", {}))
    (cost,) = bench([f"litert:{path}"], tmp_path, rounds=1, runs=1)
    assert (cost.runtime, cost.bytes) == ("litert", path.stat().st_size)
    assert cost.latency_p50_ms > 0 and 10 < cost.peak_memory_mb < 1000


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PersonaError, match="no ONNX file"):
        bench(["onnx:nowhere.onnx"], tmp_path)
    with pytest.raises(PersonaError, match="no LiteRT file at nowhere"):
        bench(["litert:nowhere"], tmp_path)
    (tmp_path / "net.onnx").write_bytes(b"none")
    with pytest.raises(PersonaError, match="cannot be loaded as ONNX"):
        bench([f"onnx:{tmp_path}/net.onnx"], tmp_path)
    with pytest.raises(PersonaError, match=r"net\.onnx is no LiteRT file"):
        bench([f"litert:{tmp_path}/net.onnx"], tmp_path)
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate(2 * 10**9)  # sparse
    with pytest.raises(PersonaError, match="does not read"):
        bench([f"onnx:{tmp_path}/huge.onnx"], tmp_path)
    whole = onnx.load(write_model(tmp_path / "parts.onnx"))
    onnx.save(
        whole, tmp_path / "parts.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    (tmp_path / "w").unlink()
    with pytest.raises(PersonaError, match="weights in another file, 'w', which is not beside it"):
        bench([f"onnx:{tmp_path}/parts.onnx"], tmp_path)
    assert "unknown model 'fac'" in persona_error("bench", "fac", home=tmp_path)
