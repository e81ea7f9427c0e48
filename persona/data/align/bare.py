"""Reduces a picture's file to the parts that carry pixels. Only they reach a decoder.

Texts, profiles and EXIF are read for the orientation alone, so that large or damaged metadata costs
neither pixels nor time. An animation is reduced to its first frame, a TIFF to its first page. A
file that takes a decoder too long is refused here, before the decoder sees it.

JPEGs are handled in `jpeg`; their metadata hurts no decoder but Pillow's. `avif` computes the size
of the pictures in an AVIF.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from persona.data.align.avif import decoded_pixels
from persona.data.align.jpeg import MAX_SCANS, too_many
from persona.data.align.orientation import ORIENTATION, exif_orientation, xmp_orientation
from persona.errors import SkipPhoto

MAX_PARTS = 200_000
"""Largest number of chunks, blocks or strips. A file with more was made to be slow."""
MAX_TEXT = 1 << 20
"""Largest number of bytes of an unpacked text that are searched. Only the first text of each of two
keywords is unpacked, because a PNG may have as many texts as chunks."""
NO_END = "without its end mark"


@dataclass(frozen=True)
class Bare:
    """A picture without the parts that are not needed for its pixels."""

    data: bytes
    size: tuple[int, int] | None = None
    """Width and height as stored, in px. None if opening the file is a cheap way to get them."""
    orientation: int = 1
    mended: str | None = None
    """The fault of a file whose pixels are perhaps all there. The decoder finds that out."""
    decoded_pixels: int = 0
    """Pixels that a decoder makes, if they differ from the size. Otherwise 0."""


# --- PNG (W3C, Portable Network Graphics, 3rd edition) ---------------------------------------

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
RAW_EXIF = b"Raw profile type exif"
PNG_XMP = b"XML:com.adobe.xmp"
NO_TEXT = (b"tEXt", b"")


def bare_png(data: bytes) -> Bare:
    """Keeps header, palette, transparency and data (as one chunk). An APNG becomes a still picture.

    Raises:
        SkipPhoto: If it has more chunks than any real picture.
        ValueError, KeyError, struct.error: If it is cut short or damaged.
    """
    if not data.startswith(PNG_MAGIC):
        raise ValueError("no PNG")
    kept: dict[bytes, bytes] = {}
    pixels: list[bytes] = []
    exif: int | None = None
    texts: dict[bytes | None, tuple[bytes, bytes]] = {}
    ended = False
    for name, content, sound in _png_chunks(data):
        if name == b"IDAT":
            pixels.append(content)
        elif name in {b"IHDR", b"PLTE"}:
            if not sound or name in kept:
                raise ValueError("a damaged chunk")
            kept[name] = content
        elif name == b"IEND":
            ended = True
            break
        elif not sound:
            continue  # decoders also ignore a damaged chunk that is not needed
        elif name == b"tRNS" and not pixels:
            kept[name] = content
        elif name == b"eXIf":
            exif = exif or exif_orientation(content)
        elif name in {b"tEXt", b"zTXt", b"iTXt"}:
            texts.setdefault(_text_keyword(content), (name, content))
    exif = exif or exif_orientation(_raw_profile(_png_text(*texts.get(RAW_EXIF, NO_TEXT))))
    xmp = xmp_orientation(_png_text(*texts.get(PNG_XMP, NO_TEXT)))
    size = struct.unpack_from(">II", kept[b"IHDR"])
    body = b"".join(pixels)
    chunks = [(name, kept[name]) for name in (b"IHDR", b"PLTE", b"tRNS") if name in kept]
    written = b"".join(_png_chunk(*chunk) for chunk in (*chunks, (b"IDAT", body), (b"IEND", b"")))
    return Bare(PNG_MAGIC + written, size, exif or xmp or 1, None if ended else f"PNG {NO_END}")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yields name, content and whether the checksum is right, up to the first incomplete chunk.

    The checksum of pixels is not computed.
    """
    at = len(PNG_MAGIC)
    for _ in range(MAX_PARTS):
        if at + 8 > len(data):
            return
        size, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + size
        if end > len(data) and name != b"IDAT":
            return
        content = data[at + 8 : end - 4]
        sound = name == b"IDAT" or (
            zlib.crc32(content, zlib.crc32(name)) == int.from_bytes(data[end - 4 : end], "big")
        )
        yield name, content, sound
        at = end
    raise SkipPhoto(f"unreadable: a PNG of over {MAX_PARTS:,} chunks")


def _png_chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(name))
    return b"".join((struct.pack(">I4s", len(content), name), content, struct.pack(">I", checksum)))


def _text_keyword(content: bytes) -> bytes | None:
    """The keyword of a text chunk, or None if it is of no interest."""
    keyword = content[:80].partition(b"\0")[0]
    return keyword if keyword in {RAW_EXIF, PNG_XMP} else None


def _png_text(name: bytes, content: bytes) -> bytes:
    """The text of a text chunk, up to MAX_TEXT bytes. Broken text is empty."""
    rest = content.partition(b"\0")[2]
    packed = name == b"zTXt" or (name == b"iTXt" and rest[:1] == b"\1")
    if name == b"zTXt":
        rest = rest[1:]
    elif name == b"iTXt":
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    if packed:
        try:
            rest = zlib.decompressobj().decompress(rest, MAX_TEXT)
        except zlib.error:
            rest = b""
    return rest[:MAX_TEXT]


def _raw_profile(text: bytes) -> bytes:
    """Decodes EXIF that ImageMagick wrote as text: a name, a length, then hexadecimal digits."""
    digits = b"".join(text.split()[2:])
    try:
        return bytes.fromhex(digits.decode("ascii")).removeprefix(b"Exif\0\0")
    except ValueError:
        return b""


# --- WebP (RFC 9649) -------------------------------------------------------------------------

ANIMATION, ALPHA = 0x02, 0x10
WEBP_PIXELS = (b"ANMF", b"VP8 ", b"VP8L")


def bare_webp(data: bytes) -> Bare:
    """Keeps the picture's own chunks. An animation becomes its first frame on its canvas.

    Raises:
        ValueError, struct.error: If it is cut short or damaged.
    """
    chunks = _webp_chunks(data)
    exif = exif_orientation(chunks.get(b"EXIF", b"").removeprefix(b"Exif\0\0"))
    orientation = exif or xmp_orientation(chunks.get(b"XMP ", b"")) or 1
    canvas = chunks.get(b"VP8X", b"")
    pixels = next((name for name in WEBP_PIXELS if name in chunks), None)
    if pixels is None:
        raise ValueError("no pixels")
    if not canvas:
        size = _vp8_size(pixels, chunks[pixels])
        return Bare(_riff(b"RIFF", b"WEBP" + _riff(pixels, chunks[pixels])), size, orientation)
    width, height = (1 + int.from_bytes(canvas[at : at + 3], "little") for at in (4, 7))
    if pixels == b"ANMF":
        needed = [(b"ANIM", bytes(6))]
        flags = canvas[0] & (ANIMATION | ALPHA)
    else:
        needed = [(b"ALPH", chunks[b"ALPH"])] if b"ALPH" in chunks else []
        flags = canvas[0] & ALPHA
    needed = [(b"VP8X", bytes((flags,)) + canvas[1:]), *needed, (pixels, chunks[pixels])]
    body = b"WEBP" + b"".join(_riff(*chunk) for chunk in needed)
    return Bare(_riff(b"RIFF", body), (width, height), orientation)


def _webp_chunks(data: bytes) -> dict[bytes, bytes]:
    """The first chunk of each name."""
    end = int.from_bytes(data[4:8], "little") + 8
    if end > len(data):
        raise ValueError("truncated")
    found: dict[bytes, bytes] = {}
    at = 12
    for _ in range(MAX_PARTS):
        if at + 8 > end:
            break
        name, size = struct.unpack_from("<4sI", data, at)
        if at + 8 + size > end:
            break
        if name not in found:
            found[name] = data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    return found


def _riff(name: bytes, content: bytes) -> bytes:
    return name + len(content).to_bytes(4, "little") + content + bytes(len(content) % 2)


def _vp8_size(name: bytes, content: bytes) -> tuple[int, int]:
    """Width and height in px of a picture without a canvas."""
    if name == b"VP8L":
        bits = int.from_bytes(content[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", content, 6)
    return width & 0x3FFF, height & 0x3FFF


# --- GIF (GIF89a) ----------------------------------------------------------------------------

GRAPHIC_CONTROL = 0xF9


def bare_gif(data: bytes) -> Bare:
    """Keeps the first frame, with its palette and transparency.

    Raises:
        SkipPhoto: If it has more blocks than any real picture.
        ValueError, IndexError: If it is cut short or damaged.
    """
    start = _after_table(13, data[10])
    at, control, blocks = start, b"", iter(range(MAX_PARTS))
    while data[at] == ord("!"):
        if data[at + 1] == GRAPHIC_CONTROL and data[at + 2] == 4:
            shown = data[at + 3] & 1  # transparent or not; how the next frame follows is dropped
            control = bytes((0x21, GRAPHIC_CONTROL, 4, shown, 0, 0, data[at + 6], 0))
        at = _after_blocks(data, at + 2, blocks)
    if data[at] != ord(","):
        raise ValueError("no frame")
    x, y, width, height, flags = struct.unpack_from("<HHHHB", data, at + 1)
    end = _after_blocks(data, _after_table(at + 10, flags) + 1, blocks)
    screen = struct.unpack_from("<HH", data, 6)
    size = max(screen[0], x + width), max(screen[1], y + height)
    return Bare(data[:start] + control + data[at:end] + b";", size)


def is_animated_gif(data: bytes) -> bool:
    """Whether a GIF has a second frame. A damaged GIF has none."""
    try:
        at = _after_table(13, data[10])
        frames, blocks = 0, iter(range(MAX_PARTS))
        while data[at] in b"!,":
            if data[at] == ord("!"):
                at = _after_blocks(data, at + 2, blocks)
                continue
            frames += 1
            if frames == 2:
                return True
            at = _after_blocks(data, _after_table(at + 10, data[at + 9]) + 1, blocks)
    except (IndexError, SkipPhoto):
        pass
    return False


def _after_table(at: int, flags: int) -> int:
    """Offset of the end of a colour table, if the flags say that there is one."""
    return at + (3 << (flags & 7) + 1 if flags & 0x80 else 0)


def _after_blocks(data: bytes, at: int, blocks: Iterator[int]) -> int:
    """Offset of the end of a chain of sub-blocks. Each takes one of the `blocks` of the file."""
    for _ in blocks:
        size = data[at]
        at += 1 + size
        if not size:
            return at
    raise SkipPhoto(f"unreadable: a GIF of over {MAX_PARTS:,} blocks")


# --- TIFF (revision 6.0) ---------------------------------------------------------------------

NEW_SUBFILE, WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
STRIP_OFFSETS, SAMPLES, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS = 273, 277, 322, 323, 324
DNG_VERSION, COLOUR_FILTER, LINEAR_RAW = 50706, 32803, 34892
PIXEL_TAGS = frozenset(
    {
        *(WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, 266, STRIP_OFFSETS, SAMPLES, 278, 279),
        *(284, 317, 320, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, 325, 332, 338, 339, 347),
        *(529, 530, 531, 532),
    }
)
"""Tags that say where the pixels lie and how to read them."""
COMPRESSIONS = {
    2: "CCITT",
    3: "CCITT",
    4: "CCITT",
    6: "old JPEG",
    9: "JBIG",
    34712: "JPEG 2000",
    34887: "LERC",
    34925: "LZMA",
    50000: "ZSTD",
    50001: "WebP",
    50002: "JPEG XL",
}
JPEG_COMPRESSION = 7
READ_COMPRESSIONS = frozenset({1, 5, JPEG_COMPRESSION, 8, 32773, 32946})
"""Supported compressions: none, LZW, JPEG, Deflate (both numbers) and PackBits."""
UNITS = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 10: "ii"}
UNITS |= {11: "f", 12: "d", 13: "I"}
MAX_TILE_PIXELS = 1 << 22


def bare_tiff(data: bytes) -> Bare:
    """Keeps the first page, under a new directory that has only the tags of its pixels.

    Raises:
        SkipPhoto: If it is a camera raw photo, or its compression is not supported.
        ValueError, KeyError, struct.error: If it is cut short or damaged.
    """
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    entries: dict[int, bytes] = {}
    for place in range(count):
        entry = data[start + 2 + 12 * place : start + 14 + 12 * place]
        (tag,) = struct.unpack_from(order + "H", entry)
        entries.setdefault(tag, entry)

    def first(tag: int, default: int | None = None) -> int:
        """The first value of a tag."""
        if tag not in entries and default is not None:
            return default
        _, kind, number, place = struct.unpack(order + "HHII", entries[tag])
        size = struct.calcsize("=" + UNITS[kind])
        at = place if number * size > 4 else None
        held = entries[tag][8:] if at is None else data[at : at + size]
        return int(struct.unpack_from(order + UNITS[kind][0], held)[0])

    raw = {DNG_VERSION} & entries.keys() or first(PHOTOMETRIC, 0) in {COLOUR_FILTER, LINEAR_RAW}
    if raw or first(NEW_SUBFILE, 0) & 1:
        raise SkipPhoto("unreadable: camera raw, which is not supported: convert it to JPEG")
    width, height, compression = first(WIDTH), first(LENGTH), first(COMPRESSION, 1)
    if compression not in READ_COMPRESSIONS:
        kind = COMPRESSIONS.get(compression, f"an unknown ({compression})")
        raise SkipPhoto(
            f"unreadable: a TIFF in {kind} compression, which is not supported: save it as JPEG"
        )
    scans = min(data.count(b"\xff\xda"), MAX_SCANS)  # libtiff stops there
    if compression == JPEG_COMPRESSION and too_many(scans, width * height):
        raise SkipPhoto("unreadable: a TIFF in JPEG compression that takes too long: save it anew")
    kept = {tag: entry for tag, entry in sorted(entries.items()) if tag in PIXEL_TAGS}
    held = 0
    for tag, entry in kept.items():
        _, kind, number, place = struct.unpack(order + "HHII", entry)
        size = number * struct.calcsize("=" + UNITS[kind])
        held += size
        if held > len(data) or (size > 4 and place + size > len(data)):
            raise ValueError("truncated")
        if tag in {STRIP_OFFSETS, TILE_OFFSETS} and number > MAX_PARTS:
            raise SkipPhoto(f"unreadable: a TIFF of over {MAX_PARTS:,} strips")
    if first(TILE_WIDTH, 1) * first(TILE_LENGTH, 1) > max(MAX_TILE_PIXELS, 4 * width * height):
        raise ValueError("tiles that are larger than the picture")
    at = len(data) + len(data) % 2
    directory = struct.pack(order + "H", len(kept)) + b"".join(kept.values()) + bytes(4)
    written = b"".join(
        (data[:4], struct.pack(order + "I", at), data[8:], bytes(at - len(data)), directory)
    )
    turned = first(ORIENTATION, 1)
    return Bare(written, (width, height), turned if 1 <= turned <= 8 else 1)


# --- AVIF (AV1 Image File Format) and BMP ----------------------------------------------------

HIDDEN = ((b"Exif", b"skip"), (b"application/rdf+xml", b"application/rdf_xml"))
"""Types of metadata items, and types that no decoder looks for. The orientation of an AVIF is in
its own boxes."""


def bare_avif(data: bytes) -> Bare:
    """Hides the metadata items from decoders, by changing their types.

    Raises:
        ValueError, KeyError, IndexError, struct.error: If it is cut short or damaged, or has
            another size than its boxes claim.
    """
    at = 0
    for _ in range(MAX_PARTS):
        size, name = struct.unpack_from(">I4s", data, at)
        if name in {b"meta", b"moov"}:
            break
        at += size
        if size < 8 or at + 8 > len(data):
            raise ValueError("no picture")
    head = data[at : at + size]
    for kind, other in HIDDEN:
        head = head.replace(kind, other)
    hidden = data[:at] + head + data[at + size :]
    return Bare(hidden, decoded_pixels=decoded_pixels(hidden))


RLE8, RLE4 = 1, 2
MAX_RLE_BYTES = 1_000_000
MAX_RLE_PIXELS = 2_000_000
"""Pillow unpacks run-length compression in Python. These limits take it about one second."""


def bare_bmp(data: bytes) -> Bare:
    """Returns the file as it is, because a BMP has no metadata.

    Raises:
        SkipPhoto: If its run-length compression takes too long to unpack.
        struct.error: If it is cut short.
    """
    (header,) = struct.unpack_from("<I", data, 14)
    if header >= 40:
        width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
        long = len(data) > MAX_RLE_BYTES or abs(width * height) > MAX_RLE_PIXELS
        if compression in {RLE8, RLE4} and long:
            raise SkipPhoto(
                "unreadable: a BMP in run-length compression of over "
                f"{MAX_RLE_PIXELS / 1e6:g} megapixels or {MAX_RLE_BYTES / 1e6:g} MB: save it as PNG"
            )
    return Bare(data)


BARE: dict[str, Callable[[bytes], Bare]] = {
    "PNG": bare_png,
    "WebP": bare_webp,
    "GIF": bare_gif,
    "TIFF": bare_tiff,
    "AVIF": bare_avif,
    "BMP": bare_bmp,
}
"""Functions by the name of the picture's kind."""
