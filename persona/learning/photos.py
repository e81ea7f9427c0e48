"""Random access to the photos of packed sets by number.

Training streams whole sets. Continual learning needs single photos instead, such as those of one
identity or those that a memory keeps. A photo is read from its shard only when it is needed.

Shapes: N photos, B batch, C channel, H W pixels.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import orjson
import torch
from torch import Tensor

from persona.data.samples import NO_LANDMARKS, decode_into
from persona.data.sets import FaceSet, open_faces
from persona.data.shards import Manifest
from persona.data.tars import ShardReader, damaged
from persona.errors import PersonaError

Ints = npt.NDArray[np.int64]


class Photos:
    """The photos of one or more sets, numbered from 0.

    Identities of the same name in two sets are one identity. Under 100 bytes per photo are kept in
    memory.
    """

    def __init__(self, sets: Sequence[FaceSet]) -> None:
        """Opens the shards and reads the identity of each photo, but no image.

        Raises:
            PersonaError: a set holds triplets or is unlabelled, crops differ in size, a shard is
                damaged, or there is no photo.
        """
        self.sets = list(sets)
        self.size_px = sets[0].manifest.align.image_size
        self._readers: list[ShardReader] = []
        self._shards: list[int] = []
        """Number of each reader's shard within its set."""
        self._set_bounds = [0]
        """First photo of each set, and at the end the number of photos."""
        classes: list[Ints] = []
        """Class index of each photo within its set, one array per set."""
        for faces in self.sets:
            manifest = faces.manifest
            manifest.check_labelled("learning")
            _check(manifest, self.size_px)
            found = [np.empty(0, np.int64)]
            for shard in range(len(manifest.shards)):
                reader = open_faces(faces, shard)
                found.append(_read_classes(reader, len(manifest.classes)))
                self._readers.append(reader)
                self._shards.append(shard)
            classes.append(np.concatenate(found))
            self._set_bounds.append(self._set_bounds[-1] + len(classes[-1]))
        self._starts = np.cumsum([0, *(len(reader.places) for reader in self._readers)])
        """First photo of each reader, and at the end the number of photos."""
        if not len(self):
            raise PersonaError(f"set {sets[0].name} has no photo with a face: nothing to learn")
        names_of = [faces.identities for faces in self.sets]
        present = [
            [names[place] for place in np.unique(of_set).tolist()]
            for names, of_set in zip(names_of, classes, strict=True)
        ]
        self.names = tuple(sorted(set(itertools.chain(*present))))
        """Names of the identities that have photos, sorted."""
        number_of = {name: number for number, name in enumerate(self.names)}
        tables = [np.array([number_of.get(name, -1) for name in names]) for names in names_of]
        self.identity: Ints = np.concatenate(
            [table[of_set] for table, of_set in zip(tables, classes, strict=True)]
        )
        """(N,) identity of each photo, as place in `names`."""

    def __len__(self) -> int:
        return int(self._starts[-1])

    def of_set(self, number: int) -> Ints:
        """Numbers of the photos of one set."""
        return np.arange(*self._set_bounds[number : number + 2])

    def _find(self, photos: Ints) -> list[tuple[ShardReader, int, int]]:
        """Reader, row in that reader, and shard number of each photo."""
        numbers = np.searchsorted(self._starts, photos, side="right") - 1
        rows = photos - self._starts[numbers]
        return [
            (self._readers[number], row, self._shards[number])
            for number, row in zip(numbers.tolist(), rows.tolist(), strict=True)
        ]

    def _read(self, photos: Ints) -> list[list[memoryview]]:
        """JPEG and JSON of each photo.

        Raises:
            PersonaError: a shard has changed since it was opened.
        """
        return [reader.read_one(row) for reader, row, _ in self._find(photos)]

    def jpeg(self, photo: int) -> bytes:
        """JPEG bytes of a photo.

        Raises:
            PersonaError: the shard has changed since it was opened.
        """
        ((jpeg, _),) = self._read(np.array([photo]))
        return bytes(jpeg)

    @functools.cached_property
    def sizes(self) -> Ints:
        """(N,) size of each photo's JPEG in bytes, found without reading the JPEGs."""
        return np.concatenate([reader.sizes("jpg") for reader in self._readers])

    def places(self, photos: Ints) -> tuple[Ints, Ints]:
        """(B,) shard number of each photo, and (B,) its place in the shard."""
        found = self._find(photos)
        places = [reader.places[row] for reader, row, _ in found]
        return np.array([shard for *_, shard in found]), np.array(places)

    def keys(self) -> Ints:
        """(N,) key of each photo within its set.

        Raises:
            PersonaError: a key is not a number. The message names the shard.
        """
        return np.concatenate([reader.numbers() for reader in self._readers])

    def landmarks(self, photos: Ints) -> Tensor:
        """(B, 6, 2) float32 landmarks: five points in px and the scale, see persona/landmarks.py.

        Photos without landmarks have NaN.

        Raises:
            PersonaError: the JSON of a photo is damaged.
        """
        metas = [text for _, text in self._read(photos)]
        try:
            points = [orjson.loads(text)["landmarks"] or NO_LANDMARKS for text in metas]
            landmarks_B62 = np.array(points, np.float32).reshape(len(photos), 6, 2)
        except (KeyError, TypeError, ValueError):
            raise self._damaged_photo() from None
        return torch.from_numpy(landmarks_B62)

    def images(self, photos: Ints) -> Tensor:
        """(B, 3, H, W) uint8 RGB, channels last in memory.

        Raises:
            PersonaError: a JPEG is damaged.
        """
        jpegs = [jpeg for jpeg, _ in self._read(photos)]
        try:
            return decode(jpegs, self.size_px)
        except ValueError:
            raise self._damaged_photo() from None

    def _damaged_photo(self) -> PersonaError:
        where = ", ".join(sorted({faces.name for faces in self.sets}))
        return PersonaError(
            f"set {where} holds a damaged photo: check it with `persona shards verify`"
        )


def _read_classes(reader: ShardReader, known: int) -> Ints:
    """(N,) class index of each photo of a shard.

    Raises:
        PersonaError: the shard is damaged, or an index is not below `known`.
    """
    try:
        texts = map(orjson.loads, reader.iter_member("json"))
        classes = np.array([int(meta["class"]) for meta in texts], np.int64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise damaged(reader.path, f"a sample's json: {type(error).__name__}") from None
    if len(classes) and not 0 <= classes.min() <= classes.max() < known:
        raise damaged(reader.path, "a class index outside the manifest's list")
    return classes


def _check(manifest: Manifest, size_px: int) -> None:
    if manifest.kind != "photos":
        raise PersonaError(f"set {manifest.name} holds triplets: learning takes a set of photos")
    if manifest.align.image_size != size_px:
        raise PersonaError(
            f"set {manifest.name} has crops of {manifest.align.image_size} px, the other set "
            f"{size_px} px: pack it with --image-size {size_px}"
        )


def decode(jpegs: Iterable[bytes | memoryview], size_px: int) -> Tensor:
    """(B, 3, H, W) uint8 RGB of JPEGs, channels last in memory. ValueError if one is damaged."""
    wanted = list(jpegs)
    images_BHWC = np.empty((len(wanted), size_px, size_px, 3), np.uint8)
    for jpeg, image_HWC in zip(wanted, images_BHWC, strict=True):
        decode_into(jpeg, image_HWC)
    return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2)
