"""A gallery in memory, a server of it in this process, and requests to that."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from persona.data.align.spec import AlignSpec
from persona.errors import PersonaError, SkipPhoto
from persona.gallery import (
    DoubtError,
    Enrolled,
    NoPhotoError,
    Person,
    Sighting,
    TwoPeopleError,
)
from persona.gallery.grouped import (
    TABLE,
    Faces,
    Given,
    GroupedFace,
    group_table,
    maker,
    stamp_of,
    write_rows,
    write_table,
)
from persona.gallery.photos import LookedAt
from persona.gallery.store import Facts, Threshold, nobody, unit
from persona.serve.api import build_app
from persona.serve.door import Networks
from persona.serve.gate import Claim, Gate
from persona.serve.groups import OpenGroups
from persona.serve.guard import Tell
from persona.serve.server import build_server, listen, run
from persona.serve.uploads import Limits

Photo = npt.NDArray[np.uint8]
BOUNDARY = "drawn-line"


CALIBRATION = Threshold(0.9, "by hand")


@dataclass
class ColourGallery:
    """Knows people by the mean colour of their photos."""

    threshold: float = 0.9
    pause_s: float = 0.0
    keep_crops: bool = False
    calibration: Threshold = CALIBRATION
    unknown: Any = None
    liveness: Any = None
    known: dict[str, list[npt.NDArray[np.float64]]] = field(default_factory=dict)
    seen: list[tuple[int, ...]] = field(default_factory=list)
    """Shapes of the photos that came."""
    looked: list[int] = field(default_factory=list)
    """Factors by which they were decoded smaller."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    began: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released by what is in work."""

    def renew_threshold(self) -> None:
        """Keeps its threshold, which was given by hand."""

    def enroll(
        self,
        name: str,
        photos: Iterable[LookedAt | SkipPhoto],
        *,
        accept: Collection[type[DoubtError]] = (),
        claim: Claim = lambda: None,
    ) -> Enrolled:
        if len(name) > 200:
            raise PersonaError("the name has over 200 characters: choose a shorter one")
        rows, refused = {}, []
        for number, photo in enumerate(photos, 1):
            if isinstance(photo, SkipPhoto):
                refused.append(f"photo {number}: {photo}")
            else:
                self.looked.append(photo.shrink)
                rows[f"photo {number}"] = self._template(photo.pixels)
        if not rows:
            raise NoPhotoError(f"no photo can be used: {'; '.join(refused)}", refused)
        first = self.known.get(name, [next(iter(rows.values()))])[0]
        odd = [label for label, row in rows.items() if row @ first < 0]
        if odd and not issubclass(TwoPeopleError, tuple(accept)):
            raise TwoPeopleError(f"not like the other photos: {', '.join(odd)}; --force", odd)
        claim()
        with self.lock:
            self.known.setdefault(name, []).extend(rows.values())
        return Enrolled(name, len(rows), tuple(refused))

    def recognise(
        self, photo: Photo, *, shrink: int = 1, claim: Claim = lambda: None
    ) -> tuple[Sighting, ...]:
        self.looked.append(shrink)
        self.began.release()
        time.sleep(self.pause_s)
        wanted = self._template(photo)
        with self.lock:
            self.seen.append(photo.shape)
            scores = {
                name: float(np.mean(rows, axis=0) @ wanted) for name, rows in self.known.items()
            }
        height, width, _ = photo.shape
        box = (width / 4, height / 4, width / 2, height / 2)
        nearest = max(scores, key=scores.__getitem__, default=None)
        score = None if nearest is None else scores[nearest]
        name = nearest if score is not None and score >= self.threshold else None
        return (Sighting(box, name, nearest, score, None),)

    def people(self) -> list[Person]:
        return [Person(name, len(rows), "2026-11-25") for name, rows in sorted(self.known.items())]

    def forget(self, name: str) -> int:
        if name not in self.known:
            raise nobody(name, "/home/me/gallery.db")
        return len(self.known.pop(name))

    def face(self, _: str) -> bytes | None:
        return None

    @staticmethod
    def _template(photo: Photo) -> npt.NDArray[np.float64]:
        colour = photo.reshape(-1, 3).mean(axis=0) - 127.5
        return np.asarray(colour / np.linalg.norm(colour))


def write_certificate(certificate: Path, key: Path) -> None:
    """One that signs itself, for a day."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, secret.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(secret, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    certificate.write_bytes(signed.public_bytes(pem))
    plain = serialization.NoEncryption()
    key.write_bytes(secret.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))


@contextlib.contextmanager
def serving(
    gallery: Any,
    *,
    limits: Limits | None = None,
    workers: int = 2,
    token: str | None = None,
    names: frozenset[str] = frozenset({"localhost"}),
    certificate: Path | None = None,
    key: Path | None = None,
    proxies: Networks = (),
    groups: OpenGroups | None = None,
    share_templates: bool = False,
    log: Tell | None = None,
) -> Iterator[int]:
    """The port of a server in a thread of this process."""
    limits = limits or Limits()
    gate = Gate(workers, limits.waiting, read_s=limits.read_s, work_s=limits.work_s)
    app = build_app(
        *(gallery, gate),
        network="colours",
        limits=limits,
        token=token,
        names=names,
        proxies=proxies,
        groups=groups,
        share_templates=share_templates,
        log=log,
    )
    listener = listen("127.0.0.1", 0)
    listener.proxies = proxies
    port = int(listener.getsockname()[1])
    server = build_server(app, certificate=certificate, key=key)
    thread = threading.Thread(target=run, args=(server, listener))
    thread.start()
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join()
        gate.close()


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The one line of an error."""
        line = str(self.json["error"])
        assert line and "\n" not in line
        return line


def form(*parts: tuple[str, str | bytes], boundary: str = BOUNDARY) -> bytes:
    """A form's bytes; bytes are photos."""
    body = b""
    for name, value in parts:
        file = b"" if isinstance(value, str) else b'; filename="../../etc/passwd"'
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'.encode()
        data = value.encode() if isinstance(value, str) else value
        body += head + file + b"\r\n\r\n" + data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


def ask(port: int, path: str, body: bytes | None = None, /, **headers: str) -> Answer:
    """Sends one request; `body` makes it a POST. In headers' names _ stands for -."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        given.setdefault("content-type", f"multipart/form-data; boundary={BOUNDARY}")
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as line:
        line.request("GET" if body is None else "POST", path, body, given)
        answer = line.getresponse()
        return Answer(
            answer.status,
            {name.lower(): value for name, value in answer.getheaders()},
            answer.read(),
        )


def post(port: int, path: str, *parts: tuple[str, str | bytes], **headers: str) -> Answer:
    """Posts a form."""
    return ask(port, path, form(*parts), **headers)


def photo(
    colour: tuple[int, int, int] = (200, 40, 40),
    *,
    size_px: tuple[int, int] = (48, 32),
    mode: str = "RGB",
    form: str = "JPEG",
    **options: Any,
) -> bytes:
    """A photo of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size_px, colour).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


WIDTH = 8
FACTS = Facts("net", "digest", WIDTH, AlignSpec())
EYES: Any = SimpleNamespace(
    named=SimpleNamespace(name="net", digest="digest"),
    align=FACTS.align,
    network=SimpleNamespace(embedding_size=WIDTH),
    min_face=20,
)
"""What `open_groups` asks of a network."""


def write_groups(home: Path, sizes: tuple[int, ...] = (3, 2, 1)) -> Path:
    """A folder of groups of so many faces each, found at a threshold of 0.9."""
    table = Faces(maker("digest", FACTS.align), "net", WIDTH)
    rng = np.random.default_rng(0)
    for person, size in enumerate(sizes):
        for number in range(size):
            path = home / "photos" / f"{person}-{number} <b>.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(photo((200, 40 * person, 40 + number)))
            table.seen[str(path)] = stamp_of(path)
            table.faces.append(GroupedFace(str(path), (0.0, 0.0, 40.0, 40.0)))
            row = np.eye(WIDTH)[person] + 0.05 * rng.normal(size=WIDTH)
            table.embeddings.append(unit(row[None])[0])
            table.thumbnails.append(photo((200, 40 * person, 40 + number), size_px=(64, 64)))
    folder = home / "groups"
    folder.mkdir()
    groups = group_table(table, Given(), 0.9)
    write_table(folder / TABLE, table)
    write_rows(folder, groups)
    return folder
