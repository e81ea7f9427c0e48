"""A gallery in PostgreSQL with pgvector, for many machines.

All tables are in the schema `persona_gallery`. The database compares templates by cosine distance,
with an HNSW index where pgvector has it, so the machines need no copy. A password belongs in
`~/.pgpass` and not in the URL, which other users of the machine can read.

A removal rewrites the tables without the dead rows (`VACUUM FULL`), which only their owner may do.
Where another user removes something, or the rewriting is interrupted, an error says so, and the
owner's next command on the gallery does it. The administrator of the database must clear its log,
backups and replicas.

A connection that was lost is made anew by the next call, but never within a transaction.

Shapes: E embedding, P probes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np

from persona.errors import PersonaError
from persona.extras import missing
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

LOCK = 0x50455253
"""Advisory lock for creating tables, which two machines may do at once."""
INDEXED_WIDTH = 2000
"""Largest width E that pgvector's HNSW index takes."""
HNSW_SINCE = (0, 5)
LOOKED_AT = 100
"""Number of candidates in a search of the HNSW index (`hnsw.ef_search`)."""
CONNECT_S = 10

_MIGRATIONS = (
    """
    CREATE SCHEMA IF NOT EXISTS persona_gallery;
    CREATE TABLE fact (name text PRIMARY KEY, value text NOT NULL);
    CREATE TABLE person (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name text NOT NULL UNIQUE, created text NOT NULL, mean vector
    );
    CREATE TABLE photo (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        person bigint NOT NULL REFERENCES person ON DELETE CASCADE,
        model text NOT NULL, template vector NOT NULL, crop bytea, landmarks bytea
    );
    CREATE INDEX photo_person ON photo (person)
    """,
    "ALTER TABLE photo ADD COLUMN previous vector",
    "ALTER TABLE photo ADD COLUMN align text",
)
"""SQL from version n of the tables to n + 1, in order. The version is stored as a fact."""
VERSION = len(_MIGRATIONS)
ALIGN_SINCE = 3
"""Version of the tables that stores the alignment of a crop."""
_VECTORS = {"person": "mean", "photo": "template"}
CLEANING = "cleaning"
"""Name of a fact, a random value: rows were removed, and the tables must be rewritten."""
REMAINS = (
    "What was removed is not found any more, but is in the tables' files until their owner runs "
    "`persona gallery list`"
)


class PostgresStore(Store):
    """A gallery in PostgreSQL, as described at the top of this module."""

    def __init__(self, url: str, *, create: bool) -> None:
        """Connects, and creates the tables where there are none.

        Raises:
            PersonaError: see `open_store`; psycopg is not installed; the database has no pgvector.
        """
        try:
            import psycopg
        except ImportError:
            raise missing("a gallery in PostgreSQL needs psycopg", "fleet") from None
        self._error = psycopg.Error
        self._passing = (psycopg.OperationalError, psycopg.InterfaceError)
        """Errors of the connection or of the moment, not of what was asked."""
        self._lock = threading.RLock()
        self._held = False
        """Whether a thread has the connection."""
        self._ended = False
        """Whether the gallery was closed."""
        self._network: str | None = None
        """Digest of the network whose templates are searched."""
        self.place = "the PostgreSQL gallery"
        try:
            parts = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.Error:  # its message holds the URL, which may contain a password
            raise PersonaError(
                f"{self.place}: its URL cannot be read: expected postgresql://USER@HOST/DATABASE"
            ) from None
        self.place = f"the PostgreSQL gallery {parts.get('dbname', '')!r}"
        self._dial = partial(
            psycopg.connect,
            url,
            autocommit=True,
            connect_timeout=CONNECT_S,
            application_name="persona",
            options="-c search_path=persona_gallery,public",
        )
        self._db: Any = None
        with self._explained():
            self._connect(create)

    def _connect(self, create: bool) -> None:
        self._db = self._dial()
        try:
            self._prepare(create)
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, create: bool) -> None:
        with self._db.transaction():
            self._db.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            if self._db.execute("SELECT to_regclass('persona_gallery.fact')").fetchone()[0] is None:
                if not create:
                    raise PersonaError(f"{self.place} is empty: `persona enroll` fills it")
                if not self._vector():
                    self._db.execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
                self._migrate(0)
            version = self._version()
            if version > VERSION:
                raise PersonaError(
                    f"{self.place} is of version {version}, this Persona knows {VERSION}: update it"
                )
            if version < VERSION and self._may_migrate():
                self._migrate(version)
        if self._vector() >= HNSW_SINCE:
            self._db.execute(f"SET hnsw.ef_search = {LOOKED_AT}")
        if self._fact(CLEANING) is not None and self._may_migrate():
            try:
                self._clean()
            except PersonaError as error:
                log.warning("%s", error)  # recognising works with a full disk too

    def _migrate(self, version: int) -> None:
        """Brings the tables from a version to the newest, within a transaction."""
        for script in _MIGRATIONS[version:]:
            for statement in script.split(";"):
                self._db.execute(statement)
        self._set_fact("version", str(VERSION))

    def _version(self) -> int:
        return int(self._fact("version") or 0)

    def _may_migrate(self) -> bool:
        """Whether this user may change the tables. Only their owner may."""
        (may,) = self._db.execute(
            "SELECT current_setting('transaction_read_only') = 'off' "
            "AND pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'photo'::regclass"
        ).fetchone()
        return bool(may)

    def _demand_newest(self) -> None:
        """Raises PersonaError if the owner of the tables has not opened the gallery yet.

        Enrolling, recognising, moving and forgetting do without what the newest version adds.
        """
        version = self._version()
        if version < VERSION:
            raise PersonaError(
                f"{self.place} is of version {version}, and this user may not bring it to "
                f"{VERSION}: let the owner of its tables run `persona gallery list`"
            )

    def _vector(self) -> tuple[int, ...]:
        """Returns pgvector's version, or an empty tuple if the database does not have it."""
        row = self._db.execute(
            "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
        ).fetchone()
        return () if row is None else tuple(map(int, row[0].split(".")))

    def facts(self) -> Facts | None:
        """Returns the network and alignment of the gallery, or None if it is new."""
        with self._explained():
            return self._facts()

    def _facts(self, *, lock: bool = False) -> Facts | None:
        value = self._fact("facts", lock=lock)
        return None if value is None else Facts.from_text(value, self.place)

    def adopt(self, facts: Facts) -> None:
        """Assigns a gallery without photos to this network."""
        with self._explained(), self._db.transaction():
            self._db.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            found = self._facts()
            if self._db.execute("SELECT 1 FROM photo LIMIT 1").fetchone():
                check_digest(found, facts.digest, self.place)
            elif found is None or found.digest != facts.digest:
                self._keep_facts(facts.adopting(found))
                self._shape(facts.width)
        self._network = facts.digest

    def _shape(self, width: int) -> None:
        """Sets the width of the templates' columns, and indexes them."""
        for table, column in _VECTORS.items():
            self._db.execute(f"DROP INDEX IF EXISTS {table}_nearest")
            self._db.execute(f"ALTER TABLE {table} ALTER {column} TYPE vector({int(width)})")
            if width <= INDEXED_WIDTH and self._vector() >= HNSW_SINCE:
                self._db.execute(
                    f"CREATE INDEX {table}_nearest ON {table} USING hnsw "
                    f"({column} vector_cosine_ops)"
                )

    def _keep_facts(self, facts: Facts) -> None:
        self._set_fact("facts", json.dumps(facts.to_json()))

    def check_writable(self) -> None:
        """Raises ReadOnlyError unless the gallery can be changed."""
        with self._explained():
            (writable,) = self._db.execute(
                "SELECT current_setting('transaction_read_only') = 'off' "
                "AND has_table_privilege('person', 'INSERT') "
                "AND has_table_privilege('person', 'DELETE')"
            ).fetchone()
        if not writable:
            raise read_only(self.place, "the database lets this user read it only")

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Context in which all reads and writes are one transaction."""
        with self._explained(), self._db.transaction():
            self._fact("facts", lock=True)  # every writer locks this row first
            yield

    def people(self) -> list[Person]:
        """Everybody who is enrolled, sorted by name."""
        with self._explained():
            rows = self._db.execute(
                "SELECT name, count(photo.id), created FROM person LEFT JOIN photo "
                'ON photo.person = person.id GROUP BY person.id ORDER BY name COLLATE "C"'
            ).fetchall()
        return [Person(*row) for row in rows]

    def photos(self, name: str | None = None) -> Iterator[tuple[str, int, StoredPhoto]]:
        """Yields name, number and photo, for one person or for everybody in order of enrolment."""
        with self._explained():
            own = "align" if self._version() >= ALIGN_SINCE else "NULL"
            rows = self._db.execute(
                f"SELECT name, photo.id, template::text, crop, landmarks, {own} FROM photo "
                "JOIN person ON person.id = person WHERE %s::text IS NULL OR name = %s "
                "ORDER BY photo.id",
                (name, name),
            ).fetchall()
        for owner, number, template, crop, landmarks, align in rows:
            points = None if landmarks is None else np.frombuffer(landmarks, "<f8").reshape(6, 2)
            yield (
                owner,
                number,
                StoredPhoto(
                    np.array(json.loads(template), np.float32),
                    crop,
                    points,
                    read_align(align, self.place),
                ),
            )

    def face(self, name: str) -> bytes | None:
        """Returns the oldest stored crop of a person as JPEG, or None if there is none."""
        with self._explained():
            row = self._db.execute(
                "SELECT crop FROM photo JOIN person ON person.id = person "
                "WHERE name = %s AND crop IS NOT NULL ORDER BY photo.id LIMIT 1",
                (name,),
            ).fetchone()
        return None if row is None else bytes(row[0])

    def add(
        self, people: Mapping[str, Sequence[StoredPhoto]], digest: str, *, new: bool = False
    ) -> None:
        """Adds photos of people. If it fails, nothing is added."""
        created = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        with self._explained(), self._db.transaction(), self._db.cursor() as cursor:
            facts = self._facts(lock=True)
            check_digest(facts, digest, self.place)
            everything = [photo for photos in people.values() for photo in photos]
            own = any(own_align(photo, facts) for photo in everything)
            if own:
                self._demand_newest()
            # Tables of an older version have not the last column.
            columns = "person, model, template, crop, landmarks" + (", align" if own else "")
            values = ", ".join(["%s"] * (6 if own else 5))
            for name, photos in people.items():
                fresh = cursor.execute(
                    "INSERT INTO person (name, created) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                    (name, created),
                ).rowcount
                if new and not fresh:
                    raise there_already(name, self.place)
                (number,) = cursor.execute(
                    "SELECT id FROM person WHERE name = %s FOR UPDATE", (name,)
                ).fetchone()
                cursor.executemany(
                    f"INSERT INTO photo ({columns}) VALUES ({values})",
                    [
                        (
                            *(number, digest, _text(photo.template), photo.crop, _points(photo)),
                            *([own_align(photo, facts)] if own else []),
                        )
                        for photo in photos
                    ],
                )
                self._average("id = %s", (number,))

    def _average(self, where: str, values: tuple[object, ...] = ()) -> None:
        self._db.execute(
            "UPDATE person SET mean = (SELECT avg(template) FROM photo WHERE person = person.id) "
            f"WHERE {where}",
            values,
        )

    def forget(self, name: str) -> int:
        """Removes a person for good, and returns how many templates were removed."""
        with self._explained():
            with self._db.transaction():
                row = self._db.execute(
                    "SELECT id FROM person WHERE name = %s FOR UPDATE", (name,)
                ).fetchone()
                if row is None:
                    raise nobody(name, self.place)
                count = self._db.execute("DELETE FROM photo WHERE person = %s", row).rowcount
                self._db.execute("DELETE FROM person WHERE id = %s", row)
                self._taken_away()
                self._check_gone(name, row[0], name)  # an error here rolls the removal back
            self._clean()
            # Not by name: another machine may have enrolled somebody under it meanwhile.
            self._check_gone(name, row[0], None)
        return int(count)

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
                check()
                # One order of locks for all, so that two opposite moves do not wait for each other.
                rows = self._db.execute(
                    "SELECT name, id, created FROM person WHERE name IN (%s, %s) "
                    "ORDER BY id FOR UPDATE",
                    (name, to),
                ).fetchall()
                people = {row[0]: row[1:] for row in rows}
                if name not in people:
                    raise nobody(name, self.place)
                number, created = people[name]
                held = self._db.execute(
                    "SELECT id FROM photo WHERE person = %s FOR UPDATE", (number,)
                ).fetchall()
                wanted = {row[0] for row in held} if photos is None else set(photos)
                chosen = [row[0] for row in held if row[0] in wanted]
                if len(chosen) < len(wanted):
                    raise not_theirs(name, self.place)
                if new:
                    added = self._db.execute(
                        "INSERT INTO person (name, created) VALUES (%s, %s) "
                        "ON CONFLICT DO NOTHING RETURNING id",
                        (to, created),
                    ).fetchone()
                    if added is None:
                        raise taken(to, self.place)
                    people[to] = (added[0], created)
                if to not in people:
                    raise nobody(to, self.place)
                other, since = people[to]
                self._db.execute(
                    "UPDATE person SET created = %s WHERE id = %s", (min(created, since), other)
                )
                moved = self._db.execute(
                    "UPDATE photo SET person = %s WHERE id = ANY(%s)", (other, chosen)
                )
                if moved.rowcount != len(chosen):
                    raise still_there(name, self.place)  # removing the person would remove them
                self._average("id = ANY(%s)", ([number, other],))
                self._taken_away()
                emptied = len(chosen) == len(held)
                if emptied:
                    self._db.execute("DELETE FROM person WHERE id = %s", (number,))
                    self._check_gone(name, number, name)  # an error here undoes the move
            self._clean()
            if emptied:
                self._check_gone(name, number, None)
        return len(chosen)

    def _check_gone(self, name: str, number: int, other: str | None) -> None:
        """Searches for rows that a rule or trigger of the database kept from being removed."""
        left = self._db.execute(
            "SELECT 1 FROM person WHERE id = %s OR name = %s "
            "UNION ALL SELECT 1 FROM photo WHERE person = %s",
            (number, other, number),
        ).fetchone()
        if left is not None:
            raise still_there(name, self.place)

    def _taken_away(self) -> None:
        """Notes that rows were removed. It locks a row for which all others wait: it comes last."""
        self._set_fact(CLEANING, os.urandom(8).hex())

    def _clean(self) -> None:
        """Rewrites the tables without what was removed.

        Raises:
            PersonaError: it was not done. The removal itself is committed.
        """
        mark = self._fact(CLEANING)
        try:
            for table in _VECTORS:
                before = self._file(table)
                self._db.execute(f"VACUUM FULL {table}")
                # Where a user may not do it, PostgreSQL warns and does nothing.
                if self._file(table) == before:
                    raise PersonaError(
                        f"{self.place}: only the owner of its tables can clear them. {REMAINS}"
                    )
            # Not the mark of another machine, which may have removed something meanwhile.
            self._db.execute("DELETE FROM fact WHERE name = %s AND value = %s", (CLEANING, mark))
        except self._error as error:
            raise PersonaError(f"{self._explain(error)}. {REMAINS}") from None

    def _file(self, table: str) -> object:
        """Returns the number of the file that holds a table. Rewriting makes another file."""
        return self._db.execute("SELECT pg_relation_filenode(%s)", (table,)).fetchone()

    def replace(self, facts: Facts, templates: dict[int, Templates]) -> None:
        """Replaces all templates by those of another network, and keeps the ones before."""
        with self._explained():
            with self._db.transaction(), self._db.cursor() as cursor:
                old = self._facts(lock=True)
                self._demand_newest()
                if old is None:
                    raise changed_meanwhile(self.place)
                found = {row[0] for row in cursor.execute("SELECT id FROM photo").fetchall()}
                if found != templates.keys():
                    raise changed_meanwhile(self.place)
                for table, column in _VECTORS.items():
                    cursor.execute(f"DROP INDEX IF EXISTS {table}_nearest")
                    cursor.execute(f"ALTER TABLE {table} ALTER {column} TYPE vector")
                keep = "previous = template, " if facts.moves(old) else ""
                cursor.executemany(
                    f"UPDATE photo SET {keep}template = %s, model = %s WHERE id = %s",
                    [(_text(t), facts.digest, number) for number, t in templates.items()],
                )
                if facts.align != old.align:  # the crops are still those of before
                    cursor.execute(
                        "UPDATE photo SET align = %s WHERE align IS NULL AND crop IS NOT NULL",
                        (align_text(old.align),),
                    )
                    cursor.execute(
                        "UPDATE photo SET align = NULL WHERE align = %s", (align_text(facts.align),)
                    )
                self._average("true")
                self._keep_facts(facts.after(old))
                self._shape(facts.width)
                self._taken_away()
            self._network = facts.digest
            self._clean()

    def previous_templates(self) -> dict[int, Templates]:
        """Returns the kept templates of the network before, by photo number."""
        with self._explained():
            self._demand_newest()
            rows = self._db.execute(
                "SELECT id, previous::text FROM photo WHERE previous IS NOT NULL ORDER BY id"
            ).fetchall()
        return {number: np.array(json.loads(text), np.float32) for number, text in rows}

    def discard_previous(self) -> int:
        """Removes the kept templates of the network before for good, and its facts."""
        with self._explained():
            with self.changing():
                self._demand_newest()
                facts = self._facts()
                if facts is None or facts.previous is None:
                    return 0
                count = self._db.execute(
                    "UPDATE photo SET previous = NULL WHERE previous IS NOT NULL"
                ).rowcount
                left = self._db.execute("SELECT 1 FROM photo WHERE previous IS NOT NULL LIMIT 1")
                if left.fetchone() is not None:
                    raise still_there(facts.previous.network, self.place)
                self._keep_facts(facts.alone)
                self._taken_away()
            self._clean()
        return int(count)

    def nearest(
        self, probes_PE: Templates, match: str, *, without: str | None = None
    ) -> list[Nearest | None]:
        """Finds the nearest person to each probe, or None where there is nobody."""
        table = "person" if match == "mean" else "photo"
        vector = f"{table}.{_VECTORS[table]}"
        join = "" if match == "mean" else "JOIN photo ON photo.person = person.id"
        found = []
        with self._explained():
            try:
                for probe_E in probes_PE:
                    text = _text(probe_E)
                    row = self._db.execute(
                        f"SELECT name, 1 - ({vector} <=> %s) FROM person {join} "
                        f"WHERE %s::text IS NULL OR name <> %s ORDER BY {vector} <=> %s LIMIT 1",
                        (text, without, without, text),
                    ).fetchone()
                    found.append(None if row is None else Nearest(row[0], float(row[1])))
            except self._error:  # such as templates of another width
                with contextlib.suppress(self._error):
                    self._check_network()
                raise
            # After the search, because another machine may have replaced the templates before.
            self._check_network()
        return found

    def _check_network(self) -> None:
        if self._network is not None:
            check_digest(self._facts(), self._network, self.place)

    def close(self) -> None:
        """Closes the connection."""
        with self._lock:
            self._ended = True
            self._db.close()

    def _fact(self, name: str, *, lock: bool = False) -> str | None:
        query = "SELECT value FROM fact WHERE name = %s" + (" FOR UPDATE" if lock else "")
        row = self._db.execute(query, (name,)).fetchone()
        return None if row is None else str(row[0])

    def _set_fact(self, name: str, value: str) -> None:
        self._db.execute(
            "INSERT INTO fact VALUES (%s, %s) "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, value),
        )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Context in which this thread has the connection, which is made anew if it was lost.

        Errors of the database become one line, without the URL.
        """
        with self._lock:
            outermost, self._held = not self._held, True
            try:
                # Within another context a transaction may be lost with the connection.
                if outermost and self._db is not None and self._db.closed and not self._ended:
                    self._connect(create=False)
                yield
            except self._error as error:
                raise self._explain(error) from None
            finally:
                self._held = not outermost

    def _explain(self, error: Any) -> PersonaError:
        line = error.diag.message_primary or str(error).strip().split("\n")[0]
        remedy = ""
        if "vector" in line and ("extension" in line or "control file" in line):
            remedy = ": install pgvector on the database's machine"
        kind = UnavailableError if isinstance(error, self._passing) else PersonaError
        return kind(f"{self.place}: {line}{remedy}")


def _text(vector_E: Templates) -> str:
    """Returns a vector as text for pgvector, which keeps every float32 exactly."""
    return "[" + ",".join(map(repr, map(float, vector_E))) + "]"


def _points(photo: StoredPhoto) -> bytes | None:
    return None if photo.landmarks_62 is None else photo.landmarks_62.astype("<f8").tobytes()
