"""Reading kept crops.

A gallery, a file of unknown faces and the answers of a server may come from elsewhere. Their crops
are therefore decoded only if they look like crops: square JPEG or PNG images of a limited size.
"""

from __future__ import annotations

import io

from PIL import Image

from persona.errors import PersonaError

LEAST_PX, MOST_PX = 8, 1024
"""Smallest and largest side of a crop in px. The largest is also that of an alignment."""
FORMATS = ("JPEG", "PNG")


def read_crop(data: bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Decodes a kept crop as an RGB image.

    Raises:
        PersonaError: it is no square image of these formats and `LEAST_PX` to `MOST_PX` px, or is
            cut short.
    """
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            # Before it is decoded: a small file may claim any size.
            if image.width == image.height and LEAST_PX <= image.width <= MOST_PX:
                return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        pass
    raise PersonaError(
        f"a kept face is no square {' or '.join(formats)} of {LEAST_PX} to {MOST_PX} px: `persona "
        "gallery audit` names whose it is; forget them, or enrol them anew"
    )


def is_crop(data: bytes, formats: tuple[str, ...] = FORMATS) -> bool:
    """Whether `read_crop` can decode it."""
    try:
        read_crop(data, formats)
    except PersonaError:
        return False
    return True
