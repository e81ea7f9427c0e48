"""Enrolling many people from a list of names and photos."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from fake_eyes import FakeEyes, near, new_store, photo_of, vectors
from helpers import TESTS, environment
from PIL import Image

from persona.data.align.spec import Crop
from persona.errors import PersonaError
from persona.gallery import importing
from persona.gallery.import_list import read_list
from persona.gallery.importing import (
    Imported,
    check_refused,
    import_from,
    open_journal,
    write_refused,
)
from persona.gallery.people import Gallery
from persona.gallery.store import Templates, Threshold
from persona.progress import progress_bar

AXES = vectors(64, seed=1, width=8)
EMPTY, TWO = 250, 251
"""Grey values of photos of nobody and of two people."""


class GreyEyes(FakeEyes):
    """A photo's grey value says whom it shows: person 10 n has the photos 10 n to 10 n + 9."""

    def __init__(self) -> None:
        self.looked: list[int] = []

    def find(self, photo: Any, *, shrink: int = 1) -> Any:
        grey = int(photo[0, 0, 0])
        self.looked.append(grey)
        if grey == EMPTY:
            return super().find(photo_of())
        if grey == TWO:
            return super().find(photo_of(AXES[0], AXES[1]))
        axis = np.eye(8, dtype=np.float32)[grey // 10 % 8]
        return super().find(photo_of(near(axis, 0.9, grey)))

    def embed(self, crops: Any) -> Templates:
        rows = super().embed(crops)
        if any(
            crop.jpeg == near(np.eye(8, dtype=np.float32)[7], 0.9, 77).tobytes() for crop in crops
        ):
            raise PersonaError("net gives no finite numbers for these faces")
        return rows


def save(folder: Path, *greys: int) -> None:
    for grey in greys:
        path = folder / "photos" / f"{grey}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (24, 24), (grey, grey, grey)).save(path)


def listed(folder: Path, *rows: tuple[str, object], name: str = "people.csv") -> Path:
    """A list; a grey value stands for its photo."""
    path = folder / name
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "photo"))
        for who, photo in rows:
            if isinstance(photo, int):
                save(folder, photo)
            writer.writerow((who, f"photos/{photo}.png" if isinstance(photo, int) else photo))
    return path


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    eyes: Any = GreyEyes()
    with Gallery(new_store(tmp_path / "g.db"), eyes, Threshold(0.5, "test")) as gallery:
        yield gallery


def imported(gallery: Gallery, path: Path, **options: Any) -> Imported:
    source = read_list(path, path.parent, workers=0)
    with open_journal(path.parent, gallery, source) as journal:
        return import_from(source, gallery, journal, **options)


def photos_of(gallery: Gallery) -> dict[str, int]:
    return {person.name: person.photos for person in gallery.people()}


def test_everybody_of_a_list(tmp_path: Path, opened: Gallery) -> None:
    rows = [("Ann", 1), ("Bob", 11), (" Ann ", 2), ("Cy", 21), ("Ann", 1)]
    done = imported(opened, listed(tmp_path, *rows))
    assert photos_of(opened) == {"Ann": 2, "Bob": 1, "Cy": 1}
    assert (done.people, done.added, done.already, done.refused) == (3, 4, 1, [])
    assert done.failed == {}
    assert not any((tmp_path / importing.JOURNALS).iterdir())


def test_a_list_of_a_spreadsheet(tmp_path: Path, opened: Gallery) -> None:
    """Where the comma is in decimal numbers, semicolons lie between the columns."""
    save(tmp_path, 1, 11)
    path = tmp_path / "people.csv"
    path.write_text("\ufeffPhoto;Name;Age\r\nphotos/1.png;Ann;3,5\r\nphotos/11.png;Bob;4\r\n")
    assert (imported(opened, path).added, photos_of(opened)) == (2, {"Ann": 1, "Bob": 1})


def test_repeated_nothing_is_there_twice(tmp_path: Path, opened: Gallery) -> None:
    path = listed(tmp_path, ("Ann", 1), ("Bob", 11), ("Ann", 2))
    imported(opened, path)
    done = imported(opened, listed(tmp_path, ("Ann", 1), ("Bob", 11), ("Ann", 2), ("Ann", 3)))
    assert (done.added, done.already, done.continued) == (1, 3, 0)
    assert photos_of(opened) == {"Ann": 3, "Bob": 1}


def test_what_is_refused_and_why(tmp_path: Path, opened: Gallery) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "broken.jpg").write_text("hello")
    rows: list[tuple[str, object]] = [
        ("Ann", 1),
        ("Ann", "photos/not_there.png"),
        ("Bob", ""),  # no photo, beside a name with two
        ("", 11),
        ("C\u200by", 11),
        ("Cy", "photos/broken.jpg"),
        ("Cy", EMPTY),
        ("Dan", TWO),
        ("Dan", 31),
        ("Ann", ""),
        ("Eve", "photos"),
        ("Fay", 77),
        ("Fay", 70),
    ]
    path = listed(tmp_path, *rows)
    with path.open("a") as file:
        file.write("Hal\n\n")
    done = imported(opened, path)
    assert photos_of(opened) == {"Ann": 1, "Dan": 1, "Fay": 1}
    assert {one.row: one.reason.partition(":")[0] for one in done.refused} == {
        3: "unreadable",
        4: "the row names no photo",
        5: "no name",
        6: "no name",
        7: "unreadable",
        8: "no face",
        9: "two faces",
        11: "the row names no photo",
        12: "unreadable",
        13: "net gives no finite numbers for these faces",
        15: "the row names no photo",
    }
    assert [one.row for one in done.refused] == sorted(one.row for one in done.refused)
    assert done.failed == {
        "Cy": "no photo of this name can be used",
        "Eve": "no photo of this name can be used",
        "Bob": "no photo is named",
        "Hal": "no photo is named",
    }
    assert dict(done.reasons())["the row names no photo"] == 3
    assert dict(done.reasons())["several faces"] == 1
    assert (done.people, done.added) == (3, 3)


def test_refused_rows_can_be_mended_and_imported(tmp_path: Path, opened: Gallery) -> None:
    path = listed(
        tmp_path, ("Ann", 1), ("Ann", 2), ("Ann", EMPTY), ("Bob", str(tmp_path / "b.png"))
    )
    (tmp_path / "out").mkdir()
    refused = tmp_path / "out" / "refused.csv"
    write_refused(refused, imported(opened, path).refused, tmp_path)
    with refused.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["row"], row["name"], row["reason"]) for row in rows] == [
        ("4", "Ann", "no face"),
        ("5", "Bob", "unreadable: no file"),
    ]
    assert [row["photo"] for row in rows] == [f"../photos/{EMPTY}.png", str(tmp_path / "b.png")]
    Image.new("RGB", (24, 24), (3, 3, 3)).save(tmp_path / "photos" / f"{EMPTY}.png")
    Image.new("RGB", (24, 24), (12, 12, 12)).save(tmp_path / "b.png")
    done = imported(opened, refused)
    assert (done.added, done.refused) == (2, [])
    assert photos_of(opened) == {"Ann": 3, "Bob": 1}


def test_doubts_are_refused_unless_forced(tmp_path: Path, opened: Gallery) -> None:
    rows = [("Ann", 1), ("Anna", 2), ("Bob", 11), ("Bob", 12), ("Bob", 21)]
    path = listed(tmp_path, *rows)
    done = imported(opened, path)
    assert photos_of(opened) == {"Ann": 1}
    assert done.failed["Anna"].startswith("'Anna' looks like 'Ann', who is enrolled")
    assert "these do not look like the other photos" in done.failed["Bob"]
    assert [one.row for one in done.refused] == [3, 4, 5, 6]
    assert dict(done.reasons()) == {
        "the person's photos look like two people": 3,
        "the person looks like somebody who is enrolled": 1,
    }
    done = imported(opened, path, force=True)
    assert (photos_of(opened), done.failed) == ({"Ann": 1, "Anna": 1, "Bob": 3}, {})


def stopping(monkeypatch: pytest.MonkeyPatch, after: int, *, noted: bool) -> None:
    """The process ends after so many people, before or after the last one of them is noted."""
    left = [after]
    note = importing.Journal.note

    def stop(journal: Any, what: Any) -> None:
        left[0] -= 1
        if noted or left[0]:
            note(journal, what)
        if not left[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(importing.Journal, "note", stop)


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_cut_and_repeated(
    after: int, noted: bool, tmp_path: Path, opened: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[tuple[str, object]] = [("Ann", 1), ("Ann", EMPTY), ("Bob", EMPTY), ("Cy", 21)]
    path = listed(tmp_path, *rows, ("Dan", 31), ("Ann", 2))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stopping(patched, after, noted=noted)
        imported(opened, path)
    before = photos_of(opened)
    eyes: Any = opened.eyes
    eyes.looked.clear()
    done = imported(opened, path)
    assert photos_of(opened) == {"Ann": 2, "Cy": 1, "Dan": 1}
    assert {name: before[name] for name in before} == {n: photos_of(opened)[n] for n in before}
    assert done.continued == after - (not noted)
    # People who were noted are not looked at again, and all refusals are told.
    assert len(eyes.looked) == {0: 6, 1: 3, 2: 2, 3: 1}[done.continued]
    assert [one.row for one in done.refused] == [3, 4]
    assert (done.people, list(done.failed)) == (3, ["Bob"])
    assert done.added + done.already == 4


def test_a_journal_is_only_believed_where_it_is_true(
    tmp_path: Path, opened: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = listed(tmp_path, ("Ann", 1), ("Bob", 11), ("Anna", 2), ("Cy", 21), ("Dan", 31))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stopping(patched, 3, noted=True)
        imported(opened, path)
    opened.forget("Bob")
    Image.new("RGB", (24, 24), (22, 22, 22)).save(tmp_path / "photos" / "21.png")
    (journal,) = (tmp_path / importing.JOURNALS).glob("*/people.jsonl")
    with journal.open("ab") as file:
        file.write(b'{"key": "half a li')
    done = imported(opened, path, force=True)
    # Ann alone is as she was noted. Bob is gone, --force decides on Anna, and Cy's photo changed.
    assert done.continued == 1
    assert photos_of(opened) == {"Ann": 1, "Anna": 1, "Bob": 1, "Cy": 2, "Dan": 1}


def test_the_journal_holds_no_names(
    tmp_path: Path, opened: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Anna looks like Ann, and Cy's photos show two people: both lines name people or photos.
    path = listed(tmp_path, ("Ann", 1), ("Anna", 2), ("Cy", 21), ("Cy", 41), ("Bob", EMPTY))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stopping(patched, 2, noted=True)
        imported(opened, path)
    (journal,) = (tmp_path / importing.JOURNALS).glob("*/people.jsonl")
    text = journal.read_text()
    assert len(text.splitlines()) == 2
    assert not any(word in text for word in ("Ann", "Cy", "Bob", "photos", ".png"))
    done = imported(opened, path)
    assert done.continued == 2 and done.failed.keys() == {"Anna", "Cy", "Bob"}
    source = read_list(path, tmp_path, workers=0)
    with (
        open_journal(tmp_path, opened, source),
        pytest.raises(PersonaError, match="another process"),
    ):
        imported(opened, path)


def test_a_doubt_is_gone_with_the_person_it_was_about(
    tmp_path: Path, opened: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported(opened, listed(tmp_path, ("Ann", 1)))
    path = listed(tmp_path, ("Anna", 2), ("Bob", 11), ("Cy", 21))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stopping(patched, 1, noted=True)
        imported(opened, path)
    opened.forget("Ann")
    done = imported(opened, path)
    assert not done.failed and photos_of(opened) == {"Anna": 1, "Bob": 1, "Cy": 1}


def test_other_errors_end_the_import(
    tmp_path: Path, opened: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is not about a person: it must not be noted as one's refusal."""
    path = listed(tmp_path, ("Ann", 1), ("Bob", 11))

    def full(*_: Any, **__: Any) -> None:
        raise PersonaError("g.db: the disk is full")

    with monkeypatch.context() as patched, pytest.raises(PersonaError, match="the disk is full"):
        patched.setattr(opened.store, "add", full)
        imported(opened, path)
    assert imported(opened, path).added == 2


def test_progress_counts_each_photo_once(
    tmp_path: Path, opened: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    def bar(*arguments: Any, **options: Any) -> Any:
        assert options["total"] == 4
        context = progress_bar(*arguments, **options)

        class Counted:
            def __enter__(self) -> Callable[..., None]:
                context.__enter__()
                return lambda count, earlier=False: told.append(count)

            def __exit__(self, *_: Any) -> None:
                context.__exit__(None, None, None)

        return Counted()

    monkeypatch.setattr(importing, "progress_bar", bar)
    imported(opened, listed(tmp_path, ("Ann", 1), ("Ann", EMPTY), ("Bob", 11), ("Cy", "no.png")))
    assert sum(told) == 4


def test_parquet(tmp_path: Path, opened: Gallery) -> None:
    save(tmp_path, 1, 11)
    table = pa.table(
        {
            "more": [1, 2, 3, 4],
            "Photo": ["photos/1.png", "photos/11.png", None, "a\0b"],
            "name": ["Ann", "Bob", "Cy", "Dan"],
        }
    )
    path = tmp_path / "people.parquet"
    pyarrow.parquet.write_table(table, path)
    done = imported(opened, path)
    assert photos_of(opened) == {"Ann": 1, "Bob": 1}
    assert [(one.row, one.reason.partition(":")[0]) for one in done.refused] == [
        (3, "the row names no photo"),
        (4, "unreadable"),
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name,file\nAnn,1.jpg\n", "has no column photo: its first line must name the columns"),
        ("who,file\nAnn,1.jpg\n", "has no column name and no column photo"),
        ('name,photo\n"Ann,1.jpg\n', "line 2: "),
        ("", "has no column name and no column photo"),
        ("name,photo\n", "has no row below its header"),
        ("name,photo\n\xe4,1.jpg\n", "UTF-8"),
        ("name,photo\nAnn,a\0b\n", "is in UTF-16 or no text"),
        ("name,photo\n" + "x" * 70_000 + ",1.jpg\n", "is longer than 65,536 characters"),
    ],
)
def test_lists_that_are_none(text: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PersonaError, match=line):
        read_list(path, tmp_path)


def test_where_refusals_may_be_written(tmp_path: Path) -> None:
    path = listed(tmp_path, ("Ann", 1))
    with pytest.raises(PersonaError, match="is the list itself"):
        check_refused(path, path)
    with pytest.raises(PersonaError, match=r"name it \.csv"):
        check_refused(tmp_path / "gallery.db", path)
    with pytest.raises(PersonaError, match="there is no such file"):
        read_list(tmp_path / "none.csv", tmp_path)
    (tmp_path / "people.parquet").write_text("hello")
    with pytest.raises(PersonaError, match=r"people\.parquet"):
        read_list(tmp_path / "people.parquet", tmp_path)
    with pytest.raises(PersonaError, match="is a folder: give a list"):
        read_list(tmp_path, tmp_path)


def test_crops_are_kept_where_wanted(tmp_path: Path, opened: Gallery) -> None:
    opened.keep_crops = True
    imported(opened, listed(tmp_path, ("Ann", 1), ("Ann", EMPTY), ("Ann", 2)))
    crops = [Crop(photo.crop or b"", None, None) for _, _, photo in opened.store.photos()]
    templates = np.stack([photo.template for _, _, photo in opened.store.photos()])
    assert np.array_equal(FakeEyes().embed(crops), templates)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
from persona.cli.app import main
from persona.gallery import importing

left, before = int(sys.argv.pop(1)), sys.argv.pop(1) == "before"
note = importing.Journal.note

def note_and_die(journal, what):
    global left
    left -= 1
    if not before or left:
        note(journal, what)
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

importing.Journal.note = note_and_die
main()
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_and_run_again(when: str, tmp_path: Path) -> None:
    """With worker processes, the real detector and a real SIGKILL."""
    import onnx_files
    from helpers import run

    from persona.data.synthetic import draw_identity, draw_photo

    onnx_files.write_model(tmp_path / "net.onnx", settings=onnx_files.SETTINGS)
    rows = []
    for person in range(4):
        for photo in range(3):
            rows.append((f"P{person}", f"{person}-{photo}.png"))
            draw_photo(draw_identity(0, person), photo, 160).convert("RGB").save(
                tmp_path / rows[-1][1]
            )
    path = listed(tmp_path, *rows)
    command = ["gallery", "import", str(path), "--model", f"onnx:{tmp_path}/net.onnx"]
    command += ["--threshold", "0.5", "--force", "--workers", "2"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, TESTS, "2", when, *command],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    done = run("persona", *command, "--json", home=tmp_path)
    found = json.loads(done.stdout)
    assert found["continued"] == (2 if when == "after" else 1)
    assert (found["people"], found["added"] + found["already"], found["refused"]) == (4, 12, [])
    whole = tmp_path / "whole.db"
    run("persona", *command, "--store", str(whole), home=tmp_path)

    from persona.gallery.store import open_store

    def stored(path: Path) -> list[tuple[str, bytes]]:
        with open_store(path) as store:
            return [(name, photo.template.tobytes()) for name, _, photo in store.photos()]

    assert stored(tmp_path / "gallery.db") == stored(whole)
    assert len(stored(whole)) == 12
