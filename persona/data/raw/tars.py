"""Tars of photos: webdataset's (`000.jpg`, `000.cls`) and plain ones (`<identity>/<photo>.jpg`)."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from persona.data.raw.base import (
    MAX_LABEL,
    MAX_PHOTO_BYTES,
    Photo,
    RandomReader,
    RawDataset,
    label_name,
)
from persona.data.tars import TarError, iter_members
from persona.errors import PersonaError, SkipPhoto
from persona.pictures import IMAGE_SUFFIXES

LABEL_SUFFIXES = (".cls", ".json", ".txt")
"""The first that is there names the identity."""
JSON_FIELDS = ("identity", "class", "label", "cls")
MAX_LABEL_BYTES = 1 << 20
READ_AHEAD = 1 << 14
"""Photos are large: more would be read for nothing while the headers are walked."""
FOLDERS = b"5g"
"""Kinds of members that are passed over, with pax headers that hold for all."""


class Tars(RawDataset):
    """Every tar of a folder, read at random where it lies.

    A sample's members follow one another and share their name up to the last dot. Its identity is
    what its `.cls` or `.txt` says or its `.json` has as one of `JSON_FIELDS`, else the folder part
    of its name.
    """

    kind = "tars"
    layout = (
        "a folder of .tar files (or one) with <identity>/<photo>.jpg, or with <key>.jpg and "
        "<key>.cls, .json or .txt"
    )

    def __init__(self, root: Path, split: str | None = None, *, scan_workers: int = 8) -> None:
        super().__init__(root, split, scan_workers=scan_workers)
        self._read = RandomReader()

    @property
    def _folder(self) -> Path:
        return self.root if self.root.is_dir() else self.root.parent

    def iter_photos(self) -> Iterator[Photo]:
        """Yields the photos of every tar; members of other kinds are passed over.

        Raises:
            PersonaError: a tar is damaged, cut short or compressed, holds links or names that
                leave it, or a photo has no identity.
        """
        found = self.root.rglob("*.tar") if self.root.is_dir() else [self.root]
        tars = sorted(path for path in found if path.is_file())  # a pipe may never end
        names: dict[str, str] = {}
        for path in tars:
            try:
                with path.open("rb") as stream:
                    for photo in self._photos(path, stream):
                        yield Photo(
                            photo.source,
                            names.setdefault(photo.identity, photo.identity),
                            photo.offset,
                        )
            except TarError as error:
                raise PersonaError(
                    f"{path} is no whole, uncompressed tar of plain files ({error}): restore it, "
                    "or pack it anew"
                ) from None

    def _photos(self, path: Path, stream: BinaryIO) -> Iterator[Photo]:
        key = ""
        images: list[tuple[str, int]] = []
        labels: dict[str, tuple[str, int, int]] = {}

        def flush() -> Iterator[Photo]:
            named = None
            for suffix in LABEL_SUFFIXES:
                # A text that stands beside no photo, such as a readme, is nobody's label.
                if images and suffix in labels and not named:
                    named = self._label(path, labels[suffix], suffix)
            for name, offset in images:
                identity = named or PurePosixPath(name).parent.name
                if not identity:
                    raise PersonaError(
                        f"{path}: {name} has no identity: expected a {key}.cls, .json (with one of "
                        f"{', '.join(JSON_FIELDS)}) or .txt beside it, or <identity>/<photo>.jpg"
                    )
                source = f"{path.relative_to(self._folder).as_posix()}/{name}"
                yield Photo(source=source, identity=identity, offset=offset)
            images.clear()
            labels.clear()

        for encoded, offset, size in iter_members(stream, FOLDERS, READ_AHEAD):
            try:
                text = encoded.decode()
            except UnicodeDecodeError:
                raise TarError("a name that is not UTF-8") from None
            name = PurePosixPath(text)
            if name.is_absolute() or ".." in name.parts or min(text, default=" ") < " ":
                raise PersonaError(f"{path}: {text[:80]!r} leaves the tar: pack it anew")
            if not name.name or name.name.startswith("."):
                continue
            if str(name.with_suffix("")) != key:
                yield from flush()
                key = str(name.with_suffix(""))
            suffix = name.suffix.lower()
            if suffix in IMAGE_SUFFIXES:
                images.append((str(name), offset))
            elif suffix in LABEL_SUFFIXES:
                labels[suffix] = (str(name), offset, size)
        yield from flush()

    def _label(self, path: Path, member: tuple[str, int, int], suffix: str) -> str | None:
        """The identity that a label member names; None: its JSON has none."""
        name, offset, size = member
        if size > MAX_LABEL_BYTES:
            raise PersonaError(f"{path}: {name} has {size:,} bytes, too many")
        data = self._read(path, offset, size)
        try:
            text = data.decode().strip()
            value: Any = text
            if suffix == ".json":
                fields = json.loads(text)
                known = fields if isinstance(fields, dict) else {}
                value = next((known[f] for f in JSON_FIELDS if f in known), None)
        except (ValueError, RecursionError):
            raise PersonaError(f"{path}: {name} is no {suffix[1:]} text") from None
        if value is None:
            return None
        return identity_name(value, f"{path}: {name}")

    def read(self, photo: Photo) -> bytes:
        """The photo's file, out of its tar; the member's header stands before it."""
        path = self._tar_of(photo)
        block = tarfile.BLOCKSIZE
        try:
            header = self._read(path, photo.offset - block, block)
            size = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
        except tarfile.TarError:
            raise SkipPhoto("unreadable: its tar has changed") from None
        if not 0 <= size <= MAX_PHOTO_BYTES:
            raise SkipPhoto(f"unreadable: {size:,} bytes are over the limit")
        data = self._read(path, photo.offset, size)
        if len(data) != size:
            raise SkipPhoto("unreadable: its tar is cut short")
        return data

    def _tar_of(self, photo: Photo) -> Path:
        if self.root.is_file():
            return self.root
        end = photo.source.index(".tar/") + len(".tar")
        return self.root / photo.source[:end]


def identity_name(value: object, where: str) -> str:
    """An identity from a label: text as it is, a whole number as `label_name` writes it.

    Raises:
        PersonaError: it is neither.
    """
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 9:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_LABEL:
        return label_name(value)
    if isinstance(value, str) and value and value.isprintable() and len(value) <= 255:
        return value
    raise PersonaError(
        f"{where} has the label {str(value)[:40]!r}: expected a name or a whole number from 0 to "
        f"{MAX_LABEL:,}"
    )
