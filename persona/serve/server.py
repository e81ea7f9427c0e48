"""The server: a socket that is bound before anything is loaded, and uvicorn on it.

Uvicorn waits without limit for the head of a request, and for the rest of a body that was refused.
Here a client has HEAD_S for these, and READ_S to read an answer. Clients that send nothing, never
end or do not read can therefore not use up the connections. When connections are short, such
clients lose theirs earlier (persona/serve/door.py).
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import signal
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from persona.errors import PersonaError
from persona.serve.door import Door, Turn

HEAD_S = 10.0
READ_S = 30.0
GRACE_S = 10
"""Time in s for requests that are in work when the server is told to stop."""
LEFT_S = 1.0
"""Time in s for their threads after that. Then the process ends without them."""


class PatientProtocol(H11Protocol):
    """A connection that must send the next head within HEAD_S while no request is answered."""

    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _known: object = None
    """The request at the last call of `_watch`."""
    _since = 0.0
    """Time (event loop, s) since which the client or the server has had its turn."""

    @property
    def waits_for(self) -> tuple[Turn, float] | None:
        """What the client must do next, and since when (s); None if it is the server's turn."""
        if self.cycle is None or self.cycle.response_complete:
            return Turn.HEAD, self._since
        if self.flow.write_paused:
            return Turn.ANSWER, self._since
        return (Turn.BODY, self._since) if self.cycle.more_body else None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the time limit of the first head."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Stops the time limit once the head is complete."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops all time limits."""
        self._stop()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Starts the time limit READ_S for reading an answer."""
        super().pause_writing()
        self._since = self.loop.time()
        self._unread = self.loop.call_later(READ_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Stops the time limit for reading an answer."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _watch(self) -> None:
        if self.cycle is not self._known:
            self._known, self._since = self.cycle, self.loop.time()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def is_loopback(listener: socket.socket) -> bool:
    """Whether the listener can only be reached from this machine."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def listen(host: str, port: int) -> Door:
    """Opens a listening socket; `port` 0 takes any free port.

    Raises:
        PersonaError: the port is in use or needs root, or the address is not one of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return Door(socket.create_server(address[:2], family=family))
    except socket.gaierror:
        raise PersonaError(f"--host {host} is no address: give an IP address or a name") from None
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: "is in use: choose another --port, or 0 for any free one",
            errno.EACCES: "needs root: choose a --port above 1023",
            errno.EADDRNOTAVAIL: "is no address of this machine: choose another --host",
        }
        if error.errno not in reasons:
            raise
        raise PersonaError(f"{host} port {port} {reasons[error.errno]}") from None


def url_of(listener: socket.socket, host: str, *, secure: bool) -> str:
    """Returns the URL of the page. A server on all addresses is named by this machine's name."""
    if ipaddress.ip_address(listener.getsockname()[0]).is_unspecified:
        host = socket.gethostname()
    shown = f"[{host}]" if ":" in host else host
    return f"http{'s' * secure}://{shown}:{listener.getsockname()[1]}"


def build_server(
    app: Any, *, certificate: Path | None = None, key: Path | None = None
) -> uvicorn.Server:
    """Builds a server that does not log requests.

    Raises:
        PersonaError: the certificate or its key cannot be read.
    """
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        loop="asyncio",  # it calls Door.accept
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    try:
        config.load()
    except (ssl.SSLError, FileNotFoundError):
        raise PersonaError(
            f"{certificate} and its key cannot be read as PEM: mend --certificate and --key"
        ) from None
    return uvicorn.Server(config)


def run(server: uvicorn.Server, listener: Door) -> None:
    """Serves until the server is told to stop."""
    listener.connected = server.server_state.connections  # type: ignore[assignment]
    server.run(sockets=[listener])


def serve(server: uvicorn.Server, listener: Door, ready: Callable[[], None]) -> None:
    """Serves until SIGINT or SIGTERM. Requests that are in work then have GRACE_S to finish.

    The socket accepts connections from the start, so `ready` is called before the first answer.
    """

    def end(*_: object) -> None:
        server.should_exit = True

    # Uvicorn raises the signal again for these handlers once it has ended.
    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ready()
        run(server, listener)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
