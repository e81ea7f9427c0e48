"""The photos of packed sets by number, each read where it lies when it is wanted.

Training streams whole sets; learning goes back to single photos: those of one identity, those that
a memory keeps.

Shapes: N photos, B batch, C channel, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from persona.data.shards import Manifest, key_of
from persona.data.storage import SetFolder
from persona.data.stream import decode_into
from persona.data.tars import ShardReader, damaged
from persona.errors import PersonaError

Ints = npt.NDArray[np.int64]


class Photos:
    """The photos of one set or several; identities of one name are one identity."""

    def __init__(self, sets: Sequence[tuple[SetFolder, Manifest]]) -> None:
        """Opens the shards and reads what is known of each photo; no image is decoded.

        Raises:
            PersonaError: triplets, crops of different sizes, a damaged shard, or no photo.
        """
        self.sets = list(sets)
        self.size_px = sets[0][1].align.image_size
        self._readers: list[ShardReader] = []
        places: list[tuple[int, int, int, int]] = []
        names: list[str] = []
        landmarks: list[npt.NDArray[np.float32]] = []
        for number, (folder, manifest) in enumerate(self.sets):
            _check(manifest, self.size_px)
            for shard, entry in enumerate(manifest.shards):
                path = manifest.shard_path(folder, shard)
                no_face = frozenset(key_of(key).encode() for key in entry.no_face)
                samples = entry.samples - len(no_face)
                reader = ShardReader(path, ["jpg", "json"], samples, no_face)
                for row in range(samples):
                    try:
                        meta = json.loads(bytes(reader.read(row)[1]))
                        names.append(manifest.classes[int(meta["class"])])
                        points = meta["landmarks"]
                        nowhere = np.full((6, 2), np.nan, np.float32)
                        landmarks.append(
                            nowhere if points is None else np.array(points, np.float32)
                        )
                    except (KeyError, TypeError, ValueError, IndexError) as error:
                        raise damaged(path, f"sample {row}: {type(error).__name__}") from None
                    places.append((number, shard, len(self._readers), row))
                self._readers.append(reader)
        if not places:
            raise PersonaError(f"set {sets[0][1].name} has no photo with a face: nothing to learn")
        self._places = np.array(places, np.int64)
        self.landmarks = torch.from_numpy(np.stack(landmarks))
        """(N, 6, 2) float32 points and scale (persona/landmarks.py); NaN where there are none."""
        self.names = tuple(sorted(set(names)))
        """Identities that have photos, sorted."""
        number_of = {name: number for number, name in enumerate(self.names)}
        self.identity = np.array([number_of[name] for name in names], np.int64)
        """(N,) places in `names`."""

    def __len__(self) -> int:
        return len(self._places)

    def of_set(self, number: int) -> Ints:
        """The photos of one of the sets."""
        return np.flatnonzero(self._places[:, 0] == number)

    def jpeg(self, photo: int) -> bytes:
        """A photo's bytes.

        Raises:
            PersonaError: the shard has changed since it was opened.
        """
        _, _, reader, row = self._places[photo].tolist()
        try:
            return bytes(self._readers[reader].read(row)[0])
        except (KeyError, ValueError) as error:
            raise damaged(self._readers[reader].path, f"sample {row}: {error}") from None

    def places(self, photos: Ints) -> tuple[Ints, Ints]:
        """(B,) shards of photos, and (B,) their places in them."""
        _, shards, readers, rows = self._places[photos].T
        pairs = zip(readers.tolist(), rows.tolist(), strict=True)
        return shards, np.array([self._readers[reader].places[row] for reader, row in pairs])

    def key(self, photo: int) -> int:
        """A photo's key in its set."""
        _, _, reader, row = self._places[photo].tolist()
        return int(self._readers[reader].keys[row])

    def images(self, photos: Ints) -> Tensor:
        """(B, 3, H, W) uint8 RGB, channels last in memory.

        Raises:
            PersonaError: a JPEG is damaged.
        """
        jpegs = [self.jpeg(photo) for photo in photos.tolist()]
        try:
            return decode(jpegs, self.size_px)
        except ValueError:
            where = ", ".join(sorted({manifest.name for _, manifest in self.sets}))
            raise PersonaError(
                f"set {where} holds a damaged photo: check it with `persona shards verify`"
            ) from None


def _check(manifest: Manifest, size_px: int) -> None:
    if manifest.kind != "photos":
        raise PersonaError(f"set {manifest.name} holds triplets: learning takes a set of photos")
    if manifest.align.image_size != size_px:
        raise PersonaError(
            f"set {manifest.name} has crops of {manifest.align.image_size} px, the other set "
            f"{size_px} px: pack it with --image-size {size_px}"
        )


def decode(jpegs: Iterable[bytes], size_px: int) -> Tensor:
    """(B, 3, H, W) uint8 RGB of JPEGs, channels last in memory; ValueError if one is damaged."""
    wanted = list(jpegs)
    images_BHWC = np.empty((len(wanted), size_px, size_px, 3), np.uint8)
    for jpeg, image_HWC in zip(wanted, images_BHWC, strict=True):
        decode_into(jpeg, image_HWC)
    return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2)
