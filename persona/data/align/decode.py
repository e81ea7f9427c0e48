"""An untrusted file to upright 8-bit RGB, at the size that is needed.

A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size at a fraction of the cost: its blocks are then
transformed to 4x4, 2x2 or 1x1 pixels. simplejpeg decodes what it can, to the pixels that Pillow
gives in less time; Pillow reads the header, everything else and what simplejpeg complains about.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, ImageFile

from persona.data.align.spec import Box
from persona.errors import SkipPhoto

MAX_PIXELS = 100_000_000
"""A 100-megapixel photo is 300 MB decoded: more is refused as a decompression bomb."""
MOST_PIXELS = 250_000_000
"""Of a photo that is to be decoded smaller."""
FORMATS = ("JPEG", "PNG", "BMP", "WebP")
"""The decoders that an untrusted photo may reach."""
BEGINNINGS = (
    (rb"\xff\xd8", "JPEG"),
    (rb"\x89PNG", "PNG"),
    (rb"BM", "BMP"),
    (rb"RIFF....WEBP", "WebP"),
    (rb"GIF8", "GIF"),
    (rb"(II\*\0|MM\0\*)", "TIFF"),
    (rb"....ftyp(avif|avis)", "AVIF"),
    (rb"....ftyp(heic|heix|hevc|mif1|msf1)", "HEIC"),
    (rb"\s*<(?i:!doctype )?(?i:html)", "HTML"),
)
"""What files begin with, for words on why one is no photo."""
SHRINKS = (8, 4, 2)
OVERSAMPLING = 2
"""A photo is decoded smaller only where the part that is wanted stays this many times the crop."""

ORIENTATION = 0x0112
ORIENTED = (b"Exif\0\0", b"tiff:Orientation")
"""What a file holds that has an orientation."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to what undoes it."""
REVERSED = {2: (1, 0), 3: (1, 1), 4: (0, 1), 6: (1, 0), 7: (1, 1), 8: (0, 1)}
"""EXIF orientation to whether upright x and y run against a stored axis."""

ImageFile.LOAD_TRUNCATED_IMAGES = False
Image.MAX_IMAGE_PIXELS = MOST_PIXELS  # Pillow's own net is twice as wide


@dataclass(frozen=True)
class Decoded:
    """An upright photo, perhaps decoded smaller than it is."""

    image: Image.Image
    shrink: int = 1
    shift: tuple[float, float] = (0.0, 0.0)
    """Where the photo's corner is in `image`, px: a last block that is not full comes first when
    the photo is turned."""

    def resize(self, box: Box, side_px: int) -> Image.Image:
        """The part `box`, given in px of the whole photo, as a square."""
        side = (side_px, side_px)
        if self.shrink == 1:
            whole = tuple(map(int, box))
            return self.image.crop(whole).resize(side, Image.Resampling.BILINEAR)  # type: ignore[arg-type]
        limits = self.image.size * 2
        edges = [edge / self.shrink + self.shift[n % 2] for n, edge in enumerate(box)]
        inside = tuple(min(max(edge, 0), limits[n]) for n, edge in enumerate(edges))
        return self.image.resize(side, Image.Resampling.BILINEAR, box=inside)  # type: ignore[arg-type]


class EncodedPhoto:
    """A photo whose header has been read and whose pixels have not."""

    def __init__(
        self, data: bytes, max_pixels: int = MAX_PIXELS, max_whole: int = MAX_PIXELS
    ) -> None:
        """Reads the header.

        Args:
            data: the file.
            max_pixels: that it may have.
            max_whole: that it may have if it can only be decoded whole.

        Raises:
            SkipPhoto: empty, too large or no image.
        """
        if not data:
            raise SkipPhoto("unreadable: empty file")
        self.data = data
        with _skipping(data):
            self._photo = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = self._photo.size
            whole = max_whole < max_pixels and not self.shrinks
            limit = max_whole if whole else max_pixels
            if width * height > limit:  # before a PNG's EXIF is asked for, which decodes it
                raise SkipPhoto(
                    f"unreadable: {width} x {height} px is over the limit of {limit / 1e6:g} "
                    f"megapixels{' for what is no RGB or grey JPEG' if whole else ''}"
                )
            self.orientation = self._photo.getexif().get(ORIENTATION, 1)
        self.size: tuple[int, int] = (height, width) if self._turned else (width, height)
        """Width and height of the upright photo, px."""

    @property
    def _turned(self) -> bool:
        return self.orientation in {5, 6, 7, 8}

    @property
    def shrinks(self) -> bool:
        """Whether it can be decoded smaller."""
        return self._photo.format == "JPEG" and self._photo.mode in {"RGB", "L"}

    def decode(self, shrink: int = 1) -> Decoded:
        """Upright 8-bit RGB; `shrink` is a wish that only a JPEG can grant.

        Raises:
            SkipPhoto: truncated or broken.
        """
        pixels = self._decode_jpeg(shrink) if self.shrinks else None
        with _skipping(self.data):
            if pixels is None:
                self._photo.load()
                shrink, image = 1, _to_rgb(self._photo)
            else:
                image = Image.fromarray(pixels)
            if self.orientation in UPRIGHT:
                image = image.transpose(UPRIGHT[self.orientation])
        reversed_axes = REVERSED.get(self.orientation, (0, 0))
        x, y = (
            axis * (decoded - size / shrink)
            for axis, decoded, size in zip(reversed_axes, image.size, self.size, strict=True)
        )
        return Decoded(image, shrink, (x, y))

    def _decode_jpeg(self, shrink: int) -> np.ndarray | None:
        """(H, W, 3) uint8 as it is stored; None: simplejpeg sees a fault, Pillow has to judge."""
        width, height = self._photo.size
        try:
            pixels: np.ndarray = simplejpeg.decode_jpeg(
                self.data,
                min_height=-(-height // shrink),
                min_width=-(-width // shrink),
                min_factor=shrink,
            )
        except ValueError:
            return None
        return pixels


def is_crop(data: bytes, side_px: int) -> bool:
    """Whether it is an upright 8-bit colour JPEG of that size, whole and without a fault."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if (height, width) != (side_px, side_px) or colours not in {"YCbCr", "RGB"}:
            return False
        if any(name in data for name in ORIENTED) and EncodedPhoto(data).orientation in UPRIGHT:
            return False
        # Reads every bit of it; the pixels are not wanted, so one of 64 will do.
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8)
    except (ValueError, SkipPhoto):
        return False
    return True


def decode_photo(data: bytes) -> Image.Image:
    """An untrusted photo as upright 8-bit RGB, at its own size.

    Raises:
        SkipPhoto: empty, truncated, too large or no image.
    """
    return EncodedPhoto(data).decode().image


def shrink_for(width: float, height: float, side_px: int) -> int:
    """How many times smaller a part of that size may be decoded for a crop of `side_px`."""
    room = min(width, height) / (OVERSAMPLING * side_px)
    return next((shrink for shrink in SHRINKS if shrink <= room), 1)


@contextlib.contextmanager
def _skipping(data: bytes) -> Iterator[None]:
    """Turns whatever a broken file makes Pillow raise into SkipPhoto."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # EXIF oddities; a bomb is refused by its size
            yield
    except (SkipPhoto, MemoryError):  # the same photo is sound where there is memory
        raise
    except Image.DecompressionBombError:
        raise SkipPhoto("unreadable: its pixels are over the limit") from None
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them raise
        if "out of memory" in str(error):
            raise MemoryError from None
        raise SkipPhoto(f"unreadable: {_fault(data, error)}") from None


def _fault(data: bytes, error: Exception) -> str:
    """What is wrong with a file that does not decode; nothing of what is in it."""
    kind = next((k for start, k in BEGINNINGS if re.match(start, data[:200], re.S)), None)
    if kind not in FORMATS:
        return ("" if kind is None else f"{kind}, which is ") + "no JPEG, PNG, BMP or WebP"
    cut = {
        "JPEG": b"\xff\xd9" not in data,
        "PNG": b"IEND" not in data,
        "BMP": len(data) < int.from_bytes(data[2:6], "little"),
        "WebP": len(data) < int.from_bytes(data[4:8], "little") + 8,
    }
    short = cut[kind] or "truncat" in str(error).lower()
    return f"a {kind} that is {'cut short' if short else 'damaged'}"


def _to_rgb(photo: Image.Image) -> Image.Image:
    if photo.mode.startswith(("I", "F")):
        # 16 bits a channel: scale, where Pillow's own convert would clip to white.
        grey = np.asarray(photo, dtype=np.float32)
        return Image.fromarray((grey / 257.0).clip(0, 255).astype(np.uint8)).convert("RGB")
    if photo.mode in {"RGBA", "LA", "PA"} or "transparency" in photo.info:
        opaque = Image.new("RGBA", photo.size, "white")
        return Image.alpha_composite(opaque, photo.convert("RGBA")).convert("RGB")
    return photo if photo.mode == "RGB" else photo.convert("RGB")
