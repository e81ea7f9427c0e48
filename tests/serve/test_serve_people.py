"""The people over the API: their faces and photos, renamed, merged and split."""

from __future__ import annotations

import base64
import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import EYES, FACTS, WIDTH, Answer, ask, photo, post, serving

from persona.gallery import Gallery
from persona.gallery.store import StoredPhoto, Threshold, open_store, read_only, unit

CROP = photo((9, 90, 9), size_px=(112, 112))
ROWS = unit(np.eye(WIDTH)[[0, 0, 1, 2]] + 0.05 * np.random.default_rng(0).normal(size=(4, WIDTH)))
"""Two photos of Ada, one of Bob that was enrolled as hers, and one of Cy."""


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    store = open_store(tmp_path / "gallery.db", create=True)
    store.adopt(FACTS)
    photos = [StoredPhoto(ROWS[0]), *(StoredPhoto(row, CROP) for row in ROWS[1:])]
    store.add({"Ada": photos[:3], "Cy": photos[3:]}, FACTS.digest)
    with Gallery(store, EYES, Threshold(0.8, "by hand"), keep_crops=True) as opened:
        yield opened


@pytest.fixture
def port(gallery: Gallery) -> Iterator[int]:
    with serving(gallery) as found:
        yield found


def send(port: int, path: str, **fields: str) -> Answer:
    return post(port, f"/api/{path}", *fields.items())


def counts(gallery: Gallery) -> dict[str, int]:
    return {person.name: person.photos for person in gallery.people()}


def photos_of(port: int, name: str, **fields: str) -> list[dict[str, Any]]:
    answer = send(port, "photos", name=name, **fields)
    assert answer.status == 200
    rows: list[dict[str, Any]] = answer.json["photos"]
    return rows


def test_faces_and_photos(port: int, gallery: Gallery) -> None:
    assert ask(port, "/api/people").json["keeps_crops"] is True
    faces = send(port, "faces", names=json.dumps(["Cy", "Ada", "Nobody", "<b>"])).json["faces"]
    assert [face["name"] for face in faces] == ["Cy", "Ada", "Nobody", "<b>"]
    assert [face["picture"] is None for face in faces] == [False, False, True, True]
    assert base64.b64decode(faces[1]["picture"]) == CROP

    rows = photos_of(port, "Ada")
    assert [row["picture"] is None for row in rows] == [True, False, False]
    assert base64.b64decode(rows[2]["picture"]) == CROP
    assert min(rows, key=lambda row: row["similarity"]) is rows[2]
    assert send(port, "photos", name="Ada", first="1", count="1").json["total"] == 3
    assert photos_of(port, "Ada", first="1", count="1") == rows[1:2]
    assert photos_of(port, "Ada", first="9") == []
    gallery.store.add({"Eve": [StoredPhoto(ROWS[0], bytes(100_000))]}, FACTS.digest)
    assert photos_of(port, "Eve")[0]["picture"] is None  # nothing of any size is sent


def test_a_store_that_is_down_is_to_be_asked_again(
    port: int, gallery: Gallery, caplog: pytest.LogCaptureFixture
) -> None:
    """Its file is held, as a database is that does not answer, and clients need not know where."""
    path = Path(gallery.store.place)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        gallery.store._db.execute("PRAGMA busy_timeout = 1")  # type: ignore[attr-defined]
        for _ in range(2):
            down = send(port, "rename", name="Cy", to="Eve")
            assert (down.status, down.headers["retry-after"]) == (503, "1")
            assert down.error.startswith("the gallery does not work at the moment: try again soon")
    assert f"{path}: another process holds it" in caplog.text
    assert send(port, "rename", name="Cy", to="Eve").status == 200


def test_split_merged_and_renamed(port: int, gallery: Gallery) -> None:
    odd = str(photos_of(port, "Ada")[2]["photo"])
    split = send(port, "split", name="Ada", photos=odd, to=" Bob ")
    assert split.json == {"name": "Bob", "photos": 1}
    assert counts(gallery) == {"Ada": 2, "Bob": 1, "Cy": 1}

    doubted = send(port, "merge", name="Bob", into="Ada")
    assert doubted.status == 409
    assert doubted.json["doubt"] == "two-people"
    assert doubted.error == (
        "1 of 1 photos of 'Bob' do not look like 'Ada' (similarity below 0.800); leave them out, "
        "or send force=1 if it is one person"
    )
    assert counts(gallery) == {"Ada": 2, "Bob": 1, "Cy": 1}
    forced = send(port, "merge", name="Bob", into="Ada", force="1")
    assert forced.json == {"name": "Ada", "photos": 1}
    assert counts(gallery) == {"Ada": 3, "Cy": 1}
    some = send(port, "merge", name="Ada", into="Cy", photos=odd, force="yes")
    assert some.json == {"name": "Cy", "photos": 1}

    taken = send(port, "rename", name="Ada", to="Cy")
    assert (taken.status, taken.json["doubt"]) == (409, "taken")
    assert taken.error == "somebody has that name already: choose another one, or merge the two"
    assert send(port, "rename", name="Ada", to="Zoë <b>").json == {"name": "Zoë <b>", "photos": 2}
    assert counts(gallery) == {"Cy": 2, "Zoë <b>": 2}


@pytest.mark.parametrize(
    ("path", "fields", "status", "message"),
    [
        ("faces", {}, 422, "names are a JSON list of texts"),
        ("faces", {"names": "["}, 422, "names are a JSON list of texts"),
        ("faces", {"names": "[" * 9000}, 422, "names are a JSON list of texts"),
        ("faces", {"names": "[1]"}, 422, "names are a JSON list of texts"),
        ("faces", {"names": '["\\ud800"]'}, 422, "names are a JSON list of texts"),
        ("faces", {"names": json.dumps(["a"] * 51)}, 422, "51 names: send at most 50"),
        ("photos", {}, 422, "no name in the form"),
        ("photos", {"name": "Bob"}, 404, "there is nobody of that name"),
        ("photos", {"name": "Ada", "first": "-1"}, 422, "first is no number"),
        ("photos", {"name": "Ada", "count": "9" * 40}, 422, "count is no number"),
        ("rename", {"name": "Ada"}, 422, "no to in the form"),
        ("rename", {"name": "Bob", "to": "Eve"}, 404, "there is nobody of that name"),
        ("rename", {"name": "Ada", "to": ""}, 422, "a name holds nothing"),
        ("rename", {"name": "Ada", "to": "a" * 201}, 422, "a name of 201 characters"),
        ("rename", {"name": "Ada", "to": "a\u202eb"}, 422, "cannot be seen"),
        ("merge", {"name": "Ada"}, 422, "no into in the form"),
        ("merge", {"name": "Ada", "into": "Ada"}, 422, "cannot be merged with themselves"),
        ("merge", {"name": "Ada", "into": "Bob"}, 404, "there is nobody of that name"),
        ("merge", {"name": "Ada", "into": "Cy", "photos": ""}, 422, "photos are numbers"),
        ("merge", {"name": "Ada", "into": "Cy", "photos": "1,x"}, 422, "photos are numbers"),
        ("merge", {"name": "Ada", "into": "Cy", "photos": "77"}, 422, "not, or no longer, photos"),
        ("split", {"name": "Ada", "to": "Eve"}, 422, "no photos in the form"),
        ("split", {"name": "Ada", "to": "Eve", "photos": "9" * 40}, 422, "photos are numbers"),
        ("split", {"name": "Ada", "to": "Eve", "photos": "4"}, 422, "not, or no longer, photos"),
        ("split", {"name": "Ada", "to": "Eve", "photos": "1,2,3"}, 422, "these are all photos"),
        ("split", {"name": "Ada", "to": "Cy", "photos": "1"}, 409, "has that name already"),
    ],
)
def test_bad_requests_change_nothing(
    port: int, gallery: Gallery, path: str, fields: dict[str, str], status: int, message: str
) -> None:
    answer = send(port, path, **fields)
    assert answer.status == status
    assert message in answer.error
    assert counts(gallery) == {"Ada": 3, "Cy": 1}


def test_guards_hold(gallery: Gallery) -> None:
    paths = ("faces", "photos", "rename", "merge", "split")
    with serving(gallery, token="t" * 20) as port:
        assert {send(port, path, name="Ada", to="Eve").status for path in paths} == {401}
    with serving(gallery) as port:
        for path in paths:
            parts = (("name", "Ada"), ("to", "Eve"), ("names", '["Ada"]'))
            foreign = post(port, f"/api/{path}", *parts, origin="http://evil.example")
            assert foreign.status == 403
            assert ask(port, f"/api/{path}").status == 405  # no name in a URL
            large = post(port, f"/api/{path}", ("name", "A" * 70_000))
            assert large.status in {400, 413}
            with_photo = post(port, f"/api/{path}", ("name", "Ada"), ("photo", CROP))
            assert with_photo.status in {400, 413}
    assert counts(gallery) == {"Ada": 3, "Cy": 1}


def test_a_gallery_that_may_only_be_read(
    port: int, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def move(*_: object, **__: object) -> int:
        raise read_only("the gallery", "its file system is mounted read-only")

    monkeypatch.setattr(gallery.store, "move", move)
    refused = send(port, "rename", name="Ada", to="Eve")
    assert refused.status == 403
    assert "can be read but not changed" in refused.error
