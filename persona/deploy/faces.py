"""Faces to check an export on: of a packed set, or drawn.

Shapes: N faces, H W pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from persona.data.shards import Manifest
from persona.data.storage import SetFolder
from persona.data.stream import build_loader
from persona.data.synthetic import draw_identity, draw_photo
from persona.errors import PersonaError


def set_faces(
    folder: SetFolder, manifest: Manifest, size_px: int, count: int
) -> npt.NDArray[np.uint8]:
    """(N, H, W, 3) uint8 RGB: the first crops of a set, which are a fair sample of it.

    Raises:
        PersonaError: the crops are of another size, or there is none.
    """
    if manifest.align.image_size != size_px:
        raise PersonaError(
            f"set {manifest.name} has crops of {manifest.align.image_size} px, the model takes "
            f"{size_px} px: name another set, or pack one with --image-size {size_px}"
        )
    faces = np.empty((0, size_px, size_px, 3), np.uint8)
    for batch in build_loader(folder, manifest, batch_size=64, training=False):
        faces = np.concatenate([faces, batch.images.permute(0, 2, 3, 1).numpy()])
        if len(faces) >= count:
            break
    if not len(faces):
        raise PersonaError(f"set {manifest.name} has no faces: name another set")
    return faces[:count]


def drawn_faces(size_px: int, count: int) -> npt.NDArray[np.uint8]:
    """(N, H, W, 3) uint8 RGB drawn faces, alike each time."""
    photos = [draw_photo(draw_identity(0, number), number, size_px) for number in range(count)]
    return np.stack([np.asarray(photo.convert("RGB")) for photo in photos])
