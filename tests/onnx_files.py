"""Small ONNX face networks, written on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from persona.models.onnx import SETTINGS_KEY

SIDE = 16
SETTINGS = f"""
input_size: {SIDE}
alignment: margin
mean: [10, 20, 30]
std: [2, 4, 5]
"""


def write_model(
    path: Path,
    *,
    batch: int | str = "batch",
    side: int = SIDE,
    outputs: int = 1,
    width: int = 9,
    settings: str | None = None,
    turn: npt.NDArray[np.float64] | None = None,
) -> Path:
    """An embedding that is easily computed by hand: a linear map of each channel's mean.

    `turn` is a (width, width) matrix that moves it into another space.
    """
    weight = np.random.default_rng(0).normal(size=(3, width)).astype(np.float32)
    if turn is not None:
        weight = (weight @ turn).astype(np.float32)
    given = helper.make_tensor_value_info("faces", TensorProto.FLOAT, [batch, 3, side, side])
    wanted = [
        helper.make_tensor_value_info(f"out{n}", TensorProto.FLOAT, [batch, width])
        for n in range(outputs)
    ]
    nodes = [
        helper.make_node("GlobalAveragePool", ["faces"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        *(helper.make_node("MatMul", ["flat", "weight"], [f"out{n}"]) for n in range(outputs)),
    ]
    graph = helper.make_graph(
        nodes, "face", [given], wanted, [numpy_helper.from_array(weight, "weight")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if settings is not None:
        helper.set_model_props(model, {SETTINGS_KEY: settings})
    onnx.save(model, str(path))
    return path
