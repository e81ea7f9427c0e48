"""A listening socket that limits the connections that wait for their client.

A connection waits for its client in three states: until the client has sent a whole head (after the
TLS handshake, if there is one), while it does not read an answer, and until it has sent a whole
body. An address may have PER_ADDRESS connections that have waited for SLOW_S, and all addresses
together may have WAITING connections that wait. One more closes another one: of the same address,
or of the address with the most. Connections that wait for a head are closed before those that wait
for an answer to be read, and those before connections that wait for a body; among equals, the one
that has waited longest is closed. A connection whose request is in work is never closed; the gate
limits the number of these.
"""

from __future__ import annotations

import contextlib
import enum
import ipaddress
import socket
import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

from persona.errors import PersonaError

PER_ADDRESS = 24
"""Slow connections of one address. They are fewer than the gate's places, so that slow bodies from
one address do not take all of them."""
WAITING = 256
"""Waiting connections of all addresses."""
SLOW_S = 1.0
"""Time in s after which a waiting connection counts as slow. Many that open at once are not."""

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]


class Turn(enum.IntEnum):
    """What a client must do next."""

    HEAD = 0
    """Send the head of a request."""
    ANSWER = 1
    """Read the answer."""
    BODY = 2
    """Send the body of a request."""


class Held(NamedTuple):
    """A connection that was accepted, its client, and the time (monotonic, s) when it was."""

    connection: socket.socket
    client: str
    since: float


class Connected(Protocol):
    """The part of uvicorn's protocol of a connection that is used here."""

    transport: Any

    @property
    def waits_for(self) -> tuple[Turn, float] | None:
        """What the client must do next, and since when (monotonic, s).

        None means that it is the server's turn.
        """


class Door(socket.socket):
    """The listening socket."""

    proxies: Networks = ()
    """Addresses of proxies, which speak for many clients."""
    connected: Collection[Connected] = ()
    """Protocols of the connections whose TLS handshake is done, or that need none."""

    def __init__(self, listener: socket.socket) -> None:
        """Takes over a listening socket."""
        super().__init__(fileno=listener.detach())
        self._held: list[Held] = []

    def accept(self) -> tuple[socket.socket, Any]:
        """Accepts a connection, for which another one may be closed."""
        connection, address = super().accept()
        client = client_of(address[0])
        self._held = [held for held in self._held if held.connection.fileno() >= 0]
        self._make_room(None if is_among(address[0], self.proxies) else client)
        self._held.append(Held(connection, client, time.monotonic()))
        return connection, address

    def _make_room(self, client: str | None) -> None:
        """Closes waiting connections if one more would be over a limit.

        Args:
            client: the client of the new connection, whose own limit counts too. None means a
                proxy, which has no limit of its own.
        """
        waiting = self._waiting()
        counts = Counter(held.client for held, *_ in waiting)
        slow = time.monotonic() - SLOW_S
        own = [one for one in waiting if one[0].client == client and one[1][1] <= slow]
        surplus = sorted(own, key=lambda one: one[1])[: max(0, len(own) - PER_ADDRESS + 1)]
        if not surplus and len(waiting) >= WAITING:
            surplus = [min(waiting, key=lambda one: (-counts[one[0].client], one[1]))]
        for held, _, protocol in surplus:
            self._held.remove(held)
            if protocol is not None:
                protocol.transport.abort()
            with contextlib.suppress(OSError):  # the client has closed it already
                held.connection.shutdown(socket.SHUT_RDWR)

    def _waiting(self) -> list[tuple[Held, tuple[Turn, float], Connected | None]]:
        """Returns the connections that wait for their client, with what they wait for."""
        protocols = {}
        for connected in self.connected:
            # With TLS the socket is gone a turn of the loop before uvicorn drops the connection.
            if (connection := connected.transport.get_extra_info("socket")) is not None:
                protocols[connection.fileno()] = connected
        waiting = []
        for held in self._held:
            protocol = protocols.get(held.connection.fileno())
            owed = (Turn.HEAD, held.since) if protocol is None else protocol.waits_for
            if owed is not None:
                waiting.append((held, owed, protocol))
        return waiting


def client_of(host: str) -> str:
    """Returns the client that an address stands for.

    For IPv6 that is the /64 network, which usually belongs to one customer.
    """
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address):
            if address.ipv4_mapped is not None:
                return str(address.ipv4_mapped)
            return str(ipaddress.ip_network((address, 64), strict=False))
    return host


def is_among(host: str, networks: Networks) -> bool:
    """Whether an address is in one of the networks."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return any((mapped or address) in network for network in networks)


def read_networks(option: str, texts: Sequence[str]) -> Networks:
    """Reads addresses and networks as a user gives them.

    Raises:
        PersonaError: a text is neither an address nor a network.
    """
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            raise PersonaError(
                f"{option} {text!r} is no address: give one as 127.0.0.1, or a network as "
                "10.0.0.0/8"
            ) from None
    return networks
