"""Who is let in: a socket that listens, and keeps connections which wait for their client few.

A connection waits for its client until it has sent a whole head (and before that, has agreed on
TLS), while it does not read an answer, and until it has sent a whole body. Of those that have
waited for SLOW_S, an address has PER_ADDRESS, and of all there are WAITING; one more makes the
first of them go: of the address with most, a head before an answer before a body, and of these the
one that was waited for longest. What is in work is never cut, and is bounded by the gate.
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
"""Fewer than the gate has places, so that slow bodies of one address do not take all of them."""
WAITING = 256
SLOW_S = 1.0
"""Many that come at once are not slow yet."""

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]


class Turn(enum.IntEnum):
    """What a client owes."""

    HEAD = 0
    ANSWER = 1
    """To read it."""
    BODY = 2


class Held(NamedTuple):
    """A connection that was let in."""

    connection: socket.socket
    client: str
    since: float


class Connected(Protocol):
    """What a connection's protocol tells of it."""

    transport: Any

    @property
    def waits_for(self) -> tuple[Turn, float] | None:
        """What the client owes, and since when (monotonic, s); None: it is the server's turn."""


class Door(socket.socket):
    """Listens."""

    proxies: Networks = ()
    """Addresses that speak for many clients."""
    connected: Collection[Connected] = ()
    """The protocols of connections that have agreed on TLS, or need not."""

    def __init__(self, listener: socket.socket) -> None:
        """Takes a listening socket over."""
        super().__init__(fileno=listener.detach())
        self._held: list[Held] = []

    def accept(self) -> tuple[socket.socket, Any]:
        """A connection; another may have to go for it."""
        connection, address = super().accept()
        client = client_of(address[0])
        self._held = [held for held in self._held if held.connection.fileno() >= 0]
        self._make_room(None if is_among(address[0], self.proxies) else client)
        self._held.append(Held(connection, client, time.monotonic()))
        return connection, address

    def _make_room(self, client: str | None) -> None:
        """For one more connection; of a client: by its share too."""
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
            with contextlib.suppress(OSError):  # it is gone already
                held.connection.shutdown(socket.SHUT_RDWR)

    def _waiting(self) -> list[tuple[Held, tuple[Turn, float], Connected | None]]:
        """The connections that wait for their client, and for what since when."""
        protocols = {
            protocol.transport.get_extra_info("socket").fileno(): protocol
            for protocol in self.connected
        }
        waiting = []
        for held in self._held:
            protocol = protocols.get(held.connection.fileno())
            owed = (Turn.HEAD, held.since) if protocol is None else protocol.waits_for
            if owed is not None:
                waiting.append((held, owed, protocol))
        return waiting


def client_of(host: str) -> str:
    """Whom an address stands for: of IPv6 a network of 64 bits, which is one customer's."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address):
            if address.ipv4_mapped is not None:
                return str(address.ipv4_mapped)
            return str(ipaddress.ip_network((address, 64), strict=False))
    return host


def is_among(host: str, networks: Networks) -> bool:
    """Whether an address is one of the networks'."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return any((mapped or address) in network for network in networks)


def read_networks(option: str, texts: Sequence[str]) -> Networks:
    """Addresses and networks as a user gives them.

    Raises:
        PersonaError: one is neither.
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
