"""What a request brings: text fields and photos of a form, read piece by piece and held in memory.

Nothing is written to disk, a file's name is never looked at, and what is over a limit is refused
before it is held whole.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import NamedTuple

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

# It logs the bytes at which a form breaks.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

FORM = "multipart/form-data"
UTF8 = b"utf-8"
PHOTO = "photo"
FIELDS_BYTES = 64_000
"""Text fields and what lies between the parts of a form."""
MAX_FIELDS = 8


@dataclass(frozen=True)
class Limits:
    """What a request may bring, and how long it may take."""

    photo_bytes: int = 20_000_000
    request_bytes: int = 60_000_000
    photos: int = 20
    pixels: int = 50_000_000
    """Of one photo: 150 MB decoded."""
    waiting: int = 32
    """Requests that wait for those in work."""
    read_s: float = 30.0
    work_s: float = 60.0


class Form(NamedTuple):
    """A form that was read whole."""

    fields: dict[str, str]
    photos: list[bytes]


class _Parser(MultiPartParser):
    """Starlette's, with a limit on each file, and files in memory alone."""

    photo_bytes = 0

    def on_part_begin(self) -> None:
        self._held = 0
        super().on_part_begin()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._held += end - start
        if self._held > self.photo_bytes:
            raise too_large("a photo", self.photo_bytes)
        super().on_part_data(data, start, end)


def too_large(what: str, limit: int) -> HTTPException:
    """The refusal of what is over a limit of bytes."""
    return HTTPException(413, f"{what} is over {limit / 1e6:g} MB: send a smaller one")


async def read_form(request: Request, limits: Limits, *, photos: int = 0) -> Form:
    """The form of a request with up to `photos` photos.

    Raises:
        HTTPException: no form (415), over a limit (413), broken (400).
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != FORM.encode():
        raise HTTPException(415, f"the body is no {FORM}: send fields and photos as a form")
    if options.get(b"charset", UTF8).lower() != UTF8:
        raise HTTPException(415, "the form's text is no UTF-8: send it as that")
    whole = min(limits.request_bytes, photos * limits.photo_bytes) + FIELDS_BYTES
    parser = _Parser(
        request.headers,
        _counted(request, whole),
        max_files=photos,
        max_fields=MAX_FIELDS,
        max_part_size=FIELDS_BYTES,
    )
    parser.spool_max_size = whole + 1
    parser.photo_bytes = limits.photo_bytes
    try:
        items = (await parser.parse()).multi_items()
    except MultiPartException as error:
        raise HTTPException(400, f"the form cannot be read: {error.message}") from None
    except ClientDisconnect:
        raise HTTPException(400, "the request ended in the middle") from None  # nobody hears it
    fields = {name: value for name, value in items if isinstance(value, str)}
    files = [(name, value) for name, value in items if isinstance(value, UploadFile)]
    held = [await file.read() for name, file in files if name == PHOTO]
    for _, file in files:
        await file.close()
    return Form(fields, held)


async def _counted(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """The body in pieces, up to `limit` bytes."""
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_large("the request", limit)
    held = 0
    async for piece in request.stream():
        held += len(piece)
        if held > limit:
            raise too_large("the request", limit)
        yield piece
