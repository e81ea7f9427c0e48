"""Photos from files and folders that a user names, and the boxes drawn on them."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from persona.data.align.bare import is_animated_gif
from persona.data.align.decode import MOST_PIXELS, SHRINKS, EncodedPhoto
from persona.data.align.spec import Box
from persona.data.raw.base import is_litter
from persona.errors import PersonaError, SkipPhoto
from persona.files import PRIVATE, write_atomically
from persona.gallery.people import Sighting
from persona.names import legible
from persona.pictures import HEAD_BYTES, IMAGE_SUFFIXES, kind_of, kind_of_suffix

log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]

MAX_BYTES = 200_000_000
MAX_WHOLE = 52_000_000
"""Pixels of a photo that can only be decoded whole."""
MAX_LOOKED_AT = 16_000_000
"""A photo is looked at smaller until it has no more pixels: the detector takes 50 bytes a pixel."""
KNOWN, UNKNOWN, REFUSED = (0, 200, 80), (255, 170, 0), (150, 150, 150)
"""Colours of boxes."""
QUALITY = 95
"""Of an annotated JPEG or WebP."""


@dataclass(frozen=True)
class LookedAt:
    """An upright photo, perhaps decoded smaller than it is."""

    pixels: Pixels
    """(H, W, 3) RGB."""
    size: tuple[int, int]
    """Width and height of the whole, px."""
    shrink: int
    shift: tuple[float, float]
    """See persona/data/align/decode.py, as for what follows."""
    mended: str | None

    def whole(self, box: Box) -> Box:
        """A box (x, y, width, height) of `pixels` in px of the whole."""
        x, y, width, height = box
        x, y = (at - shift for at, shift in zip((x, y), self.shift, strict=True))
        return x * self.shrink, y * self.shrink, width * self.shrink, height * self.shrink


def look_at(data: bytes, max_pixels: int = MOST_PIXELS, side_px: int | None = None) -> LookedAt:
    """A photo only as large as faces want it.

    Args:
        data: the file.
        max_pixels: of the photo.
        side_px: smaller while its shorter side stays at least this; None: not without need.

    Raises:
        SkipPhoto: empty, truncated, too large or no image.
    """
    photo = EncodedPhoto(data, max_pixels, MAX_WHOLE)
    width, height = photo.size
    room = 1.0 if side_px is None else min(width, height) / side_px
    shrink = next((shrink for shrink in SHRINKS if shrink <= room), 1)
    while width * height > MAX_LOOKED_AT * shrink**2:
        shrink *= 2
    decoded = photo.decode(shrink)
    # Only a JPEG is decoded smaller.
    image = decoded.image if decoded.shrink == shrink else decoded.image.reduce(shrink)
    return LookedAt(np.array(image), photo.size, shrink, decoded.shift, decoded.mended)


def read_photo(path: Path) -> LookedAt:
    """A photo's file.

    Raises:
        SkipPhoto: no file, or one that may not be read, is empty, truncated, too large or no image.
    """
    try:
        if not path.is_file():  # a pipe would be waited for, a device has no end
            raise SkipPhoto("unreadable: no file")
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
) -> Iterator[Pixels | SkipPhoto]:
    """Photos one by one, or why one cannot be read: a folder may hold more than memory does.

    `advance` is told of each that was looked at.
    """
    for path in paths:
        try:
            yield read_photo(path).pixels
        except SkipPhoto as reason:
            yield reason
        advance(1)


def photos_of(folder: Path) -> list[Path]:
    """The photos directly in a folder, by name; of kinds that are not read too, to be refused."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def folders_of(folder: Path) -> list[Path]:
    """The folders directly in a folder, by name; what systems leave beside photos is none."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_litter(path.name))


Mark = tuple[tuple[float, float, float, float], str, tuple[int, int, int]]
"""A box (x, y, width, height), what stands at it, and its colour."""


def mark_of(sighting: Sighting, box: tuple[float, float, float, float]) -> Mark:
    """A face as it is drawn."""
    if sighting.refused is not None:
        return box, sighting.refused.partition(":")[0], REFUSED
    if sighting.name is None:
        return box, "unknown", UNKNOWN
    return box, f"{legible(sighting.name)} {sighting.score:.2f}", KNOWN


def draw_marks(photo: Pixels, marks: Sequence[Mark]) -> Image.Image:
    """The photo with boxes and words on it."""
    image = Image.fromarray(photo)
    draw = ImageDraw.Draw(image)
    thick = max(1, round(min(image.size) / 200))
    font = ImageFont.load_default(max(10, min(image.size) / 25))
    for (x, y, width, height), words, colour in marks:
        draw.rectangle((x, y, x + width, y + height), outline=colour, width=thick)
        left, top, right, bottom = draw.textbbox((x, y), words, font=font, anchor="lb")
        down = max(0.0, -top)  # a face at the upper edge has its name inside
        place = (left, top + down, right + 2, bottom + down)
        draw.rectangle(place, fill=colour)
        draw.text((x, y + down), words, fill="black", font=font, anchor="lb")
    return image


def save_image(image: Image.Image, path: Path) -> None:
    """Writes an image of people and their names in the format that its name asks for.

    Raises:
        PersonaError: it asks for none that a photo has.
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
    """The name of an annotated copy among others: the photo's, if such a file can be written."""
    kind = kind_of_suffix(path.suffix)
    return path.name if kind is not None and kind.read else f"{path.name}.jpg"


def is_film(path: Path) -> bool:
    """Whether a file is to be taken for a video: no still picture is, whatever its kind.

    Of pictures only an animated GIF is. What is neither is a photo by its name, or a video.
    """
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        kind = kind_of(head)
        if kind is None:
            return path.suffix.lower() not in IMAGE_SUFFIXES
        return kind.name == "GIF" and is_animated_gif(head + file.read(MAX_BYTES))
