"""Runs a LiteRT (TensorFlow Lite) file of `persona export`. This module does not import torch.

Shapes: B batch, C channel, H W pixels, E embedding.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from persona.errors import PersonaError
from persona.extras import missing
from persona.landmarks import Floats, resize, unit, warp
from persona.models.cards import CARD_KEY, SIDES_PX, alignment_in
from persona.models.embedder import Embedder, demand_landmarks
from persona.models.graphs import within_limit

MAX_BYTES = 500_000_000
MOST_OPERATORS = 1000
"""Most kinds of operators in a file. About 200 kinds exist."""
MOST_ENTRIES = 1000
"""Most entries of metadata that are looked at. A file of `persona export` has 12."""
REFUSED = re.compile(r"IF|WHILE|CALL|CALL_ONCE|CUSTOM|DELEGATE|STABLEHLO_.*")
"""Operators that run another graph, which may never end, or code from outside the file."""
WIDTHS = range(8, 4097)
"""Accepted widths of an embedding."""
NCHW_TO_NHWC = (0, 2, 3, 1)
PIXEL_MEAN, PIXEL_SCALE = 127.5, 128.0
"""Normalisation of the crops, as in training (persona/data/transforms.py)."""
FIVE_POINT = "landmarks", "template"
"""Alignments of a card by which faces lie at ArcFace's template."""


def open_litert(source: bytes | Path, threads: int = 1) -> Any:
    """Opens a file in LiteRT's interpreter, which takes one face at a time.

    The file may be untrusted. It is checked first and runs under a time limit.

    Raises:
        PersonaError: the package or the file is missing, or the file has control flow, is too large
            or too slow, or holds no network that takes one square face, channels last.
    """
    if isinstance(source, Path):
        if not source.is_file():
            raise PersonaError(f"no LiteRT file at {source}")
        if source.stat().st_size > MAX_BYTES:
            raise PersonaError(f"{source} is over 500 MB: no student is")
    interpreter = import_litert("interpreter").Interpreter
    kind = {"model_content": source} if isinstance(source, bytes) else {"model_path": str(source)}
    where = "this" if isinstance(source, bytes) else source
    _check_graph(source if isinstance(source, bytes) else source.read_bytes(), where)

    def start() -> Any:
        opened = interpreter(**kind, num_threads=threads)
        opened.allocate_tensors()
        return opened

    try:
        with _without_stderr():  # LiteRT writes about its delegate to stderr
            opened = within_limit(f"{where}: loading", start)
        if not _is_face_network(opened.get_input_details(), opened.get_output_details()):
            raise PersonaError(
                f"{where} is no face network that can be run here: it must take one float32 face "
                f"of (1, side, side, 3), {SIDES_PX[0]} to {SIDES_PX[-1]} px, and give "
                f"{WIDTHS[0]} to {WIDTHS[-1]} numbers"
            )
        within_limit(f"{where}: a run", opened.invoke)
    except (ValueError, RuntimeError):
        raise PersonaError(f"{where} is no LiteRT file that can be run here") from None
    return opened


def _is_face_network(given: list[dict[str, Any]], found: list[dict[str, Any]]) -> bool:
    """Whether a file takes one face and gives one embedding, by the details of its tensors."""
    if len(given) != 1 or not found or {given[0]["dtype"], found[0]["dtype"]} != {np.float32}:
        return False
    face, embedding = (tuple(map(int, tensors[0]["shape"])) for tensors in (given, found))
    if len(face) != 4 or len(embedding) != 2:
        return False
    fits = face == (1, face[1], face[1], 3) and embedding[0] == 1
    return fits and face[1] in SIDES_PX and embedding[1] in WIDTHS


def _check_graph(data: bytes, where: Path | str) -> None:
    """Checks the operators of a file before it is run.

    Raises:
        PersonaError: this is no LiteRT file, or it has control flow or custom code.
    """
    schema = import_litert("schema_py_generated")
    names = {number: name for name, number in vars(schema.BuiltinOperator).items()}
    try:
        if data[4:8] != b"TFL3":
            raise ValueError
        model = schema.Model.GetRootAs(data, 0)
        graphs, count = model.SubgraphsLength(), model.OperatorCodesLength()
        if count > MOST_OPERATORS:
            raise ValueError
        codes = [model.OperatorCodes(place) for place in range(count)]
        # Files from before 2020 have the number in an older field of one byte.
        numbers = {max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) for code in codes}
    except Exception:  # flatbuffers trusts all offsets: struct.error, TypeError, AttributeError
        raise PersonaError(f"{where} is no LiteRT file that can be run here") from None
    refused = sorted(
        name for n in numbers if REFUSED.fullmatch(name := str(names.get(n, "CUSTOM")))
    )
    if refused or graphs != 1:
        what = f"operator {refused[0]}" if refused else f"{graphs} graphs"
        raise PersonaError(
            f"{where} has control flow or code of its own ({what}), which may never end and which "
            "no face network needs: it is refused"
        )


def file_alignment(data: bytes) -> dict[str, Any] | None:
    """The alignment of the crops that a file takes, from the card in its metadata.

    None means that it has no card: it takes crops as they are.
    """
    schema = import_litert("schema_py_generated")
    try:
        model = schema.Model.GetRootAs(data, 0)
        for place in range(min(model.MetadataLength(), MOST_ENTRIES)):
            entry = model.Metadata(place)
            if entry.Name() == CARD_KEY.encode():
                text = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
                return alignment_in(text.decode())
    except Exception:  # flatbuffers trusts all offsets, and the card may be anything
        return None
    return None


def run_litert(opened: Any, images_BCHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Computes embeddings, (B, E), of normalised faces (B, 3, H, W) float32."""
    given = opened.get_input_details()[0]["index"]
    wanted = opened.get_output_details()[0]["index"]
    found = []
    for image in images_BCHW.transpose(NCHW_TO_NHWC):
        opened.set_tensor(given, np.ascontiguousarray(image[None]))
        opened.invoke()
        found.append(opened.get_tensor(wanted)[0])
    return np.stack(found)


class LitertSession(Embedder):
    """A LiteRT file of `persona export` as an Embedder."""

    def __init__(self, path: Path, threads: int) -> None:
        """Opens the file.

        Raises:
            PersonaError: the file is missing or holds no face network.
        """
        self._opened = open_litert(path, threads)
        self._lock = threading.Lock()  # the interpreter has only one input buffer
        self.name = path.name
        alignment = file_alignment(path.read_bytes()) or {}
        self.uses_landmarks = alignment.get("method") in FIVE_POINT
        self.side_px = int(self._opened.get_input_details()[0]["shape"][1])
        self.embedding_size = int(self._opened.get_output_details()[0]["shape"][1])

    def embed(
        self, crops_BHW3: npt.NDArray[np.uint8], landmarks_B62: Floats | None = None
    ) -> npt.NDArray[np.float32]:
        """Computes embeddings of unit length, (B, E) float32, of square uint8 RGB crops.

        Raises:
            PersonaError: the network needs landmarks and a crop has none.
        """
        pixels = crops_BHW3.transpose(0, 3, 1, 2).astype(np.float32)
        if self.uses_landmarks:
            pixels = warp(pixels, demand_landmarks(landmarks_B62, self.name), self.side_px)
        else:
            pixels = resize(pixels, self.side_px)
        return unit(self.run((pixels - PIXEL_MEAN) / PIXEL_SCALE))

    def run(self, images_BCHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Computes embeddings, (B, E), of normalised crops with sides of `side_px`."""
        with self._lock:
            return run_litert(self._opened, images_BCHW)


class LitertRunner:
    """A LiteRT file that is run on random faces, to measure its speed."""

    runtime = "litert"

    def __init__(self, path: Path, threads: int) -> None:
        """Opens the file.

        Raises:
            PersonaError: the file is missing or holds no face network.
        """
        self._opened = open_litert(path, threads)

    def on(self, count: int) -> Callable[[], object]:
        """Returns a function that embeds `count` faces."""
        _, *shape = (int(n) for n in self._opened.get_input_details()[0]["shape"])
        faces = np.random.default_rng(0).random((count, shape[2], *shape[:2]), np.float32)
        return lambda: run_litert(self._opened, faces)


def import_litert(name: str) -> Any:
    """Imports a module of ai_edge_litert.

    Raises:
        PersonaError: the package is not installed.
    """
    try:
        return importlib.import_module(f"ai_edge_litert.{name}")
    except ImportError:
        raise missing("LiteRT needs ai-edge-litert", "litert") from None


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Silences the stderr of native code."""
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
