"""Servers of this machine that cut connections and refuse, to test what reads from elsewhere."""

from __future__ import annotations

import contextlib
import functools
import http.server
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote


@dataclass
class Faults:
    """What a web server does to its answers, and what it was asked."""

    cuts: int = 0
    """Answers that end after half of what they promise."""
    resets: int = 0
    """Answers whose connection is reset after half of what they promise."""
    page: bytes = b""
    """Answered once instead of a tar, such as a page to log in."""
    status: int = 0
    """Answered instead of any tar; 0: none."""
    ranges: bool = True
    """Whether it begins where it is asked to."""
    asked: list[tuple[str, int]] = field(default_factory=list)
    """Path and first byte."""
    authorizations: set[str | None] = field(default_factory=set)


class _Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, *arguments: object, folder: Path, faults: Faults) -> None:
        self.folder, self.faults = folder, faults
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        faults = self.faults
        wanted = self.headers.get("Range", "bytes=0-") if faults.ranges else "bytes=0-"
        start, stop = (int(end) if end else None for end in wanted[6:].split("-"))
        assert start is not None
        faults.asked.append((self.path, start))
        faults.authorizations.add(self.headers.get("Authorization"))
        path = self.folder / self.path.lstrip("/")
        if faults.status and path.suffix == ".tar":
            self.send_error(faults.status)
            return
        if not path.is_file():
            self.send_error(404)
            return
        whole = path.read_bytes()
        if faults.page and path.suffix == ".tar":
            whole, faults.page = faults.page, b""
        data = whole[start : None if stop is None else stop + 1]
        self.send_response(206 if "Range" in self.headers and faults.ranges else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if faults.cuts and path.suffix == ".tar":
            faults.cuts -= 1
            data = data[: len(data) // 2]
        if faults.resets and path.suffix == ".tar":
            faults.resets -= 1
            self.wfile.write(data[: len(data) // 2])
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()  # at once: `shutdown` would end it in order first
            return
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class _GoogleHandler(_Handler):
    """Objects as Google's JSON API gives them; a folder's name is the bucket's."""

    def do_GET(self) -> None:
        place = re.fullmatch(r"/download/storage/v1/b/(.*)/o/(.*)\?alt=media", self.path)
        self.path = "/".join(["", *map(unquote, place.groups())]) if place else "/nothing"
        super().do_GET()


@contextlib.contextmanager
def web_server(folder: Path, faults: Faults, *, google: bool = False) -> Iterator[str]:
    """The URL of a server of `folder`: plain, or as Google's object storage."""
    handler_class = _GoogleHandler if google else _Handler
    handler = functools.partial(handler_class, folder=folder, faults=faults)
    with answering_with(handler) as url:
        yield url


@contextlib.contextmanager
def answering_with(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """The URL of a server whose requests are answered by a handler."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Cuts:
    """How many connections a proxy cuts, and after how many bytes of their answer."""

    connections: int
    after: int
    done: int = 0


@contextlib.contextmanager
def cutting_proxy(port: int, cuts: Cuts) -> Iterator[int]:
    """The port of a TCP proxy to `port` that cuts some connections in the middle of an answer."""
    listener = socket.create_server(("127.0.0.1", 0))
    lock = threading.Lock()

    def pump(source: socket.socket, target: socket.socket, answers: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1024):
                target.sendall(data)
                passed += len(data)
                with lock:
                    cut = answers and passed > cuts.after and cuts.done < cuts.connections
                    cuts.done += cut
                if cut:
                    break
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as ends:
            while True:
                client = ends.enter_context(listener.accept()[0])
                server = ends.enter_context(socket.create_connection(("127.0.0.1", port)))
                for pair in ((client, server, False), (server, client, True)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


class _StaticHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def static_server(folder: Path) -> Iterator[str]:
    """The URL of what `python -m http.server -d folder` serves."""
    handler = functools.partial(_StaticHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
