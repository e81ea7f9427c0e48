"""Unknown faces that come back: kept for a limited time, and proposed as new people.

Nothing is kept unless the operator allows it (`--keep-unknown HOURS` of `persona serve` and
`persona recognise`). Then each unknown face that is clear enough to be compared is kept with its
template, its aligned crop and its time: no photo, no file name, no address of a client.

Each face has its own end, which is set when it is kept. Faces past their end are never read again,
and are deleted by whatever opens the file or its gallery next, by the next face that is kept, and
by a running server every minute, also without the option.

The file is SQLite, of its owner alone. Deleted content is overwritten with zeros
(`secure_delete`). The templates, crops and landmarks of a gallery under a passphrase are sealed as
it is.

1. faces are read; those of people who were enrolled meanwhile are deleted
2. the others are grouped (persona/evaluation/grouping.py)
3. a group is proposed if it came in several visits. Two faces of one group belong to one visit if
   less than a given time lies between them

Shapes: N faces, E embedding.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np

from persona.data.align.spec import AlignSpec, Crop
from persona.errors import PersonaError
from persona.evaluation.grouping import estimate_threshold, group_faces
from persona.evaluation.thresholds import SAME
from persona.files import PRIVATE
from persona.gallery.crypt import Sealer
from persona.gallery.store import POSTGRES, Templates, align_text, read_align, unit
from persona.workspace import user_path

if TYPE_CHECKING:
    from persona.gallery.people import DoubtError, Enrolled, Gallery

log = logging.getLogger(__name__)

APPLICATION_ID = 0x50455255
"""`PERU` in ASCII, which tells the file from a gallery."""
SCHEMA = (
    "CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE face (id INTEGER PRIMARY KEY AUTOINCREMENT, seen REAL NOT NULL, "
    "ends REAL NOT NULL, model TEXT NOT NULL, template BLOB NOT NULL, crop BLOB NOT NULL, "
    "landmarks BLOB, align TEXT)",
    "CREATE INDEX face_ends ON face (ends)",
)
WITHOUT_ALIGN = SCHEMA[1].replace(", align TEXT", "")
"""The table of a file of before, whose faces do not say how their crops were aligned."""
MOST_HOURS = 720.0
"""Longest time that a face may be kept: 30 days."""
MOST_FACES = 20_000
"""Most faces in a file, about 200 MB. The oldest one makes room for a new one."""
MOST_PROPOSED = 500
"""Most faces of a proposed person that are enrolled, because each is compared with each."""
BLOCK = 1024
"""Faces that are compared with the earlier ones at once."""
BUSY_MS = 10_000
PURGE_S = 60.0
"""Time in s after which a server deletes what is over."""
YEAR_10000_S = 253_402_300_800
"""Begin of the first year that cannot be shown as a time, in s since 1970."""
POINTS = (6, 2)
POINTS_BYTES = 6 * 2 * 8
"""Size of landmarks in clear. Sealed ones are longer."""
VISITS, APART_MINUTES = 2, 30.0
"""Least number of visits of a proposed person, and minutes between two visits."""


@dataclass(frozen=True)
class KeptFace:
    """An unknown face that is kept for a limited time."""

    number: int
    seen: float
    """Time at which it was seen, in s since 1970 (UTC)."""
    model: str
    """Digest of the network that made the template."""
    template: Templates
    """(E,) float32 embedding of unit length."""
    crop: Crop
    """Aligned crop."""


@dataclass(frozen=True)
class Proposal:
    """An unknown person who came back."""

    number: int
    """Number of the person's oldest kept face, by which the proposal is named."""
    faces: tuple[int, ...]
    """Numbers of all faces, in order of time."""
    chosen: tuple[int, ...]
    """Numbers of those that are enrolled."""
    visits: int
    first: str
    """UTC time of the first face, in ISO 8601."""
    last: str
    similarity: float
    """Mean cosine similarity of the faces to their mean, in [-1, 1]."""
    nearest: str | None
    """Name of the nearest person who is enrolled."""
    score: float | None
    """Cosine similarity of the mean to that person."""
    picture: bytes
    """Crop nearest to the mean, as JPEG."""


class UnknownFaces:
    """The kept unknown faces of one gallery, in one file. Any number of threads may use it."""

    def __init__(
        self,
        path: Path,
        *,
        hours: float | None = None,
        passphrase: bytes | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens the file, or creates one that only its owner may read.

        Args:
            path: the file.
            hours: how long a new face is kept. None means that no face will be kept.
            passphrase: passphrase of the gallery.
            clock: gives the time in s since 1970.

        Raises:
            PersonaError: the hours are out of range, the file is of another program or damaged or
                cannot be written, or the passphrase is wrong or missing.
        """
        if hours is not None and not 0 < hours <= MOST_HOURS:
            raise PersonaError(
                f"--keep-unknown {hours:g}: choose a time of up to {MOST_HOURS:g} hours"
            )
        self.path, self.hours, self._clock = path, hours, clock
        self.place = str(path)
        """Name of the file in messages."""
        self.whole = threading.Lock()
        """Held by the one thread that has all faces in memory, which are up to 200 MB."""
        self._lock = threading.RLock()
        self._told = False
        """Whether it was said that faces cannot be kept."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE))
        except OSError as error:
            raise PersonaError(
                f"{path}: {error.strerror}: unknown faces cannot be kept or deleted"
            ) from None
        self._db = sqlite3.connect(
            path.absolute(),
            timeout=BUSY_MS / 1000,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            with self._explained():
                # Deleted content is overwritten. The journal of a change is removed at its end.
                self._db.execute("PRAGMA secure_delete = ON")
            with self._changing():
                self._prepare()
            self.purge()  # also where the passphrase is missing
            with self._changing():
                self._sealer = self._open_seal(passphrase)
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        there = [row[0] for row in self._db.execute("SELECT sql FROM sqlite_master WHERE sql > ''")]
        if not there and not application:
            for statement in SCHEMA:
                self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            return
        if application == APPLICATION_ID and WITHOUT_ALIGN in there:
            self._db.execute("ALTER TABLE face ADD COLUMN align TEXT")
            there = [SCHEMA[1] if sql == WITHOUT_ALIGN else sql for sql in there]
        if application != APPLICATION_ID or set(SCHEMA) - set(there):
            raise PersonaError(f"{self.place} does not hold unknown faces: move it away")

    def _open_seal(self, passphrase: bytes | None) -> Sealer | None:
        facts = dict(self._db.execute("SELECT name, value FROM fact").fetchall())
        if passphrase is None:
            if "salt" in facts:
                raise PersonaError(f"{self.place} is encrypted: give --passphrase-file")
            return None
        if "salt" not in facts:
            if self._db.execute("SELECT 1 FROM face").fetchone():
                raise PersonaError(
                    f"{self.place} holds faces that are not encrypted: remove it, or leave "
                    "--passphrase-file out"
                )
            sealer, fresh = Sealer.fresh(passphrase)
            self._db.executemany("INSERT INTO fact VALUES (?, ?)", fresh.items())
            return sealer
        try:
            return Sealer.known(passphrase, facts, self.place)
        except ValueError:
            raise self._damaged() from None

    def keep(
        self,
        templates_NE: Templates,
        crops: Sequence[Crop],
        digest: str,
        align: AlignSpec | None = None,
    ) -> int:
        """Keeps unknown faces until their time is over, and returns how many were kept.

        A file that cannot be written, as on a full disk, is told once and loses the faces:
        recognising goes on.

        Args:
            templates_NE: (N, E) float32 templates of unit length.
            crops: their N crops.
            digest: digest of the network that made the templates.
            align: how the crops were aligned. Without it, another network cannot embed them.
        """
        if self.hours is None or not crops:
            return 0
        now, aligned = self._clock(), None if align is None else align_text(align)
        rows = [
            (
                now,
                now + 3600 * self.hours,
                digest,
                self._seal(template.astype("<f4").tobytes()),
                self._seal(crop.jpeg),
                None
                if crop.landmarks_62 is None
                else self._seal(crop.landmarks_62.astype("<f8").tobytes()),
                aligned,
            )
            for template, crop in zip(templates_NE, crops, strict=True)
        ]
        try:
            with self._changing():
                self._delete_ended(now)
                self._db.executemany(
                    "INSERT INTO face (seen, ends, model, template, crop, landmarks, align) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    rows,
                )
                self._db.execute(
                    "DELETE FROM face WHERE id <= (SELECT id FROM face ORDER BY id DESC "
                    "LIMIT 1 OFFSET ?)",
                    (MOST_FACES,),
                )
        except PersonaError as error:
            if not self._told:
                log.warning("warning: unknown faces are not kept: %s", error)
            self._told = True
            return 0
        return len(rows)

    def purge(self) -> int:
        """Deletes the faces whose time is over, and returns how many there were."""
        with self._changing():
            return self._delete_ended(self._clock())

    def _delete_ended(self, now: float) -> int:
        # A face with a later end was kept while the clock was wrong.
        return self._db.execute(
            "DELETE FROM face WHERE ends <= ? OR ends > ?", (now, now + 3600 * MOST_HOURS)
        ).rowcount

    def faces(self) -> list[KeptFace]:
        """Returns all faces whose time is not over, the oldest first.

        Raises:
            PersonaError: the file is damaged.
        """
        with self._explained():
            rows = self._db.execute(
                "SELECT id, seen, model, template, crop, landmarks, align FROM face "
                "WHERE ends > ? ORDER BY seen, id",
                (self._clock(),),
            ).fetchall()
        try:
            return [self._face(*row) for row in rows]
        except (TypeError, ValueError):
            raise self._damaged() from None

    def _face(
        self,
        number: int,
        seen: float,
        model: str,
        template: bytes,
        crop: bytes,
        points: bytes | None,
        align: str | None,
    ) -> KeptFace:
        if not isinstance(crop, bytes) or not 0 <= seen < YEAR_10000_S:
            raise ValueError("no crop or no time")
        vector_E = np.frombuffer(self._open(template), "<f4").astype(np.float32)
        # NaN is not near 1 either.
        if not len(vector_E) or not abs(float(vector_E @ vector_E) - 1) <= 1e-2:
            raise ValueError("no template")
        if points is not None and len(points) != POINTS_BYTES:  # older files have them in clear
            points = self._open(points)
        landmarks_62 = None if points is None else np.frombuffer(points, "<f8").reshape(POINTS)
        own = read_align(align, self.place)
        face = Crop(self._open(crop), None, landmarks_62, align=own)
        return KeptFace(number, float(seen), model, vector_E, face)

    def forget(self, numbers: Collection[int]) -> int:
        """Deletes faces by number, and returns how many there were."""
        with self._changing():
            return sum(
                self._db.execute("DELETE FROM face WHERE id = ?", (number,)).rowcount
                for number in numbers
            )

    def forget_all(self) -> int:
        """Deletes every face, and returns how many there were."""
        with self._changing():
            return self._db.execute("DELETE FROM face").rowcount

    def replace(self, templates: dict[int, Templates], digest: str) -> None:
        """Replaces templates by those of another network, which are given by number.

        Crops stay as they are, and so does what is stored of their alignment.
        """
        with self._changing():
            self._db.executemany(
                "UPDATE face SET template = ?, model = ? WHERE id = ?",
                [
                    (self._seal(template.astype("<f4").tobytes()), digest, number)
                    for number, template in templates.items()
                ],
            )

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> UnknownFaces:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _seal(self, value: bytes) -> bytes:
        return value if self._sealer is None else self._sealer.seal(value, "unknown")

    def _open(self, value: bytes) -> bytes:
        return value if self._sealer is None else self._sealer.open(value, "unknown")

    def _damaged(self) -> PersonaError:
        return PersonaError(f"{self.place} is damaged: remove it, it holds unknown faces alone")

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Context of one transaction, of which all is stored or nothing."""
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has ended it already
                    self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Context in which this thread has the connection; SQLite's errors become one line."""
        with self._lock:
            try:
                yield
            except sqlite3.OperationalError as error:
                raise PersonaError(f"{self.place}: {error}") from None
            except sqlite3.DatabaseError:
                raise self._damaged() from None


def open_kept(path: Path, passphrase: bytes | None = None) -> UnknownFaces | None:
    """Opens the faces that were kept before, for deleting them. None where there is no file.

    Raises:
        PersonaError: see `UnknownFaces`.
    """
    return UnknownFaces(path, passphrase=passphrase) if path.exists() else None


def purge_file(path: Path) -> None:
    """Deletes the faces whose time is over, if there is a file. It needs no passphrase.

    A file that cannot be opened, as another user's, is left to whoever needs it.
    """
    with contextlib.suppress(PersonaError):
        if (kept := open_kept(path)) is not None:
            kept.close()


@contextlib.contextmanager
def purging(unknown: UnknownFaces | None, every_s: float = PURGE_S) -> Iterator[None]:
    """Context in which faces whose time is over are deleted every `every_s` seconds.

    Without it, as in a server that nobody asks, they would stay until the next face is kept.
    """
    if unknown is None:
        yield
        return
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(every_s):
            try:
                unknown.purge()
            except PersonaError as error:
                log.warning("warning: faces whose time is over are not deleted: %s", error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def place_of(gallery: Path | str) -> str:
    """Returns the end of the file's name: `gallery.db.unknown`, or a digest of a database's place.

    The digest is of host and name of the database, without a user's name or password.
    """
    text = str(gallery)
    if not text.startswith(POSTGRES):
        return f"{Path(text).name}.unknown"
    try:
        parts = urlsplit(text)
        where = f"{parts.hostname}:{parts.port}{parts.path}"
    except ValueError:
        where = "postgresql"
    return f"postgres-{hashlib.sha256(where.encode()).hexdigest()[:12]}.unknown"


def file_of(gallery: Path | str, default: Path) -> Path:
    """Returns the file of a gallery's unknown faces: beside it.

    Args:
        gallery: path or URL of the gallery.
        default: path of the default gallery, beside which lie the files of databases.
    """
    folder = default if str(gallery).startswith(POSTGRES) else user_path(str(gallery))
    return folder.parent / place_of(gallery)


# --- proposals --------------------------------------------------------------------------------


def propose(
    gallery: Gallery,
    unknown: UnknownFaces,
    *,
    visits: int = VISITS,
    apart_minutes: float = APART_MINUTES,
) -> list[Proposal]:
    """Groups the kept faces into people, and returns those who came back; most visits first.

    Faces of people who are enrolled by now are deleted, because they are not unknown any more.

    Args:
        gallery: the gallery in which nobody knew them.
        unknown: the kept faces.
        visits: least number of visits of a person.
        apart_minutes: least time between two visits, in minutes.

    Raises:
        PersonaError: a value is out of range, or a file cannot be read or written.
    """
    if visits < 1 or not 0 <= apart_minutes <= 60 * MOST_HOURS:
        raise PersonaError(
            f"{visits} visits {apart_minutes:g} minutes apart: choose at least 1, and 0 to "
            f"{60 * MOST_HOURS:g} minutes"
        )
    with unknown.whole:
        return _proposals(gallery, unknown, visits, 60 * apart_minutes)


def _proposals(
    gallery: Gallery, unknown: UnknownFaces, visits: int, apart_s: float
) -> list[Proposal]:
    faces = _comparable(gallery, unknown)
    if not faces:
        return []
    templates_NE = np.stack([face.template for face in faces])
    # A threshold that is right for one comparison joins strangers among thousands of faces.
    threshold = max(gallery.threshold, estimate_threshold(templates_NE))
    found = []
    group_N = group_faces(templates_NE, threshold)
    for group in range(int(group_N.max()) + 1):
        own = [faces[n] for n in np.flatnonzero(group_N == group)]
        came = _visits(own, apart_s)
        if came >= visits:
            found.append(_proposal(gallery, own, came))
    return sorted(found, key=lambda one: (-one.visits, -len(one.faces), one.number))


def _comparable(gallery: Gallery, unknown: UnknownFaces) -> list[KeptFace]:
    """The kept faces with templates of the gallery's network, without those of enrolled people."""
    faces = _brought_up(gallery, unknown)
    if not faces:
        return []
    matches = gallery.store.nearest(np.stack([face.template for face in faces]), gallery.match)
    known = [
        face.number
        for face, match in zip(faces, matches, strict=True)
        if match is not None and match.score >= gallery.threshold
    ]
    unknown.forget(known)
    return [face for face in faces if face.number not in set(known)]


def _brought_up(gallery: Gallery, unknown: UnknownFaces) -> list[KeptFace]:
    """The kept faces with templates of the gallery's network.

    After an upgrade they are embedded anew, and so are those whose template has another width, as
    in a file from elsewhere. Those whose crop the network cannot use or nobody can
    read, or of which nobody knows how it was aligned, are deleted: they could never be compared
    again.
    """
    from persona.gallery.crops import is_crop
    from persona.gallery.faces import carries

    digest, width = gallery.eyes.named.digest, gallery.eyes.network.embedding_size

    def compares(face: KeptFace) -> bool:
        return face.model == digest and len(face.template) == width

    faces = unknown.faces()
    stale = [face for face in faces if not compares(face)]
    if stale:
        usable = [
            face
            for face in stale
            if face.crop.align is not None
            and carries(face.crop.align, gallery.eyes)
            and is_crop(face.crop.jpeg)
        ]
        kept = {face.number for face in usable}
        anew = gallery.eyes.embed([face.crop for face in usable])
        unknown.replace(dict(zip([face.number for face in usable], anew, strict=True)), digest)
        unknown.forget([face.number for face in stale if face.number not in kept])
        faces = unknown.faces()
    return [face for face in faces if compares(face)]


def forget_alike(gallery: Gallery, unknown: UnknownFaces, templates_NE: Templates) -> int:
    """Deletes the faces that reach the gallery's threshold to one of some templates; counts them.

    Faces with a template of a network before are compared by one of the gallery's network. Those
    that cannot have one are deleted, because nobody can say that they do not show the person.

    Args:
        gallery: the gallery.
        unknown: the kept faces.
        templates_NE: (N, E) float32 templates of the gallery's network.
    """
    with unknown.whole:
        alike = [
            face.number
            for face in _brought_up(gallery, unknown)
            if float((templates_NE @ face.template).max()) >= gallery.threshold
        ]
    return unknown.forget(alike)


def _visits(faces: list[KeptFace], apart_s: float) -> int:
    """The number of visits of a person. A photo that came again is no visit."""
    templates_NE = np.stack([face.template for face in faces])
    times = []
    for start in range(0, len(faces), BLOCK):  # one person may have all faces of a file
        block_BE = templates_NE[start : start + BLOCK]
        same_BN = block_BE @ templates_NE[: start + len(block_BE)].T >= SAME
        again_B = np.any(np.tril(same_BN, start - 1), axis=1).tolist()
        block = faces[start : start + BLOCK]
        times += [face.seen for face, again in zip(block, again_B, strict=True) if not again]
    return 1 + sum(b - a >= apart_s for a, b in pairwise(times))


def _thinned(faces: list[KeptFace]) -> list[KeptFace]:
    """At most `MOST_PROPOSED` of a person's faces, spread over the time in which they came."""
    places = np.linspace(0, len(faces) - 1, min(len(faces), MOST_PROPOSED)).round().astype(int)
    return [faces[place] for place in places]


def _proposal(gallery: Gallery, faces: list[KeptFace], visits: int) -> Proposal:
    templates_NE = np.stack([face.template for face in faces])
    mean_E = unit(templates_NE.mean(axis=0))
    similarity_N = templates_NE @ mean_E
    (match,) = gallery.store.nearest(mean_E[None], gallery.match)
    return Proposal(
        min(face.number for face in faces),
        tuple(face.number for face in faces),
        tuple(face.number for face in _thinned(faces)),
        visits,
        _iso(faces[0].seen),
        _iso(faces[-1].seen),
        float(similarity_N.mean()),
        None if match is None else match.name,
        None if match is None else match.score,
        faces[int(similarity_N.argmax())].crop.jpeg,
    )


def _iso(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds")


def find_proposal(proposals: Sequence[Proposal], number: int) -> Proposal:
    """Finds a proposal by its number.

    Raises:
        PersonaError: there is none of that number.
    """
    for one in proposals:
        if one.number == number:
            return one
    raise PersonaError(
        f"there is no unknown person {number}, or not any more: look at `persona gallery unknown`"
    )


def enroll_proposal(
    gallery: Gallery,
    unknown: UnknownFaces,
    proposal: Proposal,
    name: str,
    *,
    accept: Collection[type[DoubtError]] = (),
    claim: Callable[[], None] = lambda: None,
) -> Enrolled:
    """Enrols a proposed person under a name, and deletes the kept faces.

    If it is killed between the two, the faces are deleted when they are next looked at.

    Args:
        gallery: the open gallery.
        unknown: the kept faces.
        proposal: the person.
        name: the person's name, of somebody new or of somebody who is enrolled.
        accept: doubts in spite of which to enrol.
        claim: called last, before the transaction is committed.

    Raises:
        DoubtError: the faces look like two people, or like somebody who is enrolled.
        PersonaError: the faces are gone, or the name cannot be used.
    """
    chosen = set(proposal.chosen)
    with unknown.whole:
        faces = [face for face in unknown.faces() if face.number in chosen]
    if len(faces) < len(chosen):
        raise PersonaError("some of these faces are gone by now: look at them again")
    enrolled = gallery.enroll_templates(
        name,
        [f"face {face.number}" for face in faces],
        np.stack([face.template for face in faces]),
        [face.crop for face in faces],
        accept=accept,
        claim=claim,
    )
    unknown.forget(proposal.faces)
    return enrolled
