"""Enrolling many people from a list: `persona gallery import people.csv`.

1. the list is read: a CSV or parquet file with the columns `name` and `photo`
2. worker processes read photos, find their one face and embed it, a few photos at a time
3. this process enrols each person in one transaction, as soon as all photos of the person are seen
4. a journal notes the person, so that an interrupted import goes on behind them

The journal has no say in what is stored. If a kill comes between a transaction and its note, or the
journal is lost, the person's photos are looked at again and found to be enrolled already. A person
who is noted but no longer enrolled is enrolled again.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from persona.data.align.spec import AlignSpec, Crop
from persona.data.raw.parquet import open_parquet
from persona.errors import PersonaError, SkipPhoto
from persona.files import PRIVATE, bounded_lines, folder_lock, write_atomically
from persona.gallery.faces import Eyes
from persona.gallery.people import DoubtError, Gallery, only_face
from persona.gallery.photos import read_photo
from persona.gallery.store import OtherNetworkError, Templates, check_name
from persona.progress import progress_bar
from persona.workers import told_in_all, usable_cores, worker_pool

SUFFIXES = (".csv", ".parquet", ".pq")
NAME, PHOTO = "name", "photo"
"""The columns of a list. Others are ignored."""
REFUSED_COLUMNS = ("row", NAME, PHOTO, "reason")
AT_ONCE = 8
"""Photos that a worker takes at once."""
ROWS_AT_ONCE = 10_000
JOURNALS = ".imports"
"""Folder of the journals, beside the default gallery."""


@dataclass(frozen=True)
class ListedRow:
    """A row of a list."""

    row: int
    """Number of the row in the file. The header of a CSV is row 1, and so is the first row of a
    parquet file."""
    name: str
    photo: str
    """Path as it is given: relative to the list's folder, or absolute."""


@dataclass(frozen=True)
class Refusal:
    """A row whose photo was not enrolled."""

    row: int
    name: str
    photo: str
    reason: str


@dataclass
class Listed:
    """A list that was read."""

    path: Path
    people: dict[str, list[ListedRow]] = field(default_factory=dict)
    """Rows by the person's name as it is stored, in the order in which names first occur."""
    refused: list[Refusal] = field(default_factory=list)
    """Rows without a name that can be used, or without a photo."""
    nameless: int = 0
    """Number of rows without a name that can be used."""

    @property
    def photos(self) -> int:
        """Number of rows that name a person and a photo."""
        return sum(map(len, self.people.values()))

    def path_of(self, row: ListedRow) -> Path:
        """Path of a row's photo."""
        return self.path.parent / row.photo


@dataclass
class Imported:
    """What an import did."""

    people: int = 0
    """Number of people of the list who are enrolled now."""
    added: int = 0
    """Number of photos that were added, also by an interrupted import that this one continued."""
    already: int = 0
    """Number of photos that were enrolled before or are listed twice."""
    continued: int = 0
    """Number of people whom an interrupted import had come to."""
    refused: list[Refusal] = field(default_factory=list)
    """Sorted by row."""
    failed: dict[str, str] = field(default_factory=dict)
    """Reasons by name, for people of whom nothing was enrolled."""

    def reasons(self) -> list[tuple[str, int]]:
        """Number of refused photos by kind of reason, the most frequent first."""
        return Counter(kind_of(one.reason) for one in self.refused).most_common()


def kind_of(reason: str) -> str:
    """The kind of a reason, without its figures and names."""
    for part, kind in (
        ("do not look like", "the person's photos look like two people"),
        ("looks like", "the person looks like somebody who is enrolled"),
    ):
        if part in reason:
            return kind
    kind = reason.partition(":")[0]
    words = kind.split()
    return "several faces" if len(words) == 2 and words[1] == "faces" else kind


# --- the list ---------------------------------------------------------------------------------


def read_list(path: Path) -> Listed:
    """Reads a list of names and photos. No photo is opened.

    Raises:
        PersonaError: there is no such file, it cannot be read, lacks a column, or has no row.
    """
    if not path.is_file():
        raise PersonaError(f"no file at {path}")
    listed = Listed(path)
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _parquet_rows(path)
    empty: dict[str, list[ListedRow]] = {}
    count = 0
    for row in rows:
        count += 1
        try:
            name = check_name(row.name)
        except PersonaError as error:
            listed.refused.append(Refusal(**vars(row), reason=f"no name: {error}"))
            listed.nameless += 1
            continue
        if row.photo:
            listed.people.setdefault(name, []).append(row)
        else:
            listed.refused.append(Refusal(**vars(row), reason="no photo: the row names none"))
            empty.setdefault(name, []).append(row)
    if not count:
        raise PersonaError(f"{path} has no row below its header: expected a name and a photo a row")
    for name in empty:
        listed.people.setdefault(name, [])
    return listed


def _csv_rows(path: Path) -> Iterator[ListedRow]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(bounded_lines(file, path))
            header = [name.strip().lower() for name in next(reader, [])]
            at_name, at_photo = _columns(path, header)
            for number, fields in enumerate(reader, start=2):
                if not fields:
                    continue  # an empty line
                # A row that is too short is refused for what it lacks.
                padded = [*fields, *[""] * (len(header) - len(fields))]
                yield ListedRow(number, padded[at_name].strip(), padded[at_photo].strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PersonaError(f"{path} cannot be read as a CSV in UTF-8 ({error})") from None


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


@dataclass(frozen=True)
class Looked:
    """What a photo shows: a template, or the reason why there is none."""

    template: Templates | None = None
    crop: Crop | None = None
    """The crop, if the gallery keeps crops."""
    refused: str | None = None


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
                    seen, reason = only_face(self.eyes, read_photo(path).pixels)
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


# --- the journal ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Note:
    """What the journal holds of a person. It has no name and no path."""

    key: str
    """Digest of the name, and of path, size and time of each photo."""
    added: int = 0
    already: int = 0
    refused: tuple[tuple[int, str], ...] = ()
    """Place among the person's rows, and reason, of each refused photo."""
    failed: str | None = None
    """Why nothing of the person was enrolled."""
    how: str = ""
    """Threshold, `force` and smallest face with which that was decided."""


class Journal:
    """The people of a list that an import has come to, see `open_journal`."""

    def __init__(self, folder: Path, file: IO[bytes]) -> None:
        self.notes: dict[str, Note] = {}
        self._folder, self._file = folder, file
        whole = 0
        for line in file:
            try:
                values = json.loads(line)
                note = Note(**values | {"refused": tuple(map(tuple, values["refused"]))})
            except (ValueError, TypeError, LookupError):
                break  # a kill cut this line
            whole += len(line)
            self.notes[note.key] = note
        file.truncate(whole)
        file.seek(whole)

    def note(self, note: Note) -> None:
        """Notes a person. Call it after the person's transaction."""
        self._file.write(json.dumps(asdict(note)).encode() + b"\n")
        self._file.flush()

    def remove(self) -> None:
        """Removes the journal of an import that has come to its end."""
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def open_journal(home: Path, gallery: Gallery, path: Path) -> Iterator[Journal]:
    """Opens the journal of importing a list into a gallery, below the folder `home`.

    Raises:
        PersonaError: another process imports the same list into the same gallery.
    """
    subject = f"{Path(gallery.store.place).absolute()}\0{path.absolute()}"
    key = hashlib.sha256(subject.encode("utf-8", "replace")).hexdigest()[:16]
    folder = home / JOURNALS / key
    with folder_lock(folder, doing="importing this list, with its journal in"):
        opened = os.open(folder / "people.jsonl", os.O_RDWR | os.O_CREAT, PRIVATE)
        with os.fdopen(opened, "r+b") as file:
            yield Journal(folder, file)


def _key(gallery: Gallery, listed: Listed, name: str) -> str:
    """Digest of a person's name and photos, and of the network."""
    stamps = []
    for row in listed.people[name]:
        path = listed.path_of(row)
        try:
            known = path.stat()
            stamps.append([str(path), known.st_size, known.st_mtime_ns])
        except (OSError, ValueError):  # ValueError for a path with a zero byte
            stamps.append([str(path)])
    value = [gallery.eyes.named.digest, gallery.keep_crops, name, stamps]
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


# --- importing --------------------------------------------------------------------------------


def import_list(
    gallery: Gallery,
    listed: Listed,
    journal: Journal,
    models: Path,
    *,
    force: bool = False,
    workers: int | None = None,
) -> Imported:
    """Enrols everybody of a list.

    Args:
        gallery: the open gallery.
        listed: the list.
        journal: the open journal of the import. It is removed at the end.
        models: folder of models, where workers find the gallery's network.
        force: whether to enrol photos that look like two people, or a new name that looks like
            somebody who is enrolled.
        workers: number of processes. None takes one a core; 0 looks at photos in this process.

    Raises:
        PersonaError: the gallery cannot be written, or a worker was killed. Running the import
            again continues it.
    """
    gallery.store.check_writable()
    how = f"{gallery.threshold!r} {force} {gallery.eyes.min_face}"
    enrolled = {person.name: person.photos for person in gallery.people()}
    done = Imported(refused=list(listed.refused))
    due: list[tuple[str, str]] = []
    with progress_bar("enrolling", total=listed.photos, unit="photos") as advance:
        for name, rows in listed.people.items():
            key = _key(gallery, listed, name)
            note = journal.notes.get(key)
            if note is None or not _still_so(note, name, enrolled, how):
                due.append((name, key))
                continue
            _count(done, name, rows, note)
            done.continued += 1
            advance(len(rows), earlier=True)
        paths = [listed.path_of(row) for name, _ in due for row in listed.people[name]]
        with _looking(gallery, models, workers, len(paths), advance) as look:
            seen = look(paths)
            for name, key in due:
                rows = listed.people[name]
                note = _enroll(gallery, name, rows, list(islice(seen, len(rows))), key, how, force)
                journal.note(note)
                _count(done, name, rows, note)
    journal.remove()
    done.refused.sort(key=lambda one: one.row)
    return done


def _still_so(note: Note, name: str, enrolled: dict[str, int], how: str) -> bool:
    """Whether what the journal says of a person is still true of the gallery."""
    if note.failed is not None:
        return note.how == how
    return enrolled.get(name, 0) >= max(1, note.added)


@contextlib.contextmanager
def _looking(
    gallery: Gallery, models: Path, workers: int | None, photos: int, advance: Callable[[int], None]
) -> Iterator[Callable[[Sequence[Path]], Iterator[Looked]]]:
    """Yields a function that looks at photos and yields what they show, in their order."""
    eyes, keep_crops = gallery.eyes, gallery.keep_crops
    if workers is None:
        cores = usable_cores()
        workers = min(cores, -(-photos // AT_ONCE)) if cores > 1 else 0
    build: Callable[..., Looker] = build_looker
    arguments: tuple[Any, ...] = (
        eyes.named.name,
        eyes.named.digest,
        models,
        eyes.align,
        eyes.min_face,
        keep_crops,
    )
    if not workers:
        build, arguments = _same, (Looker(eyes, keep_crops=keep_crops),)
    with worker_pool(
        build, arguments, workers, preload=("persona.gallery.importing",), tell=advance
    ) as work:

        def look(paths: Sequence[Path]) -> Iterator[Looked]:
            starts = range(0, len(paths), AT_ONCE)
            for some in work(paths[start : start + AT_ONCE] for start in starts):
                yield from some

        yield look


def _same(looker: Looker) -> Looker:
    return looker


def _enroll(
    gallery: Gallery,
    name: str,
    rows: Sequence[ListedRow],
    seen: Sequence[Looked],
    key: str,
    how: str,
    force: bool,
) -> Note:
    """Enrols one person in one transaction, and returns what to note about it."""
    refused = tuple(
        (place, one.refused) for place, one in enumerate(seen) if one.refused is not None
    )
    usable = [place for place, one in enumerate(seen) if one.template is not None]
    if not usable:
        failed = "no photo of this name can be used" if rows else "no photo: no row names one"
        return Note(key, refused=refused, failed=failed, how=how)
    templates = [one.template for one in seen if one.template is not None]
    crops = [one.crop for one in seen if one.crop is not None]
    try:
        enrolled = gallery.enroll_templates(
            *(name, [Path(rows[place].photo).name for place in usable], np.stack(templates), crops),
            accept=(DoubtError,) if force else (),
        )
    except DoubtError as doubt:
        # Other errors, as that of a full disk, are not about this person: they end the import.
        everyone = (*refused, *((place, str(doubt)) for place in usable))
        return Note(key, refused=tuple(sorted(everyone)), failed=str(doubt), how=how)
    return Note(key, enrolled.added, enrolled.already, refused)


def _count(done: Imported, name: str, rows: Sequence[ListedRow], note: Note) -> None:
    """Adds what is noted of a person to the result."""
    if note.failed is None:
        done.people += 1
    else:
        done.failed[name] = note.failed
    done.added += note.added
    done.already += note.already
    done.refused += [Refusal(**vars(rows[place]), reason=reason) for place, reason in note.refused]


def check_refused(path: Path, listed: Listed) -> None:
    """Raises PersonaError unless refusals may be written to this path."""
    if path.suffix.lower() != ".csv":
        raise PersonaError(f"--refused {path}: name it .csv, so that it replaces no other file")
    if path.exists() and path.samefile(listed.path):
        raise PersonaError(f"--refused {path} is the list itself: name another file")


def write_refused(path: Path, listed: Listed, refused: Sequence[Refusal]) -> None:
    """Writes a CSV of the refused rows, which can be mended and imported itself.

    Its paths are relative to its own folder; absolute ones stay so.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(REFUSED_COLUMNS)
    for one in refused:
        photo = one.photo
        if photo and not Path(photo).is_absolute():
            photo = os.path.relpath(listed.path.parent / photo, path.parent)
        writer.writerow((one.row, one.name, photo, one.reason))
    write_atomically(path, buffer.getvalue().encode("utf-8", "backslashreplace"), PRIVATE)
