"""Who may ask: the right host, this page or no page, and where it is wanted the token.

- Host is an address or a name of this machine's: a name that was rebound to it is refused
- Origin, where a browser sends one, is this page's, and Sec-Fetch-Site says no other site's
- the token comes as `Authorization: Bearer`, never in a URL, and is compared in constant time
- every answer says that nothing but the page's own files may run, and that no one may frame it
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import traceback
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

API = "/api/"
OPEN = {"/api/health"}
"""Answered without the token: it says nothing."""
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


class Guard:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, *, names: frozenset[str], token: str | None) -> None:
        self._app, self._names = app, names
        self._token = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses, or passes on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(scope)
        try:
            await (refusal or self._app)(scope, receive, answer)
        except Exception as error:
            # The trace, not the message: that may hold what a user sent.
            trace = "".join(traceback.format_tb(error.__traceback__))
            logger.error("fault in persona serve: %s\n%s", type(error).__name__, trace)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(host):
            return problem(421, "the Host header names no address of this server")
        origin = headers.get("origin")
        foreign = origin is not None and origin != f"{scope['scheme']}://{host}"
        is_api = scope["path"].startswith(API)  # a link elsewhere may lead to the page
        if foreign or (is_api and headers.get("sec-fetch-site") in {"cross-site", "same-site"}):
            return problem(403, "asked by another site's page")
        if self._token is None or not is_api or scope["path"] in OPEN:
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


def problem(status: int, line: str, **more: object) -> JSONResponse:
    """An error as JSON with one line."""
    return JSONResponse({"error": " ".join(line.split()), **more}, status)
