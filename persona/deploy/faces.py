"""Faces to check an export on, from a packed set or drawn by the program.

Shapes: N faces, H W pixels.
"""

from __future__ import annotations

from itertools import islice

import numpy as np
import numpy.typing as npt

from persona.data.sets import FaceSet, of_shards
from persona.data.stream import build_loader
from persona.data.synthetic import draw_identity, draw_photo
from persona.errors import PersonaError

FACES = 256
"""Number of faces that a file is checked on."""
CALIBRATION_FACES = 128
"""Number of faces that int8 is calibrated on."""
POOL = 10_000
"""Number of crops of a set to choose from. Whole shards are taken, so it may be a few more."""


def set_faces(faces: FaceSet, count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """(N, H, W, 3) uint8 RGB crops of a set, chosen at random by seed.

    There are at most `count`, all different. A larger `count` gives the same crops first. They come
    from the first shards of the set, so that a set of millions of photos need not be read or
    downloaded as a whole. Each shard is a fair sample of the set.

    Args:
        faces: the packed set.
        count: most crops to return.
        seed: seed of the choice.

    Raises:
        PersonaError: the set has no faces.
    """
    manifest = faces.manifest
    counts = [shard.samples - len(shard.no_face) for shard in manifest.shards]
    if not sum(counts):
        raise PersonaError(f"set {manifest.name} has no faces: name another set")
    enough = int(np.searchsorted(np.cumsum(counts), min(POOL, sum(counts)))) + 1
    first = of_shards(faces, slice(enough))
    drawn = build_loader(first, batch_size=1, training=True, seed=seed)
    crops = [batch.images[0].permute(1, 2, 0).numpy().copy() for batch in islice(drawn, count)]
    return np.stack(crops)


def drawn_faces(size_px: int, count: int) -> npt.NDArray[np.uint8]:
    """(N, H, W, 3) uint8 RGB faces drawn by the program, the same each time."""
    photos = [draw_photo(draw_identity(0, number), number, size_px) for number in range(count)]
    return np.stack([np.asarray(photo.convert("RGB")) for photo in photos])
