"""Reads the segments of a JPEG (ITU-T T.81, annex B) without decoding it.

A decoder does all the work that a file asks for. Each scan of a progressive JPEG walks the whole
picture again, and a scan takes only a dozen bytes. The cost of a file is therefore computed before
a decoder sees it. Metadata (APP and COM segments) is read for the orientation alone, so that faulty
metadata never costs the picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from persona.data.align.orientation import exif_orientation, xmp_orientation
from persona.errors import SkipPhoto

MAX_SCANS = 100
"""Largest number of scans. A normal progressive JPEG has about ten. One scan for each bit of each
coefficient would be valid, too."""
MAX_SCANNED_PIXELS = 1_500_000_000
"""Largest product of scans and pixels. A scan takes about 1 ns per pixel, whatever it holds."""
MAX_SEGMENTS = 10_000
"""Largest number of segments before the first scan, and from there on. Extended XMP of 100 MB has
1,600."""
MAX_EXIF = 1 << 20
MAX_CROP_BYTES = 1 << 25

SOI, EOI, SOS = 0xD8, 0xD9, 0xDA
TEM, RESTARTS = 0x01, range(0xD0, 0xD8)
EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
APP0, APP1, APP14, APP15, COM = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
PROGRESSIVE = frozenset({0xC2, 0xCA})
OTHER_FRAMES = {
    **dict.fromkeys((0xC3, 0xC7, 0xCB, 0xCF), "lossless JPEG"),
    **dict.fromkeys((0xC5, 0xC6, 0xCD, 0xCE), "hierarchical JPEG"),
    0xF7: "JPEG-LS",
}
"""Frame types that the decoders do not support."""
FRAMES = frozenset({0xC0, 0xC1, 0xC9}) | PROGRESSIVE | OTHER_FRAMES.keys()
_FILL = re.compile(rb"\xff+")
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.S)
"""A marker in a scan's data: neither a stuffed byte nor a restart. The pattern leaves out fill
bytes before the marker, because matching them takes quadratic time."""


@dataclass(frozen=True)
class JpegHeader:
    """The facts that a JPEG states before its first scan."""

    size: tuple[int, int]
    """Width and height as stored, in px."""
    components: int
    orientation: int
    progressive: bool
    first_scan: int
    """Byte offset of the first scan's marker."""
    needed: tuple[tuple[int, int], ...] = field(repr=False)
    """(start, end) in bytes of the segments before it that are needed for the pixels."""


def read_header(data: bytes) -> JpegHeader:
    """Reads the segments up to the first scan, and counts the scans.

    Raises:
        SkipPhoto: If such a JPEG is not supported, or decoding would take too long.
        ValueError, IndexError: If it is cut short or damaged.
    """
    frame, kind = b"", 0
    exif, xmp = b"", b""
    needed: list[tuple[int, int]] = []
    for marker, start, at, end in _segments(data):
        if marker == APP1:
            if data.startswith(EXIF, at) and len(exif) < MAX_EXIF:
                exif += data[at + len(EXIF) : end]
            elif data.startswith(XMP, at) and not xmp:
                xmp = data[at:end]
        elif marker in FRAMES:
            if frame:
                raise ValueError("two frames")
            frame, kind = data[at:end], marker
            _check_kind(marker, frame[0])
        if not _is_metadata(marker):
            needed.append((start, end))
    first_scan = needed.pop()[0]
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    components = frame[5]
    if not width * height * components:
        raise ValueError("no pixels")
    several = kind in PROGRESSIVE or data[at] < components
    if several:
        _check_scans(data, first_scan, (width, height))
    return JpegHeader(
        (width, height),
        components,
        exif_orientation(exif) or xmp_orientation(xmp) or 1,
        kind in PROGRESSIVE,
        first_scan,
        tuple(needed),
    )


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yields marker, start, content start and end of all segments up to the first scan's."""
    at = 2
    for _ in range(MAX_SEGMENTS):
        start = at = data.index(b"\xff", at)  # decoders skip bytes between segments
        if fill := _FILL.match(data, at):
            at = fill.end()
        marker = data[at]
        at += 1
        if marker in {0, TEM} or marker in RESTARTS:
            continue
        if marker in {SOI, EOI}:
            raise ValueError("no scan")
        end = at + int.from_bytes(data[at : at + 2], "big")
        if end < at + 2 or end > len(data):
            raise ValueError("a segment reaches beyond the file")
        yield marker, start, at + 2, end
        if marker == SOS:
            return
        at = end
    raise _too_many_segments()


def _too_many_segments() -> SkipPhoto:
    return SkipPhoto(f"unreadable: a JPEG of over {MAX_SEGMENTS:,} segments: save it anew")


def _is_metadata(marker: int) -> bool:
    """Whether a segment is not needed for the pixels. APP0 and APP14 tell the colour space."""
    return marker == COM or (APP0 <= marker <= APP15 and marker not in {APP0, APP14})


def _check_scans(data: bytes, first_scan: int, size: tuple[int, int]) -> None:
    """Raises SkipPhoto if decoding all scans takes too long."""
    pixels = size[0] * size[1]
    scans = data.count(b"\xff\xda", first_scan)  # an upper bound: bytes after the end count, too
    if too_many(scans, pixels):
        scans = len(_scans(data, first_scan, MAX_SCANS + 1)[0])
    if too_many(scans, pixels):
        count = f"over {MAX_SCANS}" if scans > MAX_SCANS else str(scans)
        raise SkipPhoto(
            f"unreadable: a JPEG of {size[0]} x {size[1]} px in {count} scans takes too long: "
            "save it anew"
        )


def too_many(scans: int, pixels: int) -> bool:
    """Whether decoding so many scans of so many pixels takes too long."""
    return scans > MAX_SCANS or scans * pixels > MAX_SCANNED_PIXELS


def _check_kind(marker: int, bits: int) -> None:
    """Raises SkipPhoto if this kind of JPEG is not supported."""
    if marker in OTHER_FRAMES:
        kind = OTHER_FRAMES[marker]
    elif bits != 8:
        kind = f"{bits}-bit JPEG"
    else:
        return
    raise SkipPhoto(f"unreadable: {kind}, which is not supported: save it as 8-bit JPEG")


def _scans(data: bytes, at: int, limit: int) -> tuple[list[bytes], bool]:
    """The headers of up to `limit` scans from byte `at` on, and whether the end mark was found."""
    found: list[bytes] = []
    for marker, start, end in _later_segments(data, at):
        if marker == EOI:
            return found, True
        if marker == SOS:
            found.append(data[start + 4 : end])
            if len(found) == limit:
                break
    return found, False


def _later_segments(data: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Yields marker, start and end of the segments from byte `at` on, up to the end mark.

    The coded data of a scan is between its segment and the next one.

    Raises:
        SkipPhoto: If it has more segments than any real picture.
    """
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None:
            return
        start, at = found.span()
        marker = found[1][0]
        if marker == EOI:
            yield marker, start, at
            return
        if marker not in {SOI, TEM}:
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
            yield marker, start, at
    raise _too_many_segments()


def lacks_end(data: bytes, header: JpegHeader) -> bool:
    """Whether the end mark is missing."""
    return not _scans(data, header.first_scan, MAX_SCANS + 1)[1]


def has_all_scans(data: bytes, header: JpegHeader) -> bool:
    """Whether the scans give every bit of every coefficient. Otherwise the JPEG is cut short.

    A scan's header (T.81, B.2.3) has its components and its first and last coefficient. The last
    half byte is the lowest bit that the scan gives.
    """
    lowest: dict[int, list[int]] = {}
    for scan in _scans(data, header.first_scan, MAX_SCANS + 1)[0]:
        count = scan[0]
        first, last, bits = scan[1 + 2 * count : 4 + 2 * count]
        for component in scan[1 : 1 + 2 * count : 2]:
            known = lowest.setdefault(component, [16] * 64)
            known[first : last + 1] = [bits & 15] * (last + 1 - first)
    return len(lowest) == header.components and not any(
        max(known) for known in lowest.values() if header.progressive
    )


def pixels_alone(data: bytes, header: JpegHeader) -> bytes:
    """The file without its metadata, and without what follows its end mark."""
    parts = [b"\xff\xd8", *(data[start:end] for start, end in header.needed)]
    at, last = header.first_scan, len(data)
    for marker, start, end in _later_segments(data, at):
        if marker == EOI:
            last = end
        elif _is_metadata(marker):  # a few programs put comments between scans
            parts.append(data[at:start])
            at = end
    return b"".join((*parts, data[at:last]))


def ended(data: bytes) -> bytes:
    """The file with an end mark in place of the zeros that a disk puts where data was lost."""
    data = data.rstrip(b"\0")
    return data + (b"\0\xff\xd9" if data.endswith(b"\xff") else b"\xff\xd9")  # a stuffed byte


def check_crop(data: bytes | memoryview) -> None:
    """Raises ValueError if a crop of a packed set takes too long to decode.

    Crops have few pixels, so the bytes and scans are limited alone. Training calls this function
    before it decodes a crop; it takes about 1 µs.
    """
    if len(data) > MAX_CROP_BYTES or bytes(data).count(b"\xff\xda") > MAX_SCANS:
        raise ValueError("too many scans")
