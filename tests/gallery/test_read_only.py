"""Galleries that may be read and not written, as somebody whom permissions bind."""

from __future__ import annotations

import ctypes
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fake_eyes import FACTS, kept, new_store, vectors
from helpers import environment

from persona.errors import PersonaError
from persona.gallery import sqlite
from persona.gallery.store import ReadOnlyError, Threshold, open_store

PR_CAPBSET_DROP = 24
OVERRIDES = (1, 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: without them permissions bind root too."""
ATTEMPTS = """
import json, sys
from pathlib import Path
import numpy as np
from persona.cli.errors import explain
from persona.gallery.store import Facts, StoredPhoto, Threshold, open_store
from persona.gallery.transfer import export_people

facts = Facts.from_text(sys.argv[3], "test")
ann = np.array(json.loads(sys.argv[4]), np.float32)

def attempt(work):
    try:
        return work()
    except Exception as error:
        explained = explain(error)
        return f"{explained and explained[0]}" if explained else repr(error)

def use(create):
    with open_store(sys.argv[1], create=create) as store:
        store.adopt(facts)
        store.take_name("onnx:/elsewhere.onnx", facts.digest)
        found = store.nearest(ann[None], "mean")[0]
        return {
            "people": [person.name for person in store.people()],
            "photos": len(list(store.photos("Ann"))),
            "nearest": found and found.name,
            "export": export_people(store, Path(sys.argv[2])),
            "early": attempt(store.check_writable),
            "add": attempt(lambda: store.add({"Cy": [StoredPhoto(ann)]}, facts.digest)),
            "forget": attempt(lambda: store.forget("Ann")),
            "adopt": attempt(lambda: store.set_threshold(Threshold(0.5, "a set"), facts.digest)),
        }

print(json.dumps([attempt(lambda: use(create)) for create in (False, True)]))
"""


def bound() -> None:
    """Takes root's right to write what it may not."""
    for capability in OVERRIDES:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def attempts(path: Path, out: Path) -> list[Any]:
    """What a process that permissions bind makes of a gallery: opened to be read, and made."""
    facts, ann = json.dumps(FACTS.to_json()), json.dumps(vectors(1)[0].tolist())
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, path, out, facts, ann],
        env=environment(out.parent),
        preexec_fn=bound,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return list(json.loads(done.stdout))


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A gallery of Ann and Bob, alone in its folder."""
    folder = tmp_path / "kept"
    folder.mkdir()
    with new_store(folder / "g.db") as store:
        store.add({"Ann": kept(*vectors(2)), "Bob": kept(*vectors(1, 1))}, FACTS.digest)
    yield folder / "g.db"
    folder.chmod(0o700)


def expect(found: list[Any], why: str) -> None:
    for one in found:
        assert one["people"] == ["Ann", "Bob"], one
        assert (one["photos"], one["nearest"], one["export"]) == (2, "Ann", 3)
        for change in ("early", "add", "forget", "adopt"):
            assert f"g.db can be read but not changed: {why}" in one[change]
            assert "\n" not in one[change]


def test_a_file_without_permission(path: Path, tmp_path: Path) -> None:
    path.chmod(0o400)
    before = path.read_bytes()
    expect(attempts(path, tmp_path / "x.safetensors"), "you have no permission to write the file")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]  # no log, which its owner could not write


def test_a_folder_without_permission(path: Path, tmp_path: Path) -> None:
    path.parent.chmod(0o500)
    why = "you have no permission to write in its folder, where SQLite keeps its log"
    expect(attempts(path, tmp_path / "x.safetensors"), why)
    assert list(path.parent.iterdir()) == [path]
    link = tmp_path / "link.db"
    link.symlink_to(path)
    (one, _) = attempts(link, tmp_path / "x.safetensors")
    assert one["people"] == ["Ann", "Bob"]


def test_a_folder_that_its_owner_is_writing_in(path: Path, tmp_path: Path) -> None:
    with open_store(path) as writer:
        writer.add({"Cy": kept(*vectors(1, 5))}, FACTS.digest)  # in the log alone
        assert (path.parent / "g.db-wal").stat().st_size > 0
        path.parent.chmod(0o500)
        (one, _) = attempts(path, tmp_path / "x.safetensors")
        assert one["people"] == ["Ann", "Bob", "Cy"]
        path.parent.chmod(0o700)


def test_a_log_that_nobody_holds(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    with open_store(path) as writer:
        writer.add({"Cy": kept(*vectors(1, 5))}, FACTS.digest)
        for name in ("g.db", "g.db-wal"):
            shutil.copy(path.parent / name, copy / name)
    copy.chmod(0o500)
    found = attempts(copy / "g.db", tmp_path / "x.safetensors")
    for one in found:
        assert "g.db: its log beside it is not whole, and may not be mended by who may only" in one
    copy.chmod(0o700)
    with open_store(copy / "g.db") as store:  # its owner
        assert [person.name for person in store.people()] == ["Ann", "Bob", "Cy"]


def test_what_is_no_gallery_or_empty(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"")
    path.chmod(0o400)
    found = attempts(path, tmp_path / "x.safetensors")
    assert "no gallery at" in found[0]
    assert "can be read but not changed: you have no permission to write the file" in found[1]
    path.chmod(0)
    found = attempts(path, tmp_path / "x.safetensors")
    assert found == [f"{path}: no permission: choose another folder or change its owner"] * 2


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that is mounted read-only."""
    why = "its file system is mounted read-only"
    monkeypatch.setattr(sqlite, "obstacle_to_writing", lambda _: why)


def test_what_its_owner_does_meanwhile_is_seen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "obstacle_to_writing", lambda _: "mounted read-only")
        reader = open_store(path)
    with reader, open_store(path) as writer:
        assert reader.nearest(vectors(1), "mean")[0] is not None
        writer.add({"Cy": kept(*vectors(1, 5))}, FACTS.digest)
        assert [person.name for person in reader.people()] == ["Ann", "Bob", "Cy"]
        (found,) = reader.nearest(vectors(1, 5), "mean")
        assert found is not None
        assert found.name == "Cy"
        reader.close()
        writer.forget("Cy")
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "obstacle_to_writing", lambda _: "mounted read-only")
        reader = open_store(path)
    with reader:
        assert reader.nearest(vectors(1), "mean")[0] is not None
        with open_store(path) as writer:
            writer.forget("Ann")
        (found,) = reader.nearest(vectors(1), "mean")
        assert found is not None
        assert found.name == "Bob"


@pytest.mark.usefixtures("read_only")
def test_a_file_that_changes_while_it_is_read(path: Path) -> None:
    with open_store(path) as store:
        assert isinstance(store, sqlite.SqliteStore)
        with (
            pytest.raises(PersonaError, match=r"was written to while it was read: run again"),
            store._explained(),
            closing(sqlite3.connect(path)) as other,
        ):
            other.execute("INSERT INTO fact VALUES ('a', 'b')")
            other.commit()


@pytest.mark.usefixtures("read_only")
def test_a_clean_up_that_is_left_to_do(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"INSERT INTO fact VALUES ('{sqlite.CLEANING}', '1')")
        other.commit()
    with open_store(path) as store:
        assert len(store.people()) == 2
        with pytest.raises(ReadOnlyError, match="mounted read-only"):
            store.set_threshold(Threshold(0.5, "a set"), "digest")
