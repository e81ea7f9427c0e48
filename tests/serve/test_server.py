"""The server: its socket, its patience and its end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import ColourGallery, ask, form, photo, post, serving

from persona.errors import PersonaError
from persona.serve import server
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


def test_too_many_connections_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 3)
    monkeypatch.setattr(server, "HEAD_S", 1000)
    with serving(ColourGallery()) as port:
        with contextlib.ExitStack() as stack:
            lines = [stack.enter_context(connected(port)) for _ in range(7)]
            with contextlib.suppress(ConnectionResetError):
                assert lines[-1].recv(1) == b""
        while ask(port, "/api/health").status == 503:
            pass  # until it has seen that they are gone


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
    def recognise(self, photo):
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
