"""The photos of packed sets by number, each read where it lies when it is wanted.

Training streams whole sets; learning goes back to single photos: those of one identity, those that
a memory keeps.

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
from persona.data.shards import Manifest, open_faces
from persona.data.storage import SetFolder
from persona.data.tars import ShardReader, damaged
from persona.errors import PersonaError

Ints = npt.NDArray[np.int64]


class Photos:
    """The photos of one set or several; identities of one name are one identity.

    What is held is under a hundred bytes a photo.
    """

    def __init__(self, sets: Sequence[tuple[SetFolder, Manifest]]) -> None:
        """Opens the shards and reads whom each photo shows; no image is read.

        Raises:
            PersonaError: triplets, crops of different sizes, a damaged shard, or no photo.
        """
        self.sets = list(sets)
        self.size_px = sets[0][1].align.image_size
        self._readers: list[ShardReader] = []
        self._shards: list[int] = []
        """Of each reader: its shard's number in its set."""
        self._set_bounds = [0]
        """Where the photos of each set begin, and where the last one's end."""
        classes: list[Ints] = []
        """Of each set: its photos' places in the set's list of identities."""
        for folder, manifest in self.sets:
            manifest.check_labelled("learning")
            _check(manifest, self.size_px)
            found = [np.empty(0, np.int64)]
            for shard in range(len(manifest.shards)):
                reader = open_faces(folder, manifest, shard)
                found.append(_read_classes(reader, len(manifest.classes)))
                self._readers.append(reader)
                self._shards.append(shard)
            classes.append(np.concatenate(found))
            self._set_bounds.append(self._set_bounds[-1] + len(classes[-1]))
        self._starts = np.cumsum([0, *(len(reader.places) for reader in self._readers)])
        """The first photo of each reader, and how many photos there are."""
        if not len(self):
            raise PersonaError(f"set {sets[0][1].name} has no photo with a face: nothing to learn")
        names_of = [manifest.classes for _, manifest in self.sets]
        present = [
            [names[place] for place in np.unique(of_set).tolist()]
            for names, of_set in zip(names_of, classes, strict=True)
        ]
        self.names = tuple(sorted(set(itertools.chain(*present))))
        """Identities that have photos, sorted."""
        number_of = {name: number for number, name in enumerate(self.names)}
        tables = [np.array([number_of.get(name, -1) for name in names]) for names in names_of]
        self.identity: Ints = np.concatenate(
            [table[of_set] for table, of_set in zip(tables, classes, strict=True)]
        )
        """(N,) places in `names`."""

    def __len__(self) -> int:
        return int(self._starts[-1])

    def of_set(self, number: int) -> Ints:
        """The photos of one of the sets."""
        return np.arange(*self._set_bounds[number : number + 2])

    def _find(self, photos: Ints) -> list[tuple[ShardReader, int, int]]:
        """Of each photo: its reader, its row there, and its shard's number."""
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
        """A photo's bytes.

        Raises:
            PersonaError: the shard has changed since it was opened.
        """
        ((jpeg, _),) = self._read(np.array([photo]))
        return bytes(jpeg)

    @functools.cached_property
    def sizes(self) -> Ints:
        """(N,) bytes that the photos take; none is read."""
        return np.concatenate([reader.sizes("jpg") for reader in self._readers])

    def places(self, photos: Ints) -> tuple[Ints, Ints]:
        """(B,) shards of photos, and (B,) their places in them."""
        found = self._find(photos)
        places = [reader.places[row] for reader, row, _ in found]
        return np.array([shard for *_, shard in found]), np.array(places)

    def keys(self) -> Ints:
        """(N,) the photos' keys, each in its set.

        Raises:
            PersonaError: a key is no number, naming the shard.
        """
        return np.concatenate([reader.numbers() for reader in self._readers])

    def landmarks(self, photos: Ints) -> Tensor:
        """(B, 6, 2) float32 points and scale (persona/landmarks.py); NaN where there are none.

        Raises:
            PersonaError: what is known of a photo is damaged.
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
        where = ", ".join(sorted({manifest.name for _, manifest in self.sets}))
        return PersonaError(
            f"set {where} holds a damaged photo: check it with `persona shards verify`"
        )


def _read_classes(reader: ShardReader, known: int) -> Ints:
    """(samples,) whom the photos of a shard show, as places in the set's list of `known`.

    Raises:
        PersonaError: the shard is damaged.
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


def group(values_N: Ints) -> dict[int, Ints]:
    """Of each value, sorted: where it stands, in order."""
    order = np.argsort(values_N, kind="stable")
    found, starts = np.unique(values_N[order], return_index=True)
    bounds = itertools.pairwise([*starts.tolist(), len(order)])
    return {value: order[a:b] for value, (a, b) in zip(found.tolist(), bounds, strict=True)}


def decode(jpegs: Iterable[bytes | memoryview], size_px: int) -> Tensor:
    """(B, 3, H, W) uint8 RGB of JPEGs, channels last in memory; ValueError if one is damaged."""
    wanted = list(jpegs)
    images_BHWC = np.empty((len(wanted), size_px, size_px, 3), np.uint8)
    for jpeg, image_HWC in zip(wanted, images_BHWC, strict=True):
        decode_into(jpeg, image_HWC)
    return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2)
