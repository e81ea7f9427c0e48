"""Reading photos from files and folders, and writing annotated copies."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from persona.data.align.bare import is_animated_gif
from persona.data.align.decode import MOST_PIXELS, EncodedPhoto, upright_rgb
from persona.data.align.spec import Box, FoundFace
from persona.data.raw.base import is_litter
from persona.errors import PersonaError, SkipPhoto
from persona.files import PRIVATE, not_a_file, write_atomically
from persona.pictures import HEAD_BYTES, IMAGE_SUFFIXES, kind_of, kind_of_suffix

log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]

MAX_BYTES = 200_000_000
MAX_WHOLE = 52_000_000
"""Largest number of pixels of a photo that the decoder cannot downscale, or of a video's frame."""
MAX_LOOKED_AT = 16_000_000
"""Largest number of pixels of a decoded photo; larger ones are downscaled. The detector takes
50 bytes per pixel."""
QUALITY = 95
"""Quality of an annotated JPEG or WebP."""


@dataclass(frozen=True)
class LookedAt:
    """An upright photo, which may be decoded at a smaller size."""

    pixels: Pixels
    """(H, W, 3) uint8 RGB."""
    size: tuple[int, int]
    """Width and height of the original photo in px."""
    shrink: int = 1
    """Factor by which width and height were divided."""
    shift: tuple[float, float] = (0.0, 0.0)
    """Offset of the decoded pixels, see persona/data/align/decode.py."""
    mended: str | None = None
    """What was wrong with the file but could be mended, see persona/data/align/decode.py."""

    def whole(self, box: Box) -> Box:
        """Converts a box (x, y, width, height) from px of `pixels` to px of the original photo."""
        x, y, width, height = box
        x, y = (at - shift for at, shift in zip((x, y), self.shift, strict=True))
        return x * self.shrink, y * self.shrink, width * self.shrink, height * self.shrink

    def whole_face(self, face: FoundFace) -> FoundFace:
        """Converts a face from px of `pixels` to px of the original photo, inside of it."""
        corners_22 = (np.reshape(face.box, (2, 2)) - self.shift) * self.shrink
        x0, y0, x1, y1 = corners_22.clip(0, self.size).ravel().tolist()
        points_52 = face.landmarks_52
        if points_52 is not None:  # measured from the centre of the first pixel, not its corner
            points_52 = (points_52 - self.shift) * self.shrink + (self.shrink - 1) / 2
        return replace(face, box=(x0, y0, x1, y1), landmarks_52=points_52)


def look_at(data: bytes, max_pixels: int = MOST_PIXELS) -> LookedAt:
    """Decodes a photo, downscaled if it has over MAX_LOOKED_AT pixels.

    Args:
        data: the bytes of the file.
        max_pixels: largest number of pixels that the photo may have.

    Raises:
        SkipPhoto: the file is empty, truncated, too large or no image.
    """
    photo = EncodedPhoto(data, max_pixels, MAX_WHOLE)
    shrink = _shrink(photo.size)
    decoded = photo.decode(shrink)
    # The decoder can only downscale a JPEG.
    image = decoded.image if decoded.shrink == shrink else decoded.image.reduce(shrink)
    return LookedAt(np.array(image), photo.size, shrink, decoded.shift, decoded.mended)


def look_at_image(photo: Image.Image) -> LookedAt:
    """Returns an image of Pillow as `look_at` returns its file: upright, and not too large.

    Raises:
        SkipPhoto: it is too large, or its file is truncated or damaged.
    """
    image = upright_rgb(photo)
    shrink = _shrink(image.size)
    return LookedAt(np.array(image if shrink == 1 else image.reduce(shrink)), image.size, shrink)


def _shrink(size: tuple[int, int]) -> int:
    """The factor by which a photo of `size` must be downscaled."""
    shrink = 1
    while size[0] * size[1] > MAX_LOOKED_AT * shrink**2:
        shrink *= 2
    return shrink


def read_photo(path: Path) -> LookedAt:
    """Reads and decodes a photo's file.

    Raises:
        SkipPhoto: there is no such file, or it may not be read, is empty, truncated, too large or
            no image.
    """
    try:
        if not path.is_file():  # reading a pipe may block, and a device may never end
            kind = not_a_file(path)
            if str(path).startswith(("http:", "https:")):
                raise SkipPhoto("unreadable: URLs are not fetched, so download it first")
            raise SkipPhoto(f"unreadable: it is {kind}" if kind else "unreadable: no file")
        if path.stat().st_size > MAX_BYTES:
            raise SkipPhoto(f"unreadable: over {MAX_BYTES // 1_000_000} MB")
        photo = look_at(path.read_bytes())
    except OSError as error:
        raise SkipPhoto(f"unreadable: {error.strerror}") from None
    if photo.mended is not None:
        log.warning("%s is mended: a %s", path.name, photo.mended)
    return photo


def iter_photos(
    paths: Sequence[Path], advance: Callable[[int], None] = lambda _: None
) -> Iterator[LookedAt | SkipPhoto]:
    """Yields photos one by one, because a folder may hold more than fits into memory.

    For a photo that cannot be read it yields the reason. `advance` is called with 1 after each.
    """
    for path in paths:
        try:
            yield read_photo(path)
        except SkipPhoto as reason:
            yield reason
        advance(1)


def photos_of(folder: Path) -> list[Path]:
    """Returns the photos directly in a folder, sorted by name.

    They include kinds of pictures that cannot be read, so that these are refused and not ignored.
    """
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def folders_of(folder: Path) -> list[Path]:
    """Returns the folders directly in a folder, sorted by name, without those of the system."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_litter(path.name))


def save_image(image: Image.Image, path: Path) -> None:
    """Writes an annotated image in the format of the file's suffix, readable by its owner alone.

    Raises:
        PersonaError: the suffix names no format of photos that can be written.
    """
    kind = kind_of_suffix(path.suffix)
    buffer = io.BytesIO()
    try:
        if kind is None or not kind.read:
            raise KeyError(path.suffix)
        image.save(buffer, kind.name, quality=QUALITY)
    except KeyError:  # Pillow may be without AVIF
        raise PersonaError(f"--annotate {path}: name it .png or .jpg") from None
    write_atomically(path, buffer.getvalue(), PRIVATE)


def copy_name(path: Path) -> str:
    """Returns the file name of an annotated copy: the photo's, if its format can be written."""
    kind = kind_of_suffix(path.suffix)
    return path.name if kind is not None and kind.read else f"{path.name}.jpg"


def is_film(path: Path) -> bool:
    """Whether a file is treated as a video.

    An animated GIF is a video, and no other picture is. A file of an unknown kind is a photo if its
    suffix is that of one, and a video otherwise.
    """
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        kind = kind_of(head)
        if kind is None:
            return path.suffix.lower() not in IMAGE_SUFFIXES
        return kind.name == "GIF" and is_animated_gif(head + file.read(MAX_BYTES))
