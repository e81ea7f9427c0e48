"""The server: its socket, its patience and its end."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from serving import ColourGallery, ask, form, photo, post, serving, write_certificate

from persona.errors import PersonaError
from persona.serve import door, server
from persona.serve.door import client_of, is_among, read_networks
from persona.serve.gate import Gate, TooSlow
from persona.serve.server import build_server, is_loopback, listen, serve, url_of
from persona.serve.uploads import Limits

HEAD = b"POST /api/recognise HTTP/1.1\r\nHost: localhost\r\n"


def test_where_it_listens() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert is_loopback(listener)
        assert url_of(listener, "127.0.0.1", secure=False) == f"http://127.0.0.1:{port}"
        assert url_of(listener, "::1", secure=False) == f"http://[::1]:{port}"
        with pytest.raises(PersonaError, match=f"127.0.0.1 port {port} is in use: choose another"):
            listen("127.0.0.1", port)
    with listen("0.0.0.0", 0) as listener:
        assert not is_loopback(listener)
        here = f"https://{socket.gethostname()}:{listener.getsockname()[1]}"
        assert url_of(listener, "0.0.0.0", secure=True) == here
    with pytest.raises(PersonaError, match=r"192.0.2.1 port 0 is no address of this machine"):
        listen("192.0.2.1", 0)
    with pytest.raises(PersonaError, match="--host no such host is no address"):
        listen("no such host", 0)


def test_a_broken_certificate(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    with pytest.raises(PersonaError, match=r"cert.pem and its key cannot be read as PEM"):
        build_server(None, certificate=tmp_path / "cert.pem", key=tmp_path / "cert.pem")


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        yield line


@pytest.mark.parametrize("said", [b"", HEAD], ids=["nothing", "half a head"])
def test_who_sends_no_head_is_cut_off(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(server, "HEAD_S", 0.2)
    with serving(ColourGallery()) as port, connected(port) as line:
        line.sendall(said)
        assert ask(port, "/api/health").status == 200  # others do not wait for it
        with contextlib.suppress(ConnectionResetError):
            assert line.recv(1) == b""


def test_half_a_head_after_an_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_S", 0.2)
    with serving(ColourGallery()) as port, connected(port) as line:
        line.sendall(b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = http.client.HTTPResponse(line)
        answer.begin()
        assert json.loads(answer.read()) == {"status": "ok"}
        line.sendall(HEAD)
        with contextlib.suppress(ConnectionResetError):
            assert line.recv(1) == b""


def test_a_body_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_S", 0.2)
    gallery = ColourGallery()
    limits = Limits(read_s=0.3, waiting=0)
    with serving(gallery, limits=limits, workers=1) as port, connected(port) as line:
        kind = b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000\r\n\r\n"
        line.sendall(HEAD + kind + b"--b\r\n")
        answer = http.client.HTTPResponse(line)
        answer.begin()
        assert answer.status == 408
        error = json.loads(answer.read())["error"]
        assert error == "the request did not arrive whole within 0.3 s: try again"
        line.sendall(b"-")
        with contextlib.suppress(ConnectionResetError):
            assert line.recv(1) == b""
        assert post(port, "/api/recognise", ("photo", photo())).status == 200


def test_an_answer_that_is_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "READ_S", 0.2)
    with serving(ColourGallery()) as port, connected(port) as line:
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while True:
                line.sendall(b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
        assert ask(port, "/page.js").status == 200


SLOW_BODY = b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000\r\n\r\n--b\r\n"


def is_cut(line: socket.socket) -> bool:
    """Whether the server has ended a connection on which it owes nothing."""
    line.settimeout(0.2)
    try:
        return line.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("said", [b"", HEAD, HEAD + SLOW_BODY], ids=["nothing", "head", "body"])
def test_who_is_slow_loses_the_place_to_others(
    monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(server, "HEAD_S", 1000)
    monkeypatch.setattr(door, "SLOW_S", 0.2)
    limits = Limits(read_s=1000)
    with serving(ColourGallery(), limits=limits) as port, contextlib.ExitStack() as stack:
        lines = []
        for _ in range(300):
            lines.append(stack.enter_context(connected(port)))
            with contextlib.suppress(ConnectionError):
                lines[-1].sendall(said)
        for _ in range(3):
            while (answer := post(port, "/api/recognise", ("photo", photo()))).status == 503:
                time.sleep(0.1)  # until they have been slow for long enough
            assert answer.status == 200
        # Of bodies, the one that has to go depends on how far the server had read each of them.
        assert any(map(is_cut, lines if said.endswith(SLOW_BODY) else lines[:1]))
        assert not is_cut(lines[-1])


def test_many_at_once_are_not_slow() -> None:
    with serving(ColourGallery()) as port, contextlib.ExitStack() as stack:
        lines = [stack.enter_context(connected(port)) for _ in range(2 * door.PER_ADDRESS)]
        for line in lines:
            line.sendall(b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for line in lines:
            assert line.recv(100).startswith(b"HTTP/1.1 200")


def test_answers_that_are_not_read_lose_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "PER_ADDRESS", 3)
    monkeypatch.setattr(door, "SLOW_S", 0)
    with serving(ColourGallery()) as port, contextlib.ExitStack() as stack:
        for _ in range(6):
            line = stack.enter_context(connected(port))
            line.settimeout(0.5)
            with contextlib.suppress(OSError):
                while True:
                    line.sendall(b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
            assert ask(port, "/api/health").status == 200


def test_what_is_in_work_is_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "PER_ADDRESS", 2)
    monkeypatch.setattr(door, "WAITING", 2)
    monkeypatch.setattr(door, "SLOW_S", 0)
    gallery = ColourGallery(pause_s=1)
    with serving(gallery, workers=4) as port, ThreadPoolExecutor(4) as pool:
        asked = []
        for _ in range(4):
            asked.append(pool.submit(post, port, "/api/recognise", ("photo", photo())))
            assert gallery.began.acquire(timeout=60)
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(connected(port))
            assert [answer.result().status for answer in asked] == [200] * 4


def test_the_address_with_most_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_S", 1000)
    monkeypatch.setattr(door, "WAITING", 4)
    with serving(ColourGallery()) as port, contextlib.ExitStack() as stack:
        other = socket.create_connection(("127.0.0.1", port), 60, ("127.0.0.2", 0))
        stack.enter_context(other)
        lines = [stack.enter_context(connected(port)) for _ in range(5)]
        assert ask(port, "/api/health").status == 200
        assert [is_cut(line) for line in lines[:2]] == [True, True]
        assert not is_cut(other)


def test_who_does_not_agree_on_tls_loses_the_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(door, "PER_ADDRESS", 3)
    monkeypatch.setattr(door, "SLOW_S", 0)
    certificate, key = tmp_path / "cert", tmp_path / "key"
    write_certificate(certificate, key)
    with (
        serving(ColourGallery(), certificate=certificate, key=key) as port,
        contextlib.ExitStack() as stack,
    ):
        lines = [stack.enter_context(connected(port)) for _ in range(10)]
        context = ssl.create_default_context(cafile=certificate)
        context.check_hostname = False
        line = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
        line.request("GET", "/api/health")
        assert line.getresponse().status == 200
        line.close()
        assert is_cut(lines[0])
        assert not is_cut(lines[-1])


def test_tls_connections_that_end_while_others_begin(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = tmp_path / "cert", tmp_path / "key"
    write_certificate(certificate, key)
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False

    def ask_once(port: int) -> int:
        line = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
        with contextlib.closing(line):
            line.request("GET", "/api/health", headers={"Connection": "close"})
            return line.getresponse().status

    with (
        serving(ColourGallery(), certificate=certificate, key=key) as port,
        ThreadPoolExecutor(8) as pool,
    ):
        assert list(pool.map(ask_once, [port] * 50)) == [200] * 50
    assert not caplog.records


def test_a_connection_whose_socket_is_gone_already() -> None:
    """With TLS, uvicorn hears of an end a turn of the loop after asyncio has let go."""
    gone: Any = SimpleNamespace(transport=SimpleNamespace(get_extra_info=lambda _: None))
    with listen("127.0.0.1", 0) as listener:
        listener.connected = [gone]
        with (
            socket.create_connection(listener.getsockname(), timeout=60) as client,
            listener.accept()[0] as accepted,
        ):
            assert accepted.getpeername() == client.getsockname()


def test_whom_an_address_stands_for() -> None:
    assert client_of("192.0.2.7") == "192.0.2.7"
    assert client_of("::ffff:192.0.2.7") == "192.0.2.7"
    assert client_of("2001:db8:1:2:3::9") == client_of("2001:db8:1:2::1") == "2001:db8:1:2::/64"
    assert client_of("fe80::1%eth0") == "fe80::/64"
    assert client_of("") == ""
    networks = read_networks("--proxy", ["127.0.0.1", "10.0.0.0/8", "2001:db8::/32"])
    for host, among in (
        ("127.0.0.1", True),
        ("::ffff:127.0.0.1", True),
        ("10.9.9.9", True),
        ("2001:db8::5", True),
        ("127.0.0.2", False),
        ("unix", False),
    ):
        assert is_among(host, networks) == among
    with pytest.raises(PersonaError, match=r"--proxy 'nginx' is no address: give one as 127"):
        read_networks("--proxy", ["nginx"])


def test_one_client_leaves_places_to_others() -> None:
    gate = Gate(1, 7, read_s=60, work_s=60)
    let = threading.Event()

    async def ask_often() -> list[str]:
        def asked(client: str) -> asyncio.Task[bool]:
            read = gate.run(lambda: asyncio.sleep(0), lambda *_: let.wait(60), client)
            return asyncio.ensure_future(read)

        many = [asked("one") for _ in range(8)]
        others = [asked(f"other {number}") for number in range(3)]
        await asyncio.sleep(0.05)
        let.set()
        found = await asyncio.gather(*many, *others, return_exceptions=True)
        return [type(answer).__name__ for answer in found]

    try:
        found = asyncio.run(ask_often())
    finally:
        gate.close()
    assert found == ["bool"] * 6 + ["Busy"] * 2 + ["bool"] * 2 + ["Busy"]


def test_a_client_that_leaves_gives_its_place_back(caplog: pytest.LogCaptureFixture) -> None:
    limits = Limits(waiting=0)
    with serving(ColourGallery(), limits=limits, workers=1) as port:
        for _ in range(5):
            body = form(("photo", photo()))
            with connected(port) as line:
                kind = b"Content-Type: multipart/form-data; boundary=drawn-line\r\n"
                line.sendall(HEAD + kind + b"Content-Length: %d\r\n\r\n" % len(body) + body[:-9])
        while (answer := post(port, "/api/recognise", ("photo", photo()))).status == 503:
            pass  # until it has seen that they are gone
        assert answer.status == 200
    assert not caplog.records


def test_no_http_is_answered() -> None:
    with serving(ColourGallery()) as port, connected(port) as line:
        line.sendall(b"\x16\x03\x01 no request\r\n\r\n")
        assert line.recv(10_000).startswith(b"HTTP/1.1 400")


SERVE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from serving import ColourGallery
from persona.serve.api import build_app
from persona.serve.gate import Gate
from persona.serve.server import build_server, listen, serve, url_of
class SlowGallery(ColourGallery):
    def recognise(self, photo, **_):
        print("in work", flush=True)
        time.sleep(0.3)
        return super().recognise(photo)
gate = Gate(1, 4, read_s=30, work_s=30)
listener = listen("127.0.0.1", 0)
server = build_server(build_app(SlowGallery(), gate, network="colours"))
serve(server, listener, lambda: print(listener.getsockname()[1], flush=True))
gate.close()
print("ended")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_when_what_is_in_work_is_done(number: signal.Signals) -> None:
    command = [sys.executable, "-c", SERVE, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            port = int(process.stdout.readline())
            answers: list[int] = []
            body = ("photo", photo())
            worker = threading.Thread(
                target=lambda: answers.append(post(port, "/api/recognise", body).status)
            )
            worker.start()
            assert process.stdout.readline() == b"in work\n"
            process.send_signal(number)
            worker.join()
            assert process.stdout.read() == b"ended\n"
            assert process.wait(60) == 0
            assert process.stderr.read() == b""
            assert answers == [200]
        finally:
            process.kill()


STUCK = SERVE.replace("time.sleep(0.3)", "time.sleep(600)").replace(
    "gate.close()", "sys.exit(3) if gate.close(0.1) else os._exit(0)"
)


def test_a_request_that_does_not_end_does_not_keep_it_alive() -> None:
    limits = "import os\nfrom persona.serve import server\nserver.GRACE_S = 0.2\n"
    command = [sys.executable, "-c", limits + STUCK, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            with connected(port) as line:
                body = form(("photo", photo()))
                kind = b"Content-Type: multipart/form-data; boundary=drawn-line\r\n"
                line.sendall(HEAD + kind + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                assert process.stdout.readline() == b"in work\n"
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0
        finally:
            process.kill()


def test_what_was_in_work_when_it_ended_is_not_kept() -> None:
    gate = Gate(1, 0, read_s=60, work_s=60)
    begun, let, told = threading.Event(), threading.Event(), threading.Event()

    def work(_: None, claim: Callable[[], None]) -> None:
        begun.set()
        assert let.wait(60)
        try:
            claim()
        except TooSlow:
            told.set()

    async def end() -> None:
        asked = asyncio.ensure_future(gate.run(lambda: asyncio.sleep(0), work))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(end())
    assert not gate.close(0.01)
    let.set()
    assert gate.close()
    assert told.is_set()


def test_a_signal_before_it_has_begun_ends_it_too() -> None:
    listener = listen("127.0.0.1", 0)
    built = build_server(None)
    late = threading.Event()

    def give_up() -> None:
        late.set()
        built.should_exit = True

    timer = threading.Timer(60, give_up)
    timer.start()
    serve(built, listener, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.cancel()
    timer.join()
    assert not late.is_set()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
