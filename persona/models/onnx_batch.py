"""Makes the batch of an ONNX file free that was exported for a fixed number of photos.

Many published networks take one photo at a time. A core runs them as fast that way, but a GPU then
waits for every single photo. What fixes the batch is usually the shape of the input and a reshape
to `(1, -1)` behind the last convolution; both are rewritten in memory. The file itself is left
alone.

The result is only used if photos give the same embeddings in it alone and together
(persona/models/onnx.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from persona.models.graphs import external_files, read_onnx

FREE = "batch"


def free_batch(path: Path) -> bytes | None:
    """The content of an ONNX file with a free batch.

    None if the package `onnx` is missing, the weights lie outside the file, or the input has no
    fixed batch.

    Raises:
        PersonaError: `persona.models.graphs.read_onnx` refuses the file.
    """
    if external_files(path, read_onnx(path)):
        return None
    try:
        import onnx
    except ImportError:
        return None
    model = onnx.load(str(path))
    graph = model.graph
    stored: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            stored[node.output[0]] = node.attribute[0].t
    given = [value for value in graph.input if value.name not in stored]
    axes = [value.type.tensor_type.shape.dim for value in (*given, *graph.output)]
    size = axes[0][0].dim_value if axes and axes[0] else 0
    if not size:
        return None
    for dimensions in axes:
        if dimensions and dimensions[0].dim_value == size:
            dimensions[0].Clear()
            dimensions[0].dim_param = FREE
    del graph.value_info[:]  # shapes of the old batch
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] in stored:
            shape = onnx.numpy_helper.to_array(stored[node.input[1]]).copy()
            if shape.ndim == 1 and len(shape) and shape[0] == size:
                shape[0] = 0  # as many as its input has
                name = stored[node.input[1]].name
                stored[node.input[1]].CopyFrom(
                    onnx.numpy_helper.from_array(shape.astype(np.int64), name)
                )
    freed: bytes = model.SerializeToString()
    return freed
