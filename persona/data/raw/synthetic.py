"""Drawn faces (persona.data.synthetic) as raw datasets in the layouts of VGGFace2 and LFW."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from persona.data.raw.lfw import LFWLayout
from persona.data.raw.vggface2 import VGGFace2Layout
from persona.files import write_atomically
from persona.progress import progress_bar
from persona.workers import tell_done, worker_pool

OBTAIN = "`persona demo` draws it"
FOLDS = 10


class Synthetic(VGGFace2Layout):
    """Drawn faces in VGGFace2's layout."""

    name = "synthetic"
    folder = "Synthetic"
    obtain = OBTAIN


class SyntheticAlbum(VGGFace2Layout):
    """A few drawn people in VGGFace2's layout: what somebody has who did not train the teacher."""

    name = "synthetic-album"
    folder = "SyntheticAlbum"
    obtain = OBTAIN


class SyntheticLFW(LFWLayout):
    """Drawn faces of other identities in LFW's layout, with verification pairs."""

    name = "synthetic-lfw"
    folder = "SyntheticLFW"
    obtain = OBTAIN


@dataclass(frozen=True)
class Population:
    """How many faces to draw. Identities are numbered consecutively: the parts share none."""

    train_identities: int = 240
    test_identities: int = 30
    lfw_identities: int = 60
    photos: int = 5
    """Photos per identity."""
    pairs_per_fold: int = 40
    """Genuine pairs per fold. There are as many impostor pairs."""
    size_px: int = 200
    seed: int = 0
    album_identities: int = 0
    """People of `synthetic-album`."""


def draw_datasets(raw: Path, population: Population, workers: int) -> None:
    """Draws the photos that do not exist below `raw`, then writes the list files."""
    synthetic, album, lfw = (
        raw / kind.folder for kind in (Synthetic, SyntheticAlbum, SyntheticLFW)
    )
    photos: dict[Path, tuple[int, int]] = {}
    lists: dict[Path, str] = {}
    number = 0

    def add_split(folder: Path, split: str, count: int, first: int) -> int:
        names = []
        for person in range(first, first + count):
            for photo in range(population.photos):
                names.append(f"n{person:06d}/{photo + 1:04d}_01.jpg")
                photos[folder / split / names[-1]] = (person, photo)
        lists[folder / f"{split}_list.txt"] = "".join(f"{name}\n" for name in names)
        return first + count

    number = add_split(synthetic, "train", population.train_identities, 0)
    number = add_split(synthetic, "test", population.test_identities, number)
    people = [f"Person_{number + place:04d}" for place in range(population.lfw_identities)]
    for person in people:
        for photo in range(population.photos):
            photos[lfw / person / f"{person}_{photo + 1:04d}.jpg"] = (number, photo)
        number += 1
    if population.album_identities:
        add_split(album, "train", population.album_identities, number)
    lists[lfw / "pairs.txt"] = "".join(draw_pairs(people, population))

    wanted = [(path, *what) for path, what in photos.items() if not path.is_file()]
    if wanted:
        chunks = [wanted[start : start + 32] for start in range(0, len(wanted), 32)]
        with (
            progress_bar("drawing faces", total=len(wanted), unit="photos") as advance,
            worker_pool(
                FaceDrawer, (population.seed, population.size_px), workers, tell=advance
            ) as draw,
        ):
            for _ in draw(chunks):
                pass
    for path, text in lists.items():
        write_atomically(path, text.encode())


@dataclass(frozen=True)
class FaceDrawer:
    """Draws photos and writes them to files."""

    seed: int
    size_px: int

    def __call__(self, chunk: list[tuple[Path, int, int]]) -> None:
        """Draws each (path, number of the identity, number of the photo)."""
        from persona.data.synthetic import draw_identity, draw_photo

        for path, number, photo in chunk:
            image = draw_photo(
                draw_identity(self.seed, number), number * 1000 + photo, self.size_px
            )
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=95)
            write_atomically(path, buffer.getvalue())
            tell_done(1)


def draw_pairs(people: list[str], population: Population) -> Iterator[str]:
    """Yields the lines of a `pairs.txt`. As in LFW's, the folds share no identity."""
    rng = random.Random(population.seed)
    order = rng.sample(people, len(people))
    yield f"{FOLDS}\t{population.pairs_per_fold}\n"
    numbers = range(1, population.photos + 1)
    for fold in range(FOLDS):
        members = order[fold::FOLDS]
        genuine = [(p, i, j) for p in members for i, j in combinations(numbers, 2)]
        for person, i, j in rng.sample(genuine, population.pairs_per_fold):
            yield f"{person}\t{i}\t{j}\n"
        impostor = [
            (p, i, q, j) for p, q in combinations(members, 2) for i in numbers for j in numbers
        ]
        for a, i, b, j in rng.sample(impostor, population.pairs_per_fold):
            yield f"{a}\t{i}\t{b}\t{j}\n"
