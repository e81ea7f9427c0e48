"""The checks of a request's host, origin and token, and the security headers of the answers.

- Host must be an IP address or a name that is known here, which refuses a name that was rebound to
  this machine's address (DNS rebinding)
- X-Forwarded-Host, -Proto and -For are trusted if the connection comes from a known proxy, and
  ignored otherwise
- Origin, if a browser sends one, must be this page's; Sec-Fetch-Site must not name another site
- the token is sent as `Authorization: Bearer`, never in a URL, and is compared in constant time
- the headers of every answer allow only the page's own files to run, and forbid framing
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import re
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from persona.errors import PersonaError
from persona.names import escape_json, legible
from persona.serve.door import Networks, is_among
from persona.serve.metrics import METRICS

logger = logging.getLogger(__name__)

API = "/api/"
OPEN = {"/api/health"}
"""Paths that are answered without the token, because they reveal nothing."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


PORTS = {"http": 80, "https": 443}
Tell = Callable[[str, int, float], None]
"""It takes the path, the HTTP status and the seconds of a request."""
NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})*")


class EscapedJSON(JSONResponse):
    """A JSON response that escapes the control characters a terminal would act on."""

    def render(self, content: Any) -> bytes:
        """Returns the content as bytes of JSON."""
        return escape_json(
            json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        ).encode()


class Guard:
    """The outermost layer of the ASGI application, which refuses requests or passes them on."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        names: frozenset[str],
        token: str | None,
        proxies: Networks = (),
        tell: Tell | None = None,
    ) -> None:
        """Wraps an application.

        Args:
            app: the application.
            names: host names that a request may give besides IP addresses.
            token: token that requests to the API must send. None means that they need none.
            proxies: addresses of proxies whose X-Forwarded headers are trusted.
            tell: called after each answer.
        """
        self._app, self._names, self._proxies, self._tell = app, names, proxies, tell
        self._token = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses a request, or passes it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        status, begun_s = 500, time.perf_counter()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        scope = self._as_asked(scope)
        refusal = self._refusal(scope)
        try:
            await (refusal or self._app)(scope, receive, answer)
        except Exception as error:
            # Without the message, which may hold what a user sent.
            trace = "".join(traceback.format_tb(error.__traceback__))
            logger.error("fault in persona serve: %s\n%s", type(error).__name__, trace)
        finally:
            if self._tell is not None:
                self._tell(scope["path"], status, time.perf_counter() - begun_s)

    def _as_asked(self, scope: Scope) -> Scope:
        """Returns the request as the client sent it to the proxy.

        Headers from an address that is no known proxy are ignored.
        """
        peer = scope.get("client")
        if peer is None or not is_among(peer[0], self._proxies):
            return scope
        headers = MutableHeaders(raw=list(scope["headers"]))
        host, scheme, clients = (
            [
                item.strip()
                for value in headers.getlist(f"x-forwarded-{name}")
                for item in value.split(",")
            ]
            for name in ("host", "proto", "for")
        )
        # The nearest proxy wrote the last value. A client may have written those before it.
        if host:
            headers["host"] = host[-1]
        asked = {**scope, "headers": headers.raw}
        if scheme and scheme[-1].lower() in PORTS:
            asked["scheme"] = scheme[-1].lower()
        others = [client for client in clients if not is_among(client, self._proxies)]
        if others:
            asked["client"] = (others[-1], 0)
        return asked

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(host):
            return problem(
                421,
                "the Host header names no address of this server: if that is its name, start "
                "persona serve with --allowed-host NAME",
            )
        origin = headers.get("origin")
        site = _site(f"{scope['scheme']}://{host}")
        foreign = origin is not None and (site is None or _site(origin) != site)
        is_api = scope["path"].startswith(API)  # other sites may link to the page, not to the API
        if foreign or (is_api and headers.get("sec-fetch-site") in {"cross-site", "same-site"}):
            return problem(
                403,
                "asked by another site's page; behind a proxy, have it send X-Forwarded-Host and "
                "X-Forwarded-Proto, and start persona serve with --proxy ADDRESS",
            )
        is_guarded = (is_api or scope["path"] == METRICS) and scope["path"] not in OPEN
        if self._token is None or not is_guarded:
            return None
        given = headers.get("authorization", "").encode()
        if hmac.compare_digest(given, self._token):
            return None
        refusal = problem(401, "the token is missing or wrong: send Authorization: Bearer TOKEN")
        refusal.headers["WWW-Authenticate"] = "Bearer"
        return refusal

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self._names:
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _site(url: str) -> tuple[str, str | None, int | None] | None:
    """Returns scheme, host and port of a site, or None if the text is no site."""
    try:
        parts = urlsplit(url)
        if parts.path or parts.query or parts.fragment or "@" in parts.netloc:
            return None
        return parts.scheme, parts.hostname, parts.port or PORTS.get(parts.scheme)
    except ValueError:
        return None


def read_names(texts: Sequence[str]) -> frozenset[str]:
    """Returns host names that a user gave in the form in which browsers send them.

    Raises:
        PersonaError: a text is no host name.
    """
    names = set()
    for text in texts:
        try:
            name = text.lower().rstrip(".").encode("idna").decode()
        except UnicodeError:
            name = ""
        if not NAME.fullmatch(name):
            raise PersonaError(
                f"--allowed-host {text!r} is no host name: give it without scheme, port and path, "
                "such as faces.example.org"
            )
        names.add(name)
    return frozenset(names)


def problem(status: int, line: str, **more: object) -> JSONResponse:
    """Returns an error response: JSON with one line."""
    return EscapedJSON({"error": legible(" ".join(line.split())), **more}, status)
