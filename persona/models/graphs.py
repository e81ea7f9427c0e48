"""Inspects an ONNX file before it is run, and opens it. It imports neither torch nor onnx.

A file may be untrusted. A walk over its protobuf fields finds its operators, its settings and its
external data files. The walk enters no other fields and trusts no length beyond the end of the
file. A face network needs no control flow, so a graph with any is refused: a loop may never end.

Format: onnx.proto (github.com/onnx/onnx/blob/main/onnx/onnx.proto), protobuf's wire format.
"""

from __future__ import annotations

import functools
import math
import mmap
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from persona.errors import PersonaError, shown

T = TypeVar("T")

MOST_FIELDS = 500_000
"""Most protobuf fields in a file. A graph of 5,000 nodes has a quarter of them."""
MAX_BYTES = 2_000_000_000
RUN_LIMIT_S = 60.0
"""Time limit in seconds for opening a file, and for its first batch, also on a busy machine."""

MOST_NUMBERS = 3 << 24
"""Most numbers of an input of fixed shape: 1,337 faces of 112 px. A layer may hold twenty times as
many, and all of them are in memory at the first run."""

LONGEST_REASON = 160
"""Most characters of an onnxruntime message that an error repeats."""

# Field numbers in onnx.proto.
_MODEL_IR, _MODEL_GRAPH, _MODEL_OPSET, _MODEL_METADATA, _MODEL_FUNCTION = 1, 7, 8, 14, 25
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_SPARSE, _FUNCTION_NODE = 1, 5, 15, 7
_NODE_OPERATOR, _NODE_ATTRIBUTE = 4, 5
_ATTRIBUTE_GRAPHS = frozenset({6, 11})
_ATTRIBUTE_TENSORS, _ATTRIBUTE_SPARSE = frozenset({5, 10}), frozenset({22, 23})
_SPARSE_TENSORS = frozenset({1, 2})
_TENSOR_EXTERNAL = 13


@dataclass
class OnnxFile:
    """The result of inspecting an ONNX file."""

    opset: int = 0
    """Opset version of the standard operators."""
    metadata: dict[str, str] = field(default_factory=dict)
    external: set[str] = field(default_factory=set)
    """Paths of external weights files, as the file names them."""
    control_flow: str | None = None
    """Name of an operator that contains a graph, if there is any."""
    has_graph: bool = False


class _Reader:
    """Reads the fields of protobuf messages, at most `MOST_FIELDS` in all."""

    def __init__(self) -> None:
        self.left = MOST_FIELDS

    def fields(self, data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
        """Yields the number of each field, its value if that is an integer, and its bytes.

        Raises:
            ValueError: this is no protobuf message, or there are too many fields.
        """
        place, empty = 0, data[:0]
        while place < len(data):
            self.left -= 1
            if self.left < 0:
                raise ValueError("too many fields")
            key, place = _varint(data, place)
            value, found = 0, empty
            if key & 7 == 0:
                value, place = _varint(data, place)
            elif key & 7 in {1, 5}:
                place += 8 if key & 7 == 1 else 4
            elif key & 7 == 2:
                size, place = _varint(data, place)
                found, place = data[place : place + size], place + size
            else:
                raise ValueError("an unknown kind of field")
            if place > len(data):
                raise ValueError("ends early")
            yield key >> 3, value, found


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise ValueError("ends early")
        byte, place = data[place], place + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("a number of over 64 bits")


def read_onnx(path: Path) -> OnnxFile:
    """Inspects an ONNX file without running it.

    Raises:
        PersonaError: the file is missing, too large, no ONNX or has control flow, or an external
            weights file is missing or outside its folder.
    """
    if not path.is_file():
        raise PersonaError(f"no ONNX file at {path}: check the path")
    known = path.stat()
    if known.st_size > MAX_BYTES:
        raise PersonaError(f"{path} is over 2 GB: no face network is")
    stamp = (known.st_dev, known.st_ino, known.st_size, known.st_mtime_ns, known.st_ctime_ns)
    found = _read_file(path, stamp)
    for name in sorted(found.external):
        _find_external(path, name)
    return found


@functools.lru_cache(maxsize=8)
def _read_file(path: Path, stamp: tuple[int, ...]) -> OnnxFile:
    """Reads a file once for all who ask; `stamp` is that of its content."""
    size = stamp[2]
    found = OnnxFile()
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        _read_model(_Reader(), memoryview(data), found)
    except ValueError as error:
        raise PersonaError(f"{path} cannot be loaded as ONNX: it does not read ({error})") from None
    if not found.has_graph:
        raise PersonaError(f"{path} cannot be loaded as ONNX: it has no graph")
    if found.control_flow is not None:
        raise PersonaError(
            f"{path} has control flow (operator {shown(found.control_flow)}), which may never end "
            "and which no face network needs: export it without, or simplify it (onnxsim)"
        )
    return found


def external_files(path: Path, found: OnnxFile) -> list[Path]:
    """The external weights files of an ONNX file, sorted.

    Raises:
        PersonaError: one of them is missing or outside the file's folder.
    """
    return [_find_external(path, name) for name in sorted(found.external)]


def _find_external(path: Path, name: str) -> Path:
    folder = path.parent.resolve()
    place = folder / name
    if "\0" in name or not place.resolve().is_relative_to(folder):
        raise PersonaError(
            f"{path} wants its weights from outside its folder ({shown(name)}): it is refused"
        )
    if not place.is_file():
        raise PersonaError(
            f"{path} has its weights in another file, {shown(name)}, which is not beside it"
        )
    return place


def _read_model(reader: _Reader, data: memoryview, found: OnnxFile) -> None:
    for number, _, value in reader.fields(data):
        if number == _MODEL_GRAPH:
            found.has_graph = True
            _read_graph(reader, value, found)
        elif number == _MODEL_FUNCTION:
            for part, _, inside in reader.fields(value):
                if part == _FUNCTION_NODE:
                    _read_node(reader, inside, found)
        elif number == _MODEL_METADATA:
            key, text = _entry(reader, value)
            found.metadata[key] = text
        elif number == _MODEL_OPSET:
            domain, version = "", 0
            for part, whole, inside in reader.fields(value):
                domain = bytes(inside[:64]).decode(errors="replace") if part == 1 else domain
                version = whole if part == 2 else version
            if domain in {"", "ai.onnx"}:
                found.opset = version


def _read_graph(reader: _Reader, data: memoryview, found: OnnxFile) -> None:
    for number, _, value in reader.fields(data):
        if number == _GRAPH_NODE:
            _read_node(reader, value, found)
        elif number == _GRAPH_TENSOR:
            _read_tensor(reader, value, found)
        elif number == _GRAPH_SPARSE:
            _read_sparse(reader, value, found)


def _read_node(reader: _Reader, data: memoryview, found: OnnxFile) -> None:
    operator, has_graph = "", False
    for number, _, value in reader.fields(data):
        if number == _NODE_OPERATOR:
            operator = bytes(value[:64]).decode(errors="replace")
        elif number == _NODE_ATTRIBUTE:
            for part, _, inside in reader.fields(value):
                if part in _ATTRIBUTE_GRAPHS:
                    has_graph = True
                elif part in _ATTRIBUTE_TENSORS:
                    _read_tensor(reader, inside, found)
                elif part in _ATTRIBUTE_SPARSE:
                    _read_sparse(reader, inside, found)
    if has_graph:
        found.control_flow = operator


def _read_sparse(reader: _Reader, data: memoryview, found: OnnxFile) -> None:
    for number, _, value in reader.fields(data):
        if number in _SPARSE_TENSORS:
            _read_tensor(reader, value, found)


def _read_tensor(reader: _Reader, data: memoryview, found: OnnxFile) -> None:
    for number, _, value in reader.fields(data):
        if number == _TENSOR_EXTERNAL:
            key, text = _entry(reader, value)
            if key == "location":
                found.external.add(text)


def _entry(reader: _Reader, data: memoryview) -> tuple[str, str]:
    """Reads key and value of a StringStringEntryProto."""
    texts = {1: "", 2: ""}
    for number, _, value in reader.fields(data):
        if number in texts:
            texts[number] = bytes(value).decode(errors="replace")
    return texts[1], texts[2]


def within_limit(what: str, work: Callable[[], T], stop: Callable[[], None] = lambda: None) -> T:
    """Runs `work` for at most `RUN_LIMIT_S` seconds; an untrusted file may keep it from ending.

    It runs in a daemon thread, so that Ctrl-C works. A thread that takes too long is abandoned and
    ends with the process.

    Args:
        what: description of the work, for the error message.
        work: the function to run. Its result is returned, and its errors are raised.
        stop: called if the work takes too long or is interrupted.

    Raises:
        PersonaError: the work took too long.
    """
    answers: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        thread.join(RUN_LIMIT_S)
    except KeyboardInterrupt:
        stop()
        raise
    if thread.is_alive():
        stop()
        raise PersonaError(f"{what} took over {RUN_LIMIT_S:g} s: no face network does")
    if errors:
        raise errors[0]
    return answers[0]


def open_onnx(
    path: Path, threads: int, providers: Sequence[str], content: bytes | None = None
) -> Any:
    """Opens an onnxruntime session, after `read_onnx` has checked the file.

    Args:
        path: the file.
        threads: number of onnxruntime's threads.
        providers: onnxruntime's providers, in order of preference.
        content: what is opened in place of the file, made from it.

    Raises:
        PersonaError: `read_onnx` refuses the file, onnxruntime cannot load it, or its input is too
            large. The message gives the reason.
    """
    import onnxruntime

    file = read_onnx(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are reported below, in one line
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.load_model_format", "ONNX")  # the checked format
    session = functools.partial(
        onnxruntime.InferenceSession, content or str(path), options, providers=list(providers)
    )
    try:
        opened = within_limit(f"{path}: loading", session)
    except PersonaError:
        raise
    except Exception as error:  # onnxruntime has an error class for each status
        told, version = reason(error), onnxruntime.__version__
        advice = "is it whole?"
        if re.search(r"registered|opset import for domain", told):
            advice = f"onnxruntime {version} does not have that operator"
        elif re.search(r"opset|IR version", told):
            advice = (
                f"it is of opset {file.opset}, and onnxruntime {version} is older: export it with "
                "a lower one, or update onnxruntime"
            )
        raise PersonaError(f"{path} cannot be loaded as ONNX ({told}): {advice}") from None
    _check_input(path, opened)
    return opened


def _check_input(path: Path, session: Any) -> None:
    """Checks that an input of fixed shape fits into memory. No time limit holds for what does not.

    Raises:
        PersonaError: the file takes more at once than a face network does.
    """
    for given in session.get_inputs():
        if math.prod(n for n in given.shape if isinstance(n, int)) > MOST_NUMBERS:
            raise PersonaError(
                f"{path} takes {given.shape} at once, over {MOST_NUMBERS:,} numbers: export it "
                "with a free or a smaller batch"
            )


def reason(error: Exception) -> str:
    """The message of an onnxruntime error, without its source files and the path of the model."""
    text = " ".join(str(error).split())
    for noise in (
        r"\[ONNXRuntimeError\] : \d+ : \w+ : ",
        r"^Load model from .* failed:",
        r"^\S+\.(cc|h):\d+ .*?\) (?=[A-Z])",
        r"\S*\.(cc|h):\d+ \w+ ",
    ):
        text = re.sub(noise, "", text, count=1)
    return text[:LONGEST_REASON].strip().rstrip(".") or type(error).__name__
