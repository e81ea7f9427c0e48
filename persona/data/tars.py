"""Reading shards: the headers of a tar are walked once, then any sample is read where it lies.

What is understood is what this project and webdataset write: ustar members, GNU long names and pax
headers. Everything else that tar can hold is refused or passed over, and no size is believed
beyond the end of its file.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from persona.errors import PersonaError

BLOCK = 512
READ_AHEAD = 1 << 20
"""Bytes read at once while headers are walked."""
LONGEST_HEADER = 1 << 16
"""Bytes that a long name or a pax header may take."""
END = "end"
EARLY = "it ends early"
FILES = b"0\07"
LONG_NAMES = b"Lx"
PASSED_OVER = b"123456Kg"
"""Links, devices, folders, names of links, and what holds for all members, such as a comment."""


class TarError(ValueError):
    """What is wrong with a tar, in a few words."""


def damaged(path: Path, what: str) -> PersonaError:
    """The error for a shard that does not read as its manifest says."""
    return PersonaError(
        f"shard {path} is damaged ({what}): check the set with `persona shards verify` "
        "and restore it or pack it again"
    )


def iter_members(stream: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yields name, offset and size of each file of a tar, in order; only headers are looked at.

    Raises:
        TarError: no tar, cut short, or of a kind that shards are not.
    """
    end = stream.seek(0, os.SEEK_END)
    place = 0
    long_name = b""  # of the next member, from a header of its own
    while True:
        stream.seek(place)
        data = stream.read(READ_AHEAD)
        starts, sizes, problem = _find_headers(data, end - place)
        headers = np.frombuffer(data[: len(data) // BLOCK * BLOCK], np.uint8).reshape(-1, BLOCK)
        headers = headers[np.array(starts, np.int64) // BLOCK]
        good = _count_good(headers)
        if good < len(starts):
            problem = "a header that does not match its checksum"
        names = headers[:, :100].copy().view("S100")[:, 0].tolist()
        kinds = headers[:, 156].tolist()
        plain = not headers[:, 345].any()
        for start, size, name, kind in zip(
            starts[:good], sizes[:good], names[:good], kinds[:good], strict=True
        ):
            offset = place + start + BLOCK
            if kind in FILES:
                before = b"" if plain else _prefix_of(data[start : start + BLOCK])
                yield long_name or before + name, offset, size
                long_name = b""
            elif kind in LONG_NAMES:
                if size > LONGEST_HEADER:
                    raise TarError("a header of another kind than shards have")
                stream.seek(offset)
                text = stream.read(size)
                is_pax = kind == LONG_NAMES[1]
                long_name = (_pax_name(text) or long_name) if is_pax else text.rstrip(b"\0")
            elif kind not in PASSED_OVER:
                raise TarError("a member of another kind than shards have")
        if problem == END:
            return
        if problem:
            raise TarError(problem)
        place += starts[-1] + BLOCK + sizes[-1] + -sizes[-1] % BLOCK


def _find_headers(data: bytes, rest: int) -> tuple[list[int], list[int], str]:
    """Where the headers in a piece of a tar begin, the sizes that they name, and what ends it.

    `rest` is how much of the tar there is from the piece's beginning.
    """
    starts: list[int] = []
    sizes: list[int] = []
    start, last = 0, len(data) - BLOCK
    while start <= last:
        try:
            size = int(data[start + 124 : start + 135], 8)
        except ValueError:
            header = data[start : start + BLOCK]
            return starts, sizes, "a header that is none" if any(header) else END
        if not 0 <= size <= rest - start - BLOCK:
            return starts, sizes, EARLY
        starts.append(start)
        sizes.append(size)
        start += BLOCK + size + -size % BLOCK
    return starts, sizes, "" if starts else EARLY


def _count_good(headers: npt.NDArray[np.uint8]) -> int:
    """How many headers, from the first one on, match their checksums: the sum of their bytes."""
    # A byte of zeros or spaces ends the six digits; the field itself counts as eight spaces.
    digits = headers[:, 148:154].astype(np.int64) - ord("0")
    wanted = digits @ (8 ** np.arange(5, -1, -1))
    found = headers.sum(axis=1, dtype=np.uint32) - headers[:, 148:156].sum(axis=1, dtype=np.uint32)
    wrong = np.flatnonzero(found + 8 * ord(" ") != wanted)
    return int(wrong[0]) if len(wrong) else len(headers)


def _prefix_of(header: bytes) -> bytes:
    """What stands before a long name in a ustar header."""
    if header[257:263] != b"ustar\0" or not header[345]:
        return b""
    return header[345:500].rstrip(b"\0") + b"/"


def _pax_name(data: bytes) -> bytes:
    """The name that a pax header gives; times and owners say nothing here."""
    name = b""
    while data:
        length, _, rest = data.partition(b" ")
        count = int(length) if length.isdigit() and len(length) < 6 else 0
        key, equals, value = data[len(length) + 1 : count - 1].partition(b"=")
        if not equals or count > len(data) or not rest:
            raise TarError("a pax header that is none")
        if key == b"path":
            name = value
        elif key == b"size" or key.startswith(b"GNU.sparse"):
            raise TarError("a member of another kind than shards have")
        data = data[count:]
    return name


class ShardReader:
    """Any sample of one shard, in any order. What is held is a few numbers a sample."""

    def __init__(
        self,
        path: Path,
        suffixes: Sequence[str],
        samples: int,
        without: frozenset[bytes] = frozenset(),
    ) -> None:
        """Finds the first `samples` samples.

        Args:
            path: of the tar.
            suffixes: of the members that `read` gives.
            samples: how many are wanted; what follows them is not looked at.
            without: keys that are passed over.

        Raises:
            PersonaError: the tar is damaged or has fewer samples, naming it.
        """
        self.path = path
        self._suffixes = tuple(suffixes)
        self._keys: list[bytes] = []
        self._places = array("q")
        """Of each sample: its place in the shard, counting those that are passed over."""
        self._without = without
        self._width = 2 + 2 * len(self._suffixes)
        self._rows = array("q")
        """Of each sample: where its members begin, and their length from there; then of each member
        where it begins from there, and its size, -1 where the sample has none."""
        try:
            with path.open("rb", buffering=0) as stream:
                self._walk(stream, samples)
        except TarError as error:
            raise damaged(path, str(error)) from None
        if len(self._keys) < samples:
            raise damaged(path, "it ends early")
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _walk(self, stream: BinaryIO, samples: int) -> None:
        keys, rows, width = self._keys, self._rows, self._width
        column = {suffix.encode(): 2 * place for place, suffix in enumerate(self._suffixes, 1)}
        empty = array("q", [-1] * width)
        last, start, place_in_shard = None, -width, -1
        passed_over = False
        for name, offset, size in iter_members(stream):
            # As webdataset does: a key ends at the first dot of the file's name.
            dot = name.find(b".", name.rfind(b"/") + 1)
            key, suffix = (name[:dot], name[dot + 1 :].lower()) if dot >= 0 else (name, b"")
            if key != last:
                last = key
                place_in_shard += 1
                passed_over = key in self._without
                if not passed_over:
                    if len(keys) == samples:
                        return
                    keys.append(key)
                    self._places.append(place_in_shard)
                    rows.extend(empty)
                    start += width
            if not passed_over and suffix in column:
                place = start + column[suffix]
                if rows[place] >= 0:
                    raise TarError(f"sample {len(keys) - 1}: two {suffix.decode()}")
                if rows[start] < 0:
                    rows[start] = offset
                rows[start + 1] = offset + size - rows[start]
                rows[place], rows[place + 1] = offset - rows[start], size

    def key(self, row: int) -> bytes:
        """The key of a sample."""
        return self._keys[row]

    def place(self, row: int) -> int:
        """Its place in the shard."""
        return self._places[row]

    def read(self, row: int) -> list[memoryview]:
        """The bytes of a sample's members, in the order of the suffixes.

        Raises:
            KeyError: it lacks one of them.
            ValueError: the file has become shorter since.
        """
        width = self._width
        first, length, *places = self._rows[row * width : (row + 1) * width].tolist()
        if min(places) < 0:
            raise KeyError(self._suffixes[places.index(-1) // 2])
        # A sample's members are neighbours: one read for all.
        data = memoryview(os.pread(self._file, length, first))
        if len(data) != length:
            raise ValueError("it ends early")
        return [data[at : at + size] for at, size in zip(places[::2], places[1::2], strict=True)]

    def close(self) -> None:
        """Gives the file back."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()
