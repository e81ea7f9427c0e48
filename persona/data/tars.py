"""Random access to the samples of shards. The headers of a tar are walked only once.

The reader supports what this project and webdataset write: ustar members, GNU long names and pax
headers. All else in a tar is refused or skipped. No stated size is trusted beyond the end of the
file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from persona.errors import PersonaError
from persona.files import write_atomically

BLOCK = 512
READ_AHEAD = 1 << 20
"""Bytes per read while the headers are walked."""
LONGEST_HEADER = 1 << 16
"""Largest size in bytes of a long name or a pax header."""
MAX_KEY = 255
"""Longest key of a sample in bytes. In memory and in an index every key takes as much room as the
longest."""
INDEXES = ".index"
"""Folder beside the shards with the indexes that walks have made."""
SETTLED_S = 2.0
"""Age in seconds of a tar from which its modification time shows any further change."""
END = "end"
EARLY = "it ends early"
FILES = b"0\07"
LONG_NAMES = b"Lx"
OF_THE_NEXT = b"Kg"
"""Types of headers that, like those of long names, are no member themselves."""
PASSED_OVER = b"123456Kg"
"""Types of members that are skipped: links, devices, folders, names of links, and global headers
such as comments."""


class TarError(ValueError):
    """The fault of a tar, in a few words."""


def damaged(path: Path, what: str) -> PersonaError:
    """The error for a shard that does not match its manifest."""
    return PersonaError(
        f"shard {path} is damaged ({what}): check the set with `persona shards verify` "
        "and restore it, or remove it and run the `persona shard` that made the set again"
    )


def iter_members(
    stream: BinaryIO, passed_over: bytes = PASSED_OVER, read_ahead: int = READ_AHEAD
) -> Iterator[tuple[bytes, int, int]]:
    """Yields name, offset and size in bytes of each file of a tar, in order. It reads headers only.

    Raises:
        TarError: If it is no tar, is cut short, or has members that are neither files nor of the
            types in `passed_over`.
    """
    end = stream.seek(0, os.SEEK_END)
    place = 0
    long_name = b""  # of the next member; it has a header of its own
    while True:
        stream.seek(place)
        data = stream.read(read_ahead)
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
                    raise TarError(f"a header of {size:,} bytes")
                stream.seek(offset)
                text = stream.read(size)
                is_pax = kind == LONG_NAMES[1]
                long_name = (_pax_name(text) or long_name) if is_pax else text.rstrip(b"\0")
            elif kind not in passed_over:
                shown = name[:80].decode(errors="replace")
                raise TarError(f"{shown!r} is a link, device or sparse file, or the like")
            elif kind not in OF_THE_NEXT:
                long_name = b""  # it was that of a folder or the like
        if problem == END:
            return
        if problem:
            raise TarError(problem)
        place += starts[-1] + BLOCK + sizes[-1] + -sizes[-1] % BLOCK


def _find_headers(data: bytes, rest: int) -> tuple[list[int], list[int], str]:
    """Starts of the headers in a piece of a tar, the sizes that they state, and what ends it.

    `rest` is the number of bytes of the tar from the beginning of the piece on.
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
    """How many headers, counted from the first, match their checksums (the sum of their bytes)."""
    # Six digits, then a zero byte or a space. The field itself counts as eight spaces.
    digits = headers[:, 148:154].astype(np.int64) - ord("0")
    wanted = digits @ (8 ** np.arange(5, -1, -1))
    found = headers.sum(axis=1, dtype=np.uint32) - headers[:, 148:156].sum(axis=1, dtype=np.uint32)
    wrong = np.flatnonzero(found + 8 * ord(" ") != wanted)
    return int(wrong[0]) if len(wrong) else len(headers)


def _prefix_of(header: bytes) -> bytes:
    """The prefix of a long name in a ustar header."""
    if header[257:263] != b"ustar\0" or not header[345]:
        return b""
    return header[345:500].rstrip(b"\0") + b"/"


def _pax_name(data: bytes) -> bytes:
    """The name in a pax header. Its times and owners are ignored."""
    name = b""
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 6)
        length = data[at:space] if space >= 0 else b""
        end = at + int(length) if length.isdigit() else at
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not at < space < end <= len(data):
            raise TarError("a pax header that is none")
        if key == b"path":
            name = value
        elif key == b"size" or key.startswith(b"GNU.sparse"):
            raise TarError("a member that is sparse or of over 8 GB")
        at = end
    return name


class Samples(NamedTuple):
    """The positions of a shard's samples."""

    keys: npt.NDArray[np.bytes_]
    """(samples,) keys."""
    rows: npt.NDArray[np.int64]
    """(samples, 2 + 2 * suffixes) in bytes. First the offset of the sample's members in the tar and
    their total length. Then for each suffix the member's offset from there and its size, or -1 if
    the sample has no such member."""


class ShardReader:
    """Reads the samples of one shard in any order. It holds a few numbers per sample."""

    def __init__(
        self,
        path: Path,
        suffixes: Sequence[str],
        samples: int,
        without: frozenset[bytes] = frozenset(),
    ) -> None:
        """Finds the first `samples` samples.

        Args:
            path: Path of the tar.
            suffixes: Suffixes of the members that `read` yields.
            samples: Number of samples. Later ones are ignored.
            without: Keys of samples that are left out.

        Raises:
            PersonaError: If the tar is damaged or has fewer samples. The message names it.
        """
        self.path = path
        self._suffixes = tuple(suffixes)
        keys, rows = _find_samples(path, self._suffixes, samples + len(without))
        places = np.arange(len(keys))
        if without:
            places = np.flatnonzero(~np.isin(keys, np.array(list(without), bytes)))
        if len(places) < samples:
            raise damaged(path, EARLY)
        self.places = places[:samples]
        """(samples,) position of each sample in the shard, counting those that are left out."""
        self.keys = keys[self.places]
        """(samples,) key of each sample."""
        self._rows = rows[self.places]
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, rows: npt.NDArray[np.int64]) -> Iterator[list[memoryview]]:
        """Yields the bytes of each sample's members, in the order of the suffixes.

        Raises:
            PersonaError: If a sample lacks a member, or the file has become shorter.
        """
        known = self._rows[rows]
        missing = np.argwhere(known[:, 2::2] < 0)
        if len(missing):
            sample, member = missing[0]
            raise self.damaged(rows[sample], f"no {self._suffixes[member]}")
        file, read = self._file, os.pread
        for first, length, *places in known.tolist():
            # A sample's members are neighbours, so one read gets all of them.
            data = memoryview(read(file, length, first))
            if len(data) != length:
                raise damaged(self.path, EARLY)
            yield [data[at : at + size] for at, size in zip(places[::2], places[1::2], strict=True)]

    def read_one(self, row: int) -> list[memoryview]:
        """Reads one sample, like `read`."""
        return next(self.read(np.array([row])))

    def damaged(self, row: int, what: str) -> PersonaError:
        """The error for a damaged sample."""
        key = self.keys[row][:20].decode(errors="replace")
        return damaged(self.path, f"sample {key}: {what}")

    def numbers(self, rows: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
        """The keys of these samples, or of all, as int64. Keys of packed sets are numbers.

        Raises:
            PersonaError: If a key is no number. The message names the shard.
        """
        try:
            return (self.keys if rows is None else self.keys[rows]).astype(np.int64)
        except (ValueError, OverflowError):
            raise damaged(self.path, "a key that is no number") from None

    def sizes(self, suffix: str) -> npt.NDArray[np.int64]:
        """(samples,) size in bytes of each sample's member. -1 if a sample lacks it."""
        sizes_N: npt.NDArray[np.int64] = self._rows[:, 3 + 2 * self._suffixes.index(suffix)]
        return sizes_N

    def iter_member(self, suffix: str) -> Iterator[bytes]:
        """Yields one member of each sample, in order. The other members are not read.

        Raises:
            PersonaError: If a sample lacks it, or the file has become shorter.
        """
        column = 2 + 2 * self._suffixes.index(suffix)
        first_N, at_N, size_N = self._rows[:, [0, column, column + 1]].T
        missing = np.flatnonzero(at_N < 0)
        if len(missing):
            raise damaged(self.path, f"sample {missing[0]}: no {suffix}")
        file, read = self._file, os.pread
        for at, size in zip((first_N + at_N).tolist(), size_N.tolist(), strict=True):
            data = read(file, size, at)
            if len(data) != size:
                raise damaged(self.path, EARLY)
            yield data

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()


def _find_samples(path: Path, suffixes: tuple[str, ...], samples: int) -> Samples:
    """The first `samples` samples of a shard, or all if it has fewer.

    They come from the shard's index if it has one. Otherwise the tar is walked, which writes an
    index for the next epoch and the other workers.
    """
    with path.open("rb", buffering=0) as stream:
        found = _read_index(path, stream, suffixes)
        if found is not None:
            return found
        if not _index_may_stay(path, stream):
            return _walk(path, stream, suffixes, samples)[0]
        # The first process walks and the others wait. Some network file systems cannot lock.
        with contextlib.suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        found = _read_index(path, stream, suffixes)
        if found is not None:
            return found
        found, whole = _walk(path, stream, suffixes, samples)
        if whole:
            _write_index(path, stream, suffixes, found)
        return found


def _walk(
    path: Path, stream: BinaryIO, suffixes: tuple[str, ...], samples: int
) -> tuple[Samples, bool]:
    """Walks a tar. Returns the first `samples` samples, and whether they are all."""
    keys: list[bytes] = []
    rows = array("q")
    width = 2 + 2 * len(suffixes)
    column = {suffix.encode(): 2 * place for place, suffix in enumerate(suffixes, 1)}
    empty = array("q", [-1] * width)
    last, start, whole = None, -width, True
    try:
        for name, offset, size in iter_members(stream):
            # As in webdataset, a key ends at the first dot of the file's name.
            dot = name.find(b".", name.rfind(b"/") + 1)
            key, suffix = (name[:dot], name[dot + 1 :].lower()) if dot >= 0 else (name, b"")
            if key != last:
                if len(keys) == samples:
                    whole = False
                    break
                if len(key) > MAX_KEY:
                    raise TarError(f"sample {len(keys)}: a name of over {MAX_KEY} bytes")
                last = key
                keys.append(key)
                rows.extend(empty)
                start += width
            if suffix in column:
                place = start + column[suffix]
                if rows[place] >= 0:
                    raise TarError(f"sample {len(keys) - 1}: two {suffix.decode()}")
                if rows[start] < 0:
                    rows[start] = offset
                rows[start + 1] = offset + size - rows[start]
                rows[place], rows[place + 1] = offset - rows[start], size
    except TarError as error:
        raise damaged(path, str(error)) from None
    table = np.frombuffer(rows, np.int64) if rows else np.empty(0, np.int64)
    return Samples(np.array(keys, bytes), table.reshape(-1, width)), whole


# An index holds what a walk found, for later epochs and other workers. It can be lost or deleted at
# any time, and is ignored if the tar has changed. Verifying a set deletes it, so that reading
# depends on the verified bytes alone.


def drop_indexes(folder: Path) -> None:
    """Deletes the indexes of a folder's tars."""
    shutil.rmtree(folder / INDEXES, ignore_errors=True)


def _index_path(path: Path) -> Path:
    return path.parent / INDEXES / path.with_suffix(".idx").name


def _index_head(stream: BinaryIO, suffixes: tuple[str, ...]) -> bytes:
    """The bytes with which an index of this tar begins."""
    now = os.fstat(stream.fileno())
    facts = f"{now.st_size} {now.st_mtime_ns} {now.st_ino} {','.join(suffixes)}"
    return f"persona 2 {facts}\n".encode()


def _index_may_stay(path: Path, stream: BinaryIO) -> bool:
    """Whether an index of this tar can be written, and would show later changes of the tar."""
    settled = time.time() - os.fstat(stream.fileno()).st_mtime > SETTLED_S
    return settled and os.access(path.parent, os.W_OK)


def _write_index(path: Path, stream: BinaryIO, suffixes: tuple[str, ...], found: Samples) -> None:
    sizes = np.array([len(found.keys), found.keys.itemsize], "<i8").tobytes()
    body = sizes + found.keys.tobytes() + found.rows.astype("<i8").tobytes()
    head = _index_head(stream, suffixes) + zlib.crc32(body).to_bytes(4, "little")
    with contextlib.suppress(OSError):  # if the disk is full, the tar is walked again next time
        write_atomically(_index_path(path), head + body)


def _read_index(path: Path, stream: BinaryIO, suffixes: tuple[str, ...]) -> Samples | None:
    try:
        data = _index_path(path).read_bytes()
    except OSError:
        return None
    head = _index_head(stream, suffixes)
    body = data[len(head) + 4 :]
    if not data.startswith(head) or zlib.crc32(body).to_bytes(4, "little") != data[len(head) :][:4]:
        return None
    try:
        count, width = np.frombuffer(body[:16], "<i8").tolist()
        end = 16 + count * width
        keys = np.frombuffer(body[16:end], f"S{width}")
        rows = np.frombuffer(body[end:], "<i8").reshape(count, 2 + 2 * len(suffixes))
    except (ValueError, TypeError, OverflowError, MemoryError):
        return None
    size = os.fstat(stream.fileno()).st_size
    if len(keys) != count or rows.min(initial=0) < -1 or rows.max(initial=0) > size:
        return None
    first, length = rows[:, 0], rows[:, 1]
    whole = (rows[:, 2:] >= 0).all(axis=1)  # incomplete samples are refused when they are read
    inside = (first >= 0) & (first + length <= size)
    inside &= (rows[:, 2::2] + rows[:, 3::2]).max(axis=1) <= length
    return Samples(keys, rows) if inside[whole].all() else None
