"""A face network with all that MobileNetV3 has, as torch.onnx writes it, in ten layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, CHANNELS, EMBEDDING = 16, 8, 12


def small_graph(*, extra: str | None = None, dead: bool = False) -> Any:
    """Stem, depthwise, squeeze-and-excitation, a sum, the last convolution, the embedding.

    `extra`: an operator more, before the sum. `dead`: whether the maps inside the
    squeeze-and-excitation are 0 for every face.
    """
    rng = np.random.default_rng(0)
    nodes: list[Any] = []
    weights: dict[str, Any] = {
        "last": np.array([-1]),
        "flat": np.array([-1, CHANNELS * 2]),
        "tiny": np.float32(1e-12).reshape(()),
        "width": np.array([EMBEDDING]),
    }

    def add(op: str, *inputs: str, to: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [to], name=f"node_{to}", **attributes))
        return to

    def conv(
        given: str, name: str, *shape: int, stride: int = 1, group: int = 1, bias: bool = True
    ) -> str:
        fan = int(np.prod(shape[1:]))
        weights[f"student.{name}.weight"] = rng.normal(size=shape) * (2 / fan) ** 0.5
        if bias:
            weights[f"student.{name}.bias"] = rng.normal(size=shape[0]) * 0.3
        pads, strides = [shape[2] // 2] * 4, [stride] * 2
        inputs = (
            given,
            *(n for n in (f"student.{name}.weight", f"student.{name}.bias") if n in weights),
        )
        return add("Conv", *inputs, to=name, pads=pads, strides=strides, group=group)

    tensor = add("HardSwish", conv("images", "stem", CHANNELS, 3, 3, 3, stride=2), to="swish")
    deep = add("Relu", conv(tensor, "deep", CHANNELS, 1, 5, 5, group=CHANNELS), to="relu")
    pooled = add("GlobalAveragePool", deep, to="mean")
    squeezed = add("Relu", conv(pooled, "se.fc1", 4, CHANNELS, 1, 1), to="squeezed")
    gate = add(
        "HardSigmoid",
        conv(squeezed, "se.fc2", CHANNELS, 4, 1, 1, bias=dead),
        to="gate",
        alpha=1 / 6,
    )
    if dead:
        weights["student.se.fc1.bias"] = np.full(4, -100.0)
    scaled = add("Mul", gate, deep, to="scaled")
    projected = conv(scaled, "project", CHANNELS, CHANNELS, 1, 1, bias=False)
    if extra is not None:
        inputs = [projected]
        options: dict[str, Any] = {}
        if extra == "PRelu":
            weights["student.slopes"] = rng.random((CHANNELS, 1, 1))
            inputs.append("student.slopes")
        elif extra == "Clip":  # ReLU6
            weights |= {"zero_end": np.float32(0).reshape(()), "six": np.float32(6).reshape(())}
            inputs += ["zero_end", "six"]
        elif extra == "Concat":  # half of the channels from each
            half = CHANNELS // 2
            inputs = [conv(scaled, n, half, CHANNELS, 1, 1, bias=False) for n in ("left", "right")]
            options = {"axis": 1}
        elif extra == "HardSigmoid":
            options = {"alpha": 1 / 6}
        projected = add(extra, *inputs, to="extra", **options)
    total = add("Add", projected, tensor, to="sum")
    top = add("HardSwish", conv(total, "top", CHANNELS * 2, CHANNELS, 1, 1), to="top_swish")
    flat = add("Reshape", add("GlobalAveragePool", top, to="all"), "flat", to="view")
    weights["student.linear.weight"] = rng.normal(size=(EMBEDDING, CHANNELS * 2))
    weights["student.linear.bias"] = rng.normal(size=EMBEDDING) * 0.1
    linear = ("student.linear.weight", "student.linear.bias")
    features = add("Gemm", flat, *linear, to="features", transB=1)
    length = add("ReduceL2", features, "last", to="length", keepdims=1)
    add("Shape", "images", to="batch", start=0, end=1)
    add("Concat", "batch", "width", to="shape", axis=0)
    wide = add("Expand", add("Clip", length, "tiny", to="clipped"), "shape", to="wide")
    add("Div", features, wide, to="embedding")
    stored = [
        numpy_helper.from_array(
            value.astype(np.float32) if value.dtype.kind == "f" else value, name
        )
        for name, value in weights.items()
    ]
    faces = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])
    found = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", EMBEDDING])
    graph = helper.make_graph(nodes, "face", [faces], [found], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def images(count: int, seed: int = 0) -> np.ndarray:
    """(N, 3, H, W) float32 in [-1, 1]."""
    drawn = np.random.default_rng(seed).random((count, 3, SIDE, SIDE), np.float32)
    return (2 * drawn - 1).astype(np.float32)
