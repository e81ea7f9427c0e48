from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from persona.download import Checksum, fetch, unpack_tar
from persona.errors import PersonaError
from persona.files import folder_lock
from persona.models.weights import Release, download_weights

BODY = bytes(range(256)) * 4000
OTHER = BODY[::-1]
SHA = Checksum("sha256", hashlib.sha256(BODY).hexdigest())

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """A mirror on this machine; each request gets the next of `answers`, then always the last."""

    def __init__(self) -> None:
        self.body, self.tag = BODY, '"one"'
        self.answers: list[Answer] = [self.give()]
        self.asked: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.headers.get("Range"))
                answers = outer.answers
                (answers.pop(0) if len(answers) > 1 else answers[0])(self)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/file"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def give(
        self, cut: int | None = None, ranges: bool = True, length: int | None = None
    ) -> Answer:
        """The file or the rest of it; `cut` bytes of it, or with another length than it has."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            body, start = self.body, 0
            wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range") or "")
            if wanted and ranges and handler.headers.get("If-Range") in {None, self.tag}:
                start = int(wanted[1])
                if start >= len(body):
                    handler.send_response(416)
                    handler.send_header("Content-Range", f"bytes */{len(body)}")
                    handler.send_header("Content-Length", "0")
                    handler.end_headers()
                    return
                handler.send_response(206)
                span = f"bytes {start}-{len(body) - 1}/{len(body)}"
                handler.send_header("Content-Range", span)
            else:
                handler.send_response(200)
            if self.tag:
                handler.send_header("ETag", self.tag)
            handler.send_header("Content-Length", str(length or len(body) - start))
            handler.end_headers()
            handler.wfile.write(body[start : start + cut if cut else None])

        return answer


def status(code: int) -> Answer:
    return lambda handler: handler.send_error(code)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def get(
    server: Server, target: Path, *more: str, checksum: Checksum | None = SHA, rounds: int = 3
) -> tuple[bytes, list[float]]:
    """What was downloaded, and how long it would have waited."""
    waits: list[float] = []
    urls = [server.url, *more]
    path = fetch(
        urls, target, checksum=checksum, by_hand="fetch it", rounds=rounds, sleep=waits.append
    )
    return path.read_bytes(), waits


@pytest.mark.parametrize("checksum", [SHA, None])
def test_a_connection_that_drops_is_gone_on_with(
    server: Server, tmp_path: Path, checksum: Checksum | None
) -> None:
    server.answers = [server.give(cut=300_000), server.give(cut=5), server.give()]
    body, waits = get(server, tmp_path / "f", checksum=checksum)
    assert body == BODY
    assert server.asked == [None, "bytes=300000-", "bytes=300005-"]
    assert len(waits) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_second_run_goes_on_and_a_third_asks_for_nothing(server: Server, tmp_path: Path) -> None:
    server.answers = [server.give(cut=1000), status(500)]
    with pytest.raises(PersonaError, match=r"HTTP 500 .*: fetch it"):
        get(server, tmp_path / "f")
    server.answers, server.asked = [server.give()], []
    assert get(server, tmp_path / "f")[0] == BODY
    assert get(server, tmp_path / "f")[0] == BODY
    assert server.asked == ["bytes=1000-"]


def test_a_file_that_changes_in_between_starts_anew(server: Server, tmp_path: Path) -> None:
    def change(handler: BaseHTTPRequestHandler) -> None:
        server.body, server.tag = OTHER, '"two"'
        server.give()(handler)

    server.answers = [server.give(cut=300_000), change]
    assert get(server, tmp_path / "f", checksum=None)[0] == OTHER
    assert server.asked == [None, "bytes=300000-"]


def test_a_server_that_ignores_ranges_starts_anew(server: Server, tmp_path: Path) -> None:
    server.answers = [server.give(cut=300_000), server.give(ranges=False)]
    assert get(server, tmp_path / "f")[0] == BODY


def test_without_etag_or_checksum_nothing_is_pieced_together(
    server: Server, tmp_path: Path
) -> None:
    server.tag = ""
    server.answers = [server.give(cut=300_000), server.give()]
    assert get(server, tmp_path / "f", checksum=None)[0] == BODY
    assert server.asked == [None, None]


def test_killed_before_the_renaming_nothing_is_downloaded_twice(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / ".download").mkdir()
    (tmp_path / ".download" / "f.partial").write_bytes(BODY)
    assert get(server, tmp_path / "f")[0] == BODY
    assert server.asked == [f"bytes={len(BODY)}-"]
    (tmp_path / "f").unlink()
    (tmp_path / ".download").mkdir()
    (tmp_path / ".download" / "f.partial").write_bytes(BODY + b"too long")
    assert get(server, tmp_path / "f")[0] == BODY


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A proxy that the user's environment names for every address."""
    made = Server()
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, made.url)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_proxy_gets_no_request_to_this_machine(
    server: Server, proxy: Server, tmp_path: Path, host: str
) -> None:
    fetch([server.url.replace("127.0.0.1", host)], tmp_path / "a", by_hand="", rounds=1)
    assert (len(server.asked), proxy.asked) == (1, [])
    fetch(["http://mirror.invalid/file"], tmp_path / "b", by_hand="", rounds=1)
    assert len(proxy.asked) == 1

    def sent_on(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", server.url)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    proxy.answers = [sent_on]
    fetch(["http://mirror.invalid/file"], tmp_path / "c", by_hand="", rounds=1)
    assert (len(server.asked), len(proxy.asked)) == (2, 2)


@pytest.mark.parametrize("code", [403, 404])
def test_a_refusal_is_final_and_the_next_mirror_is_asked(
    server: Server, tmp_path: Path, code: int
) -> None:
    server.answers = [status(code)]
    with pytest.raises(PersonaError, match=f"cannot download f .*/file: HTTP {code}"):
        get(server, tmp_path / "f")
    assert len(server.asked) == 1
    server.answers = [status(code), server.give()]
    assert get(server, tmp_path / "f", server.url + "2")[0] == BODY
    assert len(server.asked) == 3


def test_errors_are_retried_with_longer_and_longer_waits(server: Server, tmp_path: Path) -> None:
    server.answers = [status(500), status(503), status(500), server.give()]
    body, waits = get(server, tmp_path / "f", rounds=4)
    assert body == BODY
    assert waits == [1.0, 2.0, 4.0]


def test_lies_about_the_length(server: Server, tmp_path: Path) -> None:
    server.answers = [server.give(length=len(BODY) + 7)]
    with pytest.raises(PersonaError, match=r"1,024,000 of 1,024,007 bytes|not what was promised"):
        get(server, tmp_path / "f", checksum=None)
    server.answers = [server.give(length=1000)]  # the client sees a whole, short file
    with pytest.raises(PersonaError, match="its sha256 is not"):
        get(server, tmp_path / "g")
    server.answers = [server.give(length=1 << 40)]
    with pytest.raises(PersonaError, match="it promises 1,099,511,627,776 bytes"):
        get(server, tmp_path / "h")
    assert not list(tmp_path.glob("[fgh]"))


def test_a_mirror_of_another_file_is_asked_once(server: Server, tmp_path: Path) -> None:
    server.body = OTHER
    with pytest.raises(PersonaError, match="its sha256 is not"):
        get(server, tmp_path / "f")
    assert server.asked == [None]


def test_another_part_than_asked_for_is_not_taken(server: Server, tmp_path: Path) -> None:
    def wrong(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-4/{len(BODY)}")
        handler.send_header("Content-Length", "5")
        handler.end_headers()
        handler.wfile.write(BODY[:5])

    server.answers = [server.give(cut=300_000), wrong, server.give()]
    assert get(server, tmp_path / "f")[0] == BODY


def test_wrong_contents_are_refused_and_a_wrong_file_is_named(
    server: Server, tmp_path: Path
) -> None:
    server.body = OTHER
    with pytest.raises(PersonaError, match="its sha256 is not"):
        get(server, tmp_path / "f")
    assert not (tmp_path / "f").exists()
    (tmp_path / "f").write_bytes(b"by hand")
    with pytest.raises(PersonaError, match="f is not the file that it should be"):
        get(server, tmp_path / "f")


def test_offline_says_what_to_do_and_hides_secrets(tmp_path: Path) -> None:
    for url, message in (
        ("http://me:secret@127.0.0.1:9/f?key=secret", "cannot download f .*: fetch it"),
        ("file:///etc/passwd", "is no address of a mirror"),
        ("ftp://127.0.0.1/f", "is no address of a mirror"),
    ):
        with pytest.raises(PersonaError, match=message) as error:
            fetch([url], tmp_path / "f", by_hand="fetch it", rounds=1)
        assert "secret" not in str(error.value)


def test_a_secret_query_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.url += "?signature=secret"
    server.answers = [server.give(cut=300_000), status(500)]
    with pytest.raises(PersonaError, match="HTTP 500"):
        get(server, tmp_path / "f", checksum=None)
    assert "secret" not in (tmp_path / ".download" / "f.json").read_text()
    server.answers, server.asked = [server.give()], []
    assert get(server, tmp_path / "f", checksum=None)[0] == BODY
    assert server.asked == ["bytes=300000-"]  # it is still known to be the same URL


def test_two_at_once_are_told_apart(server: Server, tmp_path: Path) -> None:
    with (
        folder_lock(tmp_path / ".download", doing="downloading into"),
        pytest.raises(PersonaError, match="another process is downloading into"),
    ):
        get(server, tmp_path / "f")


def test_processes_that_need_the_same_weights_wait_for_one_download(
    server: Server, tmp_path: Path
) -> None:
    release = Release("file", 1, "faces", base=server.url.rpartition("/")[0])
    place = tmp_path / "checkpoints" / "file"
    with ThreadPoolExecutor(2) as pool:
        with folder_lock(place.parent / ".download", doing="downloading into"):
            found = [pool.submit(download_weights, release, place) for _ in range(2)]
            assert not wait(found, timeout=0.2).done
        assert [one.result().read_bytes() for one in found] == [BODY] * 2
    assert server.asked == [None]
    assert [path.name for path in place.parent.iterdir()] == ["file"]


FILE, FOLDER, LINK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE


def tar_of(path: Path, *members: tuple[str, bytes, bytes]) -> Path:
    """A gzipped tar of (name, type, contents)."""
    with tarfile.open(path, "w:gz") as tar:
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(data), "/etc/passwd"
            info.mode = 0o4777
            tar.addfile(info, io.BytesIO(data))
    return path


def test_files_and_folders_are_unpacked_without_owner_or_mode(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tgz", ("d", FOLDER, b""), ("d/e/f", FILE, b"here"))
    unpack_tar(archive, tmp_path / "out", max_bytes=100, max_files=10)
    assert (tmp_path / "out/d/e/f").read_bytes() == b"here"
    assert not (tmp_path / "out/d/e/f").stat().st_mode & 0o7111


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../x", FILE, b"")], "leaves its folder"),
        ([("/tmp/persona-x", FILE, b"")], "leaves its folder"),
        ([("d/../../x", FILE, b"")], "leaves its folder"),
        ([("d", LINK, b""), ("d/x", FILE, b"")], "is a link, device"),
        ([("d", tarfile.LNKTYPE, b"")], "is a link, device"),
        ([("d", tarfile.CHRTYPE, b"")], "is a link, device"),
        ([("d", tarfile.FIFOTYPE, b"")], "is a link, device"),
        ([("d", FILE, bytes(101))], "is beyond 100 bytes or 3 files"),
        ([(str(n), FILE, b"") for n in range(4)], "is beyond 100 bytes or 3 files"),
        ([("d", FILE, b"1"), ("d", FILE, b"2")], "is in it twice"),
    ],
)
def test_unsafe_archives_are_refused(tmp_path: Path, members, message: str) -> None:
    archive = tar_of(tmp_path / "a.tgz", *members)
    with pytest.raises(PersonaError, match=message):
        unpack_tar(archive, tmp_path / "deep/er/out", max_bytes=100, max_files=3)
    assert not (tmp_path / "deep/er/x").exists()
    assert not (tmp_path / "deep/x").exists()


def test_damaged_archives_are_one_line(tmp_path: Path) -> None:
    noise = bytes(hashlib.shake_128(b"").digest(30_000))
    whole = tar_of(tmp_path / "a.tgz", ("f", FILE, noise)).read_bytes()
    for number, data in enumerate((whole[:200], whole[:-9000], b"nothing", b"")):
        path = tmp_path / "b.tgz"
        path.write_bytes(data)
        with pytest.raises(PersonaError, match="is damaged"):
            unpack_tar(path, tmp_path / f"out{number}", max_bytes=1 << 20, max_files=3)
