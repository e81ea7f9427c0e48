"""`persona serve`."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
from datetime import UTC, datetime
from functools import partial
from json import dumps as json_text
from pathlib import Path
from typing import Annotated

import typer

from persona.cli.gallery import (
    KeepCropsOption,
    KeepUnknownOption,
    LivenessOption,
    LivenessThresholdOption,
    MatchOption,
    ModelOption,
    PassphraseOption,
    StoreOption,
    ThresholdOption,
    open_people,
)
from persona.cli.output import (
    MIN_FACE_PX,
    JsonFlag,
    MinFaceOption,
    ModelsOption,
    note,
    print_json,
)
from persona.errors import PersonaError
from persona.extras import missing

MIN_TOKEN, MAX_TOKEN = 16, 4096
"""Least and largest number of characters of a token."""


def serve_command(
    store: StoreOption = None,
    model: ModelOption = None,
    threshold: ThresholdOption = None,
    match: MatchOption = "mean",
    passphrase_file: PassphraseOption = None,
    keep_crops: KeepCropsOption = None,
    min_face: MinFaceOption = MIN_FACE_PX,
    keep_unknown: KeepUnknownOption = None,
    liveness: LivenessOption = None,
    liveness_threshold: LivenessThresholdOption = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine a token is wanted.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File of the token that requests must have.  [default: a new one]"),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="PEM file, for https: cameras elsewhere want it.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key.")] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Another host name that it is asked under; may be repeated."
        ),
    ] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="A proxy that may say what it was asked (X-Forwarded-Host, -Proto, -For): its "
            "address or network; may be repeated. A token is wanted then, and with --allowed-host.",
        ),
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of `persona group --out`: its groups are named, merged, split and "
            "enrolled on the page.",
        ),
    ] = None,
    share_templates: Annotated[
        bool,
        typer.Option(
            "--share-templates",
            help="Let those who have the token copy all templates and kept faces, for `persona "
            "gallery import URL`. A token is wanted then.",
        ),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Requests in work at once.  [default: the cores]")
    ] = None,
    log_requests: Annotated[
        bool,
        typer.Option(
            "--log-requests",
            help="A line of JSON on stderr for each request: time, path, status and ms.",
        ),
    ] = False,
    models: ModelsOption = None,
    json: JsonFlag = False,
) -> None:
    """A page and a JSON API: enrol, recognise, forget, with a camera or photos.

    Ends with Ctrl-C. It logs no photo, name or score. GET /metrics gives numbers for Prometheus. A
    proxy before it has to send X-Forwarded-Host (with the port, where that is not 443),
    X-Forwarded-Proto and X-Forwarded-For.
    """
    try:
        from persona.gallery.unknown_faces import purging
        from persona.serve.api import build_app
        from persona.serve.door import read_networks
        from persona.serve.gate import Gate
        from persona.serve.groups import open_groups
        from persona.serve.guard import read_names
        from persona.serve.server import LEFT_S, build_server, is_loopback, listen, serve, url_of
        from persona.serve.uploads import Limits
    except ImportError as error:
        raise missing(f"serving needs {error.name}", "serve") from None

    if (certificate is None) != (key is None):
        raise PersonaError("--certificate and --key go together: give both or neither")
    token = None if token_file is None else read_token(token_file)
    proxies, names = read_networks("--proxy", proxy or ()), read_names(allowed_host or ())
    with (
        listen(host, port) as listener,
        open_people(
            *(store, model, threshold, match, passphrase_file, models),
            keep_crops=keep_crops,
            min_face=min_face,
            keep_unknown=keep_unknown,
            forgets=True,
            liveness=liveness,
            liveness_threshold=liveness_threshold,
        ) as gallery,
        purging(gallery.unknown),
        contextlib.nullcontext() if groups is None else open_groups(groups, gallery) as opened,
    ):
        gallery.store.place = "the gallery"  # clients need not know its path
        if gallery.unknown is not None:
            gallery.unknown.place = "the file of unknown faces"
        # A server with another host name, or behind a proxy, can be reached from other machines.
        # Other users of this machine must not copy the gallery either.
        is_open = bool(proxies or names or not is_loopback(listener))
        is_new = token is None and (is_open or share_templates)
        token = secrets.token_urlsafe(32) if is_new else token
        cores = len(os.sched_getaffinity(0))
        workers = workers or cores
        limits = Limits()
        gate = Gate(
            workers,
            limits.waiting,
            read_s=limits.read_s,
            work_s=limits.work_s,
            # Two requests at once use two cores better than one request with two threads.
            begin=partial(_take_threads, max(1, cores // workers)),
        )
        app = build_app(
            gallery,
            gate,
            network=Path(gallery.eyes.named.name).name,  # a file's name without its folder
            match=match,
            limits=limits,
            names=names | {"localhost", host.lower(), socket.gethostname().lower()},
            token=token,
            proxies=proxies,
            groups=opened,
            share_templates=share_templates,
            log=_log_request if log_requests else None,
        )
        listener.proxies = proxies
        server = build_server(app, certificate=certificate, key=key)
        url = url_of(listener, host, secure=certificate is not None)

        def ready() -> None:
            if json:
                print_json({"url": url, "token": token if is_new else None})
            else:
                sys.stdout.write(f"Persona is at {url}\n")
                if is_new:
                    sys.stdout.write(f"Token, shown this once: {token}\n")
            sys.stdout.flush()
            if certificate is None and not is_loopback(listener):
                note("note: without --certificate, photos and the token cross the network in clear")

        try:
            serve(server, listener, ready)
        finally:
            ended = gate.close(LEFT_S)
        if not ended:
            # A decoder cannot be interrupted, and Python would wait for its thread. Nothing that
            # the thread finds is stored any more. The gallery is complete, as after a kill.
            note("note: ended without waiting for a request that takes too long")
            sys.stdout.flush()
            os._exit(0)


def _log_request(path: str, status: int, seconds: float) -> None:
    """Writes a request to stderr. It names no person, address or photo."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = {"time": now, "path": path, "status": status, "ms": round(1e3 * seconds, 1)}
    sys.stderr.write(json_text(line) + "\n")
    sys.stderr.flush()


def _take_threads(count: int) -> None:
    """Limits the number of torch's threads for this thread, if torch is imported."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)


def read_token(path: Path) -> str:
    """Reads the token in a file, without the end of its line.

    Raises:
        PersonaError: there is no such file, or it holds no token.
    """
    try:
        with path.open(encoding="ascii") as file:
            token = file.read(MAX_TOKEN + 1).strip()
    except FileNotFoundError:
        raise PersonaError(
            f"no token file at {path}: write one, or leave --token-file out"
        ) from None
    except UnicodeDecodeError:
        token = ""
    if not MIN_TOKEN <= len(token) <= MAX_TOKEN or not token.isprintable() or " " in token:
        raise PersonaError(
            f"{path} holds no token: write a line of {MIN_TOKEN} to {MAX_TOKEN} ASCII characters "
            "into it"
        )
    return token
