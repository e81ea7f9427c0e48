"""A photo in any form that a program has it in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from persona.errors import PersonaError, SkipPhoto
from persona.gallery.photos import look_at, read_photo
from persona.workspace import user_path

Pixels = npt.NDArray[np.uint8]
PhotoLike = str | Path | bytes | Image.Image | Pixels
"""A path, the bytes of an image file, a PIL image, or an upright (H, W, 3) uint8 RGB array."""


def to_pixels(photo: PhotoLike, what: str = "photo") -> Pixels:
    """An upright photo as (H, W, 3) uint8 RGB.

    Photos of more than 16 megapixels come at half their side, or a quarter, and so on.

    Args:
        photo: a path, the bytes of an image file, a PIL image, or an array.
        what: what to call the photo in an error.

    Raises:
        PersonaError: it is no photo, is damaged, or is too large.
    """
    try:
        if isinstance(photo, str | Path):
            what = f"{what} {photo}"
            return read_photo(user_path(str(photo))).pixels
        if isinstance(photo, bytes):
            return look_at(photo).pixels
    except SkipPhoto as reason:
        raise PersonaError(f"{what}: {reason}") from None
    if isinstance(photo, Image.Image):
        return np.array(photo.convert("RGB"))
    if not isinstance(photo, np.ndarray):
        raise PersonaError(
            f"{what}: give a path, bytes, a PIL image or an array, not {type(photo).__name__}"
        )
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
        raise PersonaError(
            f"{what}: an array must be (height, width, 3) uint8 RGB, not "
            f"{photo.shape} {photo.dtype}"
        )
    return photo
