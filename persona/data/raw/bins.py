"""InsightFace's verification files: lfw.bin, agedb_30.bin, cfp_fp.bin, calfw.bin, cplfw.bin.

A pickle of `(photos, issame)`: photos 2i and 2i+1 are pair i. A photo is the bytes of its file or
a uint8 array of them; a (height, width, 3) array is RGB pixels. Accuracy is measured over ten
folds of consecutive pairs.

Nothing that a pickle names is imported or called: it is read by an unpickler that knows the
opcodes of plain values alone, and for the few names that bytes and arrays need it has stand-ins
that only keep their arguments.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from persona.data.raw.base import Pair, Photo, RawDataset
from persona.errors import PersonaError, SkipPhoto

FOLDS = 10
MAX_BYTES = 8 << 30
MAX_PHOTOS = 2_000_000

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
"""Plain values, and the names that `find_class` gives."""


class _RefusedError(Exception):
    """Why a pickle is not read."""


class _Array:
    """What an array says of itself."""

    def __init__(self) -> None:
        self.dtype = ""
        self.shape: tuple[int, ...] = ()
        self.data = b""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, dtype, fortran, self.data = state
        if fortran and len(self.shape) > 1:
            raise _RefusedError("an array in Fortran's order")
        self.dtype = _dtype_name(dtype)
        self.check()

    def check(self) -> None:
        """Raises _RefusedError unless the bytes are those of its shape."""
        whole = type(self.shape) is tuple and all(type(n) is int and n >= 0 for n in self.shape)
        sized = whole and len(self.shape) <= 3 and type(self.data) is bytes
        if not sized or len(self.data) != math.prod(self.shape):
            raise _RefusedError("an array whose bytes do not fit its shape")


class _Dtype:
    """A one-byte element type."""

    def __init__(self, name: object) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like: one byte has none."""


def _dtype_name(dtype: object) -> str:
    name = dtype.name if type(dtype) is _Dtype else None
    name = name.decode("latin1") if type(name) is bytes else name
    if name not in {"u1", "b1"}:
        raise _RefusedError("an array of something else than bytes")
    return str(name)


class _Name:
    """Stands for a function or type that a pickle names."""

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
    """How Python 3 writes bytes in old protocols: as text, each once."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    def __call__(self, text: object, encoding: object = "latin1") -> bytes:
        if type(text) is not str or encoding not in {"latin1", b"latin1"}:
            raise _RefusedError("text in another encoding")
        self.left -= len(text)
        if self.left < 0:
            raise _RefusedError("more bytes than the file has")
        return text.encode("latin1")


def _from_buffer(data: object, dtype: object, shape: object, _order: object = "C") -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, False, data))
    return array


def _names(size: int) -> dict[tuple[str, str], _Name]:
    """The stand-ins, for a file of `size` bytes."""
    array = _Name(lambda *_: _Array())
    names = {
        ("_codecs", "encode"): _Name(_Encoder(size)),
        ("numpy", "ndarray"): _Name(None),
        ("numpy", "dtype"): _Name(lambda name, *_: _Dtype(name)),
    }
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = array
        names[f"{core}.numeric", "_frombuffer"] = _Name(_from_buffer)
    return names


class _Unpickler(pickle._Unpickler):  # in Python: memory follows the file, not what it claims
    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPCODES
    }

    def __init__(self, file: mmap.mmap) -> None:
        super().__init__(file, fix_imports=False, encoding="bytes")
        self._names = _names(len(file))

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """A stand-in."""
        found = self._names.get((module_name, global_name))
        if found is None:
            raise _RefusedError(f"the name {f'{module_name}.{global_name}'[:60]!r}")
        return found


def load_bin(path: Path) -> tuple[list[bytes | _Array], list[bool]]:
    """Photos (two a pair) and whether each pair shows one person.

    Raises:
        PersonaError: it is cut short, or holds anything but photos and truth values.
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
    except Exception as error:  # a broken pickle raises whatever it makes Python raise
        raise PersonaError(
            f"{path} is no whole pickle of plain values ({type(error).__name__}): {expected}"
        ) from None


def _checked(value: Any) -> tuple[list[bytes | _Array], list[bool]]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise _RefusedError("something else than two lists")
    photos, same = value
    if type(same) is _Array and len(same.shape) == 1:
        same = [byte != 0 for byte in same.data]
    if not (isinstance(photos, tuple | list) and isinstance(same, tuple | list)):
        raise _RefusedError("something else than two lists")
    if any(type(photo) not in {bytes, _Array} for photo in photos):
        raise _RefusedError("a photo that is no bytes")
    if any(type(truth) not in {bool, int} or truth not in {0, 1} for truth in same):
        raise _RefusedError("a pair that is neither same nor different")
    if not same or len(photos) != 2 * len(same) or len(photos) > MAX_PHOTOS:
        raise _RefusedError(f"{len(photos):,} photos for {len(same):,} pairs")
    return list(photos), [bool(truth) for truth in same]


class Bins(RawDataset):
    """A verification file; the file does not say who is who, so an identity is a pair's."""

    kind = "bin"
    layout = "an InsightFace verification file, for example lfw.bin or agedb_30.bin"

    def __init__(self, root: Path, split: str | None = None, *, scan_workers: int = 8) -> None:
        super().__init__(root, split, scan_workers=scan_workers)
        if not root.is_file():
            raise self.complain(root)
        self._loaded: tuple[list[bytes | _Array], list[bool]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}  # workers read the file themselves

    def _load(self) -> tuple[list[bytes | _Array], list[bool]]:
        if self._loaded is None:
            self._loaded = load_bin(self.root)
        return self._loaded

    def iter_photos(self) -> Iterator[Photo]:
        """Yields the photos by number; both of a genuine pair have the first one's number."""
        for place, same in enumerate(self._load()[1]):
            a, b = _source(2 * place), _source(2 * place + 1)
            yield Photo(source=a, identity=a)
            yield Photo(source=b, identity=a if same else b)

    def pairs(self) -> list[Pair]:
        """Consecutive photos, in ten folds of consecutive pairs."""
        same = self._load()[1]
        return [
            Pair(place * FOLDS // len(same), truth, _source(2 * place), _source(2 * place + 1))
            for place, truth in enumerate(same)
        ]

    def read(self, photo: Photo) -> bytes:
        """The photo's file; pixels become one."""
        stored = self._load()[0][int(photo.source)]
        if isinstance(stored, bytes):
            return stored
        if len(stored.shape) == 1:
            return stored.data
        height, width, *channels = stored.shape or (0, 0)
        if channels != [3] or not height * width:
            raise SkipPhoto(f"unreadable: an array of shape {stored.shape}")
        from PIL import Image

        buffer = io.BytesIO()
        Image.frombytes("RGB", (width, height), stored.data).save(buffer, "BMP")
        return buffer.getvalue()


def _source(number: int) -> str:
    return f"{number:07d}"
