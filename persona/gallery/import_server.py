"""People from another gallery: the API of a `persona serve --share-templates`.

1. `GET /api/people` lists everybody, with the network and its digest
2. `POST /api/templates` gives the photos of a person in pages: the template, and the crop if kept
3. with the same network, templates are taken as they are; with another one, each kept crop is
   embedded anew, and photos without a crop are refused

The answers are untrusted: everything in them is checked, and their size is limited.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import http.client
import json
import ssl
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from persona.config import from_dict
from persona.data.align.spec import AlignSpec, Crop
from persona.download import is_this_machine, open_url, read_blocks
from persona.errors import PersonaError
from persona.gallery.crops import is_crop
from persona.gallery.faces import Eyes, carries
from persona.gallery.importing import ListedRow, Look, Looked, PeopleSource, Refusal
from persona.gallery.people import Gallery
from persona.gallery.store import check_name, unit
from persona.names import legible

MOST_PHOTOS = 5_000_000
"""Most photos of a gallery that is imported: a row of each is held in memory."""
PAGE = 200
"""Photos of a person in one answer."""
PEOPLE_BYTES = 256_000_000
"""Largest list of people in bytes: about a million people."""
ANSWER_BYTES = 32_000_000
"""Largest answer with photos in bytes. 200 photos with crops have 3 MB."""
TRIES = 5
WAIT_S = 1.0
"""Wait in s before a request is sent again. It doubles each time."""
UNLIKE = 1e-3
"""Largest difference from 1 of a template's length."""
AGAIN = "run the import again, and it goes on"


@dataclass(frozen=True)
class _Kept:
    """A photo of the other gallery."""

    template: npt.NDArray[np.float32]
    crop: Crop | None


@dataclass
class PeopleServer(PeopleSource):
    """Another gallery behind its API. `read_server` reads one."""

    url: str
    token: str | None = None
    digest: str = ""
    """Digest of its network. Empty as long as it has not answered."""
    align: AlignSpec = field(default_factory=AlignSpec)
    """Alignment of its crops."""
    created: dict[str, str] = field(default_factory=dict)
    """When each person was enrolled there, by name."""
    sleep: Callable[[float], None] = time.sleep
    """Function that waits before a request is sent again."""

    @property
    def subject(self) -> str:
        """The address of the server."""
        return self.url

    def stamp(self, row: ListedRow) -> list[Any]:
        """When the person was enrolled there, and the photo's place."""
        return [self.url, row.name, self.created.get(row.name), row.photo]

    @contextlib.contextmanager
    def looking(
        self, gallery: Gallery, photos: int, advance: Callable[[int], None]
    ) -> Iterator[Look]:
        """Begins to ask for photos.

        Raises:
            PersonaError: its crops do not fit the gallery's network, and neither do its templates.
        """
        same = gallery.eyes.named.digest == self.digest
        fits = carries(self.align, gallery.eyes)
        if not same and not fits and photos:
            raise PersonaError(
                f"{self.url} is the gallery of another network, and its faces are aligned in "
                f"another way ({self.align.method}) than those of {gallery.eyes.named.name} "
                f"({gallery.eyes.align.method}): import from a list of photos"
            )

        def look(rows: Sequence[ListedRow]) -> Iterator[Looked]:
            for name, own in groupby(rows, key=lambda row: row.name):
                wanted = len(list(own))
                found = list(self._photos(name, wanted, gallery.eyes))
                # Somebody was changed there meanwhile.
                gone = [Looked(refused="is not there any more")] * (wanted - len(found))
                yield from _looked(found, gallery, same=same)
                yield from gone
                advance(wanted)

        yield look

    def _photos(self, name: str, wanted: int, eyes: Eyes) -> Iterator[_Kept]:
        """Yields up to `wanted` photos of a person; fewer if some were removed meanwhile."""
        width = eyes.network.embedding_size if eyes.named.digest == self.digest else None
        for first in range(0, wanted, PAGE):
            count = min(PAGE, wanted - first)
            form = {"name": name, "first": str(first), "count": str(count)}
            answer = self.ask("/api/templates", form, ANSWER_BYTES)
            if answer.get("digest") != self.digest:
                raise PersonaError(f"{self.url} has moved to another network meanwhile: {AGAIN}")
            photos = answer.get("photos")
            if not isinstance(photos, list) or len(photos) > count:
                raise self._foreign()
            for photo in photos:
                kept = _read_photo(photo, self.align)
                if kept is None or (width is not None and len(kept.template) != width):
                    raise self._foreign()
                yield kept
            if len(photos) < count:
                return

    def ask(self, path: str, form: Mapping[str, str] | None, most_bytes: int) -> dict[str, Any]:
        """Sends one request, also a second time if the server is busy or the connection breaks.

        Raises:
            PersonaError: there is no answer, or it is an error or none of Persona.
        """
        login = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        reason = ""
        for attempt in range(TRIES):
            if attempt:
                self.sleep(WAIT_S * 2 ** (attempt - 1))
            try:
                with open_url(self.url + path, login=login, form=form) as response:
                    data = bytearray()
                    for block in read_blocks(response, whole=True):
                        data += block
                        if len(data) > most_bytes:
                            raise PersonaError(
                                f"{self.url} sends an answer of over {most_bytes / 1e6:g} MB: "
                                "no gallery does"
                            )
            except urllib.error.HTTPError as error:
                with error:
                    if error.code in {408, 503}:  # it is busy
                        reason = f"it answers {error.code}"
                        continue
                    raise self._refused(error) from None
            except (OSError, http.client.HTTPException) as error:
                cause = getattr(error, "reason", error)
                if isinstance(cause, ssl.SSLCertVerificationError):
                    raise PersonaError(
                        f"{self.url} has a certificate that is not known here ("
                        f"{legible(cause.verify_message)}): set SSL_CERT_FILE to a PEM file of it"
                    ) from None
                reason = legible(str(cause) or type(cause).__name__)
                if not self.digest:  # nothing has ever answered there
                    break
                continue
            return self._read(bytes(data))
        raise PersonaError(
            f"{self.url} cannot be reached ({reason}): see that `persona serve --share-templates` "
            f"runs there, then {AGAIN}"
        )

    def _read(self, data: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise self._foreign()
        return answer

    def _refused(self, error: urllib.error.HTTPError) -> PersonaError:
        told = _told(error)
        if error.code == 401:
            line = "wants its token: write that into a file and give --token-file FILE"
        elif error.code in {404, 405} and not told:
            line = "is no gallery: give the address at which `persona serve` says that it is"
        else:
            line = f"refuses ({error.code}): {legible(told)[:300] or 'it does not say why'}"
        return PersonaError(f"{self.url} {line}")

    def _foreign(self) -> PersonaError:
        return PersonaError(
            f"{self.url} does not answer as `persona serve --share-templates` does: see that it is "
            "the right address, and that both run the same version"
        )


def _told(error: urllib.error.HTTPError) -> str:
    """The line of an error's answer. Empty if it is none of Persona's."""
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError, RecursionError):
        answer = json.loads(error.read(10_000))
        if isinstance(answer, dict) and isinstance(answer.get("error"), str):
            return str(answer["error"])
    return ""


def read_server(
    url: str, token: str | None = None, *, sleep: Callable[[float], None] = time.sleep
) -> PeopleServer:
    """Reads who is enrolled in another gallery. No photo is asked for.

    Args:
        url: address of a `persona serve --share-templates`. Beyond this machine it must be https.
        token: its token.
        sleep: function that waits before a request is sent again.

    Raises:
        PersonaError: the address is none, nothing answers, the token is wrong, or the server does
            not share its templates.
    """
    server = PeopleServer(_address(url), token, sleep=sleep)
    answer = server.ask("/api/people", None, PEOPLE_BYTES)
    people = answer.get("people")
    if not isinstance(people, list):
        raise server._foreign()
    shared = answer.get("shares")
    if not isinstance(shared, dict):
        raise PersonaError(
            f"{server.url} does not share its templates: start it with --share-templates"
        )
    server.digest = str(shared.get("digest"))
    align = shared.get("align")
    if not isinstance(align, dict):
        raise server._foreign()
    try:
        server.align = from_dict(AlignSpec, align, where=server.url)
    except PersonaError:
        raise server._foreign() from None
    read = [_person(person) for person in people]
    if sum(one[1] for one in read if one is not None) > MOST_PHOTOS:
        raise PersonaError(f"{server.url} has over {MOST_PHOTOS:,} photos: import parts of it")
    for place, person in enumerate(read, 1):
        name, photos, created = person or (None, 0, "")
        if name is None or name in server.created:
            raise server._foreign()
        server.created[name] = created
        rows = [ListedRow(place, name, f"photo {number + 1}") for number in range(photos)]
        try:
            stored = check_name(name)
        except PersonaError as error:
            server.refused.append(Refusal(place, name, "", f"no name: {error}"))
            continue
        server.people.setdefault(stored, []).extend(rows)
    if not server.people:
        raise PersonaError(f"{server.url} has nobody to import")
    return server


def _address(url: str) -> str:
    """Returns the address without what follows the server's own path.

    Raises:
        PersonaError: it is no address, holds a password, or would send templates in clear.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    if not host or parts.scheme not in {"http", "https"} or parts.query or parts.fragment:
        raise PersonaError(
            f"{legible(url)[:200]} is no address of a server: give http(s)://HOST[:PORT]"
        )
    if "@" in parts.netloc:
        raise PersonaError("the address holds a password: give a token by --token-file FILE")
    if parts.scheme == "http" and not is_this_machine(host):
        raise PersonaError(
            f"http://{host} would send faces across the network in clear: give its https address, "
            "or bring it to this machine by an SSH tunnel"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _person(value: Any) -> tuple[str, int, str] | None:
    """Name, number of photos and time of enrolment of a person, or None if they are none."""
    if not isinstance(value, dict):
        return None
    name, photos, created = (value.get(key) for key in ("name", "photos", "created"))
    if not isinstance(name, str) or not isinstance(created, str):
        return None
    if type(photos) is not int or not 0 <= photos <= 1_000_000:
        return None
    return name, photos, created


def _read_photo(value: Any, align: AlignSpec) -> _Kept | None:
    """Reads a photo of an answer. None if it is none.

    Args:
        value: the decoded JSON.
        align: alignment of the crops of which the answer says nothing else.
    """
    try:
        template = np.frombuffer(base64.b64decode(value["template"], validate=True), "<f4")
        crop, points = value["crop"], value["landmarks"]
        jpeg = None if crop is None else base64.b64decode(crop, validate=True)
        landmarks = None if points is None else np.array(points, np.float64)
        if (own := value.get("align")) is not None:
            align = from_dict(AlignSpec, dict(own), where="a photo")
    except (PersonaError, TypeError, LookupError, ValueError, binascii.Error, OverflowError):
        return None
    length = float(np.linalg.norm(template.astype(np.float64)))
    if not len(template) or not abs(length - 1) <= UNLIKE:  # also where it is not finite
        return None
    if landmarks is not None and (landmarks.shape != (6, 2) or not np.isfinite(landmarks).all()):
        return None
    if jpeg is not None and not is_crop(jpeg, ("JPEG",)):
        return None
    template = template.astype(np.float32)
    template = template if abs(length - 1) <= 1e-6 else unit(template)
    return _Kept(template, None if jpeg is None else Crop(jpeg, None, landmarks, align=align))


def _looked(found: Sequence[_Kept], gallery: Gallery, *, same: bool) -> Iterator[Looked]:
    """Yields what photos of the other gallery give for this one."""
    crops = [one.crop if _fits(one.crop, gallery.eyes) else None for one in found]
    if same:
        templates = iter([one.template for one in found])
    else:
        templates = iter(gallery.eyes.embed([crop for crop in crops if crop is not None]))
    for one, crop in zip(found, crops, strict=True):
        if crop is None and not same:
            why = "not kept" if one.crop is None else "aligned in another way"
            yield Looked(refused=f"its face is {why} there, and this is another network")
        else:
            yield Looked(next(templates), crop if gallery.keep_crops else None)


def _fits(crop: Crop | None, eyes: Eyes) -> bool:
    """Whether a network can embed a crop of the other gallery."""
    return crop is not None and crop.align is not None and carries(crop.align, eyes)
