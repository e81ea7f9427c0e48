"""LiteRT files (TensorFlow Lite), which take one face per run.

Shapes: N faces, E embedding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from persona.deploy.exports.base import FileFormat
from persona.deploy.graph import EMBEDDING, Faces, graph_input
from persona.deploy.litert import to_litert
from persona.errors import PersonaError
from persona.models.litert import open_litert, run_litert
from persona.models.onnx import SETTINGS_KEY
from persona.models.student import Student


class Litert(FileFormat):
    """The graph, translated operator by operator."""

    name = "litert"
    suffix = ".tflite"

    def check(self, options: Any) -> None:
        """Raises PersonaError if an option is set that LiteRT files do not have."""
        if options.preprocessing or options.classifier or options.precision == "fp16":
            raise PersonaError(
                "LiteRT files are fp32 or int8, without preprocessing or classifier: export ONNX"
            )

    def convert(self, graph: bytes, student: Student, options: Any) -> bytes:
        """Translates the graph. The metadata says in which layout it takes a face."""
        import onnx

        model = onnx.load_from_string(graph)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        del metadata[SETTINGS_KEY]
        side = student.image_size
        metadata["persona.input"] = f"float32 RGB (1, {side}, {side}, 3)"
        return to_litert(model, EMBEDDING, metadata)

    def run(self, data: bytes, faces_NHWC: Faces, options: Any) -> npt.NDArray[np.float32]:
        """(N, E) float32 embeddings by the LiteRT interpreter."""
        return run_litert(open_litert(data), graph_input(faces_NHWC))
