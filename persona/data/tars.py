"""Reading shards: the headers of a tar are walked once, then any sample is read where it lies.

What is understood is what this project and webdataset write: ustar members, GNU long names and pax
headers. Everything else that tar can hold is refused or passed over, and no size is believed
beyond the end of its file.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from persona.errors import PersonaError

BLOCK = 512
READ_AHEAD = 1048576
"""Bytes read at once while headers are walked."""
LONGEST_HEADER = 1 << 16
"""Bytes that a long name or a pax header may take."""
ADLER = 65521
"""Adler-32 counts modulo this, from 1; tar takes its own eight bytes for spaces: 256 - 1."""

HEADER = struct.Struct("100s24x11s13x6s2xc100x6s82x155s12x")
"""Name, size, checksum, kind, magic and prefix of a member."""
FILES = (b"0", b"\0", b"7")
LONG_NAMES = (b"L", b"x")
PASSED_OVER = (b"1", b"2", b"3", b"4", b"5", b"6", b"K", b"g")
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
    place = stream.seek(0)
    unpack, adler, read, seek = HEADER.unpack, zlib.adler32, stream.read, stream.seek
    long_name = b""  # of the next member, from a header of its own
    while len(header := read(BLOCK)) == BLOCK:
        name, digits, checksum, kind, magic, prefix = unpack(header)
        if not name[0] and not any(header):
            return  # what ends a tar
        try:
            size, wanted = int(digits, 8), int(checksum, 8)
        except ValueError:
            raise TarError("a header that is none") from None
        # Adler-32 begins with the sum of the bytes, which is tar's checksum, at the speed of C.
        if adler(header[156:], adler(header[:148])) & 0xFFFF != (wanted - 255) % ADLER or size < 0:
            raise TarError("a header that does not match its checksum")
        place += BLOCK
        if size > end - place:
            break
        if kind in FILES:
            if prefix[0] and magic == b"ustar\0":
                name = prefix.rstrip(b"\0") + b"/" + name
            yield long_name or name.rstrip(b"\0"), place, size
            long_name = b""
        elif kind in LONG_NAMES:
            if size > LONGEST_HEADER:
                raise TarError("a header of another kind than shards have")
            data = read(size)
            long_name = data.rstrip(b"\0") if kind == b"L" else _pax_name(data) or long_name
        elif kind not in PASSED_OVER:
            raise TarError("a member of another kind than shards have")
        place += size + -size % BLOCK
        seek(place)
    raise TarError("it ends early")


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

    def __init__(self, path: Path, suffixes: Sequence[str], samples: int) -> None:
        """Finds the first `samples` samples.

        Args:
            path: of the tar.
            suffixes: of the members that `read` gives.
            samples: how many are wanted; what follows them is not looked at.

        Raises:
            PersonaError: the tar is damaged or has fewer samples, naming it.
        """
        self.path = path
        self._suffixes = tuple(suffixes)
        self._keys: list[bytes] = []
        self._width = 2 + 2 * len(self._suffixes)
        self._rows = array("q")
        """Of each sample: where its members begin, and their length from there; then of each member
        where it begins from there, and its size, -1 where the sample has none."""
        try:
            with path.open("rb", buffering=READ_AHEAD) as stream:
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
        last, start = None, -width
        for name, offset, size in iter_members(stream):
            # As webdataset does: a key ends at the first dot of the file's name.
            dot = name.find(b".", name.rfind(b"/") + 1)
            key, suffix = (name[:dot], name[dot + 1 :].lower()) if dot >= 0 else (name, b"")
            if key != last:
                if len(keys) == samples:
                    return
                keys.append(key)
                rows.extend(empty)
                last, start = key, start + width
            if suffix in column:
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
