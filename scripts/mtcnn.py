#!/usr/bin/env python
"""Writes persona/data/align/mtcnn/*.onnx: facenet-pytorch's detector, for where torch is absent.

    python scripts/mtcnn.py [FOLDER]

The files are in the repository, because a wheel, an sdist and a checkout must all find faces
without torch, and 2 MB are little. They hold facenet-pytorch 2.5.3's weights bit for bit; its
licence lies beside them. Nodes are written one by one rather than traced, so that the same weights
give the same bytes whatever exporter is installed (tests/data/align/test_detect_onnx.py).

Each network takes pixels of 0 to 255, (N, H, W, 3) float32, and normalises them. P-Net is two
files: between them `persona.data.align.detect` mends the borders of a pyramid's levels.
"""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FOLDER = Path(__file__).resolve().parents[1] / "persona" / "data" / "align" / "mtcnn"
OPSET, IR_VERSION = 18, 8
PIXELS, MAPS = "pixels", "maps"


class Graph:
    """A chain of nodes, the output of each the input of the next."""

    def __init__(self, state: dict[str, Any], given: str) -> None:
        self.state, self.last = state, given
        self.nodes: list[Any] = []
        self.weights: dict[str, Any] = {}

    def add(self, kind: str, *others: str, output: str | None = None, **settings: Any) -> str:
        """A node of the chain's end and some weights; its name is that of its output."""
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        node = helper.make_node(kind, [self.last, *others], [name], name=name, **settings)
        self.nodes.append(node)
        self.last = name
        return name

    def weight(self, name: str, value: Any = None) -> str:
        """Weights of facenet-pytorch's, under its name; or a value of ours."""
        array = np.asarray(self.state[name] if value is None else value)
        self.weights[name] = numpy_helper.from_array(array, name)
        return name

    def normalise(self) -> None:
        """Pixels to (N, 3, H, W) of -1 to 1, as facenet-pytorch's callers of `imresample` do."""
        self.add("Transpose", perm=[0, 3, 1, 2])
        self.add("Sub", self.weight("middle", np.float32(127.5)))
        self.add("Mul", self.weight("scale", np.float32(0.0078125)))

    def convolve(self, number: int, output: str | None = None) -> None:
        """A convolution and its PReLU. Slopes and signs have the shape that ONNX spreads over maps.

        PReLU is `max(x, slope * x)`, bit for bit, as long as the slope is at most 1. Where it is
        more, weights and result change their sign: it is `-max(-x, slope * -x)`. onnxruntime's
        own PRelu takes several times as long.
        """
        name = f"conv{number}"
        slopes = self.state[f"prelu{number}.weight"]
        signs = np.where(slopes > 1, np.float32(-1), np.float32(1))
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        weight, bias = weight * signs[:, None, None, None], bias * signs
        self.add("Conv", self.weight(f"{name}.weight", weight), self.weight(f"{name}.bias", bias))
        flipped = bool((signs < 0).any())
        self.prelu(f"prelu{number}", slopes[:, None, None], None if flipped else output)
        if flipped:
            self.add("Mul", self.weight(f"signs{number}", signs[:, None, None]), output=output)

    def prelu(self, name: str, slopes: Any, output: str | None = None) -> None:
        """`max(x, slope * x)`."""
        start = self.last
        self.add("Mul", self.weight(f"{name}.weight", slopes))
        self.add("Max", start, output=output)

    def pool(self, side: int) -> None:
        """The maximum of windows two apart; the last one may be cut."""
        self.add("MaxPool", kernel_shape=[side, side], strides=[2, 2], ceil_mode=1)

    def flatten(self) -> None:
        """facenet-pytorch's order: columns, rows, channels."""
        self.add("Transpose", perm=[0, 3, 2, 1])
        self.add("Flatten", axis=1)

    def dense(self, name: str, output: str | None = None) -> str:
        """A linear layer."""
        names = (self.weight(f"{name}.weight"), self.weight(f"{name}.bias"))
        return self.add("Gemm", *names, output=output, transB=1)

    def heads(self, *names: tuple[str, str]) -> None:
        """Linear layers beside one another, the last one's output as probabilities."""
        start = self.last
        for name, output in names:
            self.last = start
            self.dense(name, None if output == "scores" else output)
        self.add("Softmax", output="scores", axis=1)

    def model(self, given: tuple[str, list[Any]], outputs: dict[str, list[Any]]) -> Any:
        """The ModelProto of all that was added."""
        values = [
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
            for name, shape in (given, *outputs.items())
        ]
        graph = helper.make_graph(
            self.nodes, "mtcnn", values[0], list(chain(*values[1:])), list(self.weights.values())
        )
        imports = [helper.make_opsetid("", OPSET)]
        made = helper.make_model(
            graph, producer_name="persona", ir_version=IR_VERSION, opset_imports=imports
        )
        onnx.checker.check_model(made, full_check=True)
        return made


def read_weights() -> dict[str, dict[str, Any]]:
    """facenet-pytorch's, by network and name."""
    from facenet_pytorch.models.mtcnn import ONet, PNet, RNet

    return {
        name: {key: value.numpy() for key, value in network().state_dict().items()}
        for name, network in (("pnet", PNet), ("rnet", RNet), ("onet", ONet))
    }


def build() -> dict[str, bytes]:
    """The files by name."""
    weights = read_weights()
    first = Graph(weights["pnet"], PIXELS)
    first.normalise()
    first.convolve(1, MAPS)

    rest = Graph(weights["pnet"], MAPS)
    rest.pool(2)
    rest.convolve(2)
    rest.convolve(3)
    end = rest.last
    for name, output in (("conv4_2", "moves"), ("conv4_1", None)):
        rest.last = end
        names = (rest.weight(f"{name}.weight"), rest.weight(f"{name}.bias"))
        rest.add("Conv", *names, output=output)
    rest.add("Softmax", output="scores", axis=1)

    rnet = Graph(weights["rnet"], PIXELS)
    rnet.normalise()
    for number in (1, 2):
        rnet.convolve(number)
        rnet.pool(3)
    rnet.convolve(3)
    rnet.flatten()
    rnet.dense("dense4")
    rnet.prelu("prelu4", weights["rnet"]["prelu4.weight"])
    rnet.heads(("dense5_2", "moves"), ("dense5_1", "scores"))

    onet = Graph(weights["onet"], PIXELS)
    onet.normalise()
    for number, side in ((1, 3), (2, 3), (3, 2)):
        onet.convolve(number)
        onet.pool(side)
    onet.convolve(4)
    onet.flatten()
    onet.dense("dense5")
    onet.prelu("prelu5", weights["onet"]["prelu5.weight"])
    onet.heads(("dense6_2", "moves"), ("dense6_3", "points"), ("dense6_1", "scores"))

    maps = ["N", 10, "rows", "columns"]
    cells = ["cell_rows", "cell_columns"]
    models = {
        "pnet_first": first.model((PIXELS, ["N", "height", "width", 3]), {MAPS: maps}),
        "pnet_rest": rest.model(
            (MAPS, maps), {"moves": ["N", 4, *cells], "scores": ["N", 2, *cells]}
        ),
        "rnet": rnet.model((PIXELS, ["N", 24, 24, 3]), {"moves": ["N", 4], "scores": ["N", 2]}),
        "onet": onet.model(
            (PIXELS, ["N", 48, 48, 3]), {"moves": ["N", 4], "points": ["N", 10], "scores": ["N", 2]}
        ),
    }
    return {
        f"{name}.onnx": model.SerializeToString(deterministic=True)
        for name, model in models.items()
    }


def main() -> None:
    """Writes the files."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in build().items():
        (folder / name).write_bytes(data)
        print(f"{folder / name}: {len(data):,} bytes")


if __name__ == "__main__":
    main()
