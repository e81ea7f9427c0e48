"""The groups of `persona group` over the API: shown, changed on disk, and enrolled."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from serving import EYES, FACTS, ask, post, serving, write_groups

from persona.errors import PersonaError
from persona.gallery import Gallery
from persona.gallery.grouped import (
    PAGE,
    ROWS,
    read_rows,
)
from persona.gallery.store import Threshold, open_store
from persona.serve.groups import OpenGroups, open_groups


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_groups(tmp_path)


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    store = open_store(tmp_path / "gallery.db", create=True)
    store.adopt(FACTS)
    with Gallery(store, EYES, Threshold(0.8, "by hand")) as opened:
        yield opened


@pytest.fixture
def opened(folder: Path, gallery: Gallery) -> Iterator[OpenGroups]:
    with open_groups(folder, gallery) as groups:
        yield groups


@pytest.fixture
def port(gallery: Gallery, opened: OpenGroups) -> Iterator[int]:
    with serving(gallery, groups=opened) as found:
        yield found


def shown(port: int, query: str = "") -> dict[int, tuple[str | None, list[int]]]:
    found = ask(port, f"/api/groups{query}").json["groups"]
    return {g["group"]: (g["name"], [face["face"] for face in g["faces"]]) for g in found}


def test_named_merged_split_and_enrolled(port: int, gallery: Gallery, folder: Path) -> None:
    assert ask(port, "/api/people").json["groups"] is True
    assert shown(port) == {1: (None, [0, 1, 2]), 2: (None, [3, 4]), 3: (None, [5])}
    assert shown(port, "?first=1&count=1") == {2: (None, [3, 4])}
    face = ask(port, "/api/groups").json["groups"][0]["faces"][0]
    assert face["photo"] == "0-0 <b>.jpg" and face["picture"].startswith("/9j/")

    named = post(port, "/api/groups/name", ("group", "1"), ("name", "Ada"))
    assert named.json == {"group": 1}
    assert post(port, "/api/groups/split", ("group", "2"), ("faces", "4")).json == {"group": 4}
    assert post(port, "/api/groups/merge", ("group", "3"), ("into", "4")).json == {"group": 4}
    wanted = {1: ("Ada", [0, 1, 2]), 4: (None, [4, 5]), 2: (None, [3])}
    assert shown(port) == wanted
    assert shown(port, "?named=true") == {1: wanted[1]}
    said = read_rows(folder / ROWS)  # what the next `persona group` reads
    assert said.names == {1: "Ada"} and sorted(said.number.values()) == [1, 1, 1, 2, 4, 4]
    assert len(said.given) == 6

    done = post(port, "/api/groups/enroll", ("group", "1")).json
    assert (done["name"], done["added"]) == ("Ada", 3)
    assert [(person.name, person.photos) for person in gallery.people()] == [("Ada", 3)]
    assert post(port, "/api/groups/enroll", ("group", "1")).json["already"] == 3
    post(port, "/api/groups/name", ("group", "4"), ("name", "Eve"))
    doubt = post(port, "/api/groups/enroll", ("group", "4"))
    assert doubt.status == 409 and "send force=1" in doubt.error
    assert post(port, "/api/groups/enroll", ("group", "4"), ("force", "1")).json["added"] == 2


@pytest.mark.parametrize(
    ("path", "fields", "problem"),
    [
        ("name", {"group": "9", "name": "Ada"}, "there is no group 9"),
        ("name", {"name": "Ada"}, "no number group in the form"),
        ("name", {"group": "1", "name": "A\u202e"}, "which cannot be seen"),
        ("merge", {"group": "1"}, "no number into in the form"),
        ("merge", {"group": "1", "into": "1"}, "cannot be merged into itself"),
        ("split", {"group": "1", "faces": "0,x"}, "faces are numbers with commas"),
        ("split", {"group": "1", "faces": "0,5"}, "are not in group 1"),
        ("split", {"group": "1", "faces": "0,1,2"}, "but not all"),
        ("enroll", {"group": "1"}, "group 1 has no name"),
    ],
)
def test_bad_changes_change_nothing(
    port: int, folder: Path, path: str, fields: dict[str, str], problem: str
) -> None:
    before = (folder / ROWS).read_bytes()
    refused = post(port, f"/api/groups/{path}", *fields.items())
    assert refused.status == 422 and problem in refused.error
    assert (folder / ROWS).read_bytes() == before


def test_what_is_edited_while_it_is_served_stays(port: int, folder: Path) -> None:
    rows = folder / ROWS
    rows.write_text(rows.read_text().replace("2,,", "2,Ada,", 1))
    for path in ("name", "enroll"):
        edited = rows.read_text()
        refused = post(port, f"/api/groups/{path}", ("group", "1"), ("name", "Bob"))
        assert refused.status == 422 and "groups.csv was edited meanwhile" in refused.error
        assert rows.read_text() == edited
        rows.write_text(edited + "\n")
    assert shown(port)[2] == ("Ada", [3, 4])
    assert post(port, "/api/groups/name", ("group", "1"), ("name", "Bob")).json == {"group": 1}
    assert read_rows(rows).names == {1: "Bob", 2: "Ada"}


def test_a_mistake_in_an_edit_is_told_without_the_folder(
    port: int, folder: Path, tmp_path: Path
) -> None:
    rows = folder / ROWS
    lines = rows.read_text()
    edits = {
        lines.replace("\n2,,", "\nx,,", 1): "groups.csv line 5: group 'x' is no number from 1",
        lines.replace("duplicate_of", "copy_of"): "groups.csv has no column 'duplicate_of': rest",
        "\0": "groups.csv is in UTF-16 or no text: ",
    }
    for text, problem in edits.items():
        rows.write_text(text)
        for refused in (
            ask(port, "/api/groups"),
            post(port, "/api/groups/name", ("group", "1"), ("name", "Bob")),
        ):
            assert refused.status == 422 and refused.error.startswith(problem)
            assert str(tmp_path) not in refused.error
    rows.write_text(lines)
    assert shown(port)[2] == (None, [3, 4])


@pytest.mark.parametrize("query", ["first=abc", "count=1e3", "named=%3Cb%3E", "first=&count=x"])
def test_what_is_asked_for_badly_is_told_in_one_line(port: int, query: str) -> None:
    refused = ask(port, f"/api/groups?{query}")
    assert refused.status == 422 and set(refused.json) == {"error"}
    name, _, sent = query.partition("&")[0].partition("=")
    assert refused.error.startswith(f"{name} cannot be read: Input should be a valid ")
    assert "<b>" not in refused.error and (not sent or sent not in refused.error)


def test_a_change_that_cannot_be_written_is_not_kept(
    port: int, opened: OpenGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("persona.serve.groups.write_rows", full)
    assert post(port, "/api/groups/name", ("group", "1"), ("name", "Ada")).status == 500
    assert opened.groups.names == {}


def test_without_groups_there_is_nothing(gallery: Gallery) -> None:
    with serving(gallery) as port:
        assert ask(port, "/api/people").json["groups"] is False
        assert ask(port, "/api/groups").status == 404
        assert post(port, "/api/groups/name", ("group", "1")).status == 404


def test_the_threshold_is_that_of_now(gallery: Gallery, tmp_path: Path) -> None:
    gallery.follows = True
    with serving(gallery) as port, open_store(tmp_path / "gallery.db") as other:
        assert ask(port, "/api/people").json["threshold"] == 0.8
        other.set_threshold(Threshold(0.7, "a set"), FACTS.digest)
        assert ask(port, "/api/people").json["threshold"] == 0.7


def test_guards_hold(gallery: Gallery, opened: OpenGroups) -> None:
    with serving(gallery, groups=opened, token="t" * 20) as port:
        assert ask(port, "/api/groups").status == 401
        assert post(port, "/api/groups/name", ("group", "1"), ("name", "Ada")).status == 401
    with serving(gallery, groups=opened) as port:
        foreign = post(port, "/api/groups/merge", ("group", "1"), origin="http://evil.example")
        assert foreign.status == 403
    assert opened.groups.names == {}


def test_one_process_works_on_a_folder(folder: Path, gallery: Gallery) -> None:
    with open_groups(folder, gallery) as groups:
        with (
            pytest.raises(PersonaError, match="another process is working on the groups in"),
            open_groups(folder, gallery),
        ):
            pass
        groups.groups.name(1, "Ada")
    assert "Ada: 3 faces" in (folder / PAGE).read_text()
    with (
        pytest.raises(PersonaError, match="no folder of groups"),
        open_groups(folder / "none", gallery),
    ):
        pass


CHANGES = """
import sys
from pathlib import Path
sys.path[:0] = {path}
from persona.data.align.spec import AlignSpec
from persona.gallery.grouped import Faces, maker, read_groups, write_rows
folder = Path(sys.argv[1])
groups = read_groups(folder, Faces(maker("digest", AlignSpec()), "net", 8))
print("ready", flush=True)
for number in range(10**9):
    groups.name(1, f"Name {{number}}")
    groups.merge(groups.split(1, [number % 3]), 1)
    write_rows(folder, groups)
    print(number, flush=True)
"""


def test_killed_while_it_writes(folder: Path) -> None:
    """Whenever it is killed, the CSV is whole and holds the last change that was told."""
    script = CHANGES.format(path=repr(sys.path))
    for tries in range(6):
        command = [sys.executable, "-c", script, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            told = list(itertools.islice(writer.stdout, 2 + 3 * tries))[-1]
            writer.kill()
        said = read_rows(folder / ROWS)
        assert int(said.names[1].removeprefix("Name ")) >= int(told)
        with (folder / ROWS).open() as file:
            assert len(list(csv.DictReader(file))) == 6


def test_pictures_are_pictures(opened: OpenGroups) -> None:
    picture = opened.shown(0, 1).groups[0].faces[0].picture
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (64, 64)
