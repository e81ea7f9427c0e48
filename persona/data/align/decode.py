"""Decodes an untrusted file to upright 8-bit RGB, at the size that is needed.

1. kind (`persona.pictures`): the first bytes decide it. No other decoder sees the file
2. bare pixels (`jpeg`, `bare`): metadata is removed, and files that take too long are refused
3. decode: simplejpeg decodes a JPEG, to Pillow's pixels in less time. Pillow decodes everything
   else, and the JPEGs that simplejpeg reports as faulty
4. turn upright, and convert to 8-bit RGB

A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size at a fraction of the cost: its blocks are then
transformed to 4x4, 2x2 or 1x1 pixels.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageFile, features

from persona.data.align.bare import BARE, NO_END, Bare
from persona.data.align.jpeg import (
    JpegHeader,
    check_crop,
    ended,
    has_all_scans,
    lacks_end,
    pixels_alone,
    read_header,
)
from persona.data.align.orientation import ORIENTATION
from persona.data.align.spec import Box
from persona.errors import SkipPhoto
from persona.pictures import HEAD_BYTES, kind_of, not_read

MAX_PIXELS = 100_000_000
"""Largest photo in pixels. 100 megapixels take 300 MB decoded; a larger photo is refused as a
decompression bomb."""
MOST_PIXELS = 250_000_000
"""Largest photo in pixels if it is decoded at a smaller size."""
SHRINKS = (8, 4, 2)
OVERSAMPLING = 2
"""A photo is decoded smaller only if the needed part still has this many times the crop's side."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Maps an EXIF orientation to the operation that undoes it."""
REVERSED = {2: (1, 0), 3: (1, 1), 4: (0, 1), 6: (1, 0), 7: (1, 1), 8: (0, 1)}
"""Maps an EXIF orientation to whether upright x and y run against a stored axis."""

ImageFile.LOAD_TRUNCATED_IMAGES = False
Image.MAX_IMAGE_PIXELS = MOST_PIXELS  # Pillow itself raises an error at twice this limit

DEPTHS = (8, 10, 12, 14, 16)
"""Bit depths of sensors and scanners. Samples are scaled by the smallest that holds them all."""
OTHER_BYTES = {"B": "L", "L": "B", "N": "B"}
"""Maps the byte order of 16-bit samples to the order under which Pillow reads the lower bytes."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Decoded:
    """An upright photo, perhaps decoded at a smaller size."""

    image: Image.Image
    shrink: int = 1
    shift: tuple[float, float] = (0.0, 0.0)
    """Position of the photo's corner in `image` in px. It is not 0 if the photo was turned and its
    last block is not full: that block then comes first."""
    mended: str | None = None
    """The fault of a file whose pixels are nevertheless all there."""

    def resize(self, box: Box, side_px: int) -> Image.Image:
        """Resizes the part `box`, in px of the whole photo, to a square of `side_px`."""
        side = (side_px, side_px)
        if self.shrink == 1:
            whole = tuple(map(int, box))
            return self.image.crop(whole).resize(side, Image.Resampling.BILINEAR)  # type: ignore[arg-type]
        limits = self.image.size * 2
        edges = [edge / self.shrink + self.shift[n % 2] for n, edge in enumerate(box)]
        inside = tuple(min(max(edge, 0), limits[n]) for n, edge in enumerate(edges))
        return self.image.resize(side, Image.Resampling.BILINEAR, box=inside)  # type: ignore[arg-type]


class EncodedPhoto:
    """A photo whose header has been read and whose pixels have not been decoded."""

    def __init__(
        self, data: bytes, max_pixels: int = MAX_PIXELS, max_whole: int = MAX_PIXELS
    ) -> None:
        """Reads the header.

        Args:
            data: The file.
            max_pixels: Largest number of pixels.
            max_whole: Largest number of pixels if the photo cannot be decoded at a smaller size,
                for its kind or because it is damaged.

        Raises:
            SkipPhoto: If the file is empty, too large, no image, or would take too long.
        """
        if not data:
            raise SkipPhoto("unreadable: empty file")
        kind = kind_of(data[:HEAD_BYTES])
        if kind is None or not kind.read:
            raise SkipPhoto(f"unreadable: {not_read(data[:HEAD_BYTES])}")
        self.data = data
        self.kind = kind.name
        self._max_whole = max_whole
        self._header: JpegHeader | None = None
        """Header of a JPEG. Other kinds have a `_bare` instead."""
        with self._skipping():
            if self.kind == "JPEG":
                self._header = read_header(data)
                size, self.orientation = self._header.size, self._header.orientation
                self._check_size(size, max_pixels, max_whole)
            else:
                self._bare = BARE[self.kind](data)
                size = self._bare.size or self._open().size
                self._check_size(size, max_pixels, max_whole)
                self._check_work(min(max_pixels, max_whole))
                self.orientation = self._bare.orientation
                if self.kind == "AVIF":  # the orientation is in AVIF's boxes, which Pillow reads
                    self.orientation = self._open().getexif().get(ORIENTATION, 1)
        self._stored = size
        """Width and height as stored, in px."""
        self.size: tuple[int, int] = size[::-1] if self.orientation in {5, 6, 7, 8} else size
        """Width and height of the upright photo, in px."""

    @property
    def shrinks(self) -> bool:
        """Whether it can be decoded at a smaller size: grey and colour JPEGs can, CMYK cannot."""
        return self._header is not None and self._header.components in {1, 3}

    def _check_size(self, size: tuple[int, int], max_pixels: int, max_whole: int) -> None:
        whole = max_whole < max_pixels and not self.shrinks
        limit = max_whole if whole else max_pixels
        if size[0] * size[1] > limit:
            raise SkipPhoto(
                f"unreadable: {size[0]} x {size[1]} px is over the limit of {limit / 1e6:g} "
                f"megapixels{' for what is no RGB or grey JPEG' if whole else ''}"
            )

    def _check_work(self, limit: int) -> None:
        """Raises SkipPhoto if decoding makes far more pixels than the photo may have.

        Twice the limit is allowed, because a picture may have transparency and tiles may reach over
        its borders.
        """
        pixels = self._bare.decoded_pixels
        if pixels > 2 * limit:
            raise SkipPhoto(
                f"unreadable: an {self.kind} that is made of {pixels / 1e6:.0f} megapixels takes "
                "too long: save it anew"
            )

    def decode(self, shrink: int = 1) -> Decoded:
        """Decodes to upright 8-bit RGB.

        Args:
            shrink: Factor by which a JPEG is decoded smaller. Other kinds ignore it.

        Raises:
            SkipPhoto: If the photo is truncated or broken.
        """
        with self._skipping():
            if self._header is None:
                pixels, mended = None, self._bare.mended
            else:
                pixels, mended = self._decode_jpeg(self._header, shrink)
            if pixels is None:
                shrink, image = 1, self._decode_whole()
            else:
                image = Image.fromarray(pixels)
            if self.orientation in UPRIGHT:
                image = image.transpose(UPRIGHT[self.orientation])
        reversed_axes = REVERSED.get(self.orientation, (0, 0))
        x, y = (
            axis * (decoded - size / shrink)
            for axis, decoded, size in zip(reversed_axes, image.size, self.size, strict=True)
        )
        return Decoded(image, shrink, (x, y), mended)

    def _decode_jpeg(self, header: JpegHeader, shrink: int) -> tuple[Pixels | None, str | None]:
        """(H, W, 3) uint8 as stored, and the fault that was mended.

        The pixels are None if Pillow has to decode the JPEG, or has to judge a fault that
        simplejpeg reports.
        """
        if self.shrinks:
            with contextlib.suppress(ValueError):
                return _simplejpeg(self.data, header, shrink), None
        if not lacks_end(self.data, header):
            self._bare = Bare(pixels_alone(self.data, header))
            return None, None
        # With an end mark, simplejpeg reports everything that is missing before it.
        self._bare = Bare(ended(pixels_alone(self.data, header)), mended=f"JPEG {NO_END}")
        try:
            pixels = _simplejpeg(self._bare.data, header, shrink if self.shrinks else 8)
        except ValueError:
            pixels = None
        if pixels is None or not has_all_scans(self._bare.data, header):
            raise ValueError("truncated")
        return pixels if self.shrinks else None, self._bare.mended

    def _open(self) -> ImageFile.ImageFile:
        return Image.open(io.BytesIO(self._bare.data), formats=(self.kind,))

    def _decode_whole(self) -> Image.Image:
        """Decodes with Pillow and converts to 8-bit RGB."""
        # Only a JPEG that simplejpeg did not decode smaller can be this large.
        if self._stored[0] * self._stored[1] > self._max_whole:
            raise SkipPhoto(
                f"unreadable: a damaged JPEG of over {self._max_whole / 1e6:g} megapixels: save it "
                "anew"
            )
        photo = self._open()
        if photo.size != self._stored:
            raise ValueError("of another size than its header says")
        args: Any = photo.tile[0].args if photo.tile else ""
        rawmode = str(args[0] if isinstance(args, tuple) else args)
        photo.load()
        if ";16" in rawmode and photo.mode in {"RGB", "RGBA"}:
            upper = np.asarray(photo)
            # Pillow gave the upper bytes. They suffice if the samples use the highest two bits.
            if upper[..., :3].max() < 1 << 6:
                return _to_rgb(Image.fromarray(self._scaled_16_bits(upper, rawmode)))
        return _to_rgb(photo)

    def _scaled_16_bits(self, upper: Pixels, rawmode: str) -> Pixels:
        """Scales 16-bit colours by the bits that they use; `upper` has their upper bytes.

        Pillow has no mode for such colours. It gives the lower bytes if it is told that the bytes
        are in the other order.
        """
        photo = self._open()
        grey = rawmode.startswith("LA")  # Pillow has it in one order, so it is read as four bytes
        other = "RGBA" if grey else rawmode[:-1] + OTHER_BYTES[rawmode[-1]]
        photo.tile = [
            tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other)
            for tile in photo.tile
        ]
        photo.load()
        lower = np.asarray(photo)[..., [1, 1, 1, 3] if grey else slice(None)]
        samples = upper.astype(np.uint16) << 8 | lower
        scaled = [
            _scale(samples[..., :3]),
            *([_scale(samples[..., 3:])] if samples.shape[2] > 3 else []),
        ]
        return np.concatenate(scaled, axis=2)

    @contextlib.contextmanager
    def _skipping(self) -> Iterator[None]:
        """Turns whatever decoders raise for a broken file into SkipPhoto."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # oddities; the size check refuses bombs
                yield
        except (SkipPhoto, MemoryError):  # with more memory the same photo may be sound
            raise
        except Image.DecompressionBombError:
            raise SkipPhoto("unreadable: its pixels are over the limit") from None
        except Exception as error:  # a broken file can make Pillow raise anything
            if "out of memory" in str(error):
                raise MemoryError from None
            raise SkipPhoto(f"unreadable: {self._fault(error)}") from None

    def _fault(self, error: Exception) -> str:
        """What is wrong with a file that does not decode. The text holds nothing from the file."""
        if self.kind == "AVIF" and not features.check("avif"):
            return "AVIF, which this Pillow cannot read: pip install --upgrade pillow"
        data = self.data
        cut = {
            "JPEG": b"\xff\xd9" not in data,
            "PNG": b"IEND" not in data,
            "BMP": len(data) < int.from_bytes(data[2:6], "little"),
            "WebP": len(data) < int.from_bytes(data[4:8], "little") + 8,
            "GIF": not data.endswith(b";"),
        }
        short = cut.get(self.kind, False) or "truncat" in str(error).lower()
        article = "an" if self.kind == "AVIF" else "a"
        return f"{article} {self.kind} that is {'cut short' if short else 'damaged'}"


def _simplejpeg(data: bytes, header: JpegHeader, shrink: int) -> Pixels:
    """Decodes to (H, W, 3) uint8 RGB, or (H, W, 4) CMYK. Raises ValueError for any fault."""
    width, height = header.size
    if simplejpeg.decode_jpeg_header(data)[:2] != (height, width):
        raise ValueError("of another size than its header says")
    pixels: Pixels = simplejpeg.decode_jpeg(
        data,
        "RGB" if header.components in {1, 3} else "CMYK",
        min_height=-(-height // shrink),
        min_width=-(-width // shrink),
        min_factor=shrink,
    )
    return pixels


def as_crop(data: bytes, side_px: int) -> bytes | None:
    """The pixels of an upright 8-bit colour JPEG of that size, as they are encoded.

    Metadata may tell who is shown, and where. None for other files, and if it has a fault.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        header = read_header(data)
        if (header.size, header.components) != ((side_px, side_px), 3):
            return None
        if header.orientation in UPRIGHT:
            return None
        crop = pixels_alone(data, header)
        check_crop(crop)  # as training does
        # This reads the whole file. One of 64 pixels is enough, because they are not used.
        simplejpeg.decode_jpeg(crop, "GRAY", min_height=1, min_width=1, min_factor=8)
    except (ValueError, IndexError, SkipPhoto):
        return None
    return crop


def shrink_for(width: float, height: float, side_px: int) -> int:
    """The factor by which a part of that size can be decoded smaller for a crop of `side_px`."""
    room = min(width, height) / (OVERSAMPLING * side_px)
    return next((shrink for shrink in SHRINKS if shrink <= room), 1)


def upright_rgb(photo: Image.Image) -> Image.Image:
    """Turns an image that somebody opened with Pillow upright, and converts it to 8-bit RGB.

    Its pixels are those of the decoded file, but for RGB of 16 bits a channel, which Pillow has
    already cut to the upper 8.

    Raises:
        SkipPhoto: If it is too large, or its file is truncated or broken.
    """
    if photo.width * photo.height > MOST_PIXELS:
        raise SkipPhoto(
            f"unreadable: {photo.width} x {photo.height} px is over the limit of "
            f"{MOST_PIXELS / 1e6:g} megapixels"
        )
    try:
        photo.load()  # a TIFF is turned by this, and has no orientation afterwards
        image = _to_rgb(photo)
    except MemoryError:
        raise
    except Exception as error:  # a broken file can make Pillow raise anything
        raise SkipPhoto(f"unreadable: an image that is damaged ({error})") from None
    turn = UPRIGHT.get(_orientation_of(photo))
    return image if turn is None else image.transpose(turn)


def _orientation_of(photo: Image.Image) -> int:
    """The EXIF orientation of an image that Pillow opened. Damaged metadata is ignored."""
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return int(photo.getexif().get(ORIENTATION, 1))
    return 1


def _scale(samples: npt.NDArray[np.uint16]) -> Pixels:
    """Scales 16-bit samples to 8 bits by the bits that they use: not clipped, nor left dark."""
    most = int(samples.max(initial=0))
    bits = next(bits for bits in DEPTHS if most < 1 << bits)
    return (samples.astype(np.float32) * (255 / ((1 << bits) - 1))).round().astype(np.uint8)


def _to_rgb(photo: Image.Image) -> Image.Image:
    if photo.mode.startswith("I;16"):
        return Image.fromarray(_scale(np.asarray(photo, np.uint16))).convert("RGB")
    if photo.mode in {"I", "F"}:
        # Integers are scaled like 16-bit samples. The white of floats is 1, 255 or the maximum.
        grey = np.nan_to_num(np.asarray(photo, np.float32)).clip(0)
        most = float(grey.max(initial=0))
        white = [1.0] if photo.mode == "F" else []
        white += [float((1 << bits) - 1) for bits in DEPTHS]
        top = next((one for one in white if most <= one), most)
        return Image.fromarray((grey * (255 / top)).astype(np.uint8)).convert("RGB")
    if photo.mode in {"RGBA", "LA", "PA"} or "transparency" in photo.info:
        colours = photo.convert("RGBA")
        if photo.format == "BMP" and colours.getchannel("A").getextrema() == (0, 0):
            return photo.convert("RGB")  # the alpha channel exists, but was never written
        opaque = Image.new("RGBA", photo.size, "white")
        return Image.alpha_composite(opaque, colours).convert("RGB")
    return photo if photo.mode == "RGB" else photo.convert("RGB")
