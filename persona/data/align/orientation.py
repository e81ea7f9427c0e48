"""The orientation of a picture in its EXIF or XMP metadata. Damaged metadata is ignored."""

from __future__ import annotations

import re
import struct

ORIENTATION = 0x0112
SHORT = 3
XMP = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")


def exif_orientation(exif: bytes) -> int | None:
    """The orientation, 1 to 8, in a TIFF's first directory. None if it is missing or damaged."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        entries = exif[start + 2 : start + 2 + 12 * count]
        entries = entries[: len(entries) // 12 * 12]
        for tag, kind, _, value, _ in struct.iter_unpack(order + "HHIHH", entries):
            if tag == ORIENTATION and kind == SHORT:
                return value if 1 <= value <= 8 else None
    except struct.error:
        pass
    return None


def xmp_orientation(xmp: bytes) -> int | None:
    """The orientation, 1 to 8, in XMP metadata. None if it is missing."""
    found = XMP.search(xmp)
    return None if found is None else int(found[1])
