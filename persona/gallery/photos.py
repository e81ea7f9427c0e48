"""Photos from files and folders that a user names, and the boxes drawn on them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from persona.data.align.decode import decode_photo
from persona.data.raw.base import IMAGE_SUFFIXES
from persona.errors import PersonaError, SkipPhoto
from persona.files import write_atomically
from persona.gallery.people import Sighting

Pixels = npt.NDArray[np.uint8]

MAX_BYTES = 200_000_000
KNOWN, UNKNOWN, REFUSED = (0, 200, 80), (255, 170, 0), (150, 150, 150)
"""Colours of boxes."""
QUALITY = 95
"""Of an annotated JPEG or WebP."""


def read_photo(path: Path) -> Pixels:
    """An upright (H, W, 3) uint8 RGB photo.

    Raises:
        SkipPhoto: no file, or one that may not be read, is empty, truncated, too large or no image.
    """
    try:
        if not path.is_file():  # a pipe would be waited for, a device has no end
            raise SkipPhoto("unreadable: no file")
        if path.stat().st_size > MAX_BYTES:
            raise SkipPhoto(f"unreadable: over {MAX_BYTES // 1_000_000} MB")
        return np.asarray(decode_photo(path.read_bytes()))
    except OSError as error:
        raise SkipPhoto(f"unreadable: {error.strerror}") from None


def iter_photos(
    paths: Sequence[Path], advance: Callable[[int], None] = lambda _: None
) -> Iterator[Pixels | SkipPhoto]:
    """Photos one by one, or why one cannot be read: a folder may hold more than memory does.

    `advance` is told of each that was looked at.
    """
    for path in paths:
        try:
            yield read_photo(path)
        except SkipPhoto as reason:
            yield reason
        advance(1)


def photos_of(folder: Path) -> list[Path]:
    """The photos directly in a folder, by name."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def folders_of(folder: Path) -> list[Path]:
    """The folders directly in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


Mark = tuple[tuple[float, float, float, float], str, tuple[int, int, int]]
"""A box (x, y, width, height), what stands at it, and its colour."""


def mark_of(sighting: Sighting, box: tuple[float, float, float, float]) -> Mark:
    """A face as it is drawn."""
    if sighting.refused is not None:
        return box, sighting.refused.partition(":")[0], REFUSED
    if sighting.name is None:
        return box, "unknown", UNKNOWN
    return box, f"{sighting.name} {sighting.score:.2f}", KNOWN


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
    """Writes an image in the format that its name asks for.

    Raises:
        PersonaError: it asks for none that a photo has.
    """
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise PersonaError(f"--annotate {path}: name it .png or .jpg")
    buffer = io.BytesIO()
    image.save(buffer, Image.registered_extensions()[path.suffix.lower()], quality=QUALITY)
    write_atomically(path, buffer.getvalue())
