"""Translates an exported ONNX graph to a LiteRT (TensorFlow Lite) file.

1. The nodes that the embedding needs are collected. The normalisation to unit length becomes one
   operator.
2. An operator between DequantizeLinear and QuantizeLinear becomes an integer operator. uint8
   becomes int8.
3. Channels go last. Paddings that differ from LiteRT's SAME become PAD operators.

LiteRT's CPU kernels (XNNPACK) are faster with int8, which onnxruntime's are not
(docs/measurements.md). The format is TensorFlow's schema.fbs, as in
ai_edge_litert.schema_py_generated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from persona.deploy.quantise import WEIGHTED
from persona.errors import PersonaError
from persona.models.litert import NCHW_TO_NHWC, import_litert

IDENTIFIER = b"TFL3"
INTEGER = ("Conv", "Add", "Mul", "GlobalAveragePool", "Relu", "HardSwish")
"""Operators that are written for int8 where the graph quantises what they take and give. A PReLU is
not one: its slopes are float32, and the kernel for int8 would read their bytes as integers."""
FLOATS = (
    *("Gemm", "HardSigmoid", "PRelu", "Clip", "Concat", "Identity", "Reshape", "Div"),
    "QuantizeLinear",
)
"""Operators that are written too, between tensors of float32."""
MOST_NAMED = 3
"""Most operators that a refusal names."""


def to_litert(model: Any, output: str, metadata: dict[str, str]) -> bytes:
    """The bytes of a LiteRT file that takes one face per run.

    Args:
        model: the graph as onnx.ModelProto, in float32 or quantised by persona/deploy/quantise.py.
        output: name of the embedding.
        metadata: metadata of the file, one entry per name.

    Raises:
        PersonaError: a package is missing, or the graph has an operator that is not supported.
    """
    return _Converter(model, metadata).convert(output)


def _builder() -> Any:
    """A builder of a file that writes equal vectors once.

    Every channel of every layer has a zero point of eight bytes. Written once for each number of
    channels, they are 130 kB less of a file of 1.5 MB.
    """
    import flatbuffers

    class Builder(flatbuffers.Builder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(1 << 20)
            self.written: dict[tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, x: npt.NDArray[Any]) -> int:  # noqa: N802
            key = x.dtype.str, x.tobytes()
            if key not in self.written:
                self.written[key] = super().CreateNumpyVector(x)
            return self.written[key]

    return Builder()


class _Converter:
    """One conversion. Tensors are known by their ONNX names."""

    def __init__(self, model: Any, metadata: dict[str, str]) -> None:
        import onnx

        self.schema: Any = import_litert("schema_py_generated")
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self.nodes = list(model.graph.node)
        self.given = model.graph.input[0].name
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.users: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
        self.shapes = {
            info.name: [d.dim_value or 1 for d in info.type.tensor_type.shape.dim]
            for info in (*inferred.input, *inferred.value_info, *inferred.output)
        }
        self.attributes = {
            node.output[0]: {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            for node in self.nodes
        }
        self.file = self.schema.ModelT()
        self.file.version, self.file.description = 3, b"persona"
        self.file.buffers, self.file.operatorCodes = [self.schema.BufferT()], []
        self.graph = self.schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.file.subgraphs, self.file.metadata = [self.graph], []
        for name, text in metadata.items():
            entry = self.schema.MetadataT()
            entry.name, entry.buffer = name.encode(), self._buffer(text.encode())
            self.file.metadata.append(entry)
        self.place: dict[str, int] = {}  # place of a tensor in the file
        self.done: set[str] = set()  # outputs of nodes that were merged into another operator

    def convert(self, output: str) -> bytes:
        """The bytes of the file."""
        needed = self._needed(output)
        nodes = [n for n in self.nodes if n.output[0] in needed - self.constants.keys()]
        self._refuse([n for n in nodes if not self._is_known(n, output)])
        self.place[self.given] = self._tensor(self.given, self._shape(self.given))
        for node in nodes:
            if node.output[0] not in self.done:
                self._node(node)
        self.graph.inputs, self.graph.outputs = [self.place[self.given]], [self.place[output]]
        builder = _builder()
        builder.Finish(self.file.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())

    def _needed(self, output: str) -> set[str]:
        """Names of the tensors that the output depends on.

        The divisor of the final division is left out, since L2_NORMALIZATION computes it.
        """
        found, left = set(), [output]
        while left:
            name = left.pop()
            if name in self.producer and name not in found:
                found.add(name)
                node = self.producer[name]
                left += node.input[:1] if node.op_type == "Div" else node.input
        return found

    def _is_known(self, node: Any, output: str) -> bool:
        """Whether an operator can be translated. Some can be only as a student's head has them."""
        name = node.op_type
        if name in ("DequantizeLinear", "Cast"):  # of weights, or beside QuantizeLinear
            return name != "Cast" or node.input[0] in self.constants
        if name == "Div":  # of an embedding by its length
            return bool(node.output[0] == output)
        if name == "Reshape":  # of a map of one place
            return self.shapes.get(node.input[0], [])[2:] == [1, 1]
        if name == "Clip":  # ReLU6
            return [self.constants.get(end) for end in node.input[1:]] == [0, 6]
        if name == "Concat":
            return self.attributes[node.output[0]].get("axis") == 1
        return name in (*INTEGER, *FLOATS)

    def _refuse(self, nodes: list[Any]) -> None:
        """Raises PersonaError that names the operators, if there are any."""
        names = list(dict.fromkeys(node.op_type for node in nodes))
        if names:
            more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            raise PersonaError(
                f"LiteRT files hold no {', '.join(names[:MOST_NAMED])}{more}, which this student "
                "has: export it as ONNX"
            )

    # Parts of a file.

    def _buffer(self, data: bytes) -> int:
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        self.file.buffers.append(buffer)
        return len(self.file.buffers) - 1

    def _shape(self, name: str) -> list[int]:
        shape = self.shapes[name]
        return [shape[axis] for axis in NCHW_TO_NHWC] if len(shape) == 4 else shape

    def _tensor(
        self,
        name: str,
        shape: Any,
        value: npt.NDArray[Any] | None = None,
        quantised: tuple[Any, Any, int] | None = None,
        kind: type[np.generic] = np.float32,
    ) -> int:
        """Adds a tensor and returns its place. `quantised` is its scale, zero point and axis."""
        kinds: dict[type, str] = {np.float32: "FLOAT32", np.int8: "INT8", np.int32: "INT32"}
        tensor = self.schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name.encode(), [int(n) for n in shape], 0
        tensor.type = getattr(self.schema.TensorType, kinds[kind])
        if value is not None:
            tensor.buffer = self._buffer(np.ascontiguousarray(value).tobytes())
        if quantised is not None:
            scale, zero, axis = quantised
            tensor.quantization = self.schema.QuantizationParametersT()
            tensor.quantization.scale = np.atleast_1d(np.asarray(scale, np.float32))
            tensor.quantization.zeroPoint = np.full(np.size(scale), zero, np.int64)
            tensor.quantization.quantizedDimension = axis
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _operator(
        self, name: str, inputs: list[int], output: int, options: str = "", **values: Any
    ) -> None:
        """Adds an operator. `name`, `options` and `values` are named as in the schema."""
        code = getattr(self.schema.BuiltinOperator, name)
        codes = [known.builtinCode for known in self.file.operatorCodes]
        if code not in codes:
            known = self.schema.OperatorCodeT()
            known.builtinCode, known.version = code, 1
            known.deprecatedBuiltinCode = min(code, 127)
            self.file.operatorCodes.append(known)
            codes.append(code)
        operator = self.schema.OperatorT()
        operator.opcodeIndex = codes.index(code)
        operator.inputs, operator.outputs = inputs, [output]
        if options:
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(self.schema, f"{options}T")()
            for option, value in values.items():
                setattr(operator.builtinOptions, option, value)
        self.graph.operators.append(operator)

    # From names to tensors.

    def _steps(self, node: Any) -> tuple[npt.NDArray[np.float32], Any]:
        """Scale and zero point of a (De)QuantizeLinear node, shifted from uint8 to int8."""
        scale = self.constants[node.input[1]]
        zero = self.constants[node.input[2]] if len(node.input) > 2 else np.int8(0)
        moved = zero.astype(np.int64) - (128 if zero.dtype == np.uint8 else 0)
        return scale, moved

    def _integer(self, name: str) -> int | None:
        """Place of the int8 tensor that a tensor was dequantised from, or None if it was not."""
        node = self.producer.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        source = node.input[0]
        if source in self.constants and source not in self.place:
            value = self.constants[source].astype(np.int16)
            value = value - (128 if self.constants[source].dtype == np.uint8 else 0)
            steps = (*self._steps(node), 0)
            self.place[source] = self._tensor(
                source, value.shape, value.astype(np.int8), steps, np.int8
            )
        return self.place[source]

    def _float(self, name: str) -> int:
        """Place of a tensor as float32. An int8 tensor is dequantised."""
        if name in self.place:
            return self.place[name]
        if name in self.constants:
            value = self.constants[name].astype(np.float32)
            if value.ndim > 2:  # one number for each channel
                value = np.moveaxis(value, -3, -1)
            self.place[name] = self._tensor(name, value.shape, value)
            return self.place[name]
        integer = self._integer(name)
        assert integer is not None, name
        self.place[name] = self._tensor(name, self.graph.tensors[integer].shape)
        self._operator("DEQUANTIZE", [integer], self.place[name], "DequantizeOptions")
        return self.place[name]

    def _ends(self, node: Any) -> tuple[list[int], int, str]:
        """An operator's inputs other than weights, its output, and its fused activation.

        They are int8 if the operator has an integer form, all inputs are dequantised tensors, and
        the output is quantised at once.
        """
        output, activation = node.output[0], "NONE"
        users = self.users.get(output, [])
        if len(users) == 1 and users[0].op_type == "Relu" and node.op_type != "GlobalAveragePool":
            output, activation = users[0].output[0], "RELU"
            self.done.add(output)
            users = self.users.get(output, [])
        inputs = list(node.input if node.op_type in ("Add", "Mul") else node.input[:1])
        integers = [self._integer(name) for name in inputs]
        whole = node.op_type in INTEGER and None not in integers
        if node.op_type in WEIGHTED:  # a float32 layer may stand between two int8 ones
            weights = self.producer.get(node.input[1])
            whole &= weights is not None and weights.op_type == "DequantizeLinear"
        if whole and [user.op_type for user in users] == ["QuantizeLinear"]:
            quantise = users[0]
            self.done.add(quantise.output[0])
            place = self._quantised(quantise, self._shape(output))
            return [place for place in integers if place is not None], place, activation
        self.place[output] = self._tensor(output, self._shape(output))
        return [self._float(name) for name in inputs], self.place[output], activation

    def _quantised(self, node: Any, shape: list[int]) -> int:
        name = node.output[0]
        self.place[name] = self._tensor(name, shape, None, (*self._steps(node), 0), np.int8)
        return self.place[name]

    def _weight(self, name: str, integer: bool, order: tuple[int, ...]) -> int:
        """Adds a layer's weights with their axes in another order and returns their place."""
        node = self.producer.get(name)
        if node is None:
            value = self.constants[name].transpose(order)
            return self._tensor(name, value.shape, value)
        source = node.input[0] if integer else self.producer[node.input[0]].input[0]
        value, scale = self.constants[source].transpose(order), self.constants[node.input[1]]
        axis = int(np.argmax([n == scale.size for n in value.shape]))
        axis = order.index(0) if value.shape[order.index(0)] == scale.size else axis
        place = self._tensor(source, value.shape, value, (scale.ravel(), 0, axis), np.int8)
        if integer:
            return place
        floats = self._tensor(name, value.shape)
        self._operator("DEQUANTIZE", [place], floats, "DequantizeOptions")
        return floats

    def _bias(self, name: str, integer: bool) -> int:
        if not integer:
            return self._float(name)
        source, scale = self.producer[name].input[:2]
        value = self.constants[source]
        return self._tensor(name, value.shape, value, (self.constants[scale], 0, 0), np.int32)

    def _no_bias(self, name: str, given: int, weight: int) -> int:
        """Adds a bias of zeros, which LiteRT requires."""
        before, layer = self.graph.tensors[given], self.graph.tensors[weight]
        channels = int(layer.shape[3 if layer.shape[0] == 1 else 0])
        if layer.quantization is None:
            return self._tensor(name, [channels], np.zeros(channels, np.float32))
        steps = layer.quantization.scale * before.quantization.scale[0]
        return self._tensor(name, [channels], np.zeros(channels, np.int32), (steps, 0, 0), np.int32)

    # Nodes.

    def _node(self, node: Any) -> None:
        name = node.op_type
        if name in ("DequantizeLinear", "Cast"):
            return  # added when a node needs the float32 tensor
        if name == "Mul" and self.producer.get(node.input[0], node).op_type == "Cast":
            return  # added by `_weight`
        getattr(self, f"_{name.lower()}")(node)

    def _quantizelinear(self, node: Any) -> None:
        given = self._float(node.input[0])
        place = self._quantised(node, self.graph.tensors[given].shape)
        self._operator("QUANTIZE", [given], place, "QuantizeOptions")

    def _conv(self, node: Any) -> None:
        attributes, output = self.attributes[node.output[0]], node.output[0]
        channels = self._shape(node.input[0])[-1]
        depthwise = attributes.get("group", 1) == channels > 1
        (given,), place, activation = self._ends(node)
        integer = self.graph.tensors[place].type == self.schema.TensorType.INT8
        order = (1, 2, 3, 0) if depthwise else NCHW_TO_NHWC
        weight = self._weight(node.input[1], integer, order)
        if len(node.input) > 2:
            bias = self._bias(node.input[2], integer)
        else:
            bias = self._no_bias(f"{output}_bias", given, weight)
        strides, dilations = (attributes.get(n, [1, 1]) for n in ("strides", "dilations"))
        pads, sides = attributes.get("pads", [0] * 4), self.graph.tensors[weight].shape[1:3]
        padding = self.schema.Padding.SAME
        even = any(side % 2 == 0 for side in sides)
        if even or max(*strides, *dilations) > 1 or pads != [side // 2 for side in sides] * 2:
            padding = self.schema.Padding.VALID
            given = self._pad(given, pads)
        options: dict[str, Any] = {"padding": padding}
        options |= {"strideH": strides[0], "strideW": strides[1]}
        options |= {"dilationHFactor": dilations[0], "dilationWFactor": dilations[1]}
        options |= {"fusedActivationFunction": self._activation(activation)}
        kind = ("CONV_2D", "Conv2DOptions")
        if depthwise:
            kind = ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions")
            options["depthMultiplier"] = self.graph.tensors[weight].shape[3] // channels
        self._operator(kind[0], [given, weight, bias], place, kind[1], **options)

    def _pad(self, given: int, pads: list[int]) -> int:
        """Pads a tensor with zeros and returns the place of the result."""
        if not any(pads):
            return given
        top, left, bottom, right = pads
        before = self.graph.tensors[given]
        _, height, width, channels = before.shape
        shape = [1, height + top + bottom, width + left + right, channels]
        around = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
        place = self._tensor(f"{before.name.decode()}_padded", shape)
        self.graph.tensors[place].type = before.type
        self.graph.tensors[place].quantization = before.quantization
        widths = self._tensor(f"{before.name.decode()}_pads", (4, 2), around, kind=np.int32)
        self._operator("PAD", [given, widths], place, "PadOptions")
        return place

    def _activation(self, name: str) -> int:
        return int(getattr(self.schema.ActivationFunctionType, name))

    def _gemm(self, node: Any) -> None:
        (given,), place, activation = self._ends(node)
        transposed = self.attributes[node.output[0]].get("transB", 0)
        weight = self._weight(node.input[1], False, (0, 1) if transposed else (1, 0))
        self._operator(
            "FULLY_CONNECTED",
            [given, weight, self._bias(node.input[2], False)],
            place,
            "FullyConnectedOptions",
            fusedActivationFunction=self._activation(activation),
        )

    def _add(self, node: Any) -> None:
        inputs, place, activation = self._ends(node)
        options = {"fusedActivationFunction": self._activation(activation)}
        self._operator("ADD", inputs, place, "AddOptions", **options)

    def _mul(self, node: Any) -> None:
        inputs, place, activation = self._ends(node)
        # The kernels take the smaller tensor second.
        inputs.sort(key=lambda tensor: -int(np.prod(self.graph.tensors[tensor].shape)))
        options = {"fusedActivationFunction": self._activation(activation)}
        self._operator("MUL", inputs, place, "MulOptions", **options)

    def _globalaveragepool(self, node: Any) -> None:
        (given,), place, _ = self._ends(node)
        value = np.array([1, 2], np.int32)
        axes = self._tensor(f"{node.output[0]}_axes", [2], value, kind=np.int32)
        self._operator("MEAN", [given, axes], place, "ReducerOptions", keepDims=True)

    def _relu(self, node: Any) -> None:
        (given,), place, _ = self._ends(node)
        self._operator("RELU", [given], place)

    def _clip(self, node: Any) -> None:
        (given,), place, _ = self._ends(node)
        self._operator("RELU6", [given], place)

    def _hardswish(self, node: Any) -> None:
        (given,), place, _ = self._ends(node)
        self._operator("HARD_SWISH", [given], place, "HardSwishOptions")

    def _hardsigmoid(self, node: Any) -> None:
        """Adds min(max(x + 3, 0), 6) / 6 as an addition and a product."""
        (given,), place, _ = self._ends(node)
        output = node.output[0]
        total = self._tensor(f"{output}_sum", self._shape(output))
        three, sixth = (
            self._tensor(f"{output}_{value:.1f}", [1], np.array([value], np.float32))
            for value in (3, 1 / 6)
        )
        relu6 = self._activation("RELU6")
        self._operator("ADD", [given, three], total, "AddOptions", fusedActivationFunction=relu6)
        self._operator("MUL", [total, sixth], place, "MulOptions")

    def _prelu(self, node: Any) -> None:
        (given,), place, _ = self._ends(node)
        slopes = self.constants[node.input[1]].reshape(1, 1, -1)
        slope = self._tensor(node.input[1], slopes.shape, slopes)
        self._operator("PRELU", [given, slope], place)

    def _concat(self, node: Any) -> None:
        """Joins maps along their channels, which go last."""
        output = node.output[0]
        given = [self._float(name) for name in node.input]
        self.place[output] = self._tensor(output, self._shape(output))
        options = {"axis": len(self._shape(output)) - 1}
        self._operator(
            "CONCATENATION", given, self.place[output], "ConcatenationOptions", **options
        )

    def _identity(self, node: Any) -> None:
        self.place[node.output[0]] = self._float(node.input[0])

    def _reshape(self, node: Any) -> None:
        """Reshapes (1, 1, 1, C) to (1, C)."""
        output = node.output[0]
        given = self._float(node.input[0])
        shape = [-1, self.graph.tensors[given].shape[-1]]
        self.place[output] = self._tensor(output, [1, shape[1]])
        wanted = self._tensor(f"{output}_shape", [2], np.array(shape, np.int32), kind=np.int32)
        options: dict[str, Any] = {"newShape": np.array(shape, np.int32)}
        self._operator("RESHAPE", [given, wanted], self.place[output], "ReshapeOptions", **options)

    def _div(self, node: Any) -> None:
        """Divides the embedding by its own length."""
        output = node.output[0]
        given = self._float(node.input[0])
        self.place[output] = self._tensor(output, self.graph.tensors[given].shape)
        self._operator("L2_NORMALIZATION", [given], self.place[output], "L2NormOptions")
