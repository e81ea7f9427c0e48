"""Drawn faces that the detector finds."""

from __future__ import annotations

from PIL import Image

from persona.data.synthetic import draw_identity, draw_photo


def drawn(person: int, photo: int = 1, size_px: int = 160) -> Image.Image:
    """A drawn face that the detector finds."""
    return draw_photo(draw_identity(0, person), photo, size_px).convert("RGB")
