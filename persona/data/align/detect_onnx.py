"""MTCNN's three networks in onnxruntime, on one core; see persona/data/align/detect.py. No torch.

The model files lie in `mtcnn/`. scripts/mtcnn.py made them from facenet-pytorch's weights.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from importlib import resources
from typing import Any

import numpy as np
import onnxruntime

from persona.data.align.detect import Array


class OnnxNetworks:
    """Runs the model files that come with the package. Any number of threads may use them."""

    on_gpu = False
    block = 4
    """A run costs nothing beside its rows, so few are filled up for a single photo."""

    def __init__(self) -> None:
        folder = resources.files("persona.data.align") / "mtcnn"
        self._first, self._rest, self._rnet, self._onet = (
            _open((folder / f"{name}.onnx").read_bytes())
            for name in ("pnet_first", "pnet_rest", "rnet", "onet")
        )

    def running(self) -> AbstractContextManager[Any]:
        """An empty context: onnxruntime needs no mode for inference."""
        return contextlib.nullcontext()

    def to(self, array: Array) -> Array:
        """Returns the array itself."""
        return array

    def zeros(self, *shape: int, whole: bool = False) -> Array:
        """Zeros as float32, or as int32 with `whole`."""
        return np.zeros(shape, np.int32 if whole else np.float32)

    def sum_up(self, photo_HWC: Array, sums_HWC: Array) -> None:
        """Fills `sums_HWC` with the sum of all pixels above and left of each, itself included."""
        np.cumsum(photo_HWC, 0, dtype=np.int32, out=sums_HWC)
        np.cumsum(sums_HWC, 1, out=sums_HWC)

    def take(self, rows: Array, places: Array) -> Array:
        """Selects rows of (rows, columns): (*places.shape, columns)."""
        return rows.take(places, axis=0)  # four times as fast as `rows[places]`

    def floats(self, array: Array) -> Array:
        """The array as float32."""
        return array.astype(np.float32)

    def pnet_first(self, pixels_NHWC: Array) -> Array:
        """P-Net's first layer."""
        (maps,) = _run(self._first, pixels=pixels_NHWC)
        return maps

    def pnet_rest(self, maps_NCHW: Array) -> tuple[Array, Array]:
        """P-Net's other layers: box regression and scores."""
        regression, scores = _run(self._rest, maps=maps_NCHW)
        return regression, scores

    def rnet(self, pixels_NHWC: Array) -> list[Array]:
        """R-Net: box regression and scores."""
        return _run(self._rnet, pixels=pixels_NHWC)

    def onet(self, pixels_NHWC: Array) -> list[Array]:
        """O-Net: box regression, landmarks and scores."""
        return _run(self._onet, pixels=pixels_NHWC)


def _open(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # With one thread processes share the cores better, and sums do not depend on their number.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # a pattern would be kept for each size of photo
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, **given: Array) -> list[Array]:
    found: list[Array] = session.run(
        None, {name: np.ascontiguousarray(array) for name, array in given.items()}
    )
    return found
