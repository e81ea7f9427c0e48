"""Counts parameters and operations in the graph of an ONNX file.

It does not run the file and does not import torch.
"""

from __future__ import annotations

import math
from pathlib import Path


def count_onnx(path: Path) -> tuple[int | None, int | None]:
    """Counts the parameters of an ONNX file and the multiply-accumulates (MACs) of one face.

    Most exporters fold batch norm, so there are slightly fewer parameters than in training. Scales
    and zero points of quantised tensors do not count as parameters.

    Returns:
        Parameters and MACs. Both are None if `onnx` is not installed. MACs are None if a shape is
        unknown or no operation was found.
    """
    try:
        import onnx
    except ImportError:
        return None, None
    model = onnx.load(str(path), load_external_data=False)
    known = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    dims = [axis for tensor in known for axis in tensor.type.tensor_type.shape.dim]
    batch = model.graph.input[0].type.tensor_type.shape.dim[:1]
    names = {axis.dim_param for axis in batch} - {""}
    for axis in [*batch, *(axis for axis in dims if axis.dim_param in names)]:
        axis.dim_value = 1
    # Shapes that are computed inside the graph, as those of attention are, are propagated too.
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    tensors = (*graph.input, *graph.value_info, *graph.output)
    shapes = {t.name: [d.dim_value for d in t.type.tensor_type.shape.dim] for t in tensors}
    stored = {i.name: i for i in graph.initializer}
    shapes |= {name: list(value.dims) for name, value in stored.items()}
    integers = {onnx.TensorProto.INT64, onnx.TensorProto.BOOL}
    used = {
        name
        for node in graph.node
        for name in node.input[: 1 if "quantize" in node.op_type.lower() else None]
        if name in stored and stored[name].dims and stored[name].data_type not in integers
    }
    parameters = sum(math.prod(stored[name].dims) for name in used)
    macs = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        given, weight, found = (shapes.get(n, []) for n in (*node.input[:2], node.output[0]))
        # Each value of the output is a sum of this many products.
        terms = weight[1:] if node.op_type == "Conv" else given[-1:]
        if not terms or not found or 0 in (*terms, *found):
            return parameters, None
        macs += math.prod(found) * math.prod(terms)
    return parameters, macs or None
