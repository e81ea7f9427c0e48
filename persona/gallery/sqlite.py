"""A gallery in one SQLite file.

The file has a write-ahead log and enforces foreign keys. Every change is one `BEGIN IMMEDIATE`
transaction, for which other writers wait. Templates are compared in memory. Before each answer the
index reads what other connections have written.

A removal leaves nothing in the files: deleted content is overwritten with zeros (`secure_delete`),
the file is rebuilt (`VACUUM`), and the log is truncated. If this is interrupted, the next process
that opens the file does it. Persona cannot reach what a disk keeps of overwritten blocks: encrypt
the disk.

A file may be untrusted. Its whole schema must be the one that the migrations make, because a
trigger, a view or a key without CASCADE changes what a statement does. SQLite then checks all pages
before any query (https://sqlite.org/security.html, untrusted database files).

The template that a photo had before the gallery moved to another network is a column of the photo:
what removes the photo or gives it to another person does so with both templates.

A file that may not be written is only read. If there is a log, SQLite shares it with the writers.
If there is none, reading must not leave one: the file is then opened as immutable, and opened again
when it has changed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from persona.errors import PersonaError
from persona.files import PRIVATE, replacing
from persona.gallery.crypt import Sealer
from persona.gallery.search import TemplateIndex
from persona.gallery.store import (
    Facts,
    Nearest,
    Person,
    Store,
    StoredPhoto,
    Templates,
    UnavailableError,
    align_text,
    changed_meanwhile,
    check_digest,
    check_width,
    nobody,
    not_theirs,
    own_align,
    read_align,
    read_only,
    still_there,
    taken,
    there_already,
)

log = logging.getLogger(__name__)

APPLICATION_ID = 0x50455253
"""`PERS` in ASCII, which tells a gallery from the SQLite files of other programs."""
BUSY_MS = 30_000
MIGRATIONS = (
    """
    CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE person (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, created TEXT NOT NULL
    );
    CREATE TABLE photo (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        person INTEGER NOT NULL REFERENCES person ON DELETE CASCADE,
        model TEXT NOT NULL, template BLOB NOT NULL, crop BLOB, landmarks BLOB
    );
    CREATE INDEX photo_person ON photo (person);
    """,
    "ALTER TABLE photo ADD COLUMN previous BLOB",
    "ALTER TABLE photo ADD COLUMN align TEXT",
)
"""SQL from schema version n to n + 1, in order. The version is stored in `PRAGMA user_version`."""
ALIGN_SINCE = 3
"""Version of the schema that stores the alignment of a crop."""
GENERATION, CLEANING = "generation", "cleaning"
"""Names of two facts: a random number that changes when rows are removed or replaced, and a mark
that the file must be rebuilt."""
UNTRUSTED = ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0")
"""Pragmas for an untrusted file. They read nothing of it."""
UNSOUND = (
    "SELECT 1 FROM person WHERE typeof(name) <> 'text' OR typeof(created) <> 'text'",
    "SELECT 1 FROM photo WHERE person NOT IN (SELECT id FROM person)",
    "SELECT 1 FROM photo WHERE id < 1",
    "SELECT 1 FROM sqlite_sequence WHERE typeof(seq) <> 'integer' OR seq >> 62 <> 0",
)
"""Queries for rows that SQLite accepts but Persona never writes. None of them may find a row."""
PASSING = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY}
"""SQLite's results that are of the moment, not of what was asked."""
POINTS_BYTES = 6 * 2 * 8
UNIT_TOLERANCE = 1e-3
DAMAGED = "the file is damaged: restore it from a copy"


class SqliteStore(Store):
    """A gallery in one SQLite file, as described at the top of this module."""

    def __init__(self, path: Path, *, passphrase: bytes | None, create: bool) -> None:
        """Opens the file, or creates one that only its owner may read.

        Raises:
            PersonaError: see `open_store`.
        """
        self.path, self.place = path.absolute(), str(path)
        self._lock = threading.RLock()
        """Held by the one thread that uses the connection."""
        self._indices: dict[str, tuple[TemplateIndex, str | None, int]] = {}
        """The index, its generation and the number of its last photo, by match."""
        self._network: str | None = None
        """Digest of the network whose templates are searched."""
        if path.exists() and not path.is_file():
            raise PersonaError(f"{path} is no file: choose another path for the gallery")
        if not create and not path.exists():
            raise self._none_there()
        self._obstacle = obstacle_to_writing(path) if path.exists() else None
        """Why the file can only be read. None means that it can be written."""
        if self._obstacle is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE)
        else:
            file = os.open(path, os.O_RDONLY)
        self._inode = os.fstat(file).st_ino
        os.close(file)
        self._state: tuple[object, ...] | None = None
        """State, when it was opened, of a file that is opened as immutable. Otherwise None."""
        with self._explained():
            self._db = self._connect()
        try:
            with self._explained():
                self._prepare(create)
                self._sealer = self._open_seal(passphrase)
                if self._fact(CLEANING) is not None:
                    try:
                        self._clean()
                    except PersonaError as error:
                        log.warning("%s", error)  # recognising works with a full disk too
        except BaseException:
            self._db.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        """Opens a connection with its settings, without reading anything of the file."""
        # SQLite gives a meaning to names such as `:memory:`, but not to an absolute path.
        place = str(self.path)
        if self._obstacle is not None:
            self._state = None if self._log_is_open() else self._state_of_file()
            immutable = "" if self._state is None else "&immutable=1"
            place = f"{self.path.as_uri()}?mode=ro{immutable}"
        db = sqlite3.connect(
            place,
            timeout=BUSY_MS / 1000,
            isolation_level=None,
            check_same_thread=False,
            uri=self._obstacle is not None,
        )
        try:
            for setting in (*UNTRUSTED, "foreign_keys = ON", "secure_delete = ON"):
                db.execute(f"PRAGMA {setting}")
        except BaseException:
            db.close()
            raise
        return db

    def _log_is_open(self) -> bool:
        """Whether a log beside the file holds a part of the gallery."""
        real = self.path.resolve()
        logs = (real.with_name(real.name + end) for end in ("-wal", "-journal"))
        return any(beside.exists() and beside.stat().st_size for beside in logs)

    def _state_of_file(self) -> tuple[object, ...]:
        """Returns a value that changes when somebody writes to the file."""
        known = self.path.stat()
        return known.st_ino, known.st_mtime_ns, known.st_size, self._log_is_open()

    def _has_changed(self) -> bool:
        """Whether a file that is opened as immutable was changed."""
        return self._state is not None and self._state != self._state_of_file()

    def _none_there(self) -> PersonaError:
        return PersonaError(
            f"no gallery at {self.place}: `persona enroll NAME PHOTO...` makes one, --store names "
            "another"
        )

    def _prepare(self, create: bool) -> None:
        """Creates or migrates the schema, or checks that it is that of a gallery."""
        with self._transaction("BEGIN"):  # one consistent view: another process may migrate it
            (version,), (application,) = (
                self._execute(f"PRAGMA {name}").fetchone()
                for name in ("user_version", "application_id")
            )
            tables = self._execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if application != APPLICATION_ID and (application or version or tables):
                raise PersonaError(
                    f"{self.place} is another program's SQLite file: choose another path"
                )
            if not create and not version:
                raise self._none_there()  # an empty file
            self._check_version(version)
            if tables:
                self._check_schema(version)
        if version and self._obstacle is not None:
            return  # reading does without what a later version adds
        self._demand_writable()
        self._execute("PRAGMA journal_mode = WAL")
        if version == len(MIGRATIONS):
            return
        with self._transaction():
            # Read again, because another process may have migrated it meanwhile.
            (version,) = self._execute("PRAGMA user_version").fetchone()
            self._check_version(version)
            for script in MIGRATIONS[version:]:
                for statement in script.split(";"):
                    self._execute(statement)
            self._execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _check_schema(self, version: int) -> None:
        """Raises PersonaError if the schema differs from Persona's, or the file is damaged."""
        there = {
            (kind, name, table, _normal(sql))
            for kind, name, table, sql in self._execute(
                "SELECT type, name, tbl_name, sql FROM sqlite_master"
            )
        }
        foreign = min(
            ((str(row[0]), str(row[1])) for row in there ^ schema_of(version)), default=None
        )
        if foreign is not None:
            kind, name = foreign
            raise PersonaError(
                f"{self.place} is not as Persona makes a gallery (its {kind[:20]} {name[:80]!r} "
                "differs): enroll and forget might not do what they say; use a copy that no other "
                "program has changed"
            )
        # One fault is enough: a malicious file could hold so many that counting never ends.
        if self._execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
            raise self._damaged()
        if any(self._execute(f"{rows} LIMIT 1").fetchone() for rows in UNSOUND):
            raise self._damaged()

    def _check_version(self, version: int) -> None:
        if version < 0:
            raise self._damaged()
        if version > len(MIGRATIONS):
            raise PersonaError(
                f"{self.place} is a gallery of version {version}, this Persona knows "
                f"{len(MIGRATIONS)}: update Persona"
            )

    def _open_seal(self, passphrase: bytes | None) -> Sealer | None:
        """Returns what encrypts values, or None without a passphrase.

        A new gallery is encrypted with the passphrase that it is opened with.
        """
        salt = self._fact("salt")
        if salt is None:
            if passphrase is None:
                return None
            sealer, facts = Sealer.fresh(passphrase)
            with self._transaction():
                if self._execute("SELECT 1 FROM person").fetchone():
                    raise PersonaError(
                        f"{self.place} is not encrypted: leave --passphrase-file out, or export it "
                        "and import it into a new one"
                    )
                if self._fact("salt") is None:
                    for name, value in facts.items():
                        self._set_fact(name, value)
                    return sealer
            return self._open_seal(passphrase)
        if passphrase is None:
            return None
        known = {"salt": salt, "check": self._fact("check") or ""}
        try:
            return Sealer.known(passphrase, known, self.place)
        except ValueError:
            raise self._damaged() from None

    def facts(self) -> Facts | None:
        """Returns the network and alignment of the gallery, or None if it is new."""
        with self._explained():
            return self._facts()

    def _facts(self) -> Facts | None:
        value = self._fact("facts")
        return None if value is None else Facts.from_text(value, self.place)

    def adopt(self, facts: Facts) -> None:
        """Assigns a gallery without photos to this network."""
        with self._explained(), self._transaction():
            found = self._facts()
            if self._execute("SELECT 1 FROM photo").fetchone():
                check_digest(found, facts.digest, self.place)
            elif found is None or found.digest != facts.digest:
                self._keep_facts(facts.adopting(found))
                self._begin_anew()
        self._network = facts.digest

    def _keep_facts(self, facts: Facts) -> None:
        self._set_fact("facts", json.dumps(facts.to_json()))

    def check_writable(self) -> None:
        """Raises ReadOnlyError unless the gallery can be changed."""
        with self._explained():
            self._demand_writable()

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Context in which all reads and writes are one transaction."""
        with self._explained():
            self._demand_writable()
            with self._transaction():
                yield

    def people(self) -> list[Person]:
        """Everybody who is enrolled, sorted by name."""
        with self._explained():
            rows = self._execute(
                "SELECT name, count(photo.id), created FROM person "
                "LEFT JOIN photo ON photo.person = person.id GROUP BY person.id ORDER BY name"
            ).fetchall()
        return [Person(*row) for row in rows]

    def photos(self, name: str | None = None) -> Iterator[tuple[str, int, StoredPhoto]]:
        """Yields name, number and photo, for one person or for everybody in order of enrolment."""
        with self._explained(), self._transaction("BEGIN"):
            self._demand_passphrase()
            facts = self._facts()
            # An older file that may only be read has not the column.
            (version,) = self._execute("PRAGMA user_version").fetchone()
            own = "align" if version >= ALIGN_SINCE else "NULL"
            # Two statements, because SQLite would search all photos for one that takes both.
            rows = self._execute(
                f"SELECT name, photo.id, template, crop, landmarks, {own} FROM photo "
                "JOIN person ON person.id = person "
                f"{'' if name is None else 'WHERE name = ?'} ORDER BY photo.id",
                () if name is None else (name,),
            ).fetchall()
        for owner, number, template, crop, landmarks, align in rows:
            if facts is None:
                raise self._damaged()
            (template_E,) = self._templates([(owner, template)], facts.width)
            points = None if landmarks is None else self._unseal(landmarks, owner)
            if points is not None and len(points) != POINTS_BYTES:
                raise self._damaged()
            yield (
                owner,
                number,
                StoredPhoto(
                    template_E,
                    None if crop is None else self._unseal(crop, owner),
                    None if points is None else np.frombuffer(points, "<f8").reshape(6, 2),
                    read_align(align, self.place),
                ),
            )

    def face(self, name: str) -> bytes | None:
        """Returns the oldest stored crop of a person as JPEG, or None if there is none."""
        with self._explained(), self._transaction("BEGIN"):
            self._demand_passphrase()
            row = self._execute(
                "SELECT crop FROM photo JOIN person ON person.id = person "
                "WHERE name = ? AND crop IS NOT NULL ORDER BY photo.id LIMIT 1",
                (name,),
            ).fetchone()
            return None if row is None else self._unseal(row[0], name)

    def add(
        self, people: Mapping[str, Sequence[StoredPhoto]], digest: str, *, new: bool = False
    ) -> None:
        """Adds photos of people. If it fails, nothing is added."""
        sealed = [
            (
                name,
                self._seal(photo.template.astype("<f4").tobytes(), name),
                *self._crop(photo, name),
                photo,
            )
            for name, photos in people.items()
            for photo in photos
        ]
        created = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        with self.changing():
            facts = self._facts()
            check_digest(facts, digest, self.place)
            check_width(facts, people, self.place)
            self._demand_passphrase()  # another process may have encrypted the gallery meanwhile
            for name in people:
                fresh = self._execute(
                    "INSERT INTO person (name, created) VALUES (?, ?) ON CONFLICT DO NOTHING",
                    (name, created),
                ).rowcount
                if new and not fresh:
                    raise there_already(name, self.place)
            self._db.executemany(
                "INSERT INTO photo (person, model, template, crop, landmarks, align) "
                "SELECT id, ?6, ?2, ?3, ?4, ?5 FROM person WHERE name = ?1",
                ((*row, own_align(photo, facts), digest) for *row, photo in sealed),
            )

    def _crop(self, photo: StoredPhoto, name: str) -> tuple[bytes | None, bytes | None]:
        if photo.crop is None:
            return None, None
        points = photo.landmarks_62
        return self._seal(photo.crop, name), (
            None if points is None else self._seal(points.astype("<f8").tobytes(), name)
        )

    def forget(self, name: str) -> int:
        """Removes a person for good, and returns how many templates were removed."""
        with self._explained():
            with self.changing():
                row = self._execute("SELECT id FROM person WHERE name = ?", (name,)).fetchone()
                if row is None:
                    raise nobody(name, self.place)
                count = self._execute("DELETE FROM photo WHERE person = ?", row).rowcount
                self._execute("DELETE FROM person WHERE id = ?", row)
                self._taken_away()
                self._check_gone(name, row[0], name)  # an error here rolls the removal back
            self._clean()
            # Not by name: another process may have enrolled somebody under it meanwhile.
            self._check_gone(name, row[0], None)
        return count

    def move(
        self,
        name: str,
        to: str,
        *,
        new: bool,
        photos: Collection[int] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> int:
        """Moves photos of a person to another one: all of them or none."""
        with self._explained():
            with self.changing():
                self._demand_passphrase()
                check()
                row = self._execute(
                    "SELECT id, created FROM person WHERE name = ?", (name,)
                ).fetchone()
                if row is None:
                    raise nobody(name, self.place)
                number, created = row
                held = self._execute(
                    "SELECT template, crop, landmarks, previous, id FROM photo WHERE person = ?",
                    (number,),
                ).fetchall()
                wanted = {one[-1] for one in held} if photos is None else set(photos)
                chosen = [one for one in held if one[-1] in wanted]
                if len(chosen) < len(wanted):
                    raise not_theirs(name, self.place)
                if new:
                    added = self._execute(
                        "INSERT INTO person (name, created) VALUES (?, ?) ON CONFLICT DO NOTHING",
                        (to, created),
                    )
                    if not added.rowcount:
                        raise taken(to, self.place)
                other = self._execute("SELECT id FROM person WHERE name = ?", (to,)).fetchone()
                if other is None:
                    raise nobody(to, self.place)
                self._execute(
                    "UPDATE person SET created = min(created, ?) WHERE id = ?", (created, *other)
                )
                # A value is sealed together with the name of its person.
                moved = self._db.executemany(
                    "UPDATE photo SET person = ?, template = ?, crop = ?, landmarks = ?, "
                    "previous = ? WHERE id = ?",
                    (
                        (*other, *(self._reseal(value, name, to) for value in values), photo)
                        for *values, photo in chosen
                    ),
                )
                if moved.rowcount != len(chosen):
                    raise still_there(name, self.place)  # removing the person would remove them
                self._taken_away()
                emptied = len(chosen) == len(held)
                if emptied:
                    self._execute("DELETE FROM person WHERE id = ?", (number,))
                    self._check_gone(name, number, name)  # an error here undoes the move
            self._clean()
            if emptied:
                self._check_gone(name, number, None)
        return len(chosen)

    def _reseal(self, value: bytes | None, name: str, to: str) -> bytes | None:
        """Returns a stored value as it is stored for another person."""
        return None if value is None else self._seal(self._unseal(value, name), to)

    def _check_gone(self, name: str, number: int, other: str | None) -> None:
        """Searches all rows, without using the indices, for what should have been removed."""
        left = self._execute(
            "SELECT 1 FROM person NOT INDEXED WHERE id = ?1 OR name = ?2 "
            "UNION ALL SELECT 1 FROM photo NOT INDEXED WHERE person = ?1",
            (number, other),
        ).fetchone()
        if left is not None:
            raise still_there(name, self.place)

    def replace(self, facts: Facts, templates: dict[int, Templates]) -> None:
        """Replaces all templates by those of another network, and keeps the ones before."""
        with self._explained():
            with self.changing():
                self._demand_passphrase()
                old = self._facts()
                if old is None:
                    raise self._damaged()
                owners = dict(
                    self._execute(
                        "SELECT photo.id, name FROM photo JOIN person ON person.id = person"
                    ).fetchall()
                )
                if owners.keys() != templates.keys():
                    raise changed_meanwhile(self.place)
                # A sealed value is kept as it is, because its photo stays that of its person.
                keep = "previous = template, " if facts.moves(old) else ""
                self._db.executemany(
                    f"UPDATE photo SET {keep}template = ?, model = ? WHERE id = ?",
                    (
                        (self._seal(t.astype("<f4").tobytes(), owners[n]), facts.digest, n)
                        for n, t in templates.items()
                    ),
                )
                if facts.align != old.align:  # the crops are still those of before
                    self._execute(
                        "UPDATE photo SET align = ? WHERE align IS NULL AND crop IS NOT NULL",
                        (align_text(old.align),),
                    )
                    self._execute(
                        "UPDATE photo SET align = NULL WHERE align = ?", (align_text(facts.align),)
                    )
                self._keep_facts(facts.after(old))
                self._taken_away()
            self._network = facts.digest
            self._clean()

    def previous_templates(self) -> dict[int, Templates]:
        """Returns the kept templates of the network before, by photo number."""
        with self._explained(), self._transaction("BEGIN"):
            self._demand_writable()
            self._demand_passphrase()
            facts = self._facts()
            rows = self._execute(
                "SELECT name, previous, photo.id FROM photo JOIN person ON person.id = person "
                "WHERE previous IS NOT NULL ORDER BY photo.id"
            ).fetchall()
        if facts is None or facts.previous is None:
            return {}
        templates_NE = self._templates([row[:2] for row in rows], facts.previous.width)
        return {row[2]: template_E for row, template_E in zip(rows, templates_NE, strict=True)}

    def discard_previous(self) -> int:
        """Removes the kept templates of the network before for good, and its facts."""
        with self._explained():
            with self.changing():
                facts = self._facts()
                if facts is None or facts.previous is None:
                    return 0
                count = self._execute(
                    "UPDATE photo SET previous = NULL WHERE previous IS NOT NULL"
                ).rowcount
                if self._execute("SELECT 1 FROM photo WHERE previous IS NOT NULL").fetchone():
                    raise still_there(facts.previous.network, self.place)
                self._keep_facts(facts.alone)
                self._set_fact(CLEANING, "1")
            self._clean()
        return count

    def nearest(
        self, probes_PE: Templates, match: str, *, without: str | None = None
    ) -> list[Nearest | None]:
        """Finds the nearest person to each probe, or None where there is nobody."""
        with self._lock:
            found = self._index(match, probes_PE.shape[1]).nearest(probes_PE, without=without)
        return [None if best is None else Nearest(*best) for best in found]

    def _index(self, match: str, width: int) -> TemplateIndex:
        """Returns the index of all committed templates."""
        with self._explained(), self._transaction("BEGIN"):
            self._demand_passphrase()
            generation = self._fact(GENERATION) or ""
            index, known, last = self._indices.get(match) or (TemplateIndex(width, match), None, 0)
            if known != generation:
                index, last = TemplateIndex(width, match), 0
                if self._network is not None:  # another process may have changed the network
                    check_digest(self._facts(), self._network, self.place)
            rows = self._execute(
                "SELECT name, template, photo.id FROM photo JOIN person ON person.id = person "
                "WHERE photo.id > ? ORDER BY photo.id",
                (last,),
            ).fetchall()
        if rows:
            index.add([row[0] for row in rows], self._templates([row[:2] for row in rows], width))
            last = rows[-1][2]
        self._indices[match] = index, generation, last
        return index

    def back_up(self, path: Path) -> None:
        """Copies the gallery to a new file, as described at `Store.back_up`.

        What was deleted is not copied. An encrypted gallery stays encrypted.
        """
        if path.exists():
            raise PersonaError(f"{path} exists already: name a new file")
        try:
            # What a killed copy has left is deleted by the next one.
            with replacing(path, PRIVATE) as file, self._explained():
                self._execute("VACUUM INTO ?", (os.path.abspath(file.name),))  # noqa: PTH100 - text
        except OSError as error:
            raise PersonaError(f"{path} cannot be written: {error.strerror}") from None
        except PersonaError as error:
            full = isinstance(error.__cause__, sqlite3.OperationalError)
            raise (PersonaError(f"copying to {path}: {error}") if full else error) from error

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._db.close()

    def _templates(self, rows: Sequence[tuple[str, bytes]], width: int) -> Templates:
        """Returns the (N, E) templates of rows of a name and a stored value.

        Raises:
            PersonaError: a template has not unit length. The file was then damaged in a way that
                SQLite cannot see.
        """
        values = [self._unseal(sealed, name) for name, sealed in rows]
        if any(len(value) != 4 * width for value in values):
            raise self._damaged()
        templates_NE = np.frombuffer(b"".join(values), "<f4").reshape(-1, width)
        lengths_N = np.linalg.norm(templates_NE, axis=1)
        if not (np.abs(lengths_N - 1) < UNIT_TOLERANCE).all():
            raise self._damaged()
        return templates_NE

    def _seal(self, value: bytes, name: str) -> bytes:
        return value if self._sealer is None else self._sealer.seal(value, name)

    def _unseal(self, value: bytes, name: str) -> bytes:
        if not isinstance(value, bytes):
            raise self._damaged()
        return value if self._sealer is None else self._sealer.open(value, name)

    def _demand_passphrase(self) -> None:
        """Raises PersonaError if the gallery is encrypted and was opened without its passphrase.

        Reading or writing templates needs it; listing and removing people does not.
        """
        if self._sealer is None and self._fact("salt") is not None:
            raise PersonaError(f"{self.place} is encrypted: give --passphrase-file FILE")

    def _fact(self, name: str) -> str | None:
        row = self._execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def _set_fact(self, name: str, value: str) -> None:
        self._demand_writable()
        self._execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, value))

    def _begin_anew(self) -> None:
        """Makes the indices of all processes invalid."""
        self._set_fact(GENERATION, os.urandom(8).hex())

    def _taken_away(self) -> None:
        """Notes that rows were removed: indices are invalid, and the file must be rebuilt."""
        self._begin_anew()
        self._set_fact(CLEANING, "1")

    def _clean(self) -> None:
        """Removes what is left of deleted rows in the file and its log."""
        self._demand_writable()
        try:
            self._execute("VACUUM")
            held = self._checkpoint()
        except sqlite3.Error as error:
            raise PersonaError(
                f"{self._explain(error)}. What was removed is not found any more, but is in the "
                "file's bytes until a `persona gallery` command can clear them"
            ) from error
        if held:
            raise PersonaError(
                f"{self.place} is being read by another process, and its log cannot be cleared: "
                "end that process and run any `persona gallery` command on it"
            )
        # Last: if the process is killed before, the next one that opens the file must clean it.
        with self._transaction():
            self._execute("DELETE FROM fact WHERE name = ?", (CLEANING,))
        self._checkpoint()

    def _checkpoint(self) -> bool:
        """Moves the log into the file and truncates it; returns whether a reader prevented it."""
        return bool(self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])

    def _execute(self, statement: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        return self._db.execute(statement, values)

    @contextlib.contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        """Context of one transaction, for which other writers wait.

        With `BEGIN` it only reads, and all reads see the same state. Within another transaction it
        is a part of that one.
        """
        if self._db.in_transaction:
            yield
            return
        self._execute("BEGIN" if self._obstacle is not None else begin)
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Context in which this thread has the connection, and SQLite's errors become one line."""
        with self._lock:
            self._check_place()
            try:
                if self._has_changed():
                    self._db.close()
                    self._indices.clear()
                    self._db = self._connect()
                yield
            except UnicodeDecodeError as error:  # in SQLite's own message
                raise self._damaged() from error
            except sqlite3.Error as error:
                if not self._has_changed():
                    raise self._explain(error) from error
            if self._has_changed():
                raise PersonaError(f"{self.place} was written to while it was read: run again")

    def _check_place(self) -> None:
        """Raises PersonaError if the file was replaced, because writing to it would be lost."""
        try:
            same = self.path.stat().st_ino == self._inode
        except FileNotFoundError:
            same = False
        if not same:
            raise PersonaError(f"{self.place} was moved or replaced since it was opened: run again")

    def _demand_writable(self) -> None:
        if self._obstacle is not None:
            raise read_only(self.place, self._obstacle)

    def _damaged(self) -> PersonaError:
        return PersonaError(f"{self.place}: {DAMAGED}")

    def _explain(self, error: sqlite3.Error) -> PersonaError:
        """Returns the error with what to do about it, by SQLite's result code."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        remedy = {
            sqlite3.SQLITE_FULL: "the disk is full: make room and run again; nothing was lost",
            sqlite3.SQLITE_IOERR: "reading or writing failed: is the disk full? Nothing was lost",
            sqlite3.SQLITE_BUSY: "another process holds it: run again when that has ended",
            sqlite3.SQLITE_READONLY: "it may not be written: change its owner or choose another",
            sqlite3.SQLITE_CANTOPEN: "it cannot be opened: is its folder writable?"
            if self._obstacle is None
            else "its log beside it is not whole, and may not be mended by who may only read: let "
            "its owner run `persona gallery list`",
            sqlite3.SQLITE_NOTADB: "this is no gallery: choose another path",
            sqlite3.SQLITE_CORRUPT: DAMAGED,
        }.get(code, f"the file is damaged or no gallery ({error})")
        return (UnavailableError if code in PASSING else PersonaError)(f"{self.place}: {remedy}")


def obstacle_to_writing(path: Path) -> str | None:
    """Returns why a file and the logs beside it cannot be written, or None if they can."""
    real = path.resolve()
    if os.statvfs(real).f_flag & os.ST_RDONLY:
        return "its file system is mounted read-only"
    if not os.access(real, os.W_OK, effective_ids=True):
        return "you have no permission to write the file"
    if not os.access(real.parent, os.W_OK | os.X_OK, effective_ids=True):
        return "you have no permission to write in its folder, where SQLite keeps its log"
    return None


@functools.cache
def schema_of(version: int) -> frozenset[tuple[str, ...]]:
    """Returns type, name, table and SQL of all that the first `version` migrations create."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        for script in MIGRATIONS[:version]:
            db.executescript(script)
        rows = db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
    return frozenset((kind, name, table, _normal(sql)) for kind, name, table, sql in rows)


def _normal(sql: object) -> str:
    """Returns SQL with single blanks; an index that SQLite creates by itself has no SQL."""
    return " ".join(str(sql or "").split())
