"""What models cost: the figures are there and plausible; how large they are is no test's matter."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import persona_error
from onnx_files import write_model

from persona.deploy.bench import bench
from persona.errors import PersonaError


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


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PersonaError, match="no ONNX file"):
        bench(["onnx:nowhere.onnx"], tmp_path)
    (tmp_path / "net.onnx").write_bytes(b"none")
    with pytest.raises(PersonaError, match="cannot be loaded as ONNX"):
        bench([f"onnx:{tmp_path}/net.onnx"], tmp_path)
    assert "unknown model 'fac'" in persona_error("bench", "fac", home=tmp_path)
