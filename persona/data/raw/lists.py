"""A list of photos, `list:FILE`: a CSV, a parquet file, or a text file with one path per line.

    photo,identity                       photos/0001.jpg
    photos/0001.jpg,Tony Blair           photos/0002.jpg
    /mnt/other/0002.jpg,Tony Blair       …

Paths are relative to the list's own folder, or absolute, or http(s) URLs, which are downloaded
(persona/data/raw/fetched.py). The set shows a URL without its query, which may be a secret. The
photos of a list without identities are unlabelled.
"""

from __future__ import annotations

import csv
import itertools
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from persona.data.raw.base import (
    NOBODY,
    UNLABELLED,
    Photo,
    RawDataset,
    identity_name,
    iter_lines,
    read_plain,
)
from persona.data.raw.fetched import FetchedPhotos, is_sound, is_url, without_query
from persona.data.raw.parquet import open_parquet
from persona.errors import PersonaError
from persona.files import not_a_file, separator_of
from persona.names import hidden

PHOTO_COLUMNS = ("photo", "path", "file", "filename", "image")
IDENTITY_COLUMNS = ("identity", "label", "class", "person")
MAX_PATH = 4096
ROWS_AT_ONCE = 10_000


class PhotoLists(RawDataset):
    """Photos anywhere on this machine, given by a list.

    Example: `persona shard list:photos.csv --align template`.
    """

    kind = "list"
    layout = (
        "a .csv or .parquet with a column photo (paths or URLs) and perhaps one called identity, "
        "or a text with a path or URL a line"
    )

    def __init__(self, root: Path, split: str | None = None, *, scan_workers: int = 8) -> None:
        super().__init__(root.parent, split, scan_workers=scan_workers)
        self.file = root
        self.name = root.resolve().stem
        self.fetched = FetchedPhotos(root.resolve().with_name(f"{root.name}.downloads"))
        if (kind := not_a_file(root)) is not None:
            raise PersonaError(f"{root} is {kind}: expected {self.layout}")
        if not self._has_identities():
            self.unlabelled = True

    @property
    def spec(self) -> str:
        """The name with which `open_dataset` opens the list again."""
        return f"{self.kind}:{self.file.resolve()}"

    def iter_photos(self) -> Iterator[Photo]:
        """Yields each listed photo that exists or could be downloaded. The others are `missing`.

        Raises:
            PersonaError: If a row has no path, a path that a manifest cannot hold, or no identity
                although the list has a column of identities; if two rows have URLs that differ in
                their query alone; or if a server gave no answer.
        """
        rows, hashes = self._rows(), array("q")
        while some := list(itertools.islice(rows, ROWS_AT_ONCE)):
            for where, path, _ in some:
                _check_path(where, path)
            urls = [path for _, path, _ in some if is_url(path)]
            self.fetched.fetch(urls)
            hashes.extend(hash(without_query(url)) for url in urls)
            yield from self._there(some)
        if hashes:
            self._check_twice(hashes)
            self.fetched.check(len(hashes))

    def _there(self, rows: list[tuple[str, str, Any]]) -> Iterator[Photo]:
        for where, path, identity in rows:
            source = without_query(path) if is_url(path) else os.path.normpath(path)
            if not os.path.isfile(self._path(source)):  # noqa: PTH113 - a Path per photo is slow
                self.missing.append(source)
                continue
            if identity is None and not self.unlabelled:
                raise PersonaError(
                    f"{where} names no identity: expected one, or {NOBODY} for nobody"
                )
            yield Photo(source, UNLABELLED if self.unlabelled else identity_name(identity, where))

    def _check_twice(self, hashes: array[int]) -> None:
        """Raises PersonaError if two rows name the same URL but for the query.

        `hashes` has 8 bytes for each URL. The rows are read again only if two hashes are equal.
        """
        ordered = np.sort(np.frombuffer(hashes, np.int64))
        equal = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        first: dict[str, str] = {}
        for where, path, _ in self._rows() if equal else ():
            source = without_query(path)
            if not is_url(path) or hash(source) not in equal:
                continue
            if source in first:
                raise PersonaError(
                    f"{first[source]} and {where} name the same photo: take one of them out; if "
                    "two photos differ in the query of their URLs alone, download them and list "
                    "their files, because a set keeps no query"
                )
            first[source] = where

    def read(self, photo: Photo) -> bytes:
        """Reads the photo's file. The source may be an absolute path or a URL."""
        return read_plain(self._path(photo.source))

    def _path(self, source: str) -> str:
        if is_url(source):
            return self.fetched.path(source)
        return os.path.join(self.root, source)  # noqa: PTH118 - a Path per photo is slow

    def nothing_found(self) -> PersonaError:
        """The error for a list of which no photo exists."""
        if not self.missing:
            return PersonaError(f"{self.file} has no rows: expected {self.layout}")
        first = self.missing[0]
        return PersonaError(
            f"{self.file}: none of its photos is there, the first of {len(self.missing):,} is "
            f"{first} ({self.why_missing(first).removeprefix('listed, ')}): paths are below "
            f"{self.root} unless they are absolute"
        )

    def why_missing(self, source: str) -> str:
        """Why a listed photo is not packed: as `RawDataset` tells it, or the answer for a URL."""
        if is_url(source):
            reason = self.fetched.refused.get(source)
            return "listed, not downloaded" if reason is None else f"not downloaded: {reason}"
        return super().why_missing(source)

    def _has_identities(self) -> bool:
        if self.file.suffix == ".parquet":
            with open_parquet(self.file) as (_, schema):
                return _column(self.file, schema.names)[1] is not None
        first = next(iter_lines(self.file), "")
        header = _header(self.file, first)
        return header is not None and _column(self.file, header)[1] is not None

    def _rows(self) -> Iterator[tuple[str, str, Any]]:
        """Yields each row's place in the file, its path, and its identity or None."""
        if self.file.suffix == ".parquet":
            yield from self._parquet_rows()
            return
        header, separator = None, ","
        columns: tuple[int, int | None] = (0, None)
        for number, line in enumerate(iter_lines(self.file), start=1):
            if not line.strip():
                continue
            where = f"{self.file} line {number}"
            if number == 1 and (header := _header(self.file, line)) is not None:
                photo, identity = _column(self.file, header)
                separator = separator_of(line)
                columns = header.index(photo), None if identity is None else header.index(identity)
                continue
            if header is None:
                yield where, line.strip(), None
                continue
            row = _fields(line, separator)
            if line.count('"') % 2:
                raise PersonaError(
                    f"{where}: a quoted field goes on in the next line: write each row in one line"
                )
            if len(row) != len(header):
                raise PersonaError(f"{where}: {len(row)} fields, its header has {len(header)}")
            photo_at, identity_at = columns
            yield where, row[photo_at], None if identity_at is None else row[identity_at]

    def _parquet_rows(self) -> Iterator[tuple[str, str, Any]]:
        with open_parquet(self.file) as (file, schema):
            photo, identity = _column(self.file, schema.names)
            wanted = [photo] if identity is None else [photo, identity]
            row = 0
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=wanted):
                for values in batch.to_pylist():
                    path = values[photo]
                    text = path if isinstance(path, str) else ""
                    yield f"{self.file} row {row}", text, values.get(identity)
                    row += 1


def _check_path(where: str, path: str) -> None:
    """Raises PersonaError if a row names neither a path nor a URL that a manifest may hold."""
    if not path or len(path) > MAX_PATH or hidden(path) is not None:
        raise PersonaError(f"{where} names no photo: expected a path")
    if is_url(path) and "@" in path.split("/")[2]:
        raise PersonaError(
            f"{where}: its URL holds a login, which the set would show to everybody: leave it out"
        )
    if is_url(path) and not is_sound(path):
        raise PersonaError(f"{where}: its URL cannot be read: expected http(s)://HOST/PATH")


def _fields(line: str, separator: str) -> list[str]:
    try:
        row = next(csv.reader([line], delimiter=separator), [])
        return [field.strip() for field in row]
    except csv.Error:
        return []


def _header(path: Path, line: str) -> list[str] | None:
    """The column names in lower case. None if the first line is a path like all others.

    A path may hold a comma, so that in a file that is no .csv only known names make a header.
    """
    names = [name.lower() for name in _fields(line, separator_of(line))]
    named = set(names) & {*PHOTO_COLUMNS, *IDENTITY_COLUMNS}
    several = len(names) > 1 and path.suffix.lower() == ".csv"
    return names if named or several else None


def _column(path: Path, names: list[str]) -> tuple[str, str | None]:
    """The names of the columns of paths and of identities (or None).

    Raises:
        PersonaError: If there is no column of paths, or two columns have one name.
    """
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise PersonaError(f"{path} has the column {twice[0]} twice: take one of them out")
    photo = next((name for name in PHOTO_COLUMNS if name in names), None)
    if photo is None:
        raise PersonaError(
            f"{path} has the columns {', '.join(names)[:80]}: expected one called "
            f"{PHOTO_COLUMNS[0]}, with paths, and perhaps {IDENTITY_COLUMNS[0]}"
        )
    return photo, next((name for name in IDENTITY_COLUMNS if name in names), None)
