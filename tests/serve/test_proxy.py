"""The server behind a proxy that ends TLS: a real nginx, and what anybody may pretend."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import ColourGallery, ask, form, photo, post, serving, write_certificate

from persona.errors import PersonaError
from persona.serve.door import read_networks
from persona.serve.guard import Guard, read_names
from persona.serve.uploads import Limits

PROXIES = read_networks("--proxy", ["127.0.0.1", "10.0.0.0/8"])
NAMES = frozenset({"localhost", "faces.example"})
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
CONFIG = """
daemon off; worker_processes 1; pid {home}/pid; error_log {home}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off; client_max_body_size 60m;
    client_body_temp_path {home}/b; proxy_temp_path {home}/p; fastcgi_temp_path {home}/f;
    uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {home}/cert; ssl_certificate_key {home}/key;
        location / {{
            proxy_pass http://127.0.0.1:{behind}/;
            {headers}
        }}
    }}
}}
"""
HEADERS = """
proxy_set_header X-Forwarded-Host $http_host;
proxy_set_header X-Forwarded-Proto $scheme;
proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
"""


@contextlib.contextmanager
def nginx(home: Path, behind: int, headers: str = HEADERS) -> Iterator[int]:
    """The port of an nginx that ends TLS for the port `behind`."""
    if NGINX is None:
        told = "no nginx: ./scripts/nginx installs Debian's"
        if os.environ.get("CI"):  # .ci/run has installed it
            pytest.fail(told)
        pytest.skip(told)
    write_certificate(home / "cert", home / "key")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    text = CONFIG.format(home=home, port=port, behind=behind, headers=headers)
    (home / "nginx.conf").write_text(text)
    command: list[str | Path] = [NGINX, "-p", home, "-c", home / "nginx.conf"]
    command += ["-e", home / "error.log"]
    with subprocess.Popen(command) as process:
        try:
            while True:
                assert process.poll() is None, (home / "error.log").read_text()
                with contextlib.suppress(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                time.sleep(0.02)
            yield port
        finally:
            process.terminate()
            process.wait(60)


def browse(
    home: Path, port: int, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, Any]:
    """What a browser at https://faces.example gets, unless the headers say otherwise."""
    context = ssl.create_default_context(cafile=home / "cert")
    context.check_hostname = False
    line = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
    given = {"Host": f"faces.example:{port}", **headers}
    if body is not None:
        given["Content-Type"] = "multipart/form-data; boundary=drawn-line"
        given.setdefault("Origin", f"https://faces.example:{port}")
    with contextlib.closing(line):
        line.request("GET" if body is None else "POST", path, body, given)
        answer = line.getresponse()
        content = answer.read()
        is_json = answer.getheader("content-type") == "application/json"
        return answer.status, json.loads(content) if is_json else content


def test_behind_a_real_nginx(tmp_path: Path) -> None:
    red = form(("name", "Ada"), ("photo", photo()))
    with (
        serving(ColourGallery(), names=NAMES, proxies=PROXIES) as behind,
        nginx(tmp_path, behind) as port,
    ):
        assert browse(tmp_path, port, "/")[0] == 200
        assert browse(tmp_path, port, "/api/enroll", red)[1]["added"] == 1
        assert browse(tmp_path, port, "/api/recognise", form(("photo", photo())))[0] == 200
        for host in ("evil.example", f"evil.example:{port}", ""):
            assert browse(tmp_path, port, "/api/people", Host=host)[0] in {400, 421}
        for origin in ("https://evil.example", "null", f"http://faces.example:{port}"):
            assert browse(tmp_path, port, "/api/forget", red, Origin=origin)[0] == 403
        # What a client pretends to the proxy is not what the proxy says.
        pretended = {"X-Forwarded-Host": "localhost", "X-Forwarded-Proto": "http"}
        evil = {"Host": "evil.example", **pretended}
        assert browse(tmp_path, port, "/api/people", None, **evil)[0] == 421
        assert browse(tmp_path, port, "/api/enroll", red, **pretended)[0] == 200


def test_a_proxy_that_passes_the_host_on(tmp_path: Path) -> None:
    headers = "proxy_set_header Host $http_host; proxy_set_header X-Forwarded-Proto $scheme;"
    with (
        serving(ColourGallery(), names=NAMES, proxies=PROXIES) as behind,
        nginx(tmp_path, behind, headers) as port,
    ):
        red = form(("name", "Ada"), ("photo", photo()))
        assert browse(tmp_path, port, "/api/enroll", red)[1]["added"] == 1
        assert browse(tmp_path, port, "/api/people", Host="evil.example")[0] == 421


def test_what_is_said_where_options_are_missing(tmp_path: Path) -> None:
    red = form(("name", "Ada"), ("photo", photo()))
    with serving(ColourGallery(), names=NAMES) as behind, nginx(tmp_path, behind) as port:
        status, refused = browse(tmp_path, port, "/api/enroll", red)
        assert status == 403
        assert "start persona serve with --proxy ADDRESS" in refused["error"]
    with serving(ColourGallery(), proxies=PROXIES) as behind:
        refused = ask(behind, "/api/people", x_forwarded_host="faces.example")
        assert refused.status == 421
        assert "start persona serve with --allowed-host NAME" in refused.error


def test_a_client_on_many_connections_is_not_the_proxy(tmp_path: Path) -> None:
    limits = Limits(waiting=0)
    with (
        serving(ColourGallery(), names=NAMES, proxies=PROXIES, limits=limits) as behind,
        nginx(tmp_path, behind) as port,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(40):  # half a head each: the proxy keeps them to itself
            line = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            line.sendall(b"GET")
        assert browse(tmp_path, port, "/api/people")[0] == 200


def test_who_is_no_proxy_is_not_believed() -> None:
    other = read_networks("--proxy", ["192.0.2.1"])
    pretended = {"x_forwarded_host": "faces.example", "x_forwarded_proto": "https"}
    for proxies in ((), other):
        with serving(ColourGallery(), names=NAMES, proxies=proxies) as port:
            assert ask(port, "/api/people", host="evil.example", **pretended).status == 421
            site = "https://faces.example"
            refused = post(port, "/api/forget", ("name", "A"), origin=site, **pretended)
            assert refused.status == 403


def asked(proxies: Any, client: str, *headers: tuple[str, str]) -> dict[str, Any]:
    """The scope that the application sees."""
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, *_: object) -> None:
        seen.append(scope)

    async def nothing(*_: object) -> Any:
        """Neither comes nor goes."""

    guard = Guard(app, names=NAMES, token=None, proxies=proxies)
    raw = [(name.encode(), value.encode()) for name, value in headers]
    scope = {"type": "http", "scheme": "http", "path": "/", "client": (client, 5), "headers": raw}
    asyncio.run(guard(scope, nothing, nothing))
    return seen[0]


def test_whom_a_proxy_speaks_for() -> None:
    host = ("host", "localhost")
    chain = ("x-forwarded-for", "6.6.6.6, 198.51.100.7, 10.1.1.1")
    assert asked(PROXIES, "127.0.0.1", host, chain)["client"] == ("198.51.100.7", 0)
    assert asked(PROXIES, "192.0.2.5", host, chain)["client"] == ("192.0.2.5", 5)
    assert asked(PROXIES, "127.0.0.1", host)["client"] == ("127.0.0.1", 5)
    two = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "198.51.100.7")]
    assert asked(PROXIES, "127.0.0.1", host, *two)["client"] == ("198.51.100.7", 0)
    said = [("x-forwarded-host", "evil.example, faces.example"), ("x-forwarded-proto", "HTTPS")]
    scope = asked(PROXIES, "127.0.0.1", host, *said)
    assert scope["scheme"] == "https"
    assert dict(scope["headers"])[b"host"] == b"faces.example"
    assert asked(PROXIES, "127.0.0.1", host, ("x-forwarded-proto", "ftp"))["scheme"] == "http"


def test_ports_that_go_without_saying() -> None:
    with serving(ColourGallery(), names=NAMES, proxies=PROXIES) as port:
        for host, origin, status in (
            ("faces.example:443", "https://faces.example", 404),
            ("faces.example", "https://faces.example:443", 404),
            ("faces.example", "https://faces.example:444", 403),
            ("faces.example", "https://faces.example/x", 403),
            ("faces.example", "https://evil@faces.example", 403),
            ("faces.example", "https://faces.example:no", 403),
            ("faces.example", "https://[", 403),
            ("faces.example/x", "null", 403),
        ):
            proxied = {"x_forwarded_host": host, "x_forwarded_proto": "https", "origin": origin}
            answer = post(port, "/api/forget", ("name", "A"), **proxied)
            assert answer.status == status, (host, origin)


def test_names_of_hosts() -> None:
    assert read_names(["Faces.Example.", "bücher.example"]) == {
        "faces.example",
        "xn--bcher-kva.example",
    }
    with pytest.raises(PersonaError, match=r"--allowed-host 'http://a' is no host name"):
        read_names(["http://a"])
