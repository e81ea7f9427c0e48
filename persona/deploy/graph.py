"""A student as an ONNX graph, which all formats of persona/deploy/exports/ are made from.

1. The student becomes a graph with a free batch size. It gives embeddings of unit length, and the
   logits if they are asked for.
2. For int8, the layers are quantised with calibration faces (persona/deploy/quantise.py).
3. The metadata gets what a user of the file must know, and Persona's own settings. With these,
   `onnx:FILE` opens the file like any teacher.

Shapes: B batch, C channel, H W pixels, E embedding, N faces.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from persona import __version__
from persona.config import Checked, among
from persona.data.views import PIXEL_MEAN, PIXEL_SCALE
from persona.deploy.likeness import Tolerance
from persona.deploy.quantise import Quantised, quantise_graph
from persona.deploy.trace import trace_onnx
from persona.errors import PersonaError, shown
from persona.figure_names import power
from persona.models.cards import CARD_KEY, Card
from persona.models.onnx import SETTINGS_KEY
from persona.models.public import public_card
from persona.models.student import Student

CALIBRATION_BATCH = 8
"""Faces in a calibration batch. All tensors of a batch are in memory at once."""
FAR = "0.001"
"""False accept rate of the threshold in a file's metadata."""
INPUT, EMBEDDING, LOGITS = "images", "embedding", "logits"

PRECISIONS = ("fp32", "fp16", "int8")
BOUNDS = {"fp32": Tolerance(0.9999), "fp16": Tolerance(0.999), "int8": Tolerance(0.9, 0.2)}
"""How like a file's embeddings of the check faces must be to those of PyTorch."""

Faces = npt.NDArray[np.uint8]
"""(N, H, W, 3) uint8 RGB crops."""


@dataclass(frozen=True)
class ExportOptions(Checked):
    """What a user may choose about an exported file. A format with more options derives a class."""

    precision: str = among(PRECISIONS, default="fp32")
    preprocessing: bool = False
    """Whether the graph takes (B, H, W, 3) uint8 RGB of any size, and resizes and normalises it."""
    classifier: bool = False
    """Whether the graph gives the logits too."""


class ExportedStudent(nn.Module):
    """The module that becomes the graph.

    It takes float32, or uint8 with `preprocessing`, and gives float32, also if it computes in fp16.
    """

    def __init__(self, student: Student, options: ExportOptions) -> None:
        super().__init__()
        self.dtype = torch.float16 if options.precision == "fp16" else torch.float32
        self.student = student.eval().to(self.dtype)
        self.options = options

    def forward(self, images: Tensor) -> Any:
        """(B, E) float32 embeddings of unit length, followed by (B, K) logits with `classifier`."""
        if self.options.preprocessing:
            images = images.permute(0, 3, 1, 2).float()
            side = self.student.image_size
            images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
            images = (images - PIXEL_MEAN) / PIXEL_SCALE
        features_BE = self.student.features(images.to(self.dtype))
        embedding_BE = F.normalize(features_BE.float(), dim=1)
        if not self.options.classifier:
            return embedding_BE
        return embedding_BE, self.student.classify(features_BE).float()


def build_graph(
    student: Student,
    card: Card,
    options: ExportOptions | None = None,
    facts: dict[str, str] | None = None,
) -> bytes:
    """The bytes of the ONNX file, as format `onnx` writes it, not checked on faces.

    For fp16 the student's weights are rounded in place.

    Raises:
        PersonaError: packages are missing.
    """
    return split_prelu(build_with_cost(student, card, options or ExportOptions(), facts or {})[0])


def split_prelu(data: bytes) -> bytes:
    """The graph with each PReLU as max(x, 0) + slope * min(x, 0), to the same digits.

    onnxruntime 1.32 takes nine times as long for its own kernel. LiteRT's is fast.
    """
    import onnx

    model = onnx.load_from_string(data)
    make, nodes = onnx.helper.make_node, []
    for node in model.graph.node:
        if node.op_type != "PRelu":
            nodes.append(node)
            continue
        (given, slopes), output = node.input, node.output[0]
        above, below, steep = (f"{output}_{part}" for part in ("above", "below", "steep"))
        nodes += [
            make("Relu", [given], [above], name=above),
            make("Sub", [given, above], [below], name=below),
            make("Mul", [below, slopes], [steep], name=steep),
            make("Add", [above, steep], [output], name=output),
        ]
    if len(nodes) == len(model.graph.node):
        return data
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def build_with_cost(
    student: Student,
    card: Card,
    options: ExportOptions,
    facts: dict[str, str],
    calibration_NHWC: Faces | None = None,
    faces_NHWC: Faces | None = None,
) -> tuple[bytes, Quantised | None]:
    """The bytes of the ONNX file and, for int8, the result of the quantisation.

    The ranges of the tensors are found on the calibration faces, and layers are chosen by their
    cost on the others.
    """
    with refusing(card, "an ONNX file"):
        model = _trace(student, options)
    quantised = None
    metadata = _metadata(card, student, options) | facts
    if options.precision == "int8":
        assert calibration_NHWC is not None and faces_NHWC is not None
        batches, others = (
            np.array_split(
                graph_input(faces, preprocessing=options.preprocessing),
                -(-len(faces) // CALIBRATION_BATCH),
            )
            for faces in (calibration_NHWC, faces_NHWC)
        )
        with refusing(card, "an int8 file"):
            quantised = quantise_graph(model, batches, EMBEDDING, BOUNDS["int8"], others)
        model = quantised.model
        metadata["persona.floats"] = ", ".join(kept.layer for kept in quantised.floats) or "none"
    import onnx

    onnx.helper.set_model_props(model, metadata)
    model.producer_name, model.producer_version = "persona", __version__
    onnx.checker.check_model(model)
    buffer = io.BytesIO()
    onnx.save(model, buffer)
    return buffer.getvalue(), quantised


@contextlib.contextmanager
def refusing(card: Card, what: str) -> Iterator[None]:
    """Context in which a graph is made of a network that may have any operators.

    Raises:
        PersonaError: a step failed with an error of its own, which the message names.
    """
    try:
        yield
    except (PersonaError, MemoryError):
        raise
    except Exception as error:  # of torch's exporter, onnx, onnxruntime and the interpreter
        reason = shown(f"{type(error).__name__}: {error}".partition("\n")[0])
        raise PersonaError(
            f"{card.architecture} cannot become {what} ({reason}): choose another format, "
            "precision or student"
        ) from error


def build_on_weights(student: Student, card: Card, weights: bytes) -> bytes:
    """An ONNX graph whose weights are those of a safetensors file beside it, `card.weights`.

    onnxruntime thus runs a student without torch, and the weights are kept once. Weights in
    float16 are cast to float32 when the file is opened.

    Args:
        student: the student with the weights of the file.
        card: its card, which names the file.
        weights: content of the file.

    Raises:
        PersonaError: packages are missing, or the student cannot become a graph.
    """
    options = ExportOptions()
    with refusing(card, "an ONNX file"):
        model = _trace(student, options, optimise=False)
    import onnx

    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    kinds = {"F16": onnx.TensorProto.FLOAT16, "F32": onnx.TensorProto.FLOAT}
    _drop_zero_biases(model)
    casts = []
    for initializer in model.graph.initializer:
        stored = header.get(initializer.name.removeprefix("student."))
        if stored is None:  # a constant of the graph
            continue
        first, end = stored["data_offsets"]
        name, kind = initializer.name, kinds[stored["dtype"]]
        if kind != initializer.data_type:
            initializer.name += ".stored"
            casts.append(
                onnx.helper.make_node("Cast", [initializer.name], [name], to=initializer.data_type)
            )
        initializer.ClearField("raw_data")
        initializer.data_type, initializer.data_location = kind, onnx.TensorProto.EXTERNAL
        place = {"location": card.weights, "offset": 8 + length + first, "length": end - first}
        for key, value in place.items():
            initializer.external_data.add(key=key, value=str(value))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    onnx.helper.set_model_props(model, {SETTINGS_KEY: _settings(card, student, options)})
    model.producer_name, model.producer_version = "persona", __version__
    found: bytes = model.SerializeToString()
    return found


def _drop_zero_biases(model: Any) -> None:
    """Takes computed zeros from convolutions without bias, and all that only led to them.

    The exporter writes such zeros where nothing is folded. With them onnxruntime does not fold
    batch norm into the convolutions, and takes four times as long.
    """
    weights = {initializer.name for initializer in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) == 3 and node.input[2] not in weights:
            del node.input[2]
    wanted = {output.name for output in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):  # each node comes after those whose outputs it takes
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    unused = [i for i in model.graph.initializer if i.name not in wanted]
    for initializer in unused:
        model.graph.initializer.remove(initializer)


def _trace(student: Student, options: ExportOptions, *, optimise: bool = True) -> Any:
    """The student as an onnx.ModelProto."""
    side = student.image_size
    example = (
        torch.zeros(2, side, side, 3, dtype=torch.uint8)
        if options.preprocessing
        else torch.zeros(2, 3, side, side)
    )
    axes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if options.preprocessing:
        axes |= {1: torch.export.Dim("height", min=2), 2: torch.export.Dim("width", min=2)}
    outputs = [EMBEDDING, *([LOGITS] if options.classifier else [])]
    network = ExportedStudent(student, options)
    model = trace_onnx(network, example, axes, INPUT, outputs, optimise=optimise)
    _name_pooling(model)
    if optimise:
        _fold_flat_norm(model)
    return model


def _fold_flat_norm(model: Any) -> None:
    """Folds a batch norm of a flattened map of one place into the convolution before it.

    The exporter folds only what stands directly behind a convolution, and LiteRT has no batch norm.
    """
    import onnx

    graph = model.graph
    weights = {initializer.name: initializer for initializer in graph.initializer}
    producer = {name: node for node in graph.node for name in node.output}
    readers = [name for node in graph.node for name in node.input]
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        flat = producer.get(norm.input[0])
        before = producer.get(flat.input[0]) if flat is not None and flat.input else None
        if (
            flat is None
            or before is None
            or flat.op_type not in ("Reshape", "Flatten")
            or before.op_type != "Conv"
            or not set(before.input[1:]) | set(norm.input[1:]) <= set(weights)
            or max(readers.count(flat.input[0]), readers.count(norm.input[0])) > 1
        ):
            continue
        scale, shift, mean, variance = (
            onnx.numpy_helper.to_array(weights[name]).astype(np.float64) for name in norm.input[1:]
        )
        stored = weights[before.input[1]]
        kernel = onnx.numpy_helper.to_array(stored)
        if len(kernel) != len(scale):  # the map has several places
            continue
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        bias = np.zeros(len(kernel))
        if len(before.input) > 2:
            bias = onnx.numpy_helper.to_array(weights[before.input[2]]).astype(np.float64)
        folded = {
            before.input[1]: kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1)),
            f"{before.input[1]}_folded_bias": (bias - mean) * factor + shift,
        }
        for name, value in folded.items():
            found = onnx.numpy_helper.from_array(value.astype(kernel.dtype), name)
            if name in weights:
                weights[name].CopyFrom(found)
            else:
                graph.initializer.append(found)
        before.input[:] = [before.input[0], *folded]
        flat.output[:] = norm.output
        graph.node.remove(norm)
    _drop_unused(graph)


def _drop_unused(graph: Any) -> None:
    """Removes the initializers of a graph that no node reads."""
    used = {name for node in graph.node for name in node.input}
    for initializer in [i for i in graph.initializer if i.name not in used]:
        graph.initializer.remove(initializer)


def _name_pooling(model: Any) -> None:
    """Replaces means over height and width by GlobalAveragePool.

    onnxruntime runs GlobalAveragePool in its blocked layout and in integers, but not ReduceMean.
    """
    import onnx

    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    for node in model.graph.node:  # where nothing was folded, constants are nodes
        if node.op_type == "Constant":
            found = onnx.helper.get_attribute_value(node.attribute[0])
            value = node.attribute[0].name == "value"
            constants[node.output[0]] = np.asarray(
                onnx.numpy_helper.to_array(found) if value else found
            )
        elif node.op_type == "Reshape" and node.input[0] in constants:  # of the axes of a mean
            constants[node.output[0]] = constants[node.input[0]].reshape(-1)
    for node in model.graph.node:
        if node.op_type != "ReduceMean":
            continue
        axes = sorted(axis % 4 for axis in constants.get(node.input[1], np.array([])).tolist())
        if axes == [2, 3] and all(a.i for a in node.attribute if a.name == "keepdims"):
            pooled = onnx.helper.make_node(
                "GlobalAveragePool", node.input[:1], node.output, name=node.name
            )
            node.CopyFrom(pooled)
    _drop_unused(model.graph)


def _metadata(card: Card, student: Student, options: ExportOptions) -> dict[str, str]:
    """Metadata of the file. Keys of Persona's own begin with `persona.`."""
    card = public_card(card)
    normalisation = f"(pixel - {PIXEL_MEAN}) / {PIXEL_SCALE}"
    side = student.image_size
    given = (
        "uint8 RGB (batch, height, width, 3); resized and normalised inside"
        if options.preprocessing
        else f"float32 RGB (batch, 3, {side}, {side})"
    )
    threshold = (card.scores.get("threshold_at_far") or {}).get(FAR)
    said = card.scores.get("threshold_from", card.test_set)
    return {
        "persona.model": card.id,
        "persona.architecture": card.architecture,
        "persona.precision": options.precision,
        "persona.input": given,
        "persona.alignment": card.crops,
        "persona.normalisation": f"{normalisation}, pixels of 0 to 255",
        "persona.embedding": f"{student.embedding_size} numbers, of unit length",
        "persona.threshold": "unknown: measure it on faces like yours"
        if threshold is None
        # Rounded up, since a lower threshold would have a higher false accept rate.
        else f"{math.ceil(threshold * 1e4) / 1e4:.4f}, the cosine at FAR {power(FAR)} on {said}",
        "persona.licence": card.licence
        or "unknown: see the terms of its training data and of its teacher",
        CARD_KEY: json.dumps(vars(card), sort_keys=True),
        SETTINGS_KEY: _settings(card, student, options),
    }


def _settings(card: Card, student: Student, options: ExportOptions) -> str:
    """The settings with which Persona opens the file, as YAML."""
    return yaml.safe_dump(
        {
            "input_size": student.image_size,
            "alignment": "five-point" if card.aligned_by in {"landmarks", "template"} else "margin",
            "mean": [PIXEL_MEAN] * 3,
            "std": [PIXEL_SCALE] * 3,
            "output": EMBEDDING,
            "layout": "nhwc-uint8" if options.preprocessing else "nchw",
        }
    )


def graph_input(faces_NHWC: Faces, *, preprocessing: bool = False) -> npt.NDArray[Any]:
    """Crops as a graph takes them: (N, 3, H, W) float32 normalised, or unchanged uint8 crops.

    A graph with `preprocessing` takes the unchanged crops.
    """
    if preprocessing:
        return faces_NHWC
    normalised = (faces_NHWC.astype(np.float32) - PIXEL_MEAN) / PIXEL_SCALE
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))
