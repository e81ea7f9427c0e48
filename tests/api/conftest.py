"""A model for the public API: a small ONNX network below the test's folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx_files import write_model

import persona
from persona.workspace import Workspace

SETTINGS = "input_size: 16\nalignment: margin\nmean: [10, 20, 30]\nstd: [2, 4, 5]\n"


@pytest.fixture
def model(tmp_path: Path) -> persona.Model:
    """`tmp_path/net.onnx`."""
    path = write_model(tmp_path / "net.onnx")
    path.with_suffix(".yaml").write_text(SETTINGS)
    return persona.load(str(path), workspace=Workspace.locate(home=tmp_path))
