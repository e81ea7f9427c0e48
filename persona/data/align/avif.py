"""How much work a decoder has to do for an AVIF, computed from the AV1 bit stream itself.

The size in an AVIF's boxes is only a claim. A decoder follows the AV1 headers, decodes as many
pixels as they say, and only then scales them to the claimed size. The headers are therefore read
here, for each picture that is decoded for the one that is shown: the primary item, the tiles of a
grid, transparency, and in a sequence the first sample of each track.

Boxes: ISO/IEC 14496-12 and 23008-12. OBUs: AV1 Bitstream & Decoding Process Specification, 5.3 to
5.9.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAX_BOXES = 5_000
"""Largest number of boxes inside another box. The limits below also bound the time of reading."""
MAX_ENTRIES = 50_000
"""Largest number of entries of all tables of a file. A grid of MAX_TILES has half as many."""
MAX_TRACKS = 16
MAX_TILES = 2_500
MAX_OBUS = 200
"""Largest number of OBUs of one picture."""
MAX_FRAMES = 32
"""Largest number of frames of one picture. A picture has one frame, or one per layer."""
MAX_LARGER = 4
"""How many times the claimed pixels a picture may have. It may be shown smaller than it is."""

SEQUENCE_HEADER, FRAME_HEADER, FRAME = 1, 3, 6
KEY_FRAME, SWITCH_FRAME = 0, 3
SELECTED = 2
"""Value of a tool that each frame switches on or off."""


def decoded_pixels(data: bytes) -> int:
    """The number of pixels that a decoder makes for the picture.

    Raises:
        ValueError, KeyError, IndexError, struct.error: If the file is cut short or damaged, or its
            boxes claim another size than its pictures have.
    """
    found: dict[bytes, tuple[int, int]] = {}
    for name, *inside in _boxes(data, 0, len(data)):
        if name in {b"meta", b"moov"} and name in found:
            raise ValueError("two of a box that is there once")
        found[name] = inside[0], inside[1]
    items = tracks = 0
    if b"meta" in found:
        items = _Items(data, *found[b"meta"]).pixels()
    if b"moov" in found:
        places = [inside for name, *inside in _boxes(data, *found[b"moov"]) if name == b"trak"]
        if len(places) > MAX_TRACKS:
            raise ValueError("too many tracks")
        tracks = sum(_track_pixels(data, *place) for place in places)
    return max(items, tracks)  # a decoder reads one of the two


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields the name of each box, and where its content starts and ends, in bytes."""
    for _ in range(MAX_BOXES):
        if start + 8 > end:
            return
        size, name = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, content)
            content += 8
        after = start + size if size else end
        if after < content or after > end:
            raise ValueError("truncated")
        yield name, content, after
        start = after
    raise ValueError("too many boxes")


def _find(data: bytes, start: int, end: int, *path: bytes) -> tuple[int, int]:
    """Start and end of the content of the first box at a path of names."""
    for name in path:
        start, end = next(
            ((a, b) for found, a, b in _boxes(data, start, end) if found == name), (0, 0)
        )
        if not end:
            raise KeyError(name)
    return start, end


def _check(size: tuple[int, int], pixels: int) -> None:
    """Raises ValueError if a picture has far more pixels than its boxes claim."""
    if pixels > MAX_LARGER * size[0] * size[1]:
        raise ValueError("of another size than its header says")


# --- items ------------------------------------------------------------------------------------


class _Budget:
    """Counts the entries of all tables of a file, because a file may have many tables."""

    def __init__(self) -> None:
        self._entries = 0

    def spend(self, entries: int) -> None:
        """Raises ValueError if the file has too many entries in total."""
        self._entries += entries
        if self._entries > MAX_ENTRIES:
            raise ValueError("too many entries")


class _Table:
    """Reads the numbers of a box, one after another, and nothing beyond the box's end."""

    def __init__(self, data: bytes, at: int, end: int, budget: _Budget) -> None:
        self._data, self._at, self._end, self._budget = data, at, end, budget

    def take(self, size: int) -> int:
        """Reads the next `size` bytes as a number."""
        self._at += size
        if self._at > self._end:
            raise ValueError("truncated")
        return int.from_bytes(self._data[self._at - size : self._at], "big")

    def entries(self, size: int) -> range:
        """Reads a count from the next `size` bytes and returns a range of that length.

        Raises:
            ValueError: If the tables of the file have too many entries in total.
        """
        count = self.take(size)
        self._budget.spend(count)
        return range(count)


class _Items:
    """The pictures in a file, as its `meta` box describes them."""

    def __init__(self, data: bytes, start: int, end: int) -> None:
        self._data = data
        self._budget = _Budget()
        self._kinds: dict[int, bytes] = {}
        self._places: dict[int, list[tuple[int, int]]] = {}
        """Start and length of each item's bytes. Length 0 reaches to the end of the file."""
        self._sizes: dict[int, tuple[int, int]] = {}
        self._parts: dict[int, list[int]] = {}
        """Items that are decoded along with an item: tiles of a grid, transparency."""
        self._primary: int | None = None
        found = {name: (a, b) for name, a, b in _boxes(data, start + 4, end)}
        if b"pitm" in found:
            at, after = found[b"pitm"]
            self._primary = self._table(at + 4, after).take(4 if data[at] else 2)
        if b"iinf" in found:
            at, after = found[b"iinf"]
            self._read_kinds(at + (8 if data[at] else 6), after)
        if b"iloc" in found:
            self._read_places(*found[b"iloc"], found.get(b"idat", (0, 0))[0])
        if b"iprp" in found:
            self._read_sizes(*found[b"iprp"])
        if b"iref" in found:
            self._read_parts(*found[b"iref"])

    def _table(self, start: int, end: int) -> _Table:
        return _Table(self._data, start, end, self._budget)

    def _read_kinds(self, start: int, end: int) -> None:
        """Reads the entries of an `iinf` box."""
        for name, at, _ in _boxes(self._data, start, end):
            version = self._data[at]
            if name == b"infe" and version >= 2:
                wide = ">I2x4s" if version > 2 else ">H2x4s"
                number, kind = struct.unpack_from(wide, self._data, at + 4)
                self._kinds[number] = kind

    def _read_places(self, start: int, end: int, idat: int) -> None:
        """Reads an `iloc` box. `idat` is the offset of the items that lie in the `idat` box."""
        version = self._data[start]
        table = self._table(start + 4, end)
        sizes = table.take(2)
        offset_size, length_size, base_size, index_size = (sizes >> n & 15 for n in (12, 8, 4, 0))
        wide = 4 if version == 2 else 2
        for _ in table.entries(wide):
            number = table.take(wide)
            method = table.take(2) & 15 if version else 0
            table.take(2)
            base = table.take(base_size) + (idat if method == 1 else 0)
            extents: list[tuple[int, int]] = []
            self._places[number] = extents
            for _ in table.entries(2):
                table.take(index_size if version else 0)
                offset, length = table.take(offset_size), table.take(length_size)
                extents.append((base + offset, length))

    def _read_sizes(self, start: int, end: int) -> None:
        """Reads the sizes of items from an `iprp` box."""
        properties = list(_boxes(self._data, *_find(self._data, start, end, b"ipco")))
        for name, at, after in _boxes(self._data, start, end):
            if name != b"ipma":
                continue
            version, wide = self._data[at], 1 + (self._data[at + 3] & 1)
            table = self._table(at + 4, after)
            for _ in table.entries(4):
                number = table.take(4 if version else 2)
                for _ in table.entries(1):
                    place = table.take(wide) & (1 << 8 * wide - 1) - 1
                    if 0 < place <= len(properties) and properties[place - 1][0] == b"ispe":
                        _, start_of_size, end_of_size = properties[place - 1]
                        size = self._table(start_of_size + 4, end_of_size)
                        self._sizes.setdefault(number, (size.take(4), size.take(4)))

    def _read_parts(self, start: int, end: int) -> None:
        """Reads an `iref` box."""
        wide = 4 if self._data[start] else 2
        for name, at, after in _boxes(self._data, start + 4, end):
            table = self._table(at, after)
            number = table.take(wide)
            for _ in table.entries(2):
                other = table.take(wide)
                if name == b"dimg":
                    self._parts.setdefault(number, []).append(other)
                elif name == b"auxl":
                    self._parts.setdefault(other, []).append(number)

    def pixels(self) -> int:
        """Number of pixels of the primary item and all that is decoded along with it."""
        waiting = [] if self._primary is None else [self._primary]
        seen: set[int] = set()
        pixels = held = 0
        while waiting:
            number = waiting.pop()
            if number in seen:
                continue
            seen.add(number)
            if len(seen) > MAX_TILES:
                raise ValueError("too many tiles")
            waiting += self._parts.get(number, [])
            if self._kinds.get(number) != b"av01":
                continue
            pieces = []
            for start, length in self._places.get(number, []):
                pieces.append(self._data[start : start + length if length else None])
                held += len(pieces[-1])
                if held > 2 * len(self._data):
                    raise ValueError("items that lie over each other")
            found = coded_pixels(b"".join(pieces))
            if number in self._sizes:
                _check(self._sizes[number], found)
            pixels += found
        return pixels


def _track_pixels(data: bytes, start: int, end: int) -> int:
    """Number of pixels of the first sample of a track. 0 if it is not AV1."""
    at, after = _find(data, start, end, b"mdia", b"minf", b"stbl")
    entry, _ = _find(data, at, after, b"stsd")
    if data[entry + 12 : entry + 16] != b"av01":
        return 0
    sizes, _ = _find(data, at, after, b"stsz")
    fixed, count = struct.unpack_from(">II", data, sizes + 4)
    if not count:
        return 0
    length = fixed or struct.unpack_from(">I", data, sizes + 12)[0]
    tables = {name: place for name, place, _ in _boxes(data, at, after)}
    if b"stco" in tables:
        (offset,) = struct.unpack_from(">I", data, tables[b"stco"] + 8)
    else:
        (offset,) = struct.unpack_from(">Q", data, tables[b"co64"] + 8)
    header, _ = _find(data, start, end, b"tkhd")
    width, height = struct.unpack_from(">II", data, header + (88 if data[header] else 76))
    pixels = coded_pixels(data[offset : offset + length])
    _check((width >> 16, height >> 16), pixels)
    return pixels


# --- AV1 --------------------------------------------------------------------------------------


class _Bits:
    """Reads single bits, the highest first."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int = 1) -> int:
        """Reads the next bits as a number."""
        self._left -= count
        if self._left < 0:
            raise ValueError("truncated")
        return self._value >> self._left & (1 << count) - 1

    def skip_variable(self) -> None:
        """Skips a number of variable length (uvlc)."""
        zeros = 0
        while not self.take():
            zeros += 1
        self.take(zeros if zeros < 32 else 0)


@dataclass(frozen=True)
class _Sequence:
    """The parts of a sequence header that the size of a frame depends on."""

    reduced: bool
    """True for a still picture's short header. All frames then have the same size."""
    size: tuple[int, int]
    largest: tuple[int, int]
    """Largest size that a frame can state for itself."""
    time_bits: int
    """Bits of the time that a shown frame carries. 0 if it carries none."""
    id_bits: int
    screen_tools: int
    whole_vectors: int


def coded_pixels(data: bytes) -> int:
    """Number of pixels of all frames in a picture's OBUs, according to their headers.

    Raises:
        ValueError: If there is no picture, or there are more frames than one picture has.
    """
    sequence: _Sequence | None = None
    pixels = frames = at = 0
    for _ in range(MAX_OBUS):
        if at >= len(data):
            break
        header = data[at]
        kind = header >> 3 & 15
        at += 2 if header & 4 else 1
        length, at = _leb128(data, at) if header & 2 else (len(data) - at, at)
        content = data[at : at + min(length, 256)]
        at += length
        if kind == SEQUENCE_HEADER:
            sequence = _read_sequence(_Bits(content))
        elif kind in {FRAME_HEADER, FRAME}:
            if sequence is None:
                raise ValueError("a frame without a sequence")
            frames += 1
            if frames > MAX_FRAMES:
                raise ValueError("too many frames")
            width, height = _frame_size(_Bits(content), sequence)
            pixels += width * height
    else:
        raise ValueError("too many parts")
    if not frames:
        raise ValueError("no picture")
    return pixels


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """Reads a length of up to eight bytes. Returns it and the offset at which it ends."""
    value = 0
    for place in range(8):
        byte = data[at + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise ValueError("a damaged length")


def _read_sequence(bits: _Bits) -> _Sequence:
    """Reads a sequence header up to the tools that precede a frame's size."""
    bits.take(4)
    reduced = bool(bits.take())
    time_bits = 0
    if reduced:
        bits.take(5)
    else:
        time_bits = _skip_timing(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    size = bits.take(width_bits) + 1, bits.take(height_bits) + 1
    id_bits = 0
    if not reduced and bits.take():
        delta_bits = bits.take(4) + 2
        id_bits = bits.take(3) + 1 + delta_bits
    bits.take(3)
    screen_tools = whole_vectors = SELECTED
    if not reduced:
        bits.take(4)
        if bits.take():
            bits.take(2)
        screen_tools = SELECTED if bits.take() else bits.take()
        if screen_tools:
            whole_vectors = SELECTED if bits.take() else bits.take()
    largest = 1 << width_bits, 1 << height_bits
    return _Sequence(reduced, size, largest, time_bits, id_bits, screen_tools, whole_vectors)


def _skip_timing(bits: _Bits) -> int:
    """Skips timing and operating points. Returns the number of bits of a shown frame's time."""
    delay_bits = time_bits = 0
    if bits.take():
        bits.take(64)
        equal = bits.take()
        if equal:
            bits.skip_variable()
        if bits.take():
            delay_bits = bits.take(5) + 1
            bits.take(37)
            shown_bits = bits.take(5) + 1
            time_bits = 0 if equal else shown_bits
    delays = bits.take()
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take()
        if delay_bits and bits.take():
            bits.take(2 * delay_bits + 1)
        if delays and bits.take():
            bits.take(4)
    return time_bits


def _frame_size(bits: _Bits, sequence: _Sequence) -> tuple[int, int]:
    """Size of a frame: the sequence's, or the largest possible if the frame states its own."""
    if sequence.reduced:
        return sequence.size
    if bits.take():  # a frame that was decoded before is shown
        return 0, 0
    kind, shown = bits.take(2), bits.take()
    if shown:
        bits.take(sequence.time_bits)
    else:
        bits.take()
    if kind != SWITCH_FRAME and not (kind == KEY_FRAME and shown):
        bits.take()
    bits.take()
    tools = bits.take() if sequence.screen_tools == SELECTED else sequence.screen_tools
    if tools and sequence.whole_vectors == SELECTED:
        bits.take()
    bits.take(sequence.id_bits)
    own = kind == SWITCH_FRAME or bits.take()
    return sequence.largest if own else sequence.size
