from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_eyes import FACTS, WIDTH, kept, near, new_store, vectors
from helpers import environment

from persona.data.align.spec import ARCFACE, AlignSpec
from persona.errors import PersonaError
from persona.gallery import crypt, sqlite
from persona.gallery.sqlite import SqliteStore
from persona.gallery.store import (
    MAX_NAME,
    Facts,
    NobodyError,
    OtherNetworkError,
    ReadOnlyError,
    Store,
    StoredPhoto,
    TakenError,
    Templates,
    Threshold,
    check_name,
    open_store,
)

PASSPHRASE = b"correct horse"


def files_of(path: Path) -> bytes:
    """Every byte of a gallery and what lies beside it."""
    return b"".join(other.read_bytes() for other in path.parent.glob(f"{path.name}*"))


def script(body: str, *arguments: object) -> list[str]:
    """A program that has a gallery open at `path`, and `people(n)` of three photos each."""
    head = """
        import sys
        import numpy as np
        from persona.gallery.store import StoredPhoto, open_store
        path, *rest = sys.argv[1:]
        store = open_store(path)
        def photos(n):
            return [StoredPhoto(np.eye(8, dtype=np.float32)[n % 8]) for _ in range(3)]
    """
    code = textwrap.dedent(head) + textwrap.dedent(body)
    return [sys.executable, "-c", code, *map(str, arguments)]


def test_people_come_back(tmp_path: Path) -> None:
    a, b, c = vectors(3)
    points = np.arange(12.0).reshape(6, 2)
    with new_store(tmp_path / "g.db") as store:
        store.add({"Ann": [StoredPhoto(a, b"jpeg", points)], "Bob": kept(b)}, FACTS.digest)
        store.add({"Ann": kept(c)}, FACTS.digest)
    with open_store(tmp_path / "g.db") as store:
        assert [(p.name, p.photos) for p in store.people()] == [("Ann", 2), ("Bob", 1)]
        assert store.person("Ann").created.endswith("Z")
        ((name, _, first), (_, _, second)) = store.photos("Ann")
        assert name == "Ann"
        assert np.array_equal(first.template, a)
        assert np.array_equal(second.template, c)
        assert first.crop == b"jpeg"
        assert first.landmarks_62 is not None
        assert np.array_equal(first.landmarks_62, points)
        assert second.crop is None
        assert len(list(store.photos())) == 3
        assert store.facts() == FACTS
        store.set_threshold(Threshold(0.25, "a set"), FACTS.digest)
        assert store.facts() == replace(FACTS, threshold=Threshold(0.25, "a set"))


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    with new_store(tmp_path / "g.db") as store:
        store.add({"Ann": kept(*vectors(1))}, FACTS.digest)
        modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("g.db*")}
    assert modes == {0o600}


@pytest.mark.parametrize("match", ["mean", "max"])
def test_nearest_sees_what_another_connection_did(tmp_path: Path, match: str) -> None:
    a, b = vectors(2)
    with new_store(tmp_path / "g.db") as mine, open_store(tmp_path / "g.db") as other:
        assert mine.nearest(a[None], match) == [None]
        other.add({"Ann": kept(a)}, FACTS.digest)
        other.add({"Bob": kept(b)}, FACTS.digest)
        found = mine.nearest(np.stack([a, b]), match)
        assert [m and m.name for m in found] == ["Ann", "Bob"]
        assert found[0] is not None
        assert found[0].score == pytest.approx(1.0, abs=1e-6)
        (second,) = mine.nearest(a[None], match, without="Ann")
        assert second is not None
        assert second.name == "Bob"
        other.forget("Ann")
        (now,) = mine.nearest(a[None], match)
        assert now is not None
        assert now.name == "Bob"


def test_mean_and_max_differ(tmp_path: Path) -> None:
    probe = vectors(1)[0]
    with new_store(tmp_path / "g.db") as store:
        store.add({"Near once": kept(near(probe, 0.95), near(probe, -0.9, 1))}, FACTS.digest)
        store.add({"Always": kept(near(probe, 0.8), near(probe, 0.8, 1))}, FACTS.digest)
        for match, name in (("mean", "Always"), ("max", "Near once")):
            (found,) = store.nearest(probe[None], match)
            assert found is not None
            assert found.name == name


@pytest.mark.parametrize("crops", [False, True])
def test_forget_leaves_no_byte(tmp_path: Path, crops: bool) -> None:
    path = tmp_path / "g.db"
    crop = os.urandom(9000) if crops else None
    gone = vectors(40, seed=1000)
    with new_store(path) as store:
        for number in range(30):
            store.add({f"Somebody {number}": kept(*vectors(3, seed=number))}, FACTS.digest)
        # In between, so that its cells are moved about.
        store.add({"Wanda Wanished": [StoredPhoto(t, crop) for t in gone]}, FACTS.digest)
        for number in range(30, 60):
            store.add({f"Somebody {number}": kept(*vectors(3, seed=number))}, FACTS.digest)
        before = files_of(path)
        needles = [b"Wanda", *(t.tobytes() for t in gone), *([crop[:64]] if crop else [])]
        assert all(needle in before for needle in needles)
        assert store.forget("Wanda Wanished") == 40
        after = files_of(path)
        assert not [needle for needle in needles if needle in after]
        # Nor a part of one.
        assert not [t for t in gone if t.tobytes()[:12] in after or t.tobytes()[-12:] in after]
        assert isinstance(store, SqliteStore)
        assert store._execute("PRAGMA freelist_count").fetchone() == (0,)
        assert len(store.people()) == 60
        assert (tmp_path / "g.db-wal").stat().st_size == 0
        with pytest.raises(PersonaError, match=r"nobody named 'Wanda Wanished': see `persona"):
            store.forget("Wanda Wanished")


def test_an_interrupted_forget_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "g.db"
    template = vectors(1)[0]
    with new_store(path) as store:
        store.add({"Wanda": kept(template), "Bob": kept(*vectors(1, 1))}, FACTS.digest)
        with monkeypatch.context() as patch:
            patch.setattr(SqliteStore, "_clean", lambda self: None)
            store.forget("Wanda")
            assert template.tobytes() in files_of(path)  # of the log
        with open_store(path):
            assert template.tobytes() not in files_of(path)
            assert b"Wanda" not in files_of(path)


def test_a_full_disk_delays_the_cleaning_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "g.db"
    execute = SqliteStore._execute

    def full(self: SqliteStore, statement: str, *values: Any) -> sqlite3.Cursor:
        if statement == "VACUUM":
            error = sqlite3.OperationalError("full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return execute(self, statement, *values)

    with new_store(path) as store:
        store.add({"Wanda": kept(*vectors(1)), "Bob": kept(*vectors(1, 1))}, FACTS.digest)
        with monkeypatch.context() as patch:
            patch.setattr(SqliteStore, "_execute", full)
            message = r"the disk is full: make room.*What was removed is not found any more"
            with pytest.raises(PersonaError, match=message):
                store.forget("Wanda")
            with open_store(path) as other:
                assert [person.name for person in other.people()] == ["Bob"]
            assert "is in the file's bytes until" in caplog.text
    with open_store(path):
        assert b"Wanda" not in files_of(path)


def test_forget_says_so_where_a_reader_holds_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_MS", 50)
    path = tmp_path / "g.db"
    with new_store(path) as store:
        store.add({"Wanda": kept(*vectors(1))}, FACTS.digest)
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM photo").fetchall()
        with pytest.raises(PersonaError, match="is being read by another process"):
            store.forget("Wanda")
        reader.close()
    with open_store(path):
        assert b"Wanda" not in files_of(path)


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    new_store(path).close()
    body = """
        for n in range(25):
            store.add({f"{rest[0]} {n}": photos(n), "Both": photos(n)[:1]}, "digest")
    """
    both = [subprocess.Popen(script(body, path, name), env=environment(tmp_path)) for name in "AB"]
    assert [process.wait() for process in both] == [0, 0]
    with open_store(path) as store:
        people = {person.name: person.photos for person in store.people()}
    assert people == {"Both": 50} | {f"{name} {n}": 3 for name in "AB" for n in range(25)}


def test_two_processes_may_make_it_at_once(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    code = (
        "import sys\nfrom persona.gallery.store import open_store\n"
        "sys.stdin.readline()\nopen_store(sys.argv[1], create=True).close()"
    )
    some = [
        subprocess.Popen(
            [sys.executable, "-c", code, path],
            stdin=subprocess.PIPE,
            env=environment(tmp_path),
            text=True,
        )
        for _ in range(2)
    ]
    for process in some:  # both begin before one of them is waited for
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in some:
        process.communicate()
    assert [process.returncode for process in some] == [0] * 2
    with open_store(path) as store:
        assert store.people() == []


@pytest.mark.parametrize("after", [1, 17])
def test_killed_while_enrolling(tmp_path: Path, after: int) -> None:
    path = tmp_path / "g.db"
    new_store(path).close()
    body = """
        for n in range(100_000):
            store.add({str(n): photos(n)}, "digest")
            print(n, flush=True)
    """
    with subprocess.Popen(
        script(body, path), stdout=subprocess.PIPE, env=environment(tmp_path)
    ) as process:
        assert process.stdout is not None
        for _ in range(after):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        said = after + len(process.stdout.read().splitlines())
    with open_store(path) as store:
        assert isinstance(store, SqliteStore)
        people = {int(person.name): person.photos for person in store.people()}
        assert store._execute("PRAGMA integrity_check").fetchone() == ("ok",)
        store.add({"Next": kept(*vectors(1))}, FACTS.digest)
    # Whole people alone, all that were reported, and one more at most.
    assert set(people.values()) == {3}
    assert sorted(people) in (list(range(said)), list(range(said + 1)))


@pytest.mark.parametrize("moment", ["insert", "commit", "clean", "checkpoint"])
def test_killed_inside_a_change(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "g.db"
    new_store(path).close()
    body = """
        import os, signal
        die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        store.add({"Old": photos(0)}, "digest")
        execute = store._execute
        prefix = {"insert": "INSERT INTO person", "commit": "COMMIT", "clean": "VACUUM"}
        def dying(statement, *values):
            if rest[0] == "checkpoint" and "checkpoint" in statement:
                die()
            done = execute(statement, *values)
            if statement.startswith(prefix.get(rest[0], "none")):
                die()
            return done
        store._execute = dying
        if rest[0] in ("clean", "checkpoint"):
            store.forget("Old")
        store.add({"New": photos(1)}, "digest")
    """
    done = subprocess.run(script(body, path, moment), env=environment(tmp_path), check=False)
    assert done.returncode == -signal.SIGKILL
    with open_store(path) as store:
        found = {person.name: person.photos for person in store.people()}
        expected = {"insert": {"Old": 3}, "commit": {"Old": 3, "New": 3}}.get(moment, {})
        assert found == expected
        assert ("Old" in expected) == (b"Old" in files_of(path))


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    with new_store(tmp_path / "g.db") as store:
        assert isinstance(store, SqliteStore)
        store.add({"Ann": kept(*vectors(1))}, FACTS.digest)
        pages = store._execute("PRAGMA page_count").fetchone()[0]
        store._execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(PersonaError, match=r"g\.db: the disk is full: make room and run again"):
            store.add({"Bob": [StoredPhoto(vectors(1)[0], os.urandom(100_000))]}, FACTS.digest)
        assert [person.name for person in store.people()] == ["Ann"]
        store._execute("PRAGMA max_page_count = 1000000")
        store.add({"Bob": kept(*vectors(1))}, FACTS.digest)
        assert store._execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_backup_is_the_gallery_of_one_moment(tmp_path: Path) -> None:
    a, b = vectors(2)
    with new_store(tmp_path / "g.db") as store:
        store.add({"Ann": kept(a), "Bob": kept(b)}, FACTS.digest)
        store.forget("Bob")
        store.back_up(tmp_path / "copies" / "monday.db")
        store.add({"Cem": kept(b)}, FACTS.digest)
        with pytest.raises(PersonaError, match=r"monday\.db exists already: name a new file"):
            store.back_up(tmp_path / "copies" / "monday.db")
    assert [path.name for path in (tmp_path / "copies").iterdir()] == ["monday.db"]
    copy = tmp_path / "copies" / "monday.db"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600 and b"Bob" not in copy.read_bytes()
    with open_store(copy) as store:
        assert [person.name for person in store.people()] == ["Ann"]
        assert store.facts() == FACTS
        store.add({"Dee": kept(b)}, FACTS.digest)  # it is a gallery like any other


def test_a_backup_on_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    body = """
        import resource, signal
        store.add({f"P{n}": photos(n) for n in range(2000)}, "digest")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        store.back_up(__import__("pathlib").Path(rest[0]))
    """
    with new_store(tmp_path / "g.db"):
        pass
    command = script(
        body.replace('"digest"', repr(FACTS.digest)), tmp_path / "g.db", tmp_path / "c"
    )
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(tmp_path), check=False
    )
    assert done.returncode == 1 and "copying to" in done.stderr and "disk" in done.stderr
    assert not [path for path in tmp_path.iterdir() if "g.db" not in path.name]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_killed_backup_leaves_the_gallery_and_is_cleared_by_the_next(
    tmp_path: Path, moment: str
) -> None:
    """What it leaves holds templates, also of people who are forgotten since."""
    path, copies = tmp_path / "g.db", tmp_path / "copies"
    new_store(path).close()
    body = """
        import os, pathlib, signal
        store.add({"Ann": photos(0), "Wanda": photos(1)}, "digest")
        execute = store._execute
        def dying(statement, *values):
            if rest[1] == "after":
                execute(statement, *values)
            os.kill(os.getpid(), signal.SIGKILL)
        store._execute = dying
        store.back_up(pathlib.Path(rest[0]))
    """
    command = script(body, path, copies / "monday.db", moment)
    done = subprocess.run(command, env=environment(tmp_path), check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(copies.iterdir())) == 1 and not (copies / "monday.db").exists()
    body = """
        import pathlib
        store.forget("Wanda")
        store.back_up(pathlib.Path(rest[0]))
    """
    command = script(body, path, copies / "monday.db")
    subprocess.run(command, env=environment(tmp_path), check=True)
    assert [path.name for path in copies.iterdir()] == ["monday.db"]
    for place in (path, copies / "monday.db"):
        with open_store(place) as store:
            assert {person.name: person.photos for person in store.people()} == {"Ann": 3}


def test_a_file_limit_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    with new_store(path) as store:
        store.add({"Ann": kept(*vectors(1))}, FACTS.digest)
    body = """
        from persona.errors import PersonaError
        try:
            photo = StoredPhoto(np.eye(8, dtype=np.float32)[0], bytes(500_000))
            store.add({"Bob": [photo]}, "digest")
        except PersonaError as error:
            print(error)
    """

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = subprocess.run(
        script(body, path),
        preexec_fn=limit,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"{path}: ")
    assert "disk" in done.stdout
    with open_store(path) as store:
        assert [person.name for person in store.people()] == ["Ann"]


def test_threads_share_one(tmp_path: Path) -> None:
    with new_store(tmp_path / "g.db") as store:
        store.add({"Ann": kept(*vectors(1))}, FACTS.digest)
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for n in range(10):
                    if number == 0:
                        store.add({f"P{n}": kept(*vectors(1, n + 1))}, FACTS.digest)
                    elif number == 1:
                        store.people()
                    else:
                        (found,) = store.nearest(vectors(1), "mean")
                        assert found is not None
                        assert found.name == "Ann"
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert len(store.people()) == 11


def test_another_networks_templates_are_refused(tmp_path: Path) -> None:
    with new_store(tmp_path / "g.db") as store:
        store.set_threshold(Threshold(0.5, "a set"), FACTS.digest)
        assert store.nearest(vectors(1), "mean") == [None]
        with pytest.raises(PersonaError, match=r"templates of 8 numbers: these are \(16,\)"):
            store.add({"Ann": kept(*vectors(1, width=2 * WIDTH))}, FACTS.digest)
        assert store.people() == []
        wider = replace(FACTS, digest="other", width=2 * WIDTH)
        store.adopt(wider)  # nobody is there
        assert store.facts() == wider
        store.add({"Ann": kept(*vectors(1, width=16))}, "other")
        assert store.nearest(vectors(1, width=16), "mean") != [None]
        with pytest.raises(PersonaError, match=r"made by another network \(net\).*gallery rebuild"):
            store.adopt(FACTS)
        with pytest.raises(PersonaError, match="made by another network"):
            store.add({"Bob": kept(*vectors(1))}, FACTS.digest)
        assert [person.name for person in store.people()] == ["Ann"]


def test_replace_takes_all_templates_or_none(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    old, new = vectors(2), vectors(2, 5)
    with new_store(path) as store:
        store.add({"Ann": kept(*old)}, FACTS.digest)
        store.nearest(old[:1], "mean")
        numbers = [number for _, number, _ in store.photos()]
        fresh = replace(FACTS, digest="new")
        with pytest.raises(PersonaError, match="was changed while it was rebuilt"):
            store.replace(fresh, {numbers[0]: new[0]})
        store.replace(fresh, dict(zip(numbers, new, strict=True)))
        assert store.facts() == replace(fresh, previous=FACTS)
        (found,) = store.nearest(new[:1], "max")
        assert found is not None
        assert found.score == pytest.approx(1, abs=1e-6)


NEWER = replace(FACTS, digest="newer", network="newer")


def move_to(store: Store, facts: Facts, seed: int) -> Templates:
    """Gives each photo a template of another network, and returns them."""
    numbers = [number for _, number, _ in store.photos()]
    templates = vectors(len(numbers), seed, facts.width)
    store.replace(facts, dict(zip(numbers, templates, strict=True)))
    return templates


def test_a_threshold_and_a_name_are_those_of_the_network(tmp_path: Path) -> None:
    """Somebody may move the gallery while a threshold is measured."""
    with new_store(tmp_path / "g.db") as store, open_store(tmp_path / "g.db") as other:
        store.add({"Ann": kept(*vectors(1))}, FACTS.digest)
        move_to(other, NEWER, 5)
        moved_to = other.facts()
        with pytest.raises(OtherNetworkError, match="made by another network"):
            store.set_threshold(Threshold(0.5, "a set"), FACTS.digest)
        with pytest.raises(OtherNetworkError, match="made by another network"):
            store.take_name("onnx:/elsewhere.onnx", FACTS.digest)
        assert store.facts() == moved_to


@pytest.fixture(params=[None, PASSPHRASE], ids=["plain", "encrypted"])
def moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Store]:
    """A gallery of Ann (two photos) and Bob that moved to `NEWER`, and Cy who is enrolled since."""
    monkeypatch.setitem(crypt.SCRYPT, "n", 2**10)  # it is slow by design
    with new_store(tmp_path / "g.db", passphrase=request.param) as store:
        store.set_threshold(Threshold(0.25, "a set"), FACTS.digest)
        store.add({"Ann": kept(*vectors(2)), "Bob": kept(*vectors(1, 1))}, FACTS.digest)
        move_to(store, NEWER, 5)
        store.add({"Cy": kept(*vectors(1, 2))}, NEWER.digest)
        yield store


def sealed(store: Store, column: str) -> list[bytes]:
    """The stored bytes of a column of all photos, so that they can be looked for in files."""
    assert isinstance(store, SqliteStore)
    return [value for (value,) in store._execute(f"SELECT {column} FROM photo") if value]


def test_the_templates_before_are_kept_for_one_generation(moved: Store, tmp_path: Path) -> None:
    before = replace(FACTS, threshold=Threshold(0.25, "a set"))
    assert moved.facts() == replace(NEWER, previous=before)
    found = moved.previous_templates()
    assert list(found) == [1, 2, 3]  # not Cy's
    assert np.array_equal(list(found.values()), [*vectors(2), *vectors(1, 1)])
    oldest, now = sealed(moved, "previous"), [photo.template for *_, photo in moved.photos()]
    wide = replace(FACTS, digest="wide", width=2 * WIDTH)
    move_to(moved, wide, 6)
    assert moved.facts() == replace(wide, previous=NEWER)
    assert np.array_equal(list(moved.previous_templates().values()), now)
    assert not [value for value in oldest if value in files_of(tmp_path / "g.db")]
    # The same network with other crops: the gallery does not move.
    turned = replace(wide, align=replace(wide.align, image_size=96))
    move_to(moved, turned, 7)
    assert moved.facts() == replace(turned, previous=NEWER)
    assert np.array_equal(list(moved.previous_templates().values()), now)


def test_nothing_of_a_forgotten_person_is_left_in_the_templates_before(
    moved: Store, tmp_path: Path
) -> None:
    assert isinstance(moved, SqliteStore)
    anns = moved._execute("SELECT previous FROM photo WHERE person = 1").fetchall()
    assert len(anns) == 2
    assert all(value in files_of(tmp_path / "g.db") for (value,) in anns)
    moved.forget("Ann")
    assert not [value for (value,) in anns if value in files_of(tmp_path / "g.db")]
    assert np.array_equal(list(moved.previous_templates().values()), vectors(1, 1))


def test_the_templates_before_go_to_whoever_gets_the_photo(moved: Store) -> None:
    first, second = photo_ids(moved, "Ann")
    ann, bob = vectors(2), vectors(1, 1)
    moved.move("Ann", "Eve", new=True)  # renamed
    moved.move("Eve", "Fay", new=True, photos=[second])  # split
    moved.move("Bob", "Cy", new=False)  # merged
    assert [one.name for one in moved.people()] == ["Cy", "Eve", "Fay"]
    found = moved.previous_templates()
    assert np.array_equal([found[first], found[second], found[3]], [*ann, *bob])
    moved.move("Eve", "Fay", new=False)
    moved.replace(FACTS, found | {4: vectors(1, 2)[0]})
    assert np.array_equal([photo.template for *_, photo in moved.photos("Fay")], ann)


def test_discarding_leaves_no_byte_and_needs_no_passphrase(moved: Store, tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    oldest, now = sealed(moved, "previous"), [photo.template for *_, photo in moved.photos()]
    assert len(oldest) == 3 and all(value in files_of(path) for value in oldest)
    with open_store(path) as other:
        assert other.discard_previous() == 3
        assert other.discard_previous() == 0
    assert not [value for value in oldest if value in files_of(path)]
    assert moved.facts() == NEWER
    assert moved.previous_templates() == {}
    assert np.array_equal([photo.template for *_, photo in moved.photos()], now)


def test_discarding_says_so_where_something_is_left(moved: Store) -> None:
    assert isinstance(moved, SqliteStore)
    moved._execute(
        "CREATE TEMP TRIGGER keep BEFORE UPDATE OF previous ON photo BEGIN "
        "SELECT RAISE(IGNORE); END"
    )
    with pytest.raises(PersonaError, match="still holds something of 'net' after it was removed"):
        moved.discard_previous()
    assert len(moved.previous_templates()) == 3


def test_damage_of_the_templates_before_is_seen(moved: Store) -> None:
    assert isinstance(moved, SqliteStore)
    moved._execute("UPDATE photo SET previous = zeroblob(32) WHERE id = 2")
    with pytest.raises(PersonaError, match=r"file is damaged|does not open"):
        moved.previous_templates()


def test_a_backup_has_the_templates_before(moved: Store, tmp_path: Path) -> None:
    moved.back_up(tmp_path / "copy.db")
    assert isinstance(moved, SqliteStore)
    passphrase = None if moved._sealer is None else PASSPHRASE
    with open_store(tmp_path / "copy.db", passphrase=passphrase) as copy:
        assert copy.facts() == moved.facts()
        there, here = copy.previous_templates(), moved.previous_templates()
        assert np.array_equal(list(there.values()), list(here.values()))


@pytest.mark.parametrize("match", ["mean", "max"])
def test_who_has_an_index_of_the_network_before_goes_on_after_the_way_back(
    tmp_path: Path, match: str
) -> None:
    path = tmp_path / "g.db"
    with new_store(path) as store, open_store(path) as other:
        store.add({"Ann": kept(*vectors(2))}, FACTS.digest)
        before = store.nearest(vectors(1), match)
        move_to(other, NEWER, 5)
        with pytest.raises(PersonaError, match="were made by another network"):
            store.nearest(vectors(1), match)
        other.replace(FACTS, other.previous_templates())
        assert store.nearest(vectors(1), match) == before


@pytest.mark.parametrize("moment", ["UPDATE photo", "COMMIT", "VACUUM"])
def test_killed_while_discarding(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "g.db"
    with new_store(path) as store:
        store.add({"Ann": kept(*vectors(2))}, FACTS.digest)
        move_to(store, NEWER, 5)
    body = """
        import os, signal
        execute = store._execute
        def dying(statement, *values):
            done = execute(statement, *values)
            if statement.startswith(rest[0]):
                os.kill(os.getpid(), signal.SIGKILL)
            return done
        store._execute = dying
        store.discard_previous()
    """
    done = subprocess.run(script(body, path, moment), env=environment(tmp_path), check=False)
    assert done.returncode == -signal.SIGKILL
    with open_store(path) as store:
        undone = moment == "UPDATE photo"
        assert store.facts() == (replace(NEWER, previous=FACTS) if undone else NEWER)
        assert len(store.previous_templates()) == (2 if undone else 0)
        assert (vectors(2)[0].tobytes() in files_of(path)) == undone


@pytest.mark.parametrize("width", [WIDTH, 2 * WIDTH])
def test_templates_that_another_process_replaced_are_not_compared(
    tmp_path: Path, width: int
) -> None:
    with new_store(tmp_path / "g.db") as store, open_store(tmp_path / "g.db") as other:
        store.add({"Ann": kept(*vectors(1))}, FACTS.digest)
        assert store.nearest(vectors(1), "mean") != [None]
        ((_, number, _),) = store.photos()
        fresh = replace(FACTS, digest="new", width=width)
        other.replace(fresh, {number: vectors(1, 5, width)[0]})
        for _ in range(2):
            with pytest.raises(PersonaError, match="were made by another network"):
                store.nearest(vectors(1), "mean")
        # Nor those of a gallery that was emptied in between.
        other.forget("Ann")
        store.adopt(FACTS)
        assert store.nearest(vectors(1), "mean") == [None]
        other.adopt(fresh)
        other.add({"Bob": kept(*vectors(1, 5, width))}, "new")
        with pytest.raises(PersonaError, match="were made by another network"):
            store.nearest(vectors(1), "mean")


def test_new_people_only(tmp_path: Path) -> None:
    with new_store(tmp_path / "g.db") as store:
        store.add({"Ann": kept(*vectors(1))}, FACTS.digest)
        with pytest.raises(PersonaError, match="somebody named 'Ann' already: forget one"):
            store.add({"Bob": kept(*vectors(1)), "Ann": kept(*vectors(1))}, FACTS.digest, new=True)
        assert [person.name for person in store.people()] == ["Ann"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello, world " * 1000, "this is no gallery: choose another path"),
        (b"SQLite format 3\0" + bytes(5000), "this is no gallery|damaged"),
    ],
)
def test_no_gallery(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "g.db"
    path.write_bytes(content)
    with pytest.raises(PersonaError, match=message):
        open_store(path)
    assert path.read_bytes() == content


def test_a_damaged_gallery(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    with new_store(path) as store:
        for n in range(50):
            store.add({f"P{n}": kept(*vectors(5, n))}, FACTS.digest)
    data = path.read_bytes()
    path.write_bytes(data[:4096] + os.urandom(len(data) - 4096))
    message = r"g\.db: the file is damaged: restore it from a copy"
    with pytest.raises(PersonaError, match=message), open_store(path) as store:
        store.people()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE photo SET template = zeroblob(32) WHERE id = 2",
        "UPDATE photo SET template = zeroblob(31) WHERE id = 2",
        "UPDATE photo SET template = 'text' WHERE id = 2",
        "UPDATE photo SET landmarks = zeroblob(5) WHERE id = 2",
        "UPDATE fact SET value = '{' WHERE name = 'facts'",
        "UPDATE fact SET value = '[[' WHERE name = 'facts'",
        "DELETE FROM fact WHERE name = 'facts'",
        "UPDATE fact SET value = CAST(X'FFFE' AS TEXT)",
        "UPDATE person SET name = CAST(X'FFFE' AS TEXT)",
        "INSERT INTO fact VALUES ('salt', 'no hex')",
        "INSERT INTO fact VALUES ('salt', 'abcd')",
    ],
)
def test_damage_that_sqlite_does_not_see(tmp_path: Path, change: str) -> None:
    path = tmp_path / "g.db"
    with new_store(path) as store:
        store.add({"Ann": kept(*vectors(3))}, FACTS.digest)
    with sqlite3.connect(path) as db:
        db.execute(change)
    db.close()
    message = r"g\.db(: the file is damaged| does not say which network it was made with)"
    passphrase = PASSPHRASE if "salt" in change else None
    with (
        pytest.raises(PersonaError, match=message),
        open_store(path, passphrase=passphrase) as store,
    ):
        store.nearest(vectors(1), "mean")
        list(store.photos())


def test_a_damaged_schema(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    new_store(path).close()
    # No SQL any more, and no text in the message that would say so.
    broken = path.read_bytes().replace(b"CREATE TABLE photo", b"CREATF TABLE photo")
    path.write_bytes(broken.replace(b"photo", b"ph\xf3to"))
    with pytest.raises(PersonaError, match=r"g\.db: the file is damaged"):
        open_store(path)


BEFORE_FORGET = "CREATE TRIGGER t BEFORE DELETE ON person BEGIN SELECT RAISE(IGNORE); END"
FOREIGN = {
    "forget is ignored": BEFORE_FORGET,
    "enroll deletes everybody": "CREATE TRIGGER t AFTER INSERT ON photo BEGIN "
    "DELETE FROM person WHERE id <> new.person; END",
    "a view for a table": "ALTER TABLE person RENAME TO people; "
    "CREATE VIEW person AS SELECT * FROM people; "
    "CREATE TRIGGER t INSTEAD OF DELETE ON person BEGIN SELECT 1; END",
    "a key without CASCADE": "DROP TABLE photo; CREATE TABLE photo ("
    "id INTEGER PRIMARY KEY AUTOINCREMENT, person INTEGER NOT NULL, "
    "model TEXT NOT NULL, template BLOB NOT NULL, crop BLOB, landmarks BLOB); "
    "CREATE INDEX photo_person ON photo (person)",
    "a partial index": "DROP INDEX photo_person; "
    "CREATE INDEX photo_person ON photo (person) WHERE id > 1",
    "a column with a default": "ALTER TABLE photo ADD COLUMN copy BLOB DEFAULT X'00'",
    "another table": "CREATE TABLE copies AS SELECT * FROM photo",
    "no index": "DROP INDEX photo_person",
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_a_schema_that_is_not_personas_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "g.db"
    with new_store(path) as store:
        store.add({"Ann": kept(*vectors(2)), "Bob": kept(*vectors(1, 1))}, FACTS.digest)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(change)
    before = path.read_bytes()
    for create in (False, True):
        with pytest.raises(PersonaError, match=r"g\.db is not as Persona makes a gallery \(its "):
            open_store(path, create=create)
    assert path.read_bytes() == before


def test_a_schema_is_compared_without_its_blanks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_store(tmp_path / "g.db").close()
    script, *more = sqlite.MIGRATIONS
    sqlite.schema_of.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "MIGRATIONS", (script.replace("\n", "\n\t "), *more))
        open_store(tmp_path / "g.db").close()
    sqlite.schema_of.cache_clear()


def test_a_file_of_no_version_with_tables_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    for version in (0, -1):
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.executescript(
                f"PRAGMA application_id = {sqlite.APPLICATION_ID}; PRAGMA user_version = {version};"
                "CREATE TABLE IF NOT EXISTS fact (name, value); "
            )
        with pytest.raises(PersonaError, match=r"not as Persona makes a gallery|is damaged"):
            open_store(path, create=True)


def test_pages_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    with new_store(path) as store:
        for n in range(40):
            store.add({f"P{n}": kept(*vectors(2, n))}, FACTS.digest)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute(
            "UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master WHERE name = "
            "'sqlite_autoindex_person_1') WHERE name = 'photo_person'"
        )
    with pytest.raises(PersonaError, match=r"g\.db: the file is damaged"):
        open_store(path)


def test_an_index_that_hides_a_photo_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    with new_store(path) as store:
        store.add({"Ann": kept(*vectors(2))}, FACTS.digest)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        # An index that leaves a row out, under the text of the one that has all.
        db.execute("DROP INDEX photo_person")
        db.execute("CREATE INDEX photo_person ON photo (person) WHERE id > 1")
        db.execute("PRAGMA writable_schema = ON")
        db.execute(
            "UPDATE sqlite_master SET sql = 'CREATE INDEX photo_person ON photo (person)' "
            "WHERE name = 'photo_person'"
        )
    with pytest.raises(PersonaError, match=r"g\.db: the file is damaged"):
        open_store(path)


def test_pages_that_lead_round_in_a_circle_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    with new_store(path) as store:
        for n in range(400):
            store.add({f"{n} {'x' * 150}": kept(*vectors(1, n))}, FACTS.digest)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'person'").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    data = bytearray(path.read_bytes())
    page = memoryview(data)[(root - 1) * size : root * size]
    assert page[0] == 5  # an interior page of a table
    for cell in range(int.from_bytes(page[3:5])):
        start = int.from_bytes(page[12 + 2 * cell : 14 + 2 * cell])
        page[start : start + 4] = root.to_bytes(4)
    page.release()
    path.write_bytes(data)
    with pytest.raises(PersonaError, match=r"g\.db: the file is damaged"):
        open_store(path)


def test_what_the_schema_allows_and_persona_never_writes(tmp_path: Path) -> None:
    for number, change in enumerate(
        (
            "UPDATE person SET name = X'00'",
            "UPDATE person SET created = X'00'",
            "UPDATE photo SET person = 99 WHERE id = 2",
            "UPDATE photo SET id = -1 WHERE id = 2",
            "UPDATE sqlite_sequence SET seq = 9223372036854775807",
        )
    ):
        path = tmp_path / f"g{number}.db"
        with new_store(path) as store:
            store.add({"Ann": kept(*vectors(2))}, FACTS.digest)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute(change)
        with pytest.raises(PersonaError, match="the file is damaged"):
            open_store(path)


def test_forget_says_so_where_something_is_left(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    with new_store(path) as store:
        store.add({"Ann": kept(*vectors(2)), "Bob": kept(*vectors(1, 1))}, FACTS.digest)
        with contextlib.closing(sqlite3.connect(path)) as db:  # after it was looked at
            db.execute(BEFORE_FORGET)
        with pytest.raises(PersonaError, match=r"g\.db still holds something of 'Ann' after"):
            store.forget("Ann")
        assert [(one.name, one.photos) for one in store.people()] == [("Ann", 2), ("Bob", 1)]


@pytest.mark.parametrize("name", [":memory:", "file:g?mode=memory"])
def test_names_that_sqlite_takes_for_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with new_store(Path(name)) as store:
        store.add({"Ann": kept(*vectors(1))}, FACTS.digest)
    with open_store(name) as store:
        assert store.person("Ann").photos == 1


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for place, create, message in (
        (tmp_path / "pipe", True, "is no file: choose another path"),
        (tmp_path, True, "is no file"),
        (Path(os.devnull), True, "is no file"),
        (tmp_path / "empty", False, "no gallery at"),
    ):
        with pytest.raises(PersonaError, match=message):
            open_store(place, create=create)
    assert (tmp_path / "empty").read_bytes() == b""


def test_a_file_that_went_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    with new_store(path) as store:
        store.add({"Ann": kept(*vectors(1))}, FACTS.digest)
        path.rename(tmp_path / "old.db")
        for _ in range(2):
            with pytest.raises(PersonaError, match="was moved or replaced since it was opened"):
                store.add({"Bob": kept(*vectors(1))}, FACTS.digest)
            path.write_bytes(b"another")


def test_another_programs_file(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE cookies (name TEXT)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(PersonaError, match="another program's SQLite file: choose another path"):
        open_store(path, create=True)
    assert path.read_bytes() == before


def test_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "g.db"
    with new_store(path) as store:
        store.add({"Ann": kept(*vectors(1))}, FACTS.digest)
    more = (*sqlite.MIGRATIONS, "ALTER TABLE person ADD COLUMN note TEXT")
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "MIGRATIONS", more)
        with open_store(path) as store:
            assert isinstance(store, SqliteStore)
            assert store._execute("SELECT name, note FROM person").fetchall() == [("Ann", None)]
    with pytest.raises(PersonaError, match=r"gallery of version 4, this Persona knows 3: update"):
        open_store(path)


def write_version_1(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gallery of Ann that was moved before the templates of the network before were kept."""
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "MIGRATIONS", sqlite.MIGRATIONS[:1])
        with new_store(path) as store:
            assert isinstance(store, SqliteStore)
            store._execute("INSERT INTO person (name, created) VALUES ('Ann', 'then')")
            for template in vectors(2):
                store._execute(
                    "INSERT INTO photo (person, model, template) VALUES (1, ?, ?)",
                    (FACTS.digest, template.tobytes()),
                )
            with store.changing():
                store._keep_facts(replace(FACTS, previous=replace(FACTS, digest="older")))


def version_of(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def test_a_gallery_of_version_1_is_brought_to_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "g.db"
    write_version_1(path, monkeypatch)
    assert version_of(path) == 1
    with open_store(path) as store:
        assert version_of(path) == 3
        assert np.array_equal([photo.template for *_, photo in store.photos()], vectors(2))
        facts = store.facts()
        assert facts is not None and facts.previous is not None
        assert store.previous_templates() == {}
        new = vectors(2, 5)
        store.replace(replace(FACTS, digest="new"), dict(zip((1, 2), new, strict=True)))
        assert np.array_equal(list(store.previous_templates().values()), vectors(2))
    with open_store(path) as store:  # what is migrated has the schema of what is new
        assert store.person("Ann").photos == 2


def test_a_gallery_of_version_1_that_may_only_be_read_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "g.db"
    write_version_1(path, monkeypatch)
    before = path.read_bytes()
    monkeypatch.setattr(sqlite, "obstacle_to_writing", lambda _: "mounted read-only")
    with open_store(path) as store:
        assert store.nearest(vectors(1), "max") != [None]
        assert len(list(store.photos())) == 2
        for change in (store.previous_templates, store.discard_previous):
            with pytest.raises(ReadOnlyError, match="can be read but not changed: mounted"):
                change()
    assert path.read_bytes() == before


def aligns(store: Store) -> list[AlignSpec | None]:
    return [photo.align for _, _, photo in store.photos()]


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_a_crop_keeps_the_alignment_that_it_was_made_with(
    tmp_path: Path, passphrase: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A move to another network leaves the crops as they are."""
    monkeypatch.setitem(crypt.SCRYPT, "n", 2**10)  # it is slow by design
    old, new, other = FACTS.align, ARCFACE, AlignSpec(margin=44)
    with new_store(tmp_path / "g.db", passphrase=passphrase) as store:
        a, b, c, d = vectors(4)
        ann = [StoredPhoto(a, b"1"), StoredPhoto(b), StoredPhoto(c, b"3", align=old)]
        store.add({"Ann": [*ann, StoredPhoto(d, b"4", align=other)]}, FACTS.digest)
        assert aligns(store) == [None, None, None, other]
        moved = replace(FACTS, digest="new", align=new)
        store.replace(moved, dict(zip(range(1, 5), vectors(4, 5), strict=True)))
        assert aligns(store) == [old, None, old, other]
        store.add({"Ann": [StoredPhoto(a, b"5"), StoredPhoto(b, align=old)]}, "new")
        store.move("Ann", "Eve", new=True)
        assert aligns(store) == [old, None, old, other, None, None]
        store.replace(FACTS, dict(zip(range(1, 7), vectors(6, 6), strict=True)))  # and back
        assert aligns(store) == [None, None, None, other, new, None]
        third = replace(FACTS, digest="third", align=other)
        store.replace(third, dict(zip(range(1, 7), vectors(6, 7), strict=True)))
        assert aligns(store) == [old, None, old, None, new, None]


@pytest.mark.parametrize("text", ["", "[]", '{"method": "no such"}', b"\0", "[" * 100_000])
def test_an_alignment_that_is_none(tmp_path: Path, text: Any) -> None:
    with new_store(tmp_path / "g.db") as store:
        store.add({"Ann": [StoredPhoto(vectors(1)[0], b"jpeg")]}, FACTS.digest)
        assert isinstance(store, SqliteStore)
        store._execute("UPDATE photo SET align = ?", (text,))
        with pytest.raises(PersonaError, match=r"g\.db: "):
            list(store.photos())


def test_none_there(tmp_path: Path) -> None:
    with pytest.raises(PersonaError, match=r"no gallery at .*g\.db: `persona enroll NAME PHOTO"):
        open_store(tmp_path / "g.db")
    assert not list(tmp_path.iterdir())


def test_a_passphrase_hides_all_but_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(crypt.SCRYPT, "n", 2**10)  # it is slow by design
    path = tmp_path / "g.db"
    template = vectors(1)[0]
    crop = os.urandom(200)
    with new_store(path, passphrase=PASSPHRASE) as store:
        store.add({"Ann": [StoredPhoto(template, crop)], "Bob": kept(*vectors(1, 1))}, FACTS.digest)
        assert template.tobytes() not in files_of(path)
        assert crop not in files_of(path)
        (found,) = store.nearest(template[None], "mean")
        assert found is not None
        assert found.name == "Ann"
    with open_store(path, passphrase=PASSPHRASE) as store:
        assert next(store.photos("Ann"))[2].crop == crop
        # One person's template does not open as another's.
        assert isinstance(store, SqliteStore)
        store._execute(
            "UPDATE photo SET template = (SELECT template FROM photo WHERE person = 1) "
            "WHERE person = 2"
        )
        with pytest.raises(PersonaError, match="passphrase is wrong or the gallery was changed"):
            list(store.photos("Bob"))
    with pytest.raises(PersonaError, match=r"g\.db: the passphrase is wrong"):
        open_store(path, passphrase=b"wrong")
    with open_store(path) as store:
        assert [person.name for person in store.people()] == ["Ann", "Bob"]
        for use in (lambda: list(store.photos()), lambda: store.nearest(template[None], "max")):
            with pytest.raises(PersonaError, match="is encrypted: give --passphrase-file FILE"):
                use()
        with pytest.raises(PersonaError, match="is encrypted"):
            store.add({"Ann": kept(template)}, FACTS.digest)
        assert store.forget("Ann") == 1


def test_no_passphrase_for_what_is_there_already(tmp_path: Path) -> None:
    with new_store(tmp_path / "g.db") as store:
        store.add({"Ann": kept(*vectors(1))}, FACTS.digest)
    with pytest.raises(PersonaError, match="is not encrypted: leave --passphrase-file out"):
        open_store(tmp_path / "g.db", passphrase=PASSPHRASE)
    with pytest.raises(PersonaError, match="PostgreSQL has to see the templates"):
        open_store("postgresql://localhost/x", passphrase=PASSPHRASE)


def test_a_passphrase_for_whoever_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(crypt.SCRYPT, "n", 2**10)
    path = tmp_path / "g.db"
    with new_store(path) as plain, open_store(path, passphrase=PASSPHRASE) as sealed:
        with pytest.raises(PersonaError, match="is encrypted: give --passphrase-file"):
            plain.add({"Ann": kept(*vectors(1))}, FACTS.digest)
        sealed.add({"Ann": kept(*vectors(1))}, FACTS.digest)
        assert vectors(1).tobytes() not in files_of(path)


GOOD = [
    "Ann",
    "a/b\\c/../d",
    "Zoë",
    "李小龙",
    "👩‍🚀",
    "علی\u200cرضا",
    "Jean\u00a0Paul",
    "Robert'); DROP TABLE person;--",
    "%s {0} <b>",
]


@pytest.mark.parametrize("name", [*GOOD, "x" * MAX_NAME])
def test_names(tmp_path: Path, name: str) -> None:
    assert check_name(f" {name} ") == name
    with new_store(tmp_path / "g.db") as store:
        store.add({name: kept(*vectors(1))}, FACTS.digest)
        assert store.person(name).photos == 1
        assert store.forget(name) == 1
        assert store.people() == []


def test_names_are_composed() -> None:
    assert check_name("Zoe\u0308") == check_name("Zo\u00eb")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "holds nothing: choose 1 to 200"),
        (" \t ", "holds nothing"),
        ("x" * 10_000, "a name of 10000 characters: choose at most 200"),
        ("a\0b", r"a name holds U\+0000 control character, which cannot be seen"),
        ("a\nb", r"U\+000A control character"),
        ("a\x1b[31mb", r"U\+001B control character"),
        ("a\u202eb", r"U\+202E RIGHT-TO-LEFT OVERRIDE"),
        ("a\u200bb", r"U\+200B ZERO WIDTH SPACE"),
        ("\u00ada", r"U\+00AD SOFT HYPHEN"),
        ("a\u3164", r"U\+3164 HANGUL FILLER"),
        ("\u2800", r"U\+2800 BRAILLE PATTERN BLANK"),
        ("a\u200db", r"U\+200D ZERO WIDTH JOINER"),
        ("\u200d", r"U\+200D ZERO WIDTH JOINER"),
        ("\u0301", "holds nothing"),
        ("a\ud800b", "no Unicode text"),
    ],
)
def test_no_names(name: str, message: str) -> None:
    with pytest.raises(PersonaError, match=message):
        check_name(name)


def test_names_that_are_no_longer_given_are_found_as_they_are_shown(tmp_path: Path) -> None:
    with new_store(tmp_path / "g.db") as store:
        unseen, loose = "Ann\u200b", "Zoe\u0308"
        for name in ("Ann", unseen, loose):
            store.add({name: kept(*vectors(1))}, FACTS.digest)
        assert store.person("Ann").name == "Ann"
        assert store.person(unseen).name == unseen
        assert store.person(r"Ann\u200b").name == unseen
        assert store.person(loose).name == loose
        with pytest.raises(PersonaError, match="has nobody named"):
            store.person(r"Ann\u200c")
        with pytest.raises(PersonaError, match="no Unicode text"):
            store.person("bad\udcff")


def test_opening_needs_no_torch(tmp_path: Path) -> None:
    new_store(tmp_path / "g.db").close()
    body = """
        import json
        import persona.cli.gallery
        store.people()
        print(json.dumps([m for m in ("torch", "faiss", "av", "cryptography") if m in sys.modules]))
    """
    done = subprocess.run(
        script(body, tmp_path / "g.db"),
        env=environment(tmp_path),
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout) == []


def test_facts_of_a_stranger() -> None:
    value: Any = FACTS.to_json()
    change: dict[str, Any]
    assert Facts.from_json(value, "x") == FACTS
    for change in (
        {"width": 3},
        {"width": "many"},
        {"align": []},
        {"network": "net\x1b[2J"},
        {"network": "net\u200b"},
        {"threshold": {"value": float("nan"), "source": "a set"}},
        {"threshold": {"value": 1e9, "source": "a set"}},
        {"network": None, "threshold": 1},
        {"threshold": 0},
        {"threshold": ""},
        {"threshold": {}},
        {"threshold": {"value": 0.5, "source": "a set", "far": 10**400}},
        {"width": float("inf")},
        {"network": "hf://somebody/faces"},
        {"previous": FACTS.to_json() | {"network": "hf://somebody/faces"}},
    ):
        with pytest.raises(PersonaError, match="x"):
            Facts.from_json(value | change, "x")
    assert value["width"] == WIDTH


def photo_ids(store: Store, name: str) -> list[int]:
    return [number for _, number, _ in store.photos(name)]


def test_move_renames_merges_and_splits(tmp_path: Path) -> None:
    a, b, c = vectors(3)
    points = np.arange(12.0).reshape(6, 2)
    with new_store(tmp_path / "g.db") as store, open_store(tmp_path / "g.db") as other:
        store.add({"Ann": [StoredPhoto(a), StoredPhoto(b, b"jpeg", points)]}, FACTS.digest)
        store.add({"Bob": kept(c)}, FACTS.digest)
        assert isinstance(store, SqliteStore)
        store._execute("UPDATE person SET created = 'later' WHERE name = 'Ann'")
        assert other.nearest(a[None], "max") != [None]
        assert (store.face("Ann"), store.face("Bob"), store.face("Cy")) == (b"jpeg", None, None)

        assert store.move("Ann", "Eve", new=True) == 2
        assert [(p.name, p.photos, p.created[:5]) for p in store.people()] == [
            ("Bob", 1, store.person("Bob").created[:5]),
            ("Eve", 2, "later"),
        ]
        for match in ("mean", "max"):  # what another connection had in memory
            assert [n and n.name for n in other.nearest(np.stack([a, c]), match)] == ["Eve", "Bob"]
        _, (_, number, photo) = store.photos("Eve")
        assert (photo.crop, store.face("Eve")) == (b"jpeg", b"jpeg")
        assert photo.landmarks_62 is not None
        assert np.array_equal(photo.landmarks_62, points)

        assert store.move("Eve", "Fay", new=True, photos=[number]) == 1
        assert {p.name: p.photos for p in store.people()} == {"Bob": 1, "Eve": 1, "Fay": 1}
        (found,) = other.nearest(b[None], "max")
        assert found is not None
        assert found.name == "Fay"

        assert store.move("Fay", "Bob", new=False) == 1
        assert {p.name: p.photos for p in store.people()} == {"Bob": 2, "Eve": 1}
        assert store.person("Bob").created < "later"  # the older of both
        assert store.move("Eve", "Bob", new=False, photos=photo_ids(store, "Eve")) == 1
        assert [p.name for p in other.people()] == ["Bob"]


def test_move_takes_all_or_nothing(tmp_path: Path) -> None:
    def doubt() -> None:
        raise PersonaError("they differ")

    with new_store(tmp_path / "g.db") as store:
        store.add({"Ann": kept(*vectors(2)), "Bob": kept(*vectors(1, 1))}, FACTS.digest)
        strange = photo_ids(store, "Bob")
        before = [(name, number) for name, number, _ in store.photos()]
        with pytest.raises(NobodyError, match="nobody named 'Cy'"):
            store.move("Cy", "Dan", new=True)
        with pytest.raises(NobodyError, match="nobody named 'Cy'"):
            store.move("Ann", "Cy", new=False)
        with pytest.raises(TakenError, match="somebody named 'Bob' already: choose another name"):
            store.move("Ann", "Bob", new=True)
        with pytest.raises(PersonaError, match="not, or no longer, photos of 'Ann'"):
            store.move("Ann", "Cy", new=True, photos=[*photo_ids(store, "Ann"), *strange])
        with pytest.raises(PersonaError, match="they differ"):
            store.move("Ann", "Bob", new=False, check=doubt)
        assert [(name, number) for name, number, _ in store.photos()] == before
        assert [person.name for person in store.people()] == ["Ann", "Bob"]
        assert isinstance(store, SqliteStore)
        store._execute(
            "CREATE TEMP TRIGGER keep BEFORE UPDATE OF person ON photo BEGIN "
            "SELECT RAISE(IGNORE); END"
        )
        with pytest.raises(PersonaError, match="still holds something of 'Ann'"):
            store.move("Ann", "Bob", new=False)
        assert [(name, number) for name, number, _ in store.photos()] == before


@pytest.mark.parametrize("moment", ["UPDATE photo", "COMMIT", "VACUUM"])
def test_killed_inside_a_move(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "g.db"
    new_store(path).close()
    body = """
        import os, signal
        store.add({"Wanda Wanished": photos(0), "Bob": photos(1)}, "digest")
        execute = store._execute
        def dying(statement, *values):
            if rest[0] == "UPDATE photo" and statement.startswith("DELETE FROM person"):
                os.kill(os.getpid(), signal.SIGKILL)
            done = execute(statement, *values)
            if statement.startswith(rest[0]):
                os.kill(os.getpid(), signal.SIGKILL)
            return done
        store._execute = dying
        store.move("Wanda Wanished", "Bob", new=False)
    """
    done = subprocess.run(script(body, path, moment), env=environment(tmp_path), check=False)
    assert done.returncode == -signal.SIGKILL
    with open_store(path) as store:
        found = {person.name: person.photos for person in store.people()}
        undone = {"Bob": 3, "Wanda Wanished": 3}
        assert found == (undone if moment == "UPDATE photo" else {"Bob": 6})
        assert ("Wanda Wanished" in found) == (b"Wanda" in files_of(path))


def test_move_leaves_no_byte_of_the_old_name(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    with new_store(path) as store:
        for number in range(20):
            store.add({f"Somebody {number}": kept(*vectors(3, seed=number))}, FACTS.digest)
        store.add({"Wanda Wanished": kept(*vectors(40, 99))}, FACTS.digest)
        assert b"Wanda" in files_of(path)
        assert store.move("Wanda Wanished", "Eve", new=True) == 40
        assert b"Wanda" not in files_of(path)
        assert vectors(40, 99)[7].tobytes() in files_of(path)


def test_move_under_a_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(crypt.SCRYPT, "n", 2**10)
    path = tmp_path / "g.db"
    template = vectors(1)[0]
    with new_store(path, passphrase=PASSPHRASE) as store:
        store.add({"Ann": [StoredPhoto(template, b"jpeg", np.ones((6, 2)))]}, FACTS.digest)
        store.move("Ann", "Eve", new=True)
    with open_store(path) as store:
        for use in (lambda: store.move("Eve", "Fay", new=True), lambda: store.face("Eve")):
            with pytest.raises(PersonaError, match="is encrypted: give --passphrase-file"):
                use()
    with open_store(path, passphrase=PASSPHRASE) as store:
        ((name, _, photo),) = store.photos()
        assert (name, photo.crop, store.face("Eve")) == ("Eve", b"jpeg", b"jpeg")
        assert np.array_equal(photo.template, template)
        assert photo.landmarks_62 is not None
        assert np.array_equal(photo.landmarks_62, np.ones((6, 2)))
