"""Quantises an exported graph to int8, calibrated on faces.

1. `find_ranges` finds the smallest and largest value of every tensor, averaged over batches of
   faces.
2. `lower` replaces hard-swish and hard-sigmoid by a sum, a clip and a product, for which there are
   integer kernels. The clip becomes the range of a quantised tensor, so it costs nothing. The
   factor 1/6 goes into the weights that follow.
3. `quantise` puts QuantizeLinear and DequantizeLinear around each layer. Activations are quantised
   asymmetrically (Jacob et al. 2018, arXiv:1712.05877), weights symmetrically per output channel.
   Layers that compute in float32, such as the last linear one, still have int8 weights where that
   does no harm.
   Operators without a kernel for integers stay in float32, too.
4. `find_costs` measures how much cosine similarity each layer costs if only that layer is int8.
5. `quantise_graph` keeps the costliest layers in float32, as few as the bounds allow.

The exporter has already folded batch norm.

Shapes: N faces, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from persona.deploy.likeness import Tolerance, compare
from persona.errors import PersonaError
from persona.progress import progress_bar

Arrays = list[npt.NDArray[Any]]
"""Batches of faces as the graph takes them."""
SMALLEST = 1e-6
"""Smallest range of a tensor, for tensors with the same value everywhere."""
COST_FACES = 32
"""Faces on which the cost of single layers is measured."""
LARGEST_BIAS = 2**30
"""Largest bias of a layer in steps, half of what an int32 can hold: the sum of products comes on
top of it."""
ZERO_BELOW = -3.0
"""Hard-swish is 0 for all values below."""
THREE = "three"
FLOAT = 1
"""The value of onnx.TensorProto.FLOAT."""
WEIGHTED = ("Conv", "Gemm", "MatMul")
FOLDED = ("GlobalAveragePool", "Mul", "Relu", "Reshape", "Flatten")
"""Operators that pass a positive factor of their input on to their output."""
OF_MAPS = (
    *("Add", "Mul", "Concat", "Identity", "GlobalAveragePool", "AveragePool", "MaxPool"),
    *("Relu", "PRelu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid"),
)
"""Operators whose results are feature maps as those of a convolution are, if their inputs are. Sums
and products of anything else, as in attention and layer norm, have no integers."""

Ranges = dict[str, tuple[float, float]]
"""Smallest and largest value of tensors by name. 0 is always within the range."""


@dataclass(frozen=True)
class Lowered:
    """A graph of operators for which there are integer kernels."""

    model: Any
    """The graph as onnx.ModelProto."""
    layers: dict[str, str]
    """Layer name of each node that may be int8, by the node's output."""
    factor: dict[str, float]
    """Factor by which a tensor is larger than in the original graph. A missing entry means 1."""


@dataclass(frozen=True)
class Kept:
    """A layer that stays in float32."""

    layer: str
    """Name of the layer."""
    cost: float
    """1 - mean cosine if only this layer is int8."""


@dataclass(frozen=True)
class Quantised:
    """A quantised graph and facts about it."""

    model: Any
    """The graph as onnx.ModelProto."""
    layers: int
    """Number of layers."""
    floats: list[Kept]
    """Layers that stay in float32, costliest first."""


def quantise_graph(
    model: Any, batches: Arrays, output: str, bounds: Tolerance, others: Arrays | None = None
) -> Quantised:
    """Quantises as many layers of a float32 graph as the bounds allow.

    Args:
        model: the graph as onnx.ModelProto of float32.
        batches: calibration faces. The ranges of the tensors come from them.
        output: name of the embedding.
        bounds: how like the embeddings must be to those of the float32 graph.
        others: further faces for which the bounds hold.

    Raises:
        PersonaError: no layer can be int8 within the bounds.
    """
    # Ranges of the original tensors come from the original graph, those of tensors that only the
    # lowered graph has from that one. The latter are the same in every lowered graph.
    ranges = find_ranges(lower(model).model, batches) | find_ranges(model, batches)
    costs = find_costs(model, ranges, batches[: -(-COST_FACES // len(batches[0]))], output)
    judged = [*batches, *(others or [])]
    wanted_NE = _run(model, judged, output)
    first = sum(map(len, batches))
    parts = [slice(first)] + ([slice(first, None)] if others else [])

    for weights in (True, False):
        found: dict[int, Any] = {}

        def enough(count: int, weights: bool = weights, found: dict[int, Any] = found) -> bool:
            floats = {kept.layer for kept in costs[:count]}
            found[count] = quantise(model, ranges, floats, weights=weights)
            found_NE = _run(found[count], judged, output)
            alike = [compare(found_NE[part], wanted_NE[part]) for part in parts]
            return all(map(bounds.tighter().allow, alike))

        count = fewest(enough, len(costs))
        if count < len(costs):
            return Quantised(found[count], len(costs), costs[:count])
    raise PersonaError(
        f"none of the {len(costs)} layers can be in integers: {bounds} over the faces is wanted, "
        "and any layer breaks that; a model that answers like photos so differently has seen too "
        "few faces"
    )


def fewest(enough: Callable[[int], bool], most: int) -> int:
    """The smallest number from 0 to `most` that is enough, or `most`, by bisection.

    All numbers above one that is enough must be enough too.
    """
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle + 1
    return high


class _Graph:
    """A graph under construction: nodes in order, initializers by name."""

    def __init__(self, model: Any) -> None:
        import onnx

        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.nodes: list[Any] = []
        self.weights = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
        self.producer = {name: node for node in model.graph.node for name in node.output}
        self.consumers: dict[str, list[Any]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)

    def add(self, op: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        """Adds a node and returns the name of its output."""
        import onnx

        node = onnx.helper.make_node(op, list(inputs), [output], name=output, **attributes)
        self.nodes.append(node)
        return output

    def copy(self, node: Any, inputs: Iterable[str], output: str | None = None) -> None:
        """Adds a copy of a node of the old graph, with other inputs."""
        kept = type(node)()
        kept.CopyFrom(node)
        kept.input[:] = list(inputs)
        if output is not None:
            kept.output[:] = [output]
        self.nodes.append(kept)

    def shift(self, output: str, by: float) -> None:
        """Adds a constant to the output of a convolution that is already in the graph."""
        node = next(node for node in self.nodes if output in node.output)
        if len(node.input) < 3:
            name, channels = f"{output}_bias", len(self.weights[node.input[1]])
            self.weights[name] = np.zeros(channels, np.float32)
            node.input.append(name)
        self.weights[node.input[2]] = self.weights[node.input[2]] + np.float32(by)

    def finish(self) -> Any:
        """The model with these nodes. Initializers that no node uses are left out."""
        import onnx

        graph = self.model.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        graph.initializer.extend(
            onnx.numpy_helper.from_array(value, name)
            for name, value in self.weights.items()
            if name in used
        )
        return self.model


def lower(model: Any, floats: Collection[str] = ()) -> Lowered:
    """Splits hard-swish and hard-sigmoid into their parts, which makes them six times as large.

    Args:
        model: the graph as onnx.ModelProto of float32.
        floats: names of layers to leave unchanged.
    """
    graph = _Graph(model)
    graph.weights |= {
        THREE: np.full(1, 3, np.float32),
        "zero": np.float32(0).reshape(()),
        "six": np.float32(6).reshape(()),
    }
    layers: dict[str, str] = {}
    factor: dict[str, float] = {}

    def clip(name: str, output: str) -> None:
        graph.add("Clip", [name, "zero", "six"], output)
        factor[output] = 6

    gates = _squeeze_excites(graph)
    maps = _feature_maps(model)
    for node in model.graph.node:
        name, inputs, output = node.op_type, list(node.input), node.output[0]
        by = [factor.get(given, 1) for given in inputs]
        swish = f"{_module(graph, inputs[0])} hard-swish"
        if name == "HardSwish" and swish not in floats:
            total = graph.add("Add", [inputs[0], THREE], f"{output}_sum")
            clip(total, f"{output}_gate")
            graph.add("Mul", [inputs[0], f"{output}_gate"], output)
            factor[output] = 6
            layers[total] = layers[output] = swish
        elif name == "HardSigmoid" and gates.get(inputs[0], "") not in {"", *floats}:
            graph.shift(inputs[0], 3)
            clip(inputs[0], output)
        elif name in WEIGHTED and inputs[1] in graph.weights:
            graph.weights[inputs[1]] = graph.weights[inputs[1]] / np.float32(by[0])
            graph.copy(node, inputs)
            if name == "Conv":
                layers[output] = gates.get(output) or _module(graph, output)
        elif name in FOLDED:
            graph.copy(node, inputs)
            factor[output] = float(np.prod(by))
            if name in ("GlobalAveragePool", "Mul") and output in maps:
                layers[output] = gates.get(output, f"{output} pooling")
        else:
            for place, (given, times) in enumerate(zip(inputs, by, strict=True)):
                if times != 1:
                    part = f"{given}_of_{output}"
                    graph.weights[f"{part}_factor"] = np.full(1, 1 / times, np.float32)
                    inputs[place] = graph.add("Mul", [given, f"{part}_factor"], part)
                    if name == "Add" and output in maps:
                        layers[part] = f"{_module(graph, inputs[0])} sum"
            graph.copy(node, inputs)
            if name == "Add" and output in maps:
                layers[output] = f"{_module(graph, inputs[0])} sum"
    return Lowered(graph.finish(), layers, factor)


def _feature_maps(model: Any) -> set[str]:
    """Names of all tensors that convolutions and operators of `OF_MAPS` give."""
    found: set[str] = set()
    for node in model.graph.node:
        # The other inputs of a PReLU are its slopes, those of a Clip its ends.
        given = node.input[:1] if node.op_type in ("PRelu", "Clip") else node.input
        if node.op_type == "Conv" or (node.op_type in OF_MAPS and found.issuperset(given)):
            found.update(node.output)
    return found


def _module(graph: _Graph, tensor: str) -> str:
    """Name, within the student, of the module that gives a tensor, or the tensor's own name."""
    node = graph.producer.get(tensor)
    if node is None or node.op_type not in WEIGHTED:
        return tensor
    return str(node.input[1].removeprefix("student.").removesuffix(".weight"))


def _squeeze_excites(graph: _Graph) -> dict[str, str]:
    """Names of squeeze-and-excitation blocks, by the outputs of their nodes."""
    found: dict[str, str] = {}
    for node in graph.model.graph.node:
        if node.op_type != "HardSigmoid":
            continue
        chain = []
        tensor = node.input[0]
        while (before := graph.producer.get(tensor)) is not None:
            chain.append(before)
            if before.op_type not in ("Conv", "Relu"):
                break
            tensor = before.input[0]
        if [n.op_type for n in chain] != ["Conv", "Relu", "Conv", "GlobalAveragePool"]:
            continue
        block = _module(graph, node.input[0]).rpartition(".")[0]
        after = graph.consumers[node.output[0]]
        found |= {n.output[0]: f"{block} squeeze-excite" for n in (*chain, *after)}
    return found


def find_ranges(model: Any, batches: Arrays) -> Ranges:
    """Smallest and largest value of every tensor in a batch, averaged over the batches.

    0 is always within the range. Values beyond it are clipped: finer steps for all values are worth
    more than the outliers of a few faces. The averages follow the moving averages of Jacob et al.
    2018, section 3.1. What only a hard-swish reads is clipped at -3, which loses nothing.
    """
    import onnx

    names = [output for node in model.graph.node for output in node.output]
    shown = type(model)()
    shown.CopyFrom(model)
    ends = {output.name for output in model.graph.output}
    shown.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in ends
    )
    names += [given.name for given in model.graph.input]
    ranges = dict.fromkeys(names, (0.0, 0.0))
    share = 1 / len(batches)
    session = open_session(shown)
    outputs = [output.name for output in session.get_outputs()]
    given = session.get_inputs()[0].name
    for batch in batches:
        values = dict(zip(outputs, session.run(outputs, {given: batch}), strict=True))
        for name, value in (*values.items(), (given, batch)):
            if value.dtype != np.float32 or not value.size:
                continue  # tensors of shapes, and photos before normalisation
            low, high = ranges[name]
            low += share * min(0.0, float(value.min()))
            ranges[name] = (low, high + share * max(0.0, float(value.max())))
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
        if list(node.input[1:]) == [THREE]:  # the sum in a hard-swish that was lowered
            ranges[node.output[0]] = (0.0, ranges[node.output[0]][1])
    for name, by in readers.items():
        if by == {"HardSwish"}:
            low, high = ranges[name]
            ranges[name] = (max(low, ZERO_BELOW), high)
    return ranges


def quantise(model: Any, ranges: Ranges, floats: Collection[str], *, weights: bool = True) -> Any:
    """Quantises a graph with given ranges.

    Args:
        model: the graph as onnx.ModelProto of float32.
        ranges: ranges of its tensors.
        floats: names of layers that compute in float32.
        weights: whether these layers have int8 weights nevertheless.
    """
    return _Quantiser(lower(model, floats), ranges).quantise(floats, weights)


class _Quantiser(_Graph):
    """A graph while it is being quantised."""

    def __init__(self, lowered: Lowered, ranges: Ranges) -> None:
        super().__init__(lowered.model)
        self.lowered, self.ranges = lowered, ranges
        self.rounded: dict[str, str] = {}  # name of a tensor's dequantised version

    def quantise(self, floats: Collection[str], weights: bool) -> Any:
        """The quantised model, see the function `quantise`."""
        skipped: set[str] = set()
        for node in self.lowered.model.graph.node:
            output = node.output[0]
            if output in skipped:
                continue
            if self.lowered.layers.get(output) in {None, *floats}:
                self._in_floats(node, weights)
                continue
            # Relu and the clip to [0, 6] only limit the range, which quantising does too.
            after = self.consumers.get(output, [])
            clipped = len(after) == 1 and after[0].op_type in ("Relu", "Clip")
            end = after[0].output[0] if clipped else output
            skipped.add(end)
            self.copy(node, self._integer_inputs(node), end)
            # A gate's Clip is the lowering's own, which makes it six times as large; ReLU6 is not.
            gate = clipped and after[0].op_type == "Clip" and end in self.lowered.factor
            self._round(end, gate=gate)
        return self.finish()

    def _in_floats(self, node: Any, weights: bool) -> None:
        inputs = [self.rounded.get(name, name) for name in node.input]
        smaller = node.op_type in WEIGHTED and (weights or node.op_type == "Gemm")
        if smaller and inputs[1] in self.weights:
            # onnxruntime folds Cast and Mul once, but runs DequantizeLinear for each face.
            name = inputs[1]
            rows = node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)
            self.weights[f"{name}_scale"] = self._per_channel(name, 0 if rows else 1)
            cast = self.add("Cast", [f"{name}_q"], f"{name}_f", to=FLOAT)
            inputs[1] = self.add("Mul", [cast, f"{name}_scale"], f"{name}_d")
        self.copy(node, inputs)

    def _integer_inputs(self, node: Any) -> list[str]:
        inputs = [name if name in self.weights else self._round(name) for name in node.input]
        if node.op_type == "Conv":
            name, given = inputs[1], self.weights[f"{node.input[0]}_scale"]
            least: Any = SMALLEST
            if len(inputs) > 2:
                # Behind a tensor that is nearly 0 for all faces, as the maps of a dead
                # squeeze-and-excitation are, the bias has more steps than an int32 can count.
                bias = self.weights[inputs[2]].reshape(-1, *[1] * (self.weights[name].ndim - 1))
                least = np.maximum(SMALLEST, 127 * np.abs(bias) / (LARGEST_BIAS * given))
            self.weights[f"{name}_scale"] = self._per_channel(name, 0, least).ravel()
            inputs[1] = self._dequantise(name, axis=0)
            for name in inputs[2:]:
                step = given * self.weights[f"{node.input[1]}_scale"]
                self.weights[f"{name}_scale"] = step
                self.weights[f"{name}_q"] = np.round(self.weights[name] / step).astype(np.int32)
                inputs[2] = self._dequantise(name, axis=0)
        elif inputs[-1] in self.weights and node.op_type in ("Add", "Mul"):  # a constant
            name = inputs[-1]
            steps = self._steps(name, 0, float(self.weights[name][0]))
            self.weights[f"{name}_q"] = np.full(1, 255, np.uint8)
            inputs[-1] = self.add("DequantizeLinear", [f"{name}_q", *steps], f"{node.output[0]}_c")
        return inputs

    def _round(self, name: str, *, gate: bool = False) -> str:
        """Quantises and dequantises a tensor and returns the result's name.

        The range of a gate is [0, 1], whatever the calibration faces gave.
        """
        if name not in self.rounded:
            low, high = (0, 1) if gate else self.ranges[name]
            times = self.lowered.factor.get(name, 1)
            steps = self._steps(name, low * times, high * times)
            self.add("QuantizeLinear", [name, *steps], f"{name}_q")
            self.rounded[name] = self.add("DequantizeLinear", [f"{name}_q", *steps], f"{name}_d")
        return self.rounded[name]

    def _steps(self, name: str, low: float, high: float) -> list[str]:
        """Adds scale and zero point of a range as initializers and returns their names."""
        # A tensor that is 0 for all faces may have any step. A tiny one would ask kernels for
        # factors that they do not have: XNNPACK ends the process.
        step = (high - low if high - low > SMALLEST else 1.0) / 255
        self.weights[f"{name}_scale"] = np.float32(step).reshape(())
        self.weights[f"{name}_zero"] = np.uint8(round(-low / step)).reshape(())
        return [f"{name}_scale", f"{name}_zero"]

    def _per_channel(self, name: str, axis: int, least: Any = SMALLEST) -> npt.NDArray[np.float32]:
        """Rounds weights to int8 and returns the scale of each channel, with the same axes.

        `least` is the smallest weight that 127 stands for, of all channels or of each.
        """
        value = self.weights[name]
        others = tuple(place for place in range(value.ndim) if place != axis)
        step = np.maximum(np.abs(value).max(others, keepdims=True), least) / np.float32(127)
        self.weights[f"{name}_q"] = np.round(value / step).astype(np.int8)
        return np.asarray(step, np.float32)

    def _dequantise(self, name: str, axis: int) -> str:
        return self.add("DequantizeLinear", [f"{name}_q", f"{name}_scale"], f"{name}_d", axis=axis)


def find_costs(model: Any, ranges: Ranges, batches: Arrays, output: str) -> list[Kept]:
    """Cost of each layer if only that layer is int8, costliest first."""
    wanted_NE = _run(model, batches, output)
    layers = set(lower(model).layers.values())
    costs = []
    with progress_bar("sensitivity", total=len(layers), unit="layers") as advance:
        for layer in sorted(layers):
            graph = quantise(model, ranges, layers - {layer}, weights=False)
            cosines_N = _cosines(_run(graph, batches, output), wanted_NE)
            costs.append(Kept(layer, 1 - float(cosines_N.mean())))
            advance(1)
    return sorted(costs, key=lambda kept: -kept.cost)


def open_session(model: Any) -> Any:
    """An onnxruntime session of a graph, given as onnx.ModelProto or bytes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _run(model: Any, batches: Arrays, output: str) -> npt.NDArray[np.float32]:
    session = open_session(model)
    name = session.get_inputs()[0].name
    return np.concatenate([session.run([output], {name: batch})[0] for batch in batches])


def _cosines(
    a_NE: npt.NDArray[np.float32], b_NE: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """(N,) cosine similarity of the rows of two arrays of unit-length embeddings."""
    return np.asarray((a_NE * b_NE).sum(axis=1))
