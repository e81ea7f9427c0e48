"""Importing people from another gallery's server: `persona gallery import URL`."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from servers import answering_with
from serving import EYES, FACTS, WIDTH, photo, post, serving, write_certificate

from persona.data.align.spec import AlignSpec, Crop
from persona.errors import PersonaError
from persona.gallery import Gallery, import_server, importing
from persona.gallery.import_server import read_server
from persona.gallery.importing import Imported, import_from, open_journal
from persona.gallery.store import StoredPhoto, Templates, Threshold, open_store, unit

TOKEN = "a-token-of-this-test"
LANDMARKS = np.arange(12.0).reshape(6, 2)
CROPS = [photo((9, 90, 9 + 20 * n), size_px=(112, 112)) for n in range(8)]


def rows_of(person: int, count: int) -> Templates:
    """Templates of one person's photos."""
    noise = np.random.default_rng(person).normal(size=(count, WIDTH))
    return unit(np.eye(WIDTH)[person] + 0.05 * noise)


class LengthEyes:
    """Embeds a crop by its number in CROPS."""

    def __init__(self, digest: str = FACTS.digest, align: AlignSpec = FACTS.align) -> None:
        self.named = SimpleNamespace(name="net", digest=digest)
        self.align, self.min_face = align, 20
        self.network = SimpleNamespace(embedding_size=WIDTH, uses_landmarks=False)

    def embed(self, crops: Sequence[Crop]) -> Templates:
        numbers = [CROPS.index(crop.jpeg) for crop in crops]
        rows = [rows_of(number // 2 % WIDTH, 2)[number % 2] for number in numbers]
        return np.stack(rows) if rows else np.zeros((0, WIDTH), np.float32)


@contextlib.contextmanager
def opened(path: Path, eyes: Any, **options: Any) -> Iterator[Gallery]:
    store = open_store(path, create=True)
    facts = replace(FACTS, digest=eyes.named.digest, align=eyes.align)
    store.adopt(facts)
    with Gallery(store, eyes, Threshold(0.8, "by hand"), **options) as found:
        yield found


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Gallery]:
    """Five photos of Ada without crops, two of Bob with, one of Cy without."""
    with opened(tmp_path / "there.db", EYES, keep_crops=True) as gallery:
        with_crops = [
            StoredPhoto(row, crop, LANDMARKS)
            for row, crop in zip(rows_of(1, 2), CROPS[2:], strict=False)
        ]
        people = {"Ada": [*map(StoredPhoto, rows_of(0, 5))], "Bob": with_crops}
        gallery.store.add({**people, "Cy": [*map(StoredPhoto, rows_of(2, 1))]}, FACTS.digest)
        yield gallery


@pytest.fixture
def url(there: Gallery) -> Iterator[str]:
    with serving(there, token=TOKEN, share_templates=True) as port:
        yield f"http://127.0.0.1:{port}"


def imported(gallery: Gallery, url: str, home: Path, **options: Any) -> Imported:
    source = read_server(url, TOKEN, sleep=lambda _: None)
    with open_journal(home, gallery, source) as journal:
        return import_from(source, gallery, journal, **options)


def counts(gallery: Gallery) -> dict[str, int]:
    return {person.name: person.photos for person in gallery.people()}


@pytest.mark.parametrize("page", [2, 200])
def test_the_same_network_takes_templates_over(
    page: int, url: str, there: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_server, "PAGE", page)
    with opened(tmp_path / "here.db", LengthEyes(), keep_crops=True) as here:
        done = imported(here, url, tmp_path)
        assert counts(here) == {"Ada": 5, "Bob": 2, "Cy": 1}
        assert (done.people, done.added, done.refused, done.failed) == (3, 8, [], {})
        for (name, _, old), (other, _, new) in zip(
            there.store.photos(), here.store.photos(), strict=True
        ):
            assert name == other
            assert np.array_equal(old.template, new.template)
            assert old.crop == new.crop
            assert (new.landmarks_62 is None) == (name != "Bob")
        assert not any((tmp_path / importing.JOURNALS).iterdir())
        done = imported(here, url, tmp_path)
        assert (done.added, done.already) == (0, 8)


def test_no_crop_is_kept_unless_wanted(url: str, tmp_path: Path) -> None:
    with opened(tmp_path / "here.db", LengthEyes()) as here:
        imported(here, url, tmp_path)
        assert all(photo.crop is None for _, _, photo in here.store.photos())


def test_another_network_embeds_what_was_kept(url: str, tmp_path: Path) -> None:
    with opened(tmp_path / "here.db", LengthEyes("other")) as here:
        done = imported(here, url, tmp_path)
        assert counts(here) == {"Bob": 2}
        templates = [photo.template for _, _, photo in here.store.photos()]
        assert np.array_equal(np.stack(templates), rows_of(1, 2))
        assert list(done.failed) == ["Ada", "Cy"]
        assert {one.reason for one in done.refused} == {
            "its face is not kept there, and this is another network"
        }
        assert [(one.row, one.photo) for one in done.refused] == [
            *((1, f"photo {n}") for n in range(1, 6)),
            (3, "photo 1"),
        ]


def test_crops_of_another_alignment_are_not_embedded(url: str, tmp_path: Path) -> None:
    align = AlignSpec("landmarks", 112, 0)
    with (
        opened(tmp_path / "here.db", LengthEyes("other", align)) as here,
        pytest.raises(PersonaError, match="aligned in another way"),
    ):
        imported(here, url, tmp_path)


def test_a_crop_of_another_alignment_is_left_there(
    url: str, there: Gallery, tmp_path: Path
) -> None:
    """That gallery was moved to another network, and keeps crops of before."""
    old = AlignSpec("landmarks", 112, 0)
    people = {"Eve": [StoredPhoto(rows_of(3, 2)[0], CROPS[6], LANDMARKS, old)]}
    there.store.add(people, FACTS.digest)
    with opened(tmp_path / "here.db", LengthEyes(), keep_crops=True) as here:
        imported(here, url, tmp_path)
        assert [photo.crop for _, _, photo in here.store.photos("Eve")] == [None]
        assert all(photo.crop for _, _, photo in here.store.photos("Bob"))
    with opened(tmp_path / "other.db", LengthEyes("other")) as here:
        done = imported(here, url, tmp_path)
        assert counts(here) == {"Bob": 2}
        assert [one.reason for one in done.refused if one.row == 4] == [
            "its face is aligned in another way there, and this is another network"
        ]


def test_doubts_are_refused_unless_forced(url: str, tmp_path: Path) -> None:
    with opened(tmp_path / "here.db", LengthEyes()) as here:
        here.store.add({"Bobby": [StoredPhoto(rows_of(1, 2)[0])]}, FACTS.digest)
        done = imported(here, url, tmp_path)
        assert done.failed["Bob"].startswith("'Bob' looks like 'Bobby', who is enrolled")
        assert dict(done.reasons()) == {"the person looks like somebody who is enrolled": 2}
        imported(here, url, tmp_path, force=True)
        assert counts(here) == {"Ada": 5, "Bob": 2, "Bobby": 1, "Cy": 1}


def test_cut_and_repeated(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    ask = import_server.PeopleServer.ask

    def counted(server: Any, path: str, form: Any, most_bytes: int) -> Any:
        asked.append("" if form is None else form["name"])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ask(server, path, form, most_bytes)

    monkeypatch.setattr(import_server.PeopleServer, "ask", counted)
    with opened(tmp_path / "here.db", LengthEyes()) as here:
        with pytest.raises(KeyboardInterrupt):
            imported(here, url, tmp_path)
        assert counts(here) == {"Ada": 5}
        done = imported(here, url, tmp_path)
        assert asked == ["", "Ada", "Bob", "", "Bob", "Cy"]
        assert (done.people, done.added, done.continued) == (3, 8, 1)


def test_who_is_removed_meanwhile(url: str, there: Gallery, tmp_path: Path) -> None:
    source = read_server(url, TOKEN)
    there.forget("Cy")
    for one in there.photos("Ada")[3:]:
        there.split("Ada", {one.number}, f"Eve {one.number}")
    with (
        opened(tmp_path / "here.db", LengthEyes()) as here,
        open_journal(tmp_path, here, source) as journal,
    ):
        done = import_from(source, here, journal)
        assert counts(here) == {"Ada": 3, "Bob": 2}
        assert [one.reason for one in done.refused] == ["is not there any more"] * 3


def test_a_server_that_does_not_share(there: Gallery) -> None:
    with serving(there) as port:
        assert post(port, "/api/templates", ("name", "Ada")).status == 404
        with pytest.raises(PersonaError, match="start it with --share-templates"):
            read_server(f"http://127.0.0.1:{port}")


def test_a_server_that_shares_no_more(there: Gallery, tmp_path: Path) -> None:
    """It was started again without the option: nobody must be taken for removed."""
    with serving(there, share_templates=True) as port:
        source = read_server(f"http://127.0.0.1:{port}")
    with serving(there) as port, opened(tmp_path / "here.db", LengthEyes()) as here:
        source.url = f"http://127.0.0.1:{port}"
        with open_journal(tmp_path, here, source) as journal, pytest.raises(PersonaError) as found:
            import_from(source, here, journal)
    assert "refuses (404): " in str(found.value)


def test_without_its_token(url: str) -> None:
    with pytest.raises(PersonaError, match=r"wants its token: .* --token-file FILE"):
        read_server(url)


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("http://192.0.2.7:8000", "would send faces across the network in clear"),
        ("https://me:secret@faces.example", "give a token by --token-file FILE"),
        ("https://", "is no address of a server"),
        ("http://127.0.0.1:99999", "is no address of a server"),
        ("http://127.0.0.1:8000/?name=Ada", "is no address of a server"),
        ("http://[::1", "is no address of a server"),
    ],
)
def test_addresses_that_are_none(address: str, line: str) -> None:
    with pytest.raises(PersonaError, match=line) as found:
        read_server(address)
    assert "secret" not in str(found.value)


def test_where_nothing_listens() -> None:
    waits: list[float] = []
    with pytest.raises(PersonaError, match=r"cannot be reached \(.+\): see that `persona serve"):
        read_server("http://127.0.0.1:9", sleep=waits.append)
    assert waits == []  # it was never there


def test_a_server_that_goes_away(there: Gallery) -> None:
    waits: list[float] = []
    with serving(there, token=TOKEN, share_templates=True) as port:
        source = read_server(f"http://127.0.0.1:{port}", TOKEN, sleep=waits.append)
    with pytest.raises(PersonaError, match="run the import again, and it goes on"):
        source.ask("/api/templates", {"name": "Ada"}, 1000)
    assert waits == [1, 2, 4, 8]


def test_over_tls(there: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    write_certificate(certificate, key)
    with serving(there, share_templates=True, certificate=certificate, key=key) as port:
        url = f"https://localhost:{port}"
        with pytest.raises(PersonaError, match=r"not known here \(.+\): set SSL_CERT_FILE"):
            read_server(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert list(read_server(url).people) == ["Ada", "Bob", "Cy"]


# --- servers that answer anything -----------------------------------------------------------------

PEOPLE: dict[str, Any] = {
    "people": [{"name": "Ada", "photos": 1, "created": "2026"}],
    "shares": {"digest": FACTS.digest, "align": FACTS.align.facts},
}


def coded(values: Any) -> str:
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


PHOTO: dict[str, Any] = {"template": coded(rows_of(0, 1)[0]), "crop": None, "landmarks": None}
SOUND: dict[str, Any] = {"name": "Ada", "digest": FACTS.digest, "total": 1, "photos": [PHOTO]}


@contextlib.contextmanager
def answering(people: Any, templates: Any, *statuses: int) -> Iterator[str]:
    """A server with these answers; the first requests get `statuses`."""
    wanted = list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def answer(self, value: Any) -> None:
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(wanted.pop(0) if wanted else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.answer(people)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(templates)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with answering_with(Handler) as url:
        yield url


def test_a_busy_server_is_asked_again(tmp_path: Path) -> None:
    with (
        answering(PEOPLE, SOUND, 503, 408) as url,
        opened(tmp_path / "here.db", LengthEyes()) as here,
    ):
        assert imported(here, url, tmp_path).added == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"template": coded([np.nan] * WIDTH)},
        {"template": coded([0.0] * WIDTH)},
        {"template": coded([3.0] * WIDTH)},
        {"template": coded(unit(np.ones(WIDTH + 1)))},
        {"template": "?"},
        {"template": None},
        {"template": coded(rows_of(0, 1)[0])[:-4]},
        {"crop": base64.b64encode(b"no picture").decode()},
        {"crop": base64.b64encode(photo(size_px=(112, 64))).decode()},
        {"crop": base64.b64encode(photo(size_px=(112, 112), form="PNG")).decode()},
        {"crop": base64.b64encode(CROPS[0][:300]).decode()},
        {"crop": 7},
        {"landmarks": [[1, 2]]},
        {"landmarks": [["x", 2]] * 6},
        {"landmarks": [[float("nan"), 2]] * 6},
        {"landmarks": [[10**400, 2]] * 6},
    ],
)
def test_photos_that_are_none(wrong: dict[str, Any], tmp_path: Path) -> None:
    answer = {**SOUND, "photos": [{**PHOTO, **wrong}]}
    with answering(PEOPLE, answer) as url, opened(tmp_path / "here.db", LengthEyes()) as here:
        with pytest.raises(PersonaError, match="does not answer as `persona serve"):
            imported(here, url, tmp_path)
        assert counts(here) == {}


@pytest.mark.parametrize(
    ("templates", "line"),
    [
        (b"<html>", "does not answer as"),
        ([], "does not answer as"),
        (b"[" * 100_000, "does not answer as"),
        ({**SOUND, "photos": [PHOTO] * 2}, "does not answer as"),
        ({**SOUND, "photos": {}}, "does not answer as"),
        ({**SOUND, "digest": "other"}, "has moved to another network meanwhile"),
        (b" " * 40_000_000, "sends an answer of over 32 MB"),
    ],
)
def test_answers_that_are_none(templates: Any, line: str, tmp_path: Path) -> None:
    with (
        answering(PEOPLE, templates) as url,
        opened(tmp_path / "here.db", LengthEyes()) as here,
        pytest.raises(PersonaError, match=line),
    ):
        imported(here, url, tmp_path)


@pytest.mark.parametrize(
    "people",
    [
        b"<html>",
        {"people": 3},
        {**PEOPLE, "people": [{"name": "Ada", "photos": -1, "created": ""}]},
        {**PEOPLE, "people": [{"name": "Ada", "photos": 1e9, "created": ""}]},
        {**PEOPLE, "people": [{"name": None, "photos": 1, "created": ""}]},
        {**PEOPLE, "people": PEOPLE["people"] * 2},
        {**PEOPLE, "people": ["Ada"]},
        {**PEOPLE, "people": []},
        {**PEOPLE, "shares": {"digest": "", "align": {"method": "sideways"}}},
        {**PEOPLE, "shares": {"digest": "", "align": {"size": 3}}},
        {**PEOPLE, "shares": {"digest": "", "align": 3}},
    ],
)
def test_people_that_are_none(people: Any) -> None:
    with answering(people, SOUND) as url, pytest.raises(PersonaError, match=url):
        read_server(url)


def test_more_photos_than_memory_holds_are_refused_before_a_row_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    people = [{"name": f"P{n}", "photos": 1_000_000, "created": ""} for n in range(6)]
    monkeypatch.setattr(import_server, "ListedRow", None)
    with (
        answering({**PEOPLE, "people": people}, SOUND) as url,
        pytest.raises(PersonaError, match=r"has over 5,000,000 photos: import parts of it"),
    ):
        read_server(url)


def test_names_that_cannot_be_used(tmp_path: Path) -> None:
    names = ["Ada", " ", "C\u200by", "\ud800"]
    people = [{"name": name, "photos": 1, "created": ""} for name in names]
    with (
        answering({**PEOPLE, "people": people}, SOUND) as url,
        opened(tmp_path / "here.db", LengthEyes()) as here,
    ):
        done = imported(here, url, tmp_path)
        assert counts(here) == {"Ada": 1}
        assert [one.row for one in done.refused] == [2, 3, 4]
        assert all(one.reason.startswith("no name: ") for one in done.refused)


def test_an_address_that_is_another_programs() -> None:
    with (
        answering(b"<html>", b"", 404) as url,
        pytest.raises(PersonaError, match="is no gallery: give the address"),
    ):
        read_server(url)
