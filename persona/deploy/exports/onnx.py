"""ONNX files, which take batches of any size.

Shapes: N faces, E embedding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from persona.deploy.exports.base import FileFormat
from persona.deploy.graph import EMBEDDING, INPUT, Faces, graph_input, split_prelu
from persona.deploy.quantise import open_session
from persona.models.student import Student


class Onnx(FileFormat):
    """The graph itself."""

    name = "onnx"
    suffix = ".onnx"

    def convert(self, graph: bytes, student: Student, options: Any) -> bytes:
        """Returns the graph, with operators that onnxruntime is fast at."""
        return split_prelu(graph)

    def run(self, data: bytes, faces_NHWC: Faces, options: Any) -> npt.NDArray[np.float32]:
        """(N, E) float32 embeddings by onnxruntime."""
        session = open_session(data)
        parts = [
            session.run(
                [EMBEDDING], {INPUT: graph_input(batch, preprocessing=options.preprocessing)}
            )[0]
            for batch in np.array_split(faces_NHWC, -(-len(faces_NHWC) // 64))
        ]
        return np.concatenate(parts)
