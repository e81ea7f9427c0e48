"""Reading the text fields and photos of a form, in pieces and into memory.

Nothing is written to disk, and the names of files are ignored. A body over a limit is refused
before all of it is in memory.
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

from persona.data.align.decode import MOST_PIXELS

# It logs the bytes of a broken form, which may be private.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

FORM = "multipart/form-data"
UTF8 = b"utf-8"
PHOTO = "photo"
FIELDS_BYTES = 64_000
"""Limit in bytes for the text fields and for what lies between the parts of a form."""
MAX_FIELDS = 8


@dataclass(frozen=True)
class Limits:
    """Limits of a request's size and time."""

    photo_bytes: int = 20_000_000
    """Bytes of one photo's file."""
    request_bytes: int = 60_000_000
    """Bytes of a request."""
    photos: int = 20
    """Photos of a request."""
    pixels: int = MOST_PIXELS
    """Pixels of one photo. Large ones are decoded at a smaller size, and what the decoder cannot
    downscale has a lower limit (persona/gallery/photos.py)."""
    waiting: int = 32
    """Requests that may wait for those in work."""
    read_s: float = 30.0
    """Time in s for reading a request."""
    work_s: float = 60.0
    """Time in s for waiting and working."""


class Form(NamedTuple):
    """The fields and photos of a form."""

    fields: dict[str, str]
    photos: list[bytes]


class _Parser(MultiPartParser):
    """Starlette's parser with a limit on each file; files stay in memory."""

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
    """Returns the error for a body or photo over a limit in bytes."""
    return HTTPException(413, f"{what} is over {limit / 1e6:g} MB: send a smaller one")


async def read_form(request: Request, limits: Limits, *, photos: int = 0) -> Form:
    """Reads the form of a request with up to `photos` photos.

    Raises:
        HTTPException: the body is no form (415), is over a limit (413) or is broken (400).
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
        raise HTTPException(400, "the request ended in the middle") from None  # the client is gone
    fields = {name: value for name, value in items if isinstance(value, str)}
    files = [(name, value) for name, value in items if isinstance(value, UploadFile)]
    held = [await file.read() for name, file in files if name == PHOTO]
    for _, file in files:
        await file.close()
    return Form(fields, held)


async def _counted(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """Yields the body in pieces, up to `limit` bytes."""
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_large("the request", limit)
    held = 0
    async for piece in request.stream():
        held += len(piece)
        if held > limit:
            raise too_large("the request", limit)
        yield piece
