"""Reads InsightFace's training sets (MXNet RecordIO): faces_emore, ms1m-retinaface, glint360k.

`train.idx` has one line `key<TAB>offset` per record. A record in `train.rec` (dmlc recordio.h,
mxnet recordio.py) is little-endian:

    uint32 magic 0xced7230a, uint32 (part << 29 | length), data, padded to 4 bytes

A record whose data holds the magic at a multiple of 4 is cut there, and the magic is left out. Part
1 is its start, 2 a middle piece, 3 its end; 0 is a whole record. The data of a photo is

    uint32 flag, float32 label, uint64 id, uint64 id2, float32 labels[flag], the photo's file

If record 0 has a flag it is a header. Its labels[0] is one more than the last photo's key. The
records from there on have labels and no photo. They list each identity's photos and are not needed
here. Without such a header, every record is a photo. Listing the photos reads headers only.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from persona.data.raw.base import (
    MAX_LABEL,
    MAX_PHOTO_BYTES,
    NOBODY,
    Photo,
    RandomReader,
    RawDataset,
    label_name,
)
from persona.errors import PersonaError, SkipPhoto
from persona.files import bounded_lines

MAGIC = 0xCED7230A
FRAME = struct.Struct("<II")
HEADER = struct.Struct("<IfQQ")
WHOLE, START, MIDDLE, END = range(4)
MAX_FLAG = 1024
"""Largest number of labels per record. InsightFace has at most two."""
MAX_PHOTOS = 99_999_999
"""Largest number of photos of a set, whose keys have eight digits."""


class _DamagedError(Exception):
    """A record is damaged. The message says how."""


class _Head(NamedTuple):
    """The header of a record."""

    flag: int
    label: float
    size: int
    """Size in bytes of the photo's file."""


class RecordIO(RawDataset):
    """A `.rec` and its `.idx`. A `property` file beside them gives the number of identities."""

    kind = "recordio"
    layout = "a folder with train.rec and train.idx, or the .rec file with its .idx beside it"

    def __init__(self, root: Path, split: str | None = None, *, scan_workers: int = 8) -> None:
        super().__init__(root, split, scan_workers=scan_workers)
        self.rec = root / "train.rec" if root.is_dir() else root
        self.idx = self.rec.with_suffix(".idx")
        self._read = RandomReader()
        for path in (self.rec, self.idx):
            if not path.is_file():
                raise self.complain(path)
        self._size = self.rec.stat().st_size

    def path_name(self) -> str:
        """Name of the folder if the file is the generic `train.rec`, otherwise of the file."""
        place = self.root.resolve()
        generic = place.is_file() and place.stem == "train"
        return place.parent.name if generic else super().path_name()

    def class_list(self) -> list[str] | None:
        """All labels below the first number in `property` (`classes,height,width`)."""
        path = self.rec.parent / "property"
        if not path.is_file():
            return None
        first = path.read_bytes()[:100].split(b",")[0].strip()
        if not first.isdigit() or not 0 < int(first) <= MAX_LABEL + 1:
            raise PersonaError(
                f"{path}: expected <identities>,<height>,<width>; mend it or take it out"
            )
        return [label_name(label) for label in range(int(first))]

    def iter_photos(self) -> Iterator[Photo]:
        """Yields one photo per record, in the order of the idx. The label is the identity.

        Raises:
            PersonaError: If the rec is cut short or damaged, or the idx does not fit it.
        """
        names: dict[int, str] = {}
        promised, doubt = None, 0
        found = 0
        furthest = (0, 0)
        for number, (key, offset) in enumerate(self._lines()):
            try:
                head = self._head(offset)
            except _DamagedError as what:
                raise PersonaError(
                    f"{self.rec}: record {key} at byte {offset:,}: {what}; is the file cut short, "
                    f"or {self.idx.name} another file's?"
                ) from None
            furthest = max(furthest, (offset, key))
            if number == 0 and key == 0 and head.flag and not head.size:
                promised, doubt = self._promise(head.label)
                continue
            if promised is not None and (
                key > promised + doubt or (key > promised - doubt and head.flag and not head.size)
            ):
                continue  # the record lists the photos of an identity
            name = NOBODY
            if head.label != int(NOBODY) and not self.unlabelled:
                label = self._whole_number(head.label, key)
                name = names.setdefault(label, label_name(label))
            found += 1
            yield Photo(source=f"{self.rec.name}/{key:09d}", identity=name, offset=offset)
        if promised is not None and abs(found - promised) > doubt:
            raise PersonaError(
                f"{self.idx}: the header of {self.rec.name} promises {promised:,} photos, here are "
                f"{found:,}: is it cut short?"
            )
        if found and (end := self._end(furthest[0])) < self._size:
            raise PersonaError(
                f"{self.idx}: {self.rec.name} goes on for {self._size - end:,} bytes after record "
                f"{furthest[1]}: is it cut short?"
            )

    def _lines(self) -> Iterator[tuple[int, int]]:
        """Yields (key, offset in bytes) of each line of the idx."""
        with self.idx.open("rb") as lines:
            for number, line in enumerate(bounded_lines(lines, self.idx), start=1):
                fields = line.split()
                if not fields:
                    continue
                if len(fields) != 2 or not all(f.isdigit() and len(f) < 19 for f in fields):
                    raise PersonaError(
                        f"{self.idx} line {number}: expected '<key><TAB><offset>', found "
                        f"{line[:40].decode(errors='replace').strip()!r}"
                    )
                key, offset = int(fields[0]), int(fields[1])
                if offset + FRAME.size + HEADER.size > self._size:
                    raise PersonaError(
                        f"{self.idx} line {number}: record {key} is at byte {offset:,}, "
                        f"{self.rec.name} ends at {self._size:,}: is it cut short?"
                    )
                yield key, offset

    def _promise(self, label: float) -> tuple[int, int]:
        """The number of photos from the header's first label, and by how many it may be off."""
        if not (1 <= label <= MAX_PHOTOS + 1 and label == int(label)):
            raise PersonaError(
                f"{self.rec}: its header has the label {label:.10g}: expected one more than the "
                f"number of photos, which is at most {MAX_PHOTOS:,}"
            )
        # A float32 holds only even numbers from 2^24 on, and multiples of 4 from 2^25 on.
        return int(label) - 1, int(np.spacing(np.float32(label))) // 2

    def _whole_number(self, label: float, key: int) -> int:
        if not (math.isfinite(label) and 0 <= label <= MAX_LABEL and label == int(label)):
            raise PersonaError(
                f"{self.rec}: record {key} has the label {label:g}: expected a whole number from 0 "
                f"to {MAX_LABEL:,}, or {NOBODY} for nobody"
            )
        return int(label)

    def _frame(self, data: bytes, offset: int) -> tuple[int, int]:
        """(part, length) from the first eight bytes of a record."""
        magic, word = FRAME.unpack_from(data) if len(data) >= FRAME.size else (0, 0)
        part, length = word >> 29, word & ((1 << 29) - 1)
        if magic != MAGIC or part > END:
            raise _DamagedError("no record begins there")
        if length > MAX_PHOTO_BYTES or offset + FRAME.size + length > self._size:
            raise _DamagedError(f"its {length:,} bytes reach beyond the file")
        return part, length

    def _head(self, offset: int) -> _Head:
        """Reads the header of a record, without its photo."""
        data = self._read(self.rec, offset, FRAME.size + HEADER.size + 8)
        part, length = self._frame(data, offset)
        if part not in {WHOLE, START}:
            raise _DamagedError("it begins in the middle of another")
        if part == START:  # the header itself may be cut
            data = self._record(offset)
            length = len(data)
        else:
            data = data[FRAME.size :]
        flag, label = self._flag(data, length)
        return _Head(flag, label, length - HEADER.size - 4 * flag)

    def _flag(self, data: bytes, length: int) -> tuple[int, float]:
        """The number of labels, and the first label."""
        if length < HEADER.size:
            raise _DamagedError(f"{length} bytes are too few")
        flag, label, _, _ = HEADER.unpack_from(data)
        if flag > MAX_FLAG or HEADER.size + 4 * flag > length:
            raise _DamagedError(f"it claims {flag:,} labels")
        if flag:
            (label,) = struct.unpack_from("<f", data, HEADER.size)
        return flag, label

    def _record(self, offset: int) -> bytes:
        """Reads the data of a record and joins its parts."""
        parts: list[bytes] = []
        size = 0
        while True:
            part, length = self._frame(self._read(self.rec, offset, FRAME.size), offset)
            if (part in {WHOLE, START}) == bool(parts):
                raise _DamagedError("its parts do not fit together")
            parts.append(self._read(self.rec, offset + FRAME.size, length))
            size += length
            if size > MAX_PHOTO_BYTES:
                raise _DamagedError("it is over the limit")
            if part in {WHOLE, END}:
                return struct.pack("<I", MAGIC).join(parts)
            offset += FRAME.size + length + -length % 4

    def _end(self, offset: int) -> int:
        """Offset at which the record that begins at `offset` ends."""
        while True:
            part, length = self._frame(self._read(self.rec, offset, FRAME.size), offset)
            offset += FRAME.size + length + -length % 4
            if part in {WHOLE, END}:
                return offset

    def read(self, photo: Photo) -> bytes:
        """Reads the photo's file from its record."""
        try:
            data = self._record(photo.offset)
            flag, _ = self._flag(data, len(data))
        except _DamagedError as what:
            raise SkipPhoto(f"unreadable: {what}") from None
        return data[HEADER.size + 4 * flag :]
