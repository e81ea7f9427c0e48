"""`list:FILE` with http(s) URLs, against servers of this machine."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import functools
import http.server
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
from conftest import NO_ALIGN, jpeg
from servers import Faults, answering_with, web_server

from persona import download, files
from persona.data.pack import pack_photos
from persona.data.raw import fetched, open_dataset
from persona.data.raw.fetched import FetchedPhotos
from persona.errors import PersonaError
from persona.files import folder_lock


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six photos that a server has."""
    folder = tmp_path / "server"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    return folder


def write_list(tmp_path: Path, *rows: str) -> str:
    path = tmp_path / "web.csv"
    path.write_text("photo,identity\n" + "".join(f"{row}\n" for row in rows))
    return f"list:{path}"


@contextlib.contextmanager
def signing_server(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a server whose files have a query, and what it was asked."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with answering_with(functools.partial(Handler, directory=str(folder))) as url:
        yield url, asked


def test_photos_behind_urls_are_packed(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "here.jpg").write_bytes(jpeg(77))
    faults = Faults()
    with web_server(photos, faults) as url:
        rows = [f"{url}/{n}.jpg,{'Ann' if n % 2 else 'Ben'}" for n in range(6)]
        name = write_list(tmp_path, *rows, "here.jpg,Ann")
        packed = pack_photos(open_dataset(name, tmp_path), tmp_path / "s", NO_ALIGN)
        assert (packed.manifest.samples, packed.manifest.identities) == (7, 2)
        assert len(faults.asked) == 6
        # Once and for all, and for each worker.
        assert len(open_dataset(name, tmp_path).index().photos) == 7
        assert len(faults.asked) == 6
    dataset = open_dataset(name, tmp_path)  # the server is gone
    found = {photo.source: dataset.read(photo) for photo in dataset.index().photos}
    assert found[f"{url}/3.jpg"] == jpeg(3) and found["here.jpg"] == jpeg(77)


def test_refused_photos_are_counted_and_listed(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults = Faults()
    with web_server(photos, faults) as url:
        wanted = [f"{url}/{n}.jpg" for n in (0, 1, 8, 9)]
        name = write_list(tmp_path, *(f"{one},Ann" for one in wanted))
        packed = pack_photos(open_dataset(name, tmp_path), tmp_path / "s", NO_ALIGN)
        assert packed.manifest.samples == 2
        assert [one.source for one in packed.manifest.skipped] == wanted[2:]
        reasons = {one.reason for one in packed.manifest.skipped}
        assert reasons == {"not downloaded: HTTP 404 Not Found"}
        assert "2 of 4 photos were refused by their servers" in caplog.text
        listed = tmp_path / "web.csv.downloads" / "refused.csv"
        with listed.open(newline="") as file:
            assert sorted(csv.reader(file)) == [[one, "HTTP 404 Not Found"] for one in wanted[2:]]
        asked = len(faults.asked)
        open_dataset(name, tmp_path).index()
        assert len(faults.asked) == asked  # neither again
        listed.unlink()
        (photos / "8.jpg").write_bytes(jpeg(8))
        assert len(open_dataset(name, tmp_path).index().photos) == 3
        assert len(faults.asked) == asked + 2


def test_a_server_without_an_answer_ends_it_and_it_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "WAIT_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # nobody answers there once it is closed
    faults = Faults()
    with web_server(photos, faults) as url:
        rows = [f"{url}/{n}.jpg,Ann" for n in range(6)]
        name = write_list(tmp_path, f"http://127.0.0.1:{port}/1.jpg,Ann", *rows)
        with pytest.raises(PersonaError) as error:
            open_dataset(name, tmp_path).index()
        assert str(error.value).startswith("1 of 7 photos did not come, the first: cannot download")
        assert str(error.value).endswith("run again to go on, or take them out of the list")
        assert not (tmp_path / "web.csv.downloads" / "refused.csv").exists()
        assert len(faults.asked) == 6  # all others are here
        write_list(tmp_path, *rows)
        assert len(open_dataset(name, tmp_path).index().photos) == 6
        assert len(faults.asked) == 6


def test_a_photo_that_was_cut_off_is_gone_on_with(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "WAIT_S", 0.0)
    (photos / "0.tar").write_bytes(jpeg(5))  # the server cuts tars
    faults = Faults(cuts=fetched.ROUNDS - 1)
    with web_server(photos, faults) as url:
        dataset = open_dataset(write_list(tmp_path, f"{url}/0.tar,Ann"), tmp_path)
        (photo,) = dataset.index().photos
        assert dataset.read(photo) == jpeg(5)
    assert len(faults.asked) > 1


def test_a_photo_that_is_too_large_is_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched, "MAX_PHOTO_BYTES", 100)
    with web_server(photos, Faults()) as url:
        dataset = open_dataset(write_list(tmp_path, f"{url}/0.jpg,Ann"), tmp_path)
        with pytest.raises(
            PersonaError, match=r"none of its photos is there, .*not downloaded: it promises"
        ):
            dataset.index()
    assert "it promises" in dataset.fetched.refused[f"{url}/0.jpg"]  # type: ignore[attr-defined]


def test_a_login_in_a_url_is_refused(tmp_path: Path) -> None:
    name = write_list(tmp_path, "https://me:secret@example.org/1.jpg,Ann")
    with pytest.raises(PersonaError, match=r"web.csv line 2: its URL holds a login") as error:
        open_dataset(name, tmp_path).index()
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("url", ["http://[bad/1.jpg", "http://a:b/1.jpg", "https:///1.jpg"])
def test_a_url_that_cannot_be_read_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(PersonaError, match=r"web.csv line 2: its URL cannot be read"):
        open_dataset(write_list(tmp_path, f"{url},Ann"), tmp_path).index()


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_the_query_of_a_url_is_asked_with_and_shown_nowhere(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with signing_server(photos) as (url, asked):
        wanted = [f"{url}/{n}.jpg" for n in (0, 1, 9)]
        name = write_list(tmp_path, *(f"{one}?Signature=s3cret,Ann" for one in wanted))
        packed = pack_photos(open_dataset(name, tmp_path), tmp_path / "s", NO_ALIGN)
        assert sorted(asked) == [f"/{n}.jpg?Signature=s3cret" for n in (0, 1, 9)]
        assert [one.source for one in packed.manifest.skipped] == wanted[2:]
        assert b"s3cret" not in everything_in(tmp_path / "s")
        assert b"s3cret" not in everything_in(tmp_path / "web.csv.downloads")
        assert "s3cret" not in caplog.text
        (photos / "9.jpg").unlink(missing_ok=True)
        write_list(tmp_path, *(f"{one}?Signature=another#x,Ann" for one in wanted))
        again = pack_photos(open_dataset(name, tmp_path), tmp_path / "s", NO_ALIGN)
        assert not again.fresh and again.manifest == packed.manifest
        assert asked[3:] == ["/9.jpg?Signature=another"]  # it may have been refused for its age
        open_dataset(name, tmp_path).index()
        assert len(asked) == 4
        (photos / "9.jpg").write_bytes(jpeg(9))
        write_list(tmp_path, *(f"{one}?Signature=third,Ann" for one in wanted))
        dataset = open_dataset(name, tmp_path)
        assert len(dataset.index().photos) == 3
        assert not open_dataset(name, tmp_path).index().missing
    assert not dataset.fetched.refused  # type: ignore[attr-defined]


def test_rows_that_differ_in_their_query_alone_are_refused(photos: Path, tmp_path: Path) -> None:
    with signing_server(photos) as (url, _):
        rows = [f"{url}/0.jpg?id=s3cret,Ann", "here.jpg,Ann", f"{url}/0.jpg?id=s4cret,Ben"]
        name = write_list(tmp_path, *rows)
        with pytest.raises(PersonaError) as error:
            open_dataset(name, tmp_path).index()
    said = str(error.value)
    assert said.startswith(f"{tmp_path}/web.csv line 2 and {tmp_path}/web.csv line 4 name the same")
    assert "cret" not in said and "\n" not in said


@pytest.mark.parametrize("finished", [True, False])
def test_a_photo_that_another_process_downloads_is_waited_for(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    """The other process ends with or without the photo, and deletes the folder of its work."""
    faults, waits = Faults(), threading.Event()

    def lock(file: IO[bytes], how: int) -> None:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            waits.set()
            if how & fcntl.LOCK_NB:
                raise
            fcntl.flock(file, how)

    locks = SimpleNamespace(flock=lock, LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB)
    with web_server(photos, faults) as url:
        mine = FetchedPhotos(tmp_path / "downloads")
        path = Path(mine.path(f"{url}/0.jpg"))
        fetching = threading.Thread(target=mine.fetch, args=([f"{url}/0.jpg"],), daemon=True)
        with folder_lock(path.parent / ".download", doing="downloading into"):
            monkeypatch.setattr(files, "fcntl", locks)
            fetching.start()
            assert waits.wait(60)
            if finished:
                path.write_bytes(jpeg(0))
            shutil.rmtree(path.parent / ".download")
        fetching.join(60)
    assert not fetching.is_alive()
    assert not mine.unanswered and not mine.refused
    assert path.read_bytes() == jpeg(0)
    assert len(faults.asked) == (0 if finished else 1)
