"""The kinds of pictures: their file suffixes, their first bytes, and which of them are supported.

This is the only such list; folders, tars, galleries and the decoder use it. A file of an
unsupported kind is never ignored silently: its reader counts and names it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HEAD_BYTES = 512
"""Number of bytes at the start of a file that decide its kind."""
MAX_BRANDS_BYTES = 200
"""Largest number of bytes that are read of an ISO file's list of brands."""


@dataclass(frozen=True)
class PictureKind:
    """A kind of picture."""

    name: str
    suffixes: tuple[str, ...]
    begins: bytes = b"(?!)"
    """Regular expression that the first bytes match."""
    brands: frozenset[bytes] = frozenset()
    """Brands of an ISO base media file. One of them is enough."""
    read: bool = False


def _brands(text: str) -> frozenset[bytes]:
    return frozenset(brand.encode() for brand in text.split())


KINDS = (
    # AVIF comes before HEIC, because its files may have HEIF's general brands, too.
    PictureKind(
        "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".mpo"), rb"\xff\xd8", read=True
    ),
    PictureKind("PNG", (".png", ".apng"), rb"\x89PNG", read=True),
    PictureKind("WebP", (".webp",), rb"RIFF....WEBP", read=True),
    PictureKind("BMP", (".bmp", ".dib"), rb"BM", read=True),
    PictureKind("TIFF", (".tif", ".tiff"), rb"II\*\0|MM\0\*", read=True),
    PictureKind("GIF", (".gif",), rb"GIF8", read=True),
    PictureKind("AVIF", (".avif", ".avifs"), brands=_brands("avif avis"), read=True),
    PictureKind(
        "HEIC",
        (".heic", ".heics", ".heif", ".heifs", ".hif"),
        brands=_brands("heic heix heim heis hevc hevx hevm hevs mif1 mif2 msf1 mif3"),
    ),
    PictureKind("JPEG XL", (".jxl",), rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"),
    PictureKind(
        "JPEG 2000",
        (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".jpm"),
        rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    ),
    PictureKind("JPEG XR", (".jxr", ".wdp"), rb"II\xbc"),
    PictureKind("JPEG-LS", (".jls",)),
    PictureKind("BigTIFF", (".btf", ".tf8"), rb"II\+\0|MM\0\+"),
    PictureKind(
        "camera raw",
        (
            *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".srw"),
            *(".orf", ".rw2", ".raf", ".pef", ".3fr", ".erf", ".kdc", ".mrw", ".x3f"),
        ),
        rb"II\*\0....CR|FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0",
        brands=frozenset({b"crx "}),
    ),
    PictureKind("Photoshop", (".psd", ".psb"), rb"8BPS"),
    PictureKind("PNM", (".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".pfm"), rb"P[1-7fF][\s#]"),
    PictureKind("TGA", (".tga",)),
    PictureKind("ICO", (".ico", ".cur"), rb"\0\0[\x01\x02]\0[^\0]\0"),
    PictureKind("ICNS", (".icns",), rb"icns"),
    PictureKind("PCX", (".pcx",), rb"\x0a[\0-\x05]\x01[\x01\x02\x04\x08]"),
    PictureKind("SGI", (".sgi", ".rgb"), rb"\x01\xda[\0\x01][\x01\x02]"),
    PictureKind("QOI", (".qoi",), rb"qoif"),
    PictureKind("DDS", (".dds",), rb"DDS "),
    PictureKind("FITS", (".fits",), rb"SIMPLE  ="),
    PictureKind("OpenEXR", (".exr",), rb"v/1\x01"),
    PictureKind("Radiance HDR", (".hdr",), rb"#\?(RADIANCE|RGBE)"),
    PictureKind("GIMP", (".xcf",), rb"gimp xcf"),
    PictureKind("FLIF", (".flif",), rb"FLIF"),
    PictureKind("BPG", (".bpg",), rb"BPG\xfb"),
    PictureKind("DjVu", (".djvu", ".djv"), rb"AT&TFORM"),
    PictureKind("MNG", (".mng", ".jng"), rb"\x8a[MJ]NG"),
    PictureKind("EPS", (".eps",), rb"%!PS-Adobe.{0,20}EPSF"),
    PictureKind("SVG", (".svg", ".svgz"), rb"\s*<(svg\b|(\?xml|!--|!DOCTYPE svg).{0,400}<svg\b)"),
)

VIDEO_BRANDS = re.compile(rb"iso.|mp4.|qt  |M4. |avc1|3g..|f4v |dash|MSNV|XAVC|nd..")
"""Major brands of videos. Such a file is no picture, whatever its compatible brands are."""

_BY_SUFFIX = {suffix: kind for kind in KINDS for suffix in kind.suffixes}
IMAGE_SUFFIXES = frozenset(_BY_SUFFIX)
"""File suffixes of all pictures, supported or not, in lower case."""
_BEGINNINGS = tuple(
    (re.compile(kind.begins, re.S), kind)
    # Unsupported kinds are tested first: some camera raw files begin like a TIFF.
    for kind in sorted(KINDS, key=lambda kind: kind.read)
)
_OTHERS = ((re.compile(rb"\s*<(!doctype )?html", re.I), "HTML"), (re.compile(rb"%PDF"), "PDF"))

READ = tuple(kind.name for kind in KINDS if kind.read)
READ_WORDS = f"{', '.join(READ[:-1])} or {READ[-1]}"
"""The supported kinds, for messages."""


def kind_of_suffix(suffix: str) -> PictureKind | None:
    """The kind of picture by file suffix. None if it is not a picture's."""
    return _BY_SUFFIX.get(suffix.lower())


def kind_of(head: bytes) -> PictureKind | None:
    """The kind of picture by the first bytes of a file. None if they are of no known picture."""
    if head[4:8] == b"ftyp":
        brands = _brands_of(head)
        return next((kind for kind in KINDS if kind.brands & brands), None)
    return next((kind for begins, kind in _BEGINNINGS if begins.match(head)), None)


def _brands_of(head: bytes) -> frozenset[bytes]:
    """The brands of an ISO base media file (ISO/IEC 14496-12). A video has none here."""
    if VIDEO_BRANDS.match(head, 8):
        return frozenset()
    end = min(int.from_bytes(head[:4], "big"), MAX_BRANDS_BYTES, len(head))
    return frozenset(head[at : at + 4] for at in (8, *range(16, end, 4)))


def not_read(head: bytes) -> str:
    """Why a file that is no supported picture is refused, and what to do."""
    kind = kind_of(head)
    if kind is not None:
        return f"{kind.name}, which is not supported: convert it to JPEG"
    other = next((name for begins, name in _OTHERS if begins.match(head)), None)
    return ("" if other is None else f"{other}, which is ") + f"no {READ_WORDS}"
