"""Running a LiteRT (TensorFlow Lite) file of `persona export`; no torch.

Shapes: B batch, C channel, H W pixels, E embedding.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from persona.errors import PersonaError
from persona.extras import missing

PREFIX = "litert:"
NCHW_TO_NHWC = (0, 2, 3, 1)


def open_litert(source: bytes | Path, threads: int = 1) -> Any:
    """LiteRT's interpreter of a file, ready for one face at a time.

    Raises:
        PersonaError: the package is missing, there is no file, or it is none of a face network.
    """
    if isinstance(source, Path) and not source.is_file():
        raise PersonaError(f"no LiteRT file at {source}")
    interpreter = import_litert("interpreter").Interpreter
    kind = {"model_content": source} if isinstance(source, bytes) else {"model_path": str(source)}
    where = "this" if isinstance(source, bytes) else source
    try:
        with _without_stderr():  # it tells of its delegate there
            opened = interpreter(**kind, num_threads=threads)
            opened.allocate_tensors()
    except (ValueError, RuntimeError):
        raise PersonaError(f"{where} is no LiteRT file that can be run here") from None
    given, found = opened.get_input_details(), opened.get_output_details()
    if (
        [(len(given[0]["shape"]), given[0]["shape"][0], given[0]["dtype"])] != [(4, 1, np.float32)]
        or len(given) != 1
        or len(found[0]["shape"]) != 2
    ):
        raise PersonaError(f"{where} is no face network: it must take one float32 face")
    return opened


def run_litert(opened: Any, images_BCHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(B, E) embeddings of normalised faces."""
    given = opened.get_input_details()[0]["index"]
    wanted = opened.get_output_details()[0]["index"]
    found = []
    for image in images_BCHW.transpose(NCHW_TO_NHWC):
        opened.set_tensor(given, np.ascontiguousarray(image[None]))
        opened.invoke()
        found.append(opened.get_tensor(wanted)[0])
    return np.stack(found)


def import_litert(name: str) -> Any:
    """A module of ai_edge_litert.

    Raises:
        PersonaError: the package is missing.
    """
    try:
        return importlib.import_module(f"ai_edge_litert.{name}")
    except ImportError:
        raise missing("LiteRT needs ai-edge-litert", "litert") from None


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Silences what native code writes."""
    sys.stderr.flush()
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
