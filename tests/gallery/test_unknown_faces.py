"""Unknown faces: kept for a limited time, proposed as new people, enrolled and deleted."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_eyes import FACTS, gallery, near, photo_of, vectors

from persona.data.align.spec import ARCFACE, AlignSpec, Crop
from persona.errors import PersonaError
from persona.gallery import DuplicateError, Gallery, TwoPeopleError, unknown_faces
from persona.gallery.store import OtherNetworkError
from persona.gallery.unknown_faces import (
    APPLICATION_ID,
    MOST_FACES,
    SCHEMA,
    WITHOUT_ALIGN,
    UnknownFaces,
    enroll_proposal,
    file_of,
    find_proposal,
    open_kept,
    propose,
    purge_file,
    purging,
)

HOUR = 3600.0
DIGEST = FACTS.digest


@dataclass
class Clock:
    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def unknown(tmp_path: Path, clock: Clock) -> Iterator[UnknownFaces]:
    with UnknownFaces(tmp_path / "g.db.unknown", hours=24, clock=clock) as opened:
        yield opened


@pytest.fixture
def people(tmp_path: Path, unknown: UnknownFaces) -> Iterator[Gallery]:
    with gallery(tmp_path / "g.db", 0.6, unknown=unknown) as opened:
        yield opened


def crops(templates: Any) -> list[Crop]:
    return [Crop(one.tobytes(), None, np.arange(12.0).reshape(6, 2)) for one in templates]


def come(people: Gallery, who: Any, seed: int, cosine: float = 0.9) -> None:
    """Somebody comes by once more, and is recognised or not."""
    people.recognise(photo_of(near(who, cosine, seed)))


def test_somebody_who_stays_all_day_is_enrolled_with_some_faces(
    people: Gallery, unknown: UnknownFaces, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unknown_faces, "MOST_PROPOSED", 3)
    monkeypatch.setattr(unknown_faces, "BLOCK", 2)
    ada = np.eye(1, 8, dtype=np.float32)[0]
    for visit in range(7):
        come(people, ada, visit)
        come(people, ada, visit)  # the same photo again
        clock.now += HOUR
    (one,) = propose(people, unknown)
    assert (one.visits, len(one.faces), one.chosen) == (7, 14, (1, 7, 14))
    assert enroll_proposal(people, unknown, one, "Ada").added == 3
    assert unknown.faces() == []


def test_who_comes_back_is_proposed_and_enrolled(
    people: Gallery, unknown: UnknownFaces, clock: Clock
) -> None:
    ada, eve, known = np.eye(3, 8, dtype=np.float32)
    people.enroll("Known", [photo_of(known)])
    for visit in range(3):
        come(people, ada, visit)
        come(people, ada, 10 + visit)
        come(people, known, visit)  # is recognised, and not kept
        if visit == 0:
            come(people, eve, 0)
            come(people, eve, 1)  # five minutes later is the same visit
        clock.now += HOUR
    assert len(unknown.faces()) == 8
    (one,) = propose(people, unknown)
    assert (one.visits, len(one.faces), one.number, one.nearest) == (3, 6, 1, "Known")
    assert one.first == "2023-11-14T22:13:20+00:00" and one.last == "2023-11-15T00:13:20+00:00"
    assert one.similarity > 0.9 and one.picture
    assert [len(p.faces) for p in propose(people, unknown, visits=1)] == [6, 2]
    done = enroll_proposal(people, unknown, one, "Ada")
    assert (done.added, done.already) == (6, 0)
    assert propose(people, unknown) == [] and len(unknown.faces()) == 2
    come(people, ada, 77)
    assert len(unknown.faces()) == 2  # she is known now
    with pytest.raises(PersonaError, match="there is no unknown person 1, or not any more"):
        find_proposal(propose(people, unknown), 1)


def test_the_faces_of_a_gallery_with_crops_come_along(
    tmp_path: Path, unknown: UnknownFaces, clock: Clock
) -> None:
    people = gallery(tmp_path / "g.db", 0.6, unknown=unknown, keep_crops=True)
    ada = vectors(1)[0]
    for visit in range(2):
        come(people, ada, visit)
        clock.now += HOUR
    (one,) = propose(people, unknown)
    enroll_proposal(people, unknown, one, "Ada")
    stored = [photo for _, _, photo in people.store.photos("Ada")]
    assert all(photo.crop == photo.template.tobytes() for photo in stored)
    assert all(photo.landmarks_62 is not None for photo in stored)


def test_nothing_is_kept_without_the_option(people: Gallery, tmp_path: Path) -> None:
    people.unknown = None
    come(people, vectors(1)[0], 0)
    people.recognise(photo_of(vectors(1)[0], flaw="blurred"))
    with UnknownFaces(tmp_path / "other") as other:
        assert other.keep(vectors(1), crops(vectors(1)), DIGEST) == 0
        assert other.faces() == []


def test_a_refused_face_is_not_kept(people: Gallery, unknown: UnknownFaces) -> None:
    people.recognise(photo_of(vectors(1)[0], flaw="blurred"))
    assert unknown.faces() == []


def test_a_request_that_failed_keeps_nothing(people: Gallery, unknown: UnknownFaces) -> None:
    def late() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        people.recognise(photo_of(vectors(1)[0]), claim=late)
    assert unknown.faces() == []


def test_who_is_forgotten_is_not_kept_as_unknown(people: Gallery, unknown: UnknownFaces) -> None:
    ada, eve = np.eye(2, 8, dtype=np.float32)
    come(people, ada, 0)
    come(people, eve, 0)
    people.enroll("Ada", [photo_of(ada), photo_of(near(ada, 0.9, 3))])
    assert people.forget("Ada") == 2
    (left,) = unknown.faces()
    assert float(left.template @ eve) > 0.8


@pytest.mark.usefixtures("readable")
def test_who_is_forgotten_after_an_upgrade_is_not_kept_either(
    people: Gallery, unknown: UnknownFaces
) -> None:
    ada, eve = np.eye(2, 8, dtype=np.float32)
    # Templates of the network of yesterday; FakeEyes reads that of today from the crop.
    unknown.keep(vectors(2, 9), crops([near(ada, 0.9), near(eve, 0.9)]), "yesterday", FACTS.align)
    unknown.keep(vectors(1, 9), crops([near(ada, 0.9)]), "yesterday", ARCFACE)  # does not fit
    people.enroll("Ada", [photo_of(ada)])
    people.forget("Ada")
    (left,) = unknown.faces()
    assert left.model == DIGEST and float(left.template @ eve) > 0.8


def test_a_kill_while_somebody_is_forgotten_leaves_no_unknown_face(
    people: Gallery, unknown: UnknownFaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the person is enrolled, forgetting them again finds the faces."""
    ada = vectors(1)[0]
    come(people, ada, 0)
    people.enroll("Ada", [photo_of(ada)])

    def end(_: str) -> int:
        assert unknown.faces() == []
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(people.store, "forget", end)
        with pytest.raises(KeyboardInterrupt):
            people.forget("Ada")
    assert people.forget("Ada") == 1


def test_who_is_forgotten_by_a_server_of_the_network_before(
    people: Gallery, unknown: UnknownFaces
) -> None:
    """Its templates cannot be compared with those that it keeps of unknown faces."""
    people.enroll("Ada", [photo_of(vectors(1)[0])])
    newer = replace(FACTS, network="onnx:/home/ada/net.onnx", digest="newer")
    people.store.replace(newer, {1: vectors(1, 5)[0]})
    # A client of the server need not know its folders.
    with pytest.raises(OtherNetworkError, match=r"were made by another network \(onnx:net.onnx\)"):
        people.forget("Ada")


def test_a_photo_that_comes_again_is_no_visit(
    people: Gallery, unknown: UnknownFaces, clock: Clock
) -> None:
    for _ in range(4):
        come(people, vectors(1)[0], 0)
        clock.now += HOUR
    assert propose(people, unknown) == []
    (one,) = propose(people, unknown, visits=1)
    assert (one.visits, len(one.faces)) == (1, 4)


def test_the_time_limit(tmp_path: Path, unknown: UnknownFaces, clock: Clock) -> None:
    a, b = vectors(2)
    unknown.keep(a[None], crops([a]), DIGEST)
    clock.now += 23 * HOUR
    unknown.keep(b[None], crops([b]), DIGEST)
    clock.now += HOUR
    assert [face.number for face in unknown.faces()] == [2]  # also before it is deleted
    content = unknown.path.read_bytes()
    assert a.tobytes() in content and b.tobytes() in content
    assert unknown.purge() == 1
    content = unknown.path.read_bytes()
    assert a.tobytes() not in content and b.tobytes() in content
    clock.now += 24 * HOUR
    with UnknownFaces(unknown.path, clock=clock):  # whoever opens it deletes them
        assert b.tobytes() not in unknown.path.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if "unknown" in path.name] == [
        "g.db.unknown"
    ]  # no journal is left


def test_a_wrong_clock_keeps_nothing_for_years(unknown: UnknownFaces, clock: Clock) -> None:
    clock.now += 10_000 * HOUR
    unknown.keep(vectors(1), crops(vectors(1)), DIGEST)
    clock.now -= 10_000 * HOUR
    assert unknown.purge() == 1


def test_a_server_that_nobody_asks_deletes_too(unknown: UnknownFaces, clock: Clock) -> None:
    unknown.keep(vectors(1), crops(vectors(1)), DIGEST)
    clock.now += 25 * HOUR
    before = threading.active_count()
    with purging(unknown, 0.01), purging(None):
        until = time.monotonic() + 5
        while vectors(1)[0].tobytes() in unknown.path.read_bytes() and time.monotonic() < until:
            time.sleep(0.01)
    assert vectors(1)[0].tobytes() not in unknown.path.read_bytes()
    assert threading.active_count() == before


def test_only_its_owner_reads_it(unknown: UnknownFaces) -> None:
    assert stat.S_IMODE(unknown.path.stat().st_mode) == 0o600


def test_under_a_passphrase(tmp_path: Path, clock: Clock) -> None:
    path, row = tmp_path / "sealed", vectors(1)
    with UnknownFaces(path, hours=1, passphrase=b"secret", clock=clock) as opened:
        opened.keep(row, crops(row), DIGEST)
        points = crops(row)[0].landmarks_62
        assert points is not None
        for clear in (row.tobytes(), points.tobytes()):
            assert clear not in path.read_bytes()
        opened.keep(row, crops(row), DIGEST)
        # An older version left the landmarks in clear.
        opened._db.execute("UPDATE face SET landmarks = ? WHERE id = 2", (points.tobytes(),))
    with UnknownFaces(path, passphrase=b"secret", clock=clock) as opened:
        for face in opened.faces():
            assert np.array_equal(face.template, row[0])
            assert face.crop.jpeg == row.tobytes()
            assert face.crop.landmarks_62 is not None
            assert np.array_equal(face.crop.landmarks_62, points)
        assert len(opened.faces()) == 2
    with pytest.raises(PersonaError, match="the passphrase is wrong"):
        UnknownFaces(path, passphrase=b"other")
    with pytest.raises(PersonaError, match="is encrypted: give --passphrase-file"):
        UnknownFaces(path)
    with UnknownFaces(tmp_path / "open", hours=1, clock=clock) as opened:
        opened.keep(row, crops(row), DIGEST)
    with pytest.raises(PersonaError, match="holds faces that are not encrypted"):
        UnknownFaces(tmp_path / "open", passphrase=b"secret", clock=clock)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE fact SET value = 'no hex' WHERE name = 'salt'",
        "UPDATE fact SET value = 'abc' WHERE name = 'check'",
        "DELETE FROM fact WHERE name = 'check'",
    ],
)
def test_a_damaged_salt_is_no_wrong_passphrase(tmp_path: Path, change: str) -> None:
    path = tmp_path / "sealed"
    UnknownFaces(path, passphrase=b"secret").close()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(change)
    with pytest.raises(PersonaError, match="sealed is damaged: remove it"):
        UnknownFaces(path, passphrase=b"secret")


def test_what_is_over_goes_without_the_passphrase(tmp_path: Path, clock: Clock) -> None:
    path, row = tmp_path / "sealed", vectors(1)
    purge_file(path)
    assert open_kept(path) is None and not path.exists()
    with UnknownFaces(path, hours=1, passphrase=b"secret", clock=clock) as opened:
        opened.keep(row, crops(row), DIGEST)  # years ago
        purge_file(path)
        assert opened._db.execute("SELECT count(*) FROM face").fetchone() == (0,)


def test_no_request_that_keeps_nothing_has_to_hurry(
    people: Gallery, unknown: UnknownFaces, tmp_path: Path
) -> None:
    """Where no face will be kept, there is nothing to claim."""
    come(people, vectors(1)[0], 0)
    people.unknown = open_kept(tmp_path / "g.db.unknown")
    assert people.unknown is not None and people.unknown.hours is None
    with people.unknown:
        people.recognise(photo_of(vectors(1)[0]), claim=pytest.fail)


def test_no_more_than_so_many(unknown: UnknownFaces, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_FACES * 10_000 == 200_000_000
    monkeypatch.setattr("persona.gallery.unknown_faces.MOST_FACES", 3)
    for seed in range(5):
        unknown.keep(vectors(1, seed), crops(vectors(1, seed)), DIGEST)
    assert [face.number for face in unknown.faces()] == [3, 4, 5]


def test_a_full_disk_does_not_stop_recognising(
    people: Gallery, unknown: UnknownFaces, caplog: pytest.LogCaptureFixture
) -> None:
    pages = unknown._db.execute("PRAGMA page_count").fetchone()[0]
    unknown._db.execute(f"PRAGMA max_page_count = {pages}")
    many = vectors(200)
    for _ in range(2):
        answers = people.recognise(photo_of(*many))
        assert len(answers) == 200 and answers[0].name is None
    assert unknown.faces() == []
    assert [r.message for r in caplog.records] == [
        f"warning: unknown faces are not kept: {unknown.path}: database or disk is full"
    ]


@pytest.fixture
def readable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The crops of FakeEyes are no images."""
    monkeypatch.setattr("persona.gallery.crops.is_crop", lambda _: True)


@pytest.mark.usefixtures("readable")
def test_after_an_upgrade_they_are_embedded_anew(
    people: Gallery, unknown: UnknownFaces, clock: Clock
) -> None:
    ada, old = vectors(1)[0], vectors(2, 9)
    for visit in range(2):
        # Templates of the network of yesterday; FakeEyes reads that of today from the crop.
        crop = crops([near(ada, 0.9, visit)])
        unknown.keep(old[visit][None], crop, "yesterday", AlignSpec(image_size=112))
        clock.now += HOUR
    (one,) = propose(people, unknown)
    assert len(one.faces) == 2 and one.similarity > 0.8
    assert {face.model for face in unknown.faces()} == {DIGEST}
    assert {face.crop.align for face in unknown.faces()} == {AlignSpec(image_size=112)}


def test_after_an_upgrade_what_is_no_crop_is_deleted(
    people: Gallery, unknown: UnknownFaces
) -> None:
    unknown.keep(vectors(1), crops(vectors(1)), "yesterday", FACTS.align)
    assert propose(people, unknown) == []
    assert unknown.faces() == []


@pytest.mark.usefixtures("readable")
@pytest.mark.parametrize("align", [ARCFACE, None])
def test_after_an_upgrade_crops_that_do_not_fit_are_deleted(
    people: Gallery, unknown: UnknownFaces, align: AlignSpec | None
) -> None:
    come(people, vectors(1)[0], 0)
    unknown.keep(vectors(2), crops(vectors(2)), "yesterday", align)
    assert len(unknown.faces()) == 3
    assert len(propose(people, unknown, visits=1)) == 1
    assert [face.model for face in unknown.faces()] == [DIGEST]
    assert unknown.faces()[0].crop.align == FACTS.align


def test_templates_of_another_width_are_not_compared(
    people: Gallery, unknown: UnknownFaces
) -> None:
    """As in a file from elsewhere that names the digest of the gallery's network."""
    ada, other = vectors(2)
    people.enroll("Ada", [photo_of(ada)])
    wide = vectors(2, width=16)
    come(people, other, 0)
    unknown.keep(wide, crops(wide), DIGEST)
    assert people.forget("Ada") == 1
    assert [face.number for face in unknown.faces()] == [1]
    unknown.keep(wide, crops(wide), DIGEST)
    assert len(propose(people, unknown, visits=1)) == 1
    assert [face.number for face in unknown.faces()] == [1]


@pytest.mark.usefixtures("readable")
def test_templates_of_another_width_are_made_anew_where_crops_fit(
    people: Gallery, unknown: UnknownFaces
) -> None:
    row = vectors(1)
    unknown.keep(vectors(1, width=16), crops(row), DIGEST, FACTS.align)
    (one,) = propose(people, unknown, visits=1)
    (face,) = unknown.faces()
    assert one.faces == (1,) and np.array_equal(face.template, row[0])


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("template", np.full(8, np.nan, "<f4").tobytes()),
        ("template", b""),
        ("crop", "text"),
        ("seen", "never"),
        ("seen", 1e15),
        ("seen", -1.0),
    ],
)
def test_a_damaged_row_is_told_in_one_line(
    people: Gallery, unknown: UnknownFaces, column: str, value: object
) -> None:
    people.enroll("Ada", [photo_of(vectors(1, 1)[0])])
    unknown.keep(vectors(1), crops(vectors(1)), DIGEST)
    unknown._db.execute(f"UPDATE face SET {column} = ?", (value,))
    with pytest.raises(PersonaError, match=r"is damaged: remove it, it holds unknown faces alone"):
        propose(people, unknown, visits=1)
    with pytest.raises(PersonaError, match=r"is damaged: remove it, it holds unknown faces alone"):
        people.forget("Ada")


def test_a_file_of_before_the_alignment_was_kept(tmp_path: Path, clock: Clock) -> None:
    path, row = tmp_path / "old", vectors(1)
    with contextlib.closing(sqlite3.connect(path)) as db:
        for statement in (SCHEMA[0], WITHOUT_ALIGN, SCHEMA[2]):
            db.execute(statement)
        values = (clock.now, clock.now + HOUR, DIGEST, row.tobytes(), b"jpeg", None)
        db.execute("INSERT INTO face VALUES (1, ?, ?, ?, ?, ?, ?)", values)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.commit()
    for count in (1, 2):
        with UnknownFaces(path, hours=1, clock=clock) as opened:
            assert len(opened.faces()) == count
            opened.keep(row, crops(row), DIGEST, ARCFACE)
            assert [face.crop.align for face in opened.faces()] == [None, *[ARCFACE] * count]


def test_doubts_are_those_of_enrolling(
    people: Gallery, unknown: UnknownFaces, clock: Clock
) -> None:
    ada, eve = np.eye(2, 8, dtype=np.float32)
    for visit in range(2):
        come(people, ada, visit)
        clock.now += HOUR
    (one,) = propose(people, unknown)
    people.enroll("Eve", [photo_of(eve)])
    with pytest.raises(TwoPeopleError):
        enroll_proposal(people, unknown, one, "Eve")
    people.enroll("Ada", [photo_of(near(ada, 0.95, 5))])
    with pytest.raises(DuplicateError, match="looks like 'Ada'"):
        enroll_proposal(people, unknown, one, "Somebody")
    assert len(unknown.faces()) == 2
    assert propose(people, unknown) == [] and unknown.faces() == []  # she is Ada: not unknown
    with pytest.raises(PersonaError, match="some of these faces are gone"):
        enroll_proposal(people, unknown, one, "Ada")


@pytest.mark.parametrize("hours", [0, -1, 721, float("nan")])
def test_no_time_limit_is_refused(tmp_path: Path, hours: float) -> None:
    with pytest.raises(PersonaError, match="choose a time of up to 720 hours"):
        UnknownFaces(tmp_path / "u", hours=hours)
    assert not (tmp_path / "u").exists()


def test_other_files_are_refused(tmp_path: Path, people: Gallery, unknown: UnknownFaces) -> None:
    with pytest.raises(PersonaError, match="does not hold unknown faces"):
        UnknownFaces(tmp_path / "g.db")
    (tmp_path / "text").write_bytes(b"no database" * 100)
    with pytest.raises(PersonaError, match="text is damaged: remove it"):
        UnknownFaces(tmp_path / "text")
    unknown.keep(vectors(1), crops(vectors(1)), DIGEST)
    unknown._db.execute("UPDATE face SET template = zeroblob(31)")
    with pytest.raises(PersonaError, match="is damaged: remove it"):
        propose(people, unknown)
    (tmp_path / "file").touch()
    with pytest.raises(PersonaError, match="unknown faces cannot be kept"):
        UnknownFaces(tmp_path / "file" / "below")


@pytest.mark.parametrize(("visits", "minutes"), [(0, 30), (2, -1), (2, float("nan"))])
def test_bad_questions(people: Gallery, unknown: UnknownFaces, visits: int, minutes: float) -> None:
    with pytest.raises(PersonaError, match="choose at least 1"):
        propose(people, unknown, visits=visits, apart_minutes=minutes)


def test_where_they_lie(tmp_path: Path) -> None:
    assert file_of(tmp_path / "my.db", tmp_path / "x" / "gallery.db") == tmp_path / "my.db.unknown"
    place = "postgresql://ann:{}@host/db"
    one, other = (file_of(place.format(word), tmp_path / "gallery.db") for word in ("pw", "new"))
    assert one == other and one.parent == tmp_path and "host" not in one.name


KILLED = """
import sys
from pathlib import Path
import numpy as np
from persona.data.align.spec import Crop
from persona.gallery.unknown_faces import UnknownFaces

with UnknownFaces(Path(sys.argv[1]), hours=1) as unknown:
    for n in range(10_000):
        rows = np.eye(8, dtype=np.float32)[[n % 8, (n + 1) % 8]]
        unknown.keep(rows, [Crop(b"face" * 500, None, None)] * 2, "digest")
        print(n, flush=True)
"""


def test_a_kill_leaves_whole_photos(tmp_path: Path) -> None:
    path = tmp_path / "u"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(20)][-1]
        process.send_signal(signal.SIGKILL)
    with UnknownFaces(path) as unknown:
        numbers = [face.number for face in unknown.faces()]
    # What was told is there, and of no photo one of two faces.
    assert len(numbers) >= 2 * (told + 1) and len(numbers) % 2 == 0
