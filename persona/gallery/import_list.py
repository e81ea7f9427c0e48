"""People from a list: a CSV or parquet file with the columns `name` and `photo`.

Worker processes read the photos, find their one face and embed it, a few photos at a time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona.data.align.spec import AlignSpec, Crop
from persona.data.raw.parquet import open_parquet
from persona.errors import PersonaError, SkipPhoto
from persona.files import iter_csv, not_a_file
from persona.gallery.faces import Eyes
from persona.gallery.importing import (
    NAME,
    PHOTO,
    ListedRow,
    Look,
    Looked,
    PeopleSource,
    Refusal,
)
from persona.gallery.people import Gallery, only_face
from persona.gallery.photos import read_photo
from persona.gallery.store import OtherNetworkError, Templates, check_name
from persona.workers import told_in_all, usable_cores, worker_pool

SUFFIXES = (".csv", ".parquet", ".pq")
LAYOUT = "a list of names and photos (a CSV or parquet file with columns name and photo)"
AT_ONCE = 8
"""Photos that a worker takes at once."""
ROWS_AT_ONCE = 10_000


@dataclass
class PeopleList(PeopleSource):
    """A list that was read. `read_list` reads one."""

    path: Path
    models: Path
    """Folder of models, where workers find the gallery's network."""
    workers: int | None = None
    """Number of processes. None takes one a core; 0 looks at photos in this process."""

    @property
    def subject(self) -> str:
        """The path of the list."""
        return str(self.path.absolute())

    def path_of(self, row: ListedRow) -> Path:
        """Path of a row's photo."""
        return self.path.parent / row.photo

    def stamp(self, row: ListedRow) -> list[Any]:
        """Path, size and time of a photo."""
        path = self.path_of(row)
        try:
            known = path.stat()
        except (OSError, ValueError):  # ValueError for a path with a zero byte
            return [str(path)]
        return [str(path), known.st_size, known.st_mtime_ns]

    @contextlib.contextmanager
    def looking(
        self, gallery: Gallery, photos: int, advance: Callable[[int], None]
    ) -> Iterator[Look]:
        """Starts the workers."""
        eyes, keep_crops, workers = gallery.eyes, gallery.keep_crops, self.workers
        if workers is None:
            cores = usable_cores()
            workers = min(cores, -(-photos // AT_ONCE)) if cores > 1 else 0
        build: Callable[..., Looker] = build_looker
        arguments: tuple[Any, ...] = (
            eyes.named.name,
            eyes.named.digest,
            self.models,
            eyes.align,
            eyes.min_face,
            keep_crops,
        )
        if not workers:
            build, arguments = _same, (Looker(eyes, keep_crops=keep_crops),)
        with worker_pool(
            build, arguments, workers, preload=("persona.gallery.import_list",), tell=advance
        ) as work:

            def look(rows: Sequence[ListedRow]) -> Iterator[Looked]:
                paths = [self.path_of(row) for row in rows]
                starts = range(0, len(paths), AT_ONCE)
                for some in work(paths[start : start + AT_ONCE] for start in starts):
                    yield from some

            yield look


def _same(looker: Looker) -> Looker:
    return looker


# --- the list ---------------------------------------------------------------------------------


def read_list(path: Path, models: Path, workers: int | None = None) -> PeopleList:
    """Reads a list of names and photos. No photo is opened.

    Args:
        path: the .csv or .parquet file.
        models: folder of models, where workers find the gallery's network.
        workers: number of processes that will look at photos. None takes one a core; 0 takes none.

    Raises:
        PersonaError: there is no such file, it cannot be read, lacks a column, or has no row.
    """
    if (kind := not_a_file(path)) is not None:
        raise PersonaError(f"{path} is {kind}: give {LAYOUT}")
    listed = PeopleList(path, models, workers)
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _parquet_rows(path)
    empty: list[str] = []
    count = 0
    for row in rows:
        count += 1
        try:
            name = check_name(row.name)
        except PersonaError as error:
            listed.refused.append(Refusal(**vars(row), reason=f"no name: {error}"))
            continue
        if row.photo:
            listed.people.setdefault(name, []).append(row)
        else:
            listed.refused.append(Refusal(**vars(row), reason="the row names no photo"))
            empty.append(name)
    if not count:
        raise PersonaError(f"{path} has no row below its header: expected a name and a photo a row")
    for name in empty:
        listed.people.setdefault(name, [])
    return listed


def _csv_rows(path: Path) -> Iterator[ListedRow]:
    rows = iter_csv(path, LAYOUT)
    header = [name.strip().lower() for name in next(rows, (1, []))[1]]
    at_name, at_photo = _columns(path, header)
    for number, fields in rows:
        # A row that is too short is refused for what it lacks.
        padded = [*fields, *[""] * (len(header) - len(fields))]
        yield ListedRow(number, padded[at_name].strip(), padded[at_photo].strip())


def _parquet_rows(path: Path) -> Iterator[ListedRow]:
    with open_parquet(path) as (file, schema):
        lower = [str(name).strip().lower() for name in schema.names]
        columns = [schema.names[place] for place in _columns(path, lower)]
        number = 0
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
            for values in batch.to_pylist():
                number += 1
                name, photo = (values[column] for column in columns)
                yield ListedRow(
                    number, *(v.strip() if isinstance(v, str) else "" for v in (name, photo))
                )


def _columns(path: Path, header: Sequence[str]) -> tuple[int, int]:
    lacking = [name for name in (NAME, PHOTO) if name not in header]
    if lacking:
        found = ",".join(header)[:80]
        raise PersonaError(
            f"{path} has no column {' and no column '.join(lacking)}: its first line must name the "
            f"columns {NAME},{PHOTO} (other columns are ignored), found {found!r}"
        )
    return header.index(NAME), header.index(PHOTO)


# --- looking at photos ------------------------------------------------------------------------


class Looker:
    """A worker's function: looks at some photos."""

    def __init__(self, eyes: Eyes, *, keep_crops: bool) -> None:
        self.eyes, self.keep_crops = eyes, keep_crops

    def __call__(self, paths: Sequence[Path]) -> list[Looked]:
        """Looks at each photo. None of them can end the import."""
        found: list[Looked | Crop] = []
        with told_in_all() as done:  # the detector reports photos too
            for path in paths:
                try:
                    seen, reason = only_face(self.eyes, read_photo(path))
                except SkipPhoto as error:
                    seen, reason = None, str(error)
                crop = None if seen is None else seen.crop
                found.append(crop or Looked(refused=reason or "no face"))
                done(len(found))
        crops = [one for one in found if isinstance(one, Crop)]
        templates = iter(self._embed(crops))
        return [
            self._looked(one, next(templates)) if isinstance(one, Crop) else one for one in found
        ]

    def _looked(self, crop: Crop, template: Templates | PersonaError) -> Looked:
        if isinstance(template, PersonaError):
            return Looked(refused=str(template))
        return Looked(template, crop if self.keep_crops else None)

    def _embed(self, crops: Sequence[Crop]) -> list[Templates | PersonaError]:
        """Embeds crops at once, or one by one if one of them has no finite embedding."""
        try:
            return list(self.eyes.embed(crops))
        except PersonaError as error:
            if len(crops) < 2:
                return [error] * len(crops)
            return [one for crop in crops for one in self._embed([crop])]


def build_looker(
    network: str, digest: str, models: Path, align: AlignSpec, min_face: int, keep_crops: bool
) -> Looker:
    """Loads the gallery's network in a worker process.

    Raises:
        OtherNetworkError: the network's file was replaced meanwhile.
    """
    from persona.models.sources import load_embedder

    # Each worker has one core.
    os.environ["OMP_NUM_THREADS"] = "1"
    named = load_embedder(network, models)
    if named.digest != digest:
        raise OtherNetworkError(f"{network} was replaced since the import began: run again")
    return Looker(Eyes(named, align, min_face), keep_crops=keep_crops)
