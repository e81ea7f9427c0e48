"""Unknown people who came back, over the API: proposed, enrolled, deleted."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import EYES, FACTS, ask, post, serving

from persona.data.align.spec import Crop
from persona.gallery import Gallery
from persona.gallery.store import StoredPhoto, Threshold, open_store
from persona.gallery.unknown_faces import KeptFace, UnknownFaces
from persona.serve.people import MOST_BYTES

HOUR = 3600.0


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    """Two unknown people came twice, and one once; Known is enrolled."""
    clock = Clock()
    store = open_store(tmp_path / "gallery.db", create=True)
    store.adopt(FACTS)
    axes = np.eye(FACTS.width, dtype=np.float32)
    store.add({"Known": [StoredPhoto(axes[3])]}, FACTS.digest)
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "teal").save(buffer, "JPEG")
    crop = Crop(buffer.getvalue(), None, None)
    unknown = UnknownFaces(tmp_path / "gallery.db.unknown", hours=24, clock=clock)
    for visit, who in enumerate(((0, 1, 2), (0, 1))):
        for person in who:
            row = axes[person] + 0.1 * axes[4 + visit]
            unknown.keep(row[None] / np.linalg.norm(row), [crop], FACTS.digest)
        clock.now += HOUR
    with Gallery(store, EYES, Threshold(0.8, "by hand"), unknown=unknown) as opened:
        yield opened


@pytest.fixture
def port(gallery: Gallery) -> Iterator[int]:
    with serving(gallery) as found:
        yield found


def test_proposed_enrolled_and_deleted(port: int, gallery: Gallery) -> None:
    people = ask(port, "/api/people").json
    assert (people["keeps_unknown_hours"], people["liveness"]) == (24, False)
    found = ask(port, "/api/unknown").json
    assert (found["hours"], found["total"]) == (24, 2)
    assert [(p["person"], p["visits"], p["faces"]) for p in found["people"]] == [
        *((1, 2, 2), (2, 2, 2))
    ]
    assert found["people"][0]["nearest"] == "Known" and found["people"][0]["score"] < 0.8
    assert base64.b64decode(found["people"][0]["picture"])[:2] == b"\xff\xd8"
    done = post(port, "/api/unknown/enroll", ("person", "1"), ("name", "Ada")).json
    assert (done["name"], done["added"]) == ("Ada", 2)
    doubt = post(port, "/api/unknown/enroll", ("person", "2"), ("name", "Known"))
    assert (doubt.status, doubt.json["doubt"]) == (409, "two-people")
    assert post(port, "/api/unknown/forget", ("person", "2")).json == {"faces": 2}
    assert ask(port, "/api/unknown").json["total"] == 0
    assert [person.name for person in gallery.people()] == ["Ada", "Known"]
    assert gallery.unknown is not None and len(gallery.unknown.faces()) == 1


def test_one_request_at_a_time_has_all_faces_in_memory(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gallery.unknown is not None
    faces, within, most = gallery.unknown.faces, list[int](), list[int]()

    def slow() -> list[KeptFace]:
        within.append(1)
        most.append(len(within))
        time.sleep(0.05)
        found = faces()
        within.pop()
        return found

    monkeypatch.setattr(gallery.unknown, "faces", slow)
    with serving(gallery, workers=4) as port, ThreadPoolExecutor(4) as pool:
        asked = [
            pool.submit(ask, port, "/api/unknown"),
            pool.submit(post, port, "/api/unknown/forget", ("person", "1")),
            pool.submit(post, port, "/api/unknown/enroll", ("person", "2"), ("name", "Ada")),
            pool.submit(post, port, "/api/forget", ("name", "Known")),
        ]
        assert [one.result().status for one in asked] == [200] * 4
    assert len(most) >= 5 and set(most) == {1}


@pytest.mark.parametrize(
    ("path", "fields", "problem"),
    [
        ("enroll", {"person": "9", "name": "Ada"}, "there is no unknown person 9"),
        ("enroll", {"person": "1"}, "no name in the form"),
        ("enroll", {"name": "Ada"}, "no person in the form"),
        ("enroll", {"person": "1", "name": " "}, "a name holds nothing"),
        ("enroll", {"person": "x", "name": "Ada"}, "person is no number"),
        ("enroll", {"person": "1", "name": "Ada", "accept": "all"}, "accept holds an unknown"),
        ("forget", {"person": "-1"}, "person is no number"),
    ],
)
def test_bad_requests_change_nothing(
    port: int, gallery: Gallery, path: str, fields: dict[str, str], problem: str
) -> None:
    refused = post(port, f"/api/unknown/{path}", *fields.items())
    assert refused.status == 422 and problem in refused.error
    assert gallery.unknown is not None and len(gallery.unknown.faces()) == 5
    assert [person.name for person in gallery.people()] == ["Known"]


def test_a_gallery_of_another_network_is_no_doubt(
    port: int, gallery: Gallery, tmp_path: Path
) -> None:
    with open_store(tmp_path / "gallery.db") as other:
        row = np.eye(FACTS.width, dtype=np.float32)[0]
        other.replace(replace(FACTS, digest="newer"), {1: row})
    refused = post(port, "/api/unknown/enroll", ("person", "2"), ("name", "Eve"))
    assert refused.status == 409 and "doubt" not in refused.json
    assert refused.error == "the gallery is another network's now: start persona serve anew"


def test_a_file_from_elsewhere_may_hold_anything(
    port: int, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EYES, "embed", lambda crops: np.zeros((len(crops), FACTS.width)), False)
    assert gallery.unknown is not None
    crop = Crop(bytes(MOST_BYTES + 1), None, None)
    gallery.unknown._db.execute("UPDATE face SET crop = ?", (crop.jpeg,))
    wide = np.eye(1, 2 * FACTS.width, dtype=np.float32)
    gallery.unknown.keep(wide, [crop], FACTS.digest)
    people = ask(port, "/api/unknown").json["people"]
    assert [person["picture"] for person in people] == [None, None]
    gallery.unknown.keep(wide, [crop], FACTS.digest)
    assert post(port, "/api/forget", ("name", "Known")).json["templates"] == 1
    assert len(gallery.unknown.faces()) == 5


def test_without_the_option_there_is_no_such_path(gallery: Gallery) -> None:
    gallery.unknown = None
    with serving(gallery) as port:
        assert ask(port, "/api/people").json["keeps_unknown_hours"] is None
        assert ask(port, "/api/unknown").status == 404
        assert post(port, "/api/unknown/forget", ("person", "1")).status == 404
