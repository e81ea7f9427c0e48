"""Photos in every form that the API takes, read as arrays of pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from persona.errors import PersonaError, SkipPhoto
from persona.gallery.photos import MAX_LOOKED_AT, LookedAt, look_at, look_at_image, read_photo
from persona.workspace import user_path

Pixels = npt.NDArray[np.uint8]
PhotoLike = str | Path | bytes | Image.Image | Pixels
"""A path, the bytes of an image file, a PIL image, or an upright (H, W, 3) uint8 RGB array."""


def look(photo: PhotoLike, what: str = "photo") -> LookedAt:
    """Returns an upright photo as (H, W, 3) uint8 RGB, and the way back to px of the original.

    A PIL image is turned by its EXIF orientation, as a file is. Photos of more than 16 megapixels
    are looked at with 1/2, 1/4 or less of their width and height.

    Args:
        photo: a path, the bytes of an image file, a PIL image, or an array.
        what: what to call the photo in an error.

    Raises:
        PersonaError: the photo cannot be read, is damaged, or is too large.
    """
    try:
        if isinstance(photo, str | Path):
            what = f"{what} {photo}"
            return read_photo(user_path(str(photo)))
        if isinstance(photo, bytes):
            return look_at(photo)
        if isinstance(photo, Image.Image):
            return look_at_image(photo)
    except SkipPhoto as reason:
        raise PersonaError(f"{what}: {reason}") from None
    if not isinstance(photo, np.ndarray):
        raise PersonaError(
            f"{what}: give a path, bytes, a PIL image or an array, not {type(photo).__name__}"
        )
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
        raise PersonaError(
            f"{what}: an array must be (height, width, 3) uint8 RGB, not "
            f"{photo.shape} {photo.dtype}"
        )
    if photo.shape[0] * photo.shape[1] > MAX_LOOKED_AT:
        return look(Image.fromarray(photo), what)
    return LookedAt(photo, (photo.shape[1], photo.shape[0]))
