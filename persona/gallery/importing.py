"""Enrolling many people: `persona gallery import`, from a list or from another gallery's server.

1. a source says who is to be enrolled (persona/gallery/import_list.py: a CSV or parquet file of
   names and photos; persona/gallery/import_server.py: a gallery behind `persona serve`)
2. the source looks at the photos of each person, and gives a template or a reason for each
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
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from persona.data.align.spec import Crop
from persona.errors import PersonaError
from persona.files import PRIVATE, check_writable, folder_lock, write_atomically
from persona.gallery.people import DoubtError, Gallery
from persona.gallery.store import Templates
from persona.progress import progress_bar

NAME, PHOTO = "name", "photo"
"""The columns of a list. Others are ignored."""
REFUSED_COLUMNS = ("row", NAME, PHOTO, "reason")
JOURNALS = ".imports"
"""Folder of the journals, beside the default gallery."""


@dataclass(frozen=True)
class ListedRow:
    """A photo that a source has of a person."""

    row: int
    """Number of the row in a list. The header of a CSV is row 1, and so is the first row of a
    parquet file. In another gallery, the person's place in it, from 1 on."""
    name: str
    """The person's name in the source."""
    photo: str
    """Path in a list as it is given: relative to the list's folder, or absolute. In another
    gallery `photo 1`, `photo 2`, …."""


@dataclass(frozen=True)
class Refusal:
    """A row whose photo was not enrolled."""

    row: int
    name: str
    photo: str
    reason: str


@dataclass(frozen=True)
class Looked:
    """What a photo shows: a template, or the reason why there is none."""

    template: Templates | None = None
    crop: Crop | None = None
    """The crop, if the gallery keeps crops."""
    refused: str | None = None


Look = Callable[[Sequence[ListedRow]], Iterator[Looked]]
"""Looks at photos, and yields what they show in their order."""


@dataclass
class PeopleSource(ABC):
    """Where people are imported from."""

    people: dict[str, list[ListedRow]] = field(default_factory=dict, init=False)
    """Photos by the person's name as it is stored, in the order in which names first occur."""
    refused: list[Refusal] = field(default_factory=list, init=False)
    """Rows without a name that can be used, or without a photo."""

    @property
    @abstractmethod
    def subject(self) -> str:
        """What the journal takes for the same source."""

    @abstractmethod
    def stamp(self, row: ListedRow) -> list[Any]:
        """What of a photo changes when it is another one, as values of JSON."""

    @abstractmethod
    def looking(
        self, gallery: Gallery, photos: int, advance: Callable[[int], None]
    ) -> AbstractContextManager[Look]:
        """Begins to look at photos.

        Args:
            gallery: the open gallery.
            photos: number of photos that will be looked at.
            advance: called with a number of photos when they have been looked at.
        """

    @property
    def photos(self) -> int:
        """Number of photos of all people."""
        return sum(map(len, self.people.values()))


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
def open_journal(home: Path, gallery: Gallery, source: PeopleSource) -> Iterator[Journal]:
    """Opens the journal of importing a source into a gallery, below the folder `home`.

    Raises:
        PersonaError: another process imports the same source into the same gallery.
    """
    subject = f"{Path(gallery.store.place).absolute()}\0{source.subject}"
    key = hashlib.sha256(subject.encode("utf-8", "replace")).hexdigest()[:16]
    folder = home / JOURNALS / key
    with folder_lock(folder, doing="importing the same people, with its journal in"):
        opened = os.open(folder / "people.jsonl", os.O_RDWR | os.O_CREAT, PRIVATE)
        with os.fdopen(opened, "r+b") as file:
            yield Journal(folder, file)


def _key(gallery: Gallery, source: PeopleSource, name: str) -> str:
    """Digest of a person's name and photos, and of the network."""
    stamps = [source.stamp(row) for row in source.people[name]]
    value = [gallery.eyes.named.digest, gallery.keep_crops, name, stamps]
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


# --- importing --------------------------------------------------------------------------------


def import_from(
    source: PeopleSource, gallery: Gallery, journal: Journal, *, force: bool = False
) -> Imported:
    """Enrols everybody of a source.

    Args:
        source: the people and their photos.
        gallery: the open gallery.
        journal: the open journal of the import. It is removed at the end.
        force: whether to enrol photos that look like two people, or a new name that looks like
            somebody who is enrolled.

    Raises:
        PersonaError: the gallery cannot be written, a worker was killed, or a server is not reached
            any more. Running the import again continues it.
    """
    gallery.store.check_writable()
    how = f"{gallery.threshold!r} {force} {gallery.eyes.min_face}"
    enrolled = {person.name: person.photos for person in gallery.people()}
    done = Imported(refused=list(source.refused))
    due: list[tuple[str, str]] = []
    with progress_bar("enrolling", total=source.photos, unit="photos") as advance:
        for name, rows in source.people.items():
            key = _key(gallery, source, name)
            note = journal.notes.get(key)
            if note is None or not _still_so(note, name, enrolled, how):
                due.append((name, key))
                continue
            _count(done, name, rows, note)
            done.continued += 1
            advance(len(rows), earlier=True)
        wanted = [row for name, _ in due for row in source.people[name]]
        with source.looking(gallery, len(wanted), advance) as look:
            seen = look(wanted)
            for name, key in due:
                rows = source.people[name]
                looked = list(islice(seen, len(rows)))
                note, settled = _enroll(gallery, name, rows, looked, key, how, force)
                if settled:
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


def _enroll(
    gallery: Gallery,
    name: str,
    rows: Sequence[ListedRow],
    seen: Sequence[Looked],
    key: str,
    how: str,
    force: bool,
) -> tuple[Note, bool]:
    """Enrols one person in one transaction.

    Returns:
        What to note about it, and whether it is settled. A doubt is not: it names people and
        photos, which the journal must not hold, and it is gone when the other person is forgotten.
    """
    refused = tuple(
        (place, one.refused) for place, one in enumerate(seen) if one.refused is not None
    )
    usable = [place for place, one in enumerate(seen) if one.template is not None]
    if not usable:
        failed = "no photo of this name can be used" if rows else "no photo is named"
        return Note(key, refused=refused, failed=failed, how=how), True
    templates = [one.template for one in seen if one.template is not None]
    crops = [seen[place].crop for place in usable]
    try:
        enrolled = gallery.enroll_templates(
            *(name, [Path(rows[place].photo).name for place in usable], np.stack(templates), crops),
            accept=(DoubtError,) if force else (),
        )
    except DoubtError as doubt:
        # Other errors, as that of a full disk, are not about this person: they end the import.
        everyone = (*refused, *((place, str(doubt)) for place in usable))
        return Note(key, refused=tuple(sorted(everyone)), failed=str(doubt), how=how), False
    return Note(key, enrolled.added, enrolled.already, refused), True


def _count(done: Imported, name: str, rows: Sequence[ListedRow], note: Note) -> None:
    """Adds what is noted of a person to the result."""
    if note.failed is None:
        done.people += 1
    else:
        done.failed[name] = note.failed
    done.added += note.added
    done.already += note.already
    done.refused += [Refusal(**vars(rows[place]), reason=reason) for place, reason in note.refused]


def check_refused(path: Path, listed: Path | None) -> None:
    """Raises PersonaError unless refusals of a list (None: of no file) may be written here."""
    if path.suffix.lower() != ".csv":
        raise PersonaError(f"--refused {path}: name it .csv, so that it replaces no other file")
    if listed is not None and path.exists() and path.samefile(listed):
        raise PersonaError(f"--refused {path} is the list itself: name another file")
    check_writable(path)


def write_refused(path: Path, refused: Sequence[Refusal], folder: Path | None) -> None:
    """Writes a CSV of the refused rows. That of a list can be mended and imported itself.

    Args:
        path: the file.
        refused: the rows.
        folder: the list's folder, which relative paths belong to. They are written relative to the
            folder of the file. None where the rows name no files.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(REFUSED_COLUMNS)
    for one in refused:
        photo = one.photo
        if folder is not None and photo and not Path(photo).is_absolute():
            photo = os.path.relpath(folder / photo, path.parent)
        writer.writerow((one.row, one.name, photo, one.reason))
    write_atomically(path, buffer.getvalue().encode("utf-8", "backslashreplace"), PRIVATE)
