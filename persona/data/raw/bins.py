"""Reads InsightFace's verification files: lfw.bin, agedb_30.bin, cfp_fp.bin, calfw.bin, cplfw.bin.

A file is a pickle of any protocol of `(photos, issame)`. Photos 2i and 2i+1 are pair i. A photo is
the bytes of its file, as bytes, bytearray, numpy's bytes, or a uint8 array in which one axis is
longer than 1. A (height, width, 3) array holds RGB pixels, a (height, width) array grey ones. The
labels of the pairs are Python's or numpy's truth values, or an array of them. Accuracy is measured
over ten folds of consecutive pairs.

Nothing that a pickle names is imported or called. The unpickler knows only the opcodes of plain
values. For the few names that bytes and arrays need it has stand-ins, which only keep their
arguments.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from persona.data.raw.base import Pair, Photo, RawDataset
from persona.errors import PersonaError, SkipPhoto

FOLDS = 10
MAX_BYTES = 8 << 30
MAX_PHOTOS = 2_000_000
MAX_AXES = 4
PLAIN_TYPE = re.compile(r"b1|[iu][1248]|f[248]|[SV][0-9]{1,9}")
"""Element types without their byte order: truth values, numbers, and bytes of a fixed length."""
OBJECTS = re.compile(r"O[48]?")

_OPCODES = (
    pickle.PROTO,
    pickle.FRAME,
    pickle.STOP,
    pickle.MARK,
    pickle.POP,
    pickle.POP_MARK,
    pickle.DUP,
    pickle.NONE,
    pickle.NEWTRUE,
    pickle.NEWFALSE,
    pickle.INT,
    pickle.BININT,
    pickle.BININT1,
    pickle.BININT2,
    pickle.LONG,
    pickle.LONG1,
    pickle.LONG4,
    pickle.FLOAT,
    pickle.BINFLOAT,
    pickle.STRING,
    pickle.BINSTRING,
    pickle.SHORT_BINSTRING,
    pickle.BINBYTES,
    pickle.SHORT_BINBYTES,
    pickle.BINBYTES8,
    pickle.UNICODE,
    pickle.BINUNICODE,
    pickle.SHORT_BINUNICODE,
    pickle.BINUNICODE8,
    pickle.LIST,
    pickle.EMPTY_LIST,
    pickle.APPEND,
    pickle.APPENDS,
    pickle.TUPLE,
    pickle.EMPTY_TUPLE,
    pickle.TUPLE1,
    pickle.TUPLE2,
    pickle.TUPLE3,
    pickle.EMPTY_DICT,
    pickle.PUT,
    pickle.BINPUT,
    pickle.LONG_BINPUT,
    pickle.MEMOIZE,
    pickle.GET,
    pickle.BINGET,
    pickle.LONG_BINGET,
    pickle.GLOBAL,
    pickle.STACK_GLOBAL,
    pickle.REDUCE,
    pickle.BUILD,
)
"""Opcodes of plain values, and of the names that `find_class` gives."""


class _RefusedError(Exception):
    """A pickle is refused. The message says why."""


class _Array:
    """A numpy array or scalar: a view of bytes in the pickle, or a list of objects.

    Nothing is copied, because a pickle may refer to the same bytes many times.
    """

    def __init__(self) -> None:
        self.value: npt.NDArray[Any] | list[object] = []

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.fill(data, dtype, shape, "F" if fortran else "C")

    def fill(self, data: object, dtype: object, shape: object, order: object) -> None:
        """Sets the elements.

        Raises:
            _RefusedError: If they do not fit the type and shape.
        """
        order = order.decode("latin1") if isinstance(order, bytes) else order
        if (
            type(dtype) is not _Dtype
            or type(shape) is not tuple
            or len(shape) > MAX_AXES
            # The product of numbers of megabytes would take minutes.
            or not all(type(axis) is int and 0 <= axis <= MAX_BYTES for axis in shape)
            or order not in {"C", "F"}
        ):
            raise _RefusedError("an array of another kind")
        if dtype.holds_objects:
            if type(data) is not list or (len(data),) != shape:
                raise _RefusedError("an array whose objects do not fit its shape")
            self.value = data
            return
        if type(data) is not bytes or len(data) != math.prod(shape) * dtype.plain.itemsize:
            raise _RefusedError("an array whose bytes do not fit its shape")
        self.value = np.ndarray(shape, dtype.plain, data, order="F" if order == "F" else "C")


class _Dtype:
    """A numpy element type."""

    def __init__(self, name: object) -> None:
        text = name.decode("latin1") if isinstance(name, bytes) else name
        self.holds_objects = isinstance(text, str) and OBJECTS.fullmatch(text) is not None
        if self.holds_objects:
            return
        if not isinstance(text, str) or not PLAIN_TYPE.fullmatch(text):
            raise _RefusedError("an array of something else than bytes or numbers")
        self.plain = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        """Takes the byte order, which is the second item of the state. The others are ignored."""
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order in {"<", ">"} and not self.holds_objects:
            self.plain = self.plain.newbyteorder("<" if order == "<" else ">")


File = bytes | npt.NDArray[Any]
"""A photo's file as bytes, or an array of its bytes or pixels."""


class _Name:
    """Stands in for a function or type that a pickle names."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any] | None) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        if self._call is None:
            raise _RefusedError("a call of an array type")
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _RefusedError("a change of a function")


class _Encoder:
    """Decodes bytes that Python 3 wrote in old protocols, as text. It limits their total size."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    def __call__(self, text: object, encoding: object = "latin1") -> bytes:
        if type(text) is not str or encoding not in {"latin1", b"latin1"}:
            raise _RefusedError("text in another encoding")
        self.left -= len(text)
        if self.left < 0:
            raise _RefusedError("more bytes than the file has")
        return text.encode("latin1")


class _Bytearray:
    """Stands in for bytearray, made from bytes or from text as Python 2 writes it. It gives bytes,
    because nothing changes it here."""

    def __init__(self, encoder: _Encoder) -> None:
        self.encode = encoder

    def __call__(self, data: object = b"", encoding: object = "latin1") -> bytes:
        if type(data) is bytes:
            return data
        latin1 = encoding in {"latin-1", b"latin-1", "latin1", b"latin1"}
        return self.encode(data, "latin1" if latin1 else encoding)


def _from_buffer(
    data: object, dtype: object, shape: object, order: object = "C", axes: object = None
) -> _Array:
    array = _Array()
    if axes is not None:  # an axis order other than C's and Fortran's, which no real file has
        raise _RefusedError("an array in an order of its own")
    array.fill(data, dtype, shape, order)
    return array


def _scalar(dtype: object, data: object = b"") -> _Array:
    array = _Array()
    array.fill(data, dtype, (), "C")
    return array


def _names(size: int) -> dict[tuple[str, str], _Name]:
    """The stand-ins by module and name, for a file of `size` bytes."""
    encoder = _Encoder(size)
    array = _Name(lambda *_: _Array())
    names = {
        ("_codecs", "encode"): _Name(encoder),
        ("numpy", "ndarray"): _Name(None),
        ("numpy", "dtype"): _Name(lambda name, *_: _Dtype(name)),
    }
    for module in ("builtins", "__builtin__"):  # of Python 3 and 2
        names[module, "bytearray"] = _Name(_Bytearray(encoder))
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = array
        names[f"{core}.multiarray", "scalar"] = _Name(_scalar)
        names[f"{core}.numeric", "_frombuffer"] = _Name(_from_buffer)
    return names


class _Unpickler(pickle._Unpickler):  # in Python: memory follows the file, not a claimed size
    read: Callable[[int], bytes]
    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPCODES
    }

    def load_bytearray8(self) -> None:
        """Loads a bytearray as bytes. Python's own method allocates the claimed size first."""
        (length,) = struct.unpack("<Q", self.read(8))
        data = self.read(length)
        if len(data) != length:
            raise EOFError
        self.stack.append(data)

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def __init__(self, file: mmap.mmap) -> None:
        super().__init__(file, fix_imports=False, encoding="bytes")
        self._names = _names(len(file))

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Returns the stand-in of a name."""
        found = self._names.get((module_name, global_name))
        if found is None:
            raise _RefusedError(f"the name {f'{module_name}.{global_name}'[:60]!r}")
        return found


def load_bin(path: Path) -> tuple[list[File], list[bool]]:
    """Reads the photos (two per pair), and whether each pair shows one identity.

    Raises:
        PersonaError: If the file is cut short, or holds anything but photos and truth values.
    """
    expected = "expected (list of photos, list of bool) as InsightFace writes it"
    if path.stat().st_size > MAX_BYTES:
        raise PersonaError(f"{path} has over {MAX_BYTES:,} bytes: {expected}")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            value = _Unpickler(data).load()
        return _checked(value)
    except _RefusedError as what:
        raise PersonaError(f"{path} is refused, it holds {what}: {expected}") from None
    except OSError:
        raise
    except Exception as error:  # a broken pickle can make Python raise anything
        raise PersonaError(
            f"{path} is no whole pickle of plain values ({type(error).__name__}): {expected}"
        ) from None


def _checked(value: Any) -> tuple[list[File], list[bool]]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise _RefusedError("something else than two lists")
    photos, same = (held.value if type(held) is _Array else held for held in value)
    if isinstance(same, np.ndarray):
        same = same.reshape(-1)  # the shape may also be (n, 1) or (1, n)
    if not all(isinstance(held, tuple | list | np.ndarray) for held in (photos, same)) or (
        isinstance(photos, np.ndarray) and not photos.ndim
    ):
        raise _RefusedError("something else than two lists")
    if not len(same) or len(photos) != 2 * len(same) or len(photos) > MAX_PHOTOS:
        raise _RefusedError(f"{len(photos):,} photos for {len(same):,} pairs")
    return [_file(photo) for photo in photos], [_truth(truth) for truth in same]


def _file(item: object) -> File:
    """Checks the type of a photo. Its bytes are checked when it is read."""
    held = item.value if type(item) is _Array else item
    if isinstance(held, np.ndarray) and (held.dtype.kind in "SV" or held.dtype == np.uint8):
        return held
    if isinstance(held, bytes):
        return held
    raise _RefusedError("a photo that is no bytes")


def _truth(item: object) -> bool:
    held = item.value if type(item) is _Array else item
    if isinstance(held, np.ndarray | np.generic) and held.size == 1:
        held = held.reshape(-1)[0].item()
    elif isinstance(held, tuple | list) and len(held) == 1:
        (held,) = held
    if not isinstance(held, bool | int | float) or held not in {0, 1}:
        raise _RefusedError("a pair that is neither same nor different")
    return bool(held)


class Bins(RawDataset):
    """A verification file. It names no identities, so each pair gets its own."""

    kind = "bin"
    layout = "an InsightFace verification file, for example lfw.bin or agedb_30.bin"

    def __init__(self, root: Path, split: str | None = None, *, scan_workers: int = 8) -> None:
        super().__init__(root, split, scan_workers=scan_workers)
        if not root.is_file():
            raise self.complain(root)
        self._loaded: tuple[list[File], list[bool]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}  # workers read the file themselves

    def _load(self) -> tuple[list[File], list[bool]]:
        if self._loaded is None:
            self._loaded = load_bin(self.root)
        return self._loaded

    def iter_photos(self) -> Iterator[Photo]:
        """Yields the photos by number. In a genuine pair both have the first one's identity."""
        for place, same in enumerate(self._load()[1]):
            a, b = _source(2 * place), _source(2 * place + 1)
            yield Photo(source=a, identity=a)
            yield Photo(source=b, identity=a if same else b)

    def pairs(self) -> list[Pair]:
        """The pairs of consecutive photos, in ten folds of consecutive pairs."""
        same = self._load()[1]
        return [
            Pair(place * FOLDS // len(same), truth, _source(2 * place), _source(2 * place + 1))
            for place, truth in enumerate(same)
        ]

    def read(self, photo: Photo) -> bytes:
        """Reads the photo's file. Pixels are encoded as BMP."""
        stored = self._load()[0][int(photo.source)]
        if isinstance(stored, bytes):
            return stored
        if stored.dtype.kind == "S":  # numpy pads shorter items with zeros
            return stored.tobytes().rstrip(b"\0")
        if stored.size == max(stored.shape, default=1):
            return stored.tobytes()
        if stored.dtype != np.uint8:
            raise SkipPhoto(f"unreadable: an array of {stored.dtype.name}")
        pixels = stored[..., 0] if stored.ndim == 3 and stored.shape[2] == 1 else stored
        if not stored.size or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
            raise SkipPhoto(f"unreadable: an array of shape {stored.shape}")
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "BMP")
        return buffer.getvalue()


def _source(number: int) -> str:
    return f"{number:07d}"
