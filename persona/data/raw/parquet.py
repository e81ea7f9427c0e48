"""Reads photos from parquet files in the layout of Hugging Face's datasets (extra `parquet`)."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona.data.raw.base import (
    MAX_PHOTO_BYTES,
    NOBODY,
    UNLABELLED,
    Photo,
    RawDataset,
    identity_name,
    is_litter,
)
from persona.errors import PersonaError, SkipPhoto
from persona.extras import missing
from persona.files import placed

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png")
LABEL_COLUMNS = ("label", "identity", "class", "cls", "labels")
MAX_GROUP_BYTES = 1 << 29
MAX_GROUP_ROWS = 1_000_000
CACHE_BYTES = 1 << 28
"""Size in bytes of the row groups that a worker holds. It always holds at least one."""
MAX_BLOCKS = 16


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str | None
    """Name of the label column. None if the photos are taken without identities."""
    names: tuple[str, ...] | None
    """Identity of each label number. None if the labels name themselves."""


class Parquet(RawDataset):
    """Parquet files with an image column and a label column.

    The image column is bytes, or a struct of bytes and path. The names of a `ClassLabel` come from
    the metadata that the datasets library writes; otherwise a label names itself. A row group is
    read whole, so packing holds a few of them at a time. A split is the files whose names begin
    with it; `all` is every file.
    """

    kind = "parquet"
    splits = ("all", "train", "validation", "test")
    layout = (
        "a .parquet file or a folder of them with an image column (struct of bytes and path, or "
        "bytes) and a label column"
    )

    def __init__(self, root: Path, split: str | None = None, *, scan_workers: int = 8) -> None:
        super().__init__(root, split, scan_workers=scan_workers)
        self._known: _Columns | None = None
        self._groups: OrderedDict[str, Any] = OrderedDict()
        """Columns of row groups as Arrow arrays, which store a frequent value only once."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_groups": OrderedDict()}

    @property
    def set_name(self) -> str:
        """Name of the packed set. The split `all` adds nothing to the dataset's name."""
        return self.name if self.split == "all" else super().set_name

    @property
    def _folder(self) -> Path:
        return self.root if self.root.is_dir() else self.root.parent

    def _files(self) -> list[Path]:
        if not self.root.is_dir():
            return [self.root]
        found = (path for path in self.root.rglob("*.parquet") if path.is_file())
        own = sorted(p for p in found if not any(map(is_litter, p.relative_to(self.root).parts)))
        return [p for p in own if self.split == "all" or p.name.startswith(self.split)]

    def _columns(self) -> _Columns:
        """The columns of the first file. All other files must have the same."""
        if self._known is None:
            files = self._files()
            if not files:
                raise self.complain(self._folder / "*.parquet")
            with open_parquet(files[0]) as (_, schema):
                self._known = _find_columns(files[0], schema, labelled=not self.unlabelled)
        return self._known

    def class_list(self) -> list[str] | None:
        """The names of the `ClassLabel`, if the labels are one."""
        names = self._columns().names
        return None if names is None else list(names)

    def iter_photos(self) -> Iterator[Photo]:
        """Yields one photo per row. It reads the labels only.

        Raises:
            PersonaError: If there is no parquet file, a column is missing, a label is not valid, or
                a row group is too large for memory.
        """
        columns = self._columns()
        largest = 1
        for path in self._files():
            place = path.relative_to(self._folder).as_posix()
            with open_parquet(path) as (file, schema):
                if _find_columns(path, schema, labelled=not self.unlabelled) != columns:
                    raise PersonaError(f"{path} has other columns or names than the first file")
                for group in range(file.num_row_groups):
                    known = file.metadata.row_group(group)
                    rows, size = known.num_rows, known.total_byte_size
                    if size > MAX_GROUP_BYTES or rows > MAX_GROUP_ROWS:
                        raise PersonaError(
                            f"{path}: row group {group} has {rows:,} rows and {size:,} bytes: "
                            "write it anew with smaller ones, row_group_size=1000"
                        )
                    largest = max(largest, size)
                    for row, identity in enumerate(self._identities(path, file, group, rows)):
                        yield Photo(f"{place}/{group:05d}/{row:07d}", identity)
        self.blocks_at_once = max(1, min(MAX_BLOCKS, CACHE_BYTES // largest))

    def _identities(self, path: Path, file: Any, group: int, rows: int) -> Iterator[str]:
        """Yields the identities of a row group's photos."""
        column = self._columns().label
        if column is None:
            yield from itertools.repeat(UNLABELLED, rows)
            return
        for row, label in enumerate(_read_column(file, group, column)):
            yield self._identity(label.as_py(), f"{path}: row {row} of group {group}")

    def _identity(self, label: object, where: str) -> str:
        names = self._columns().names
        if names is None or label == int(NOBODY):
            return identity_name(label, where)
        if type(label) is not int or not 0 <= label < len(names):
            raise PersonaError(f"{where}: label {label!r} is none of the {len(names)} classes")
        return names[label]

    def block(self, photo: Photo) -> str:
        """The file and row group that hold the photo."""
        return photo.source.rpartition("/")[0]

    def read(self, photo: Photo) -> bytes:
        """Reads the photo's file from its row group."""
        block, _, row = photo.source.rpartition("/")
        rows = self._groups.get(block)
        if rows is None:
            place, _, group = block.rpartition("/")
            with open_parquet(self._folder / place) as (file, _):
                rows = _read_column(file, int(group), self._columns().image)
            while len(self._groups) >= self.blocks_at_once:
                self._groups.popitem(last=False)
            self._groups[block] = rows
        self._groups.move_to_end(block)
        if int(row) >= len(rows):
            raise SkipPhoto("unreadable: its file has changed")
        value = rows[int(row)].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            raise SkipPhoto("unreadable: its row holds no bytes")
        if len(data) > MAX_PHOTO_BYTES:
            raise SkipPhoto(f"unreadable: {len(data):,} bytes are over the limit")
        return bytes(data)


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yields a ParquetFile and its schema. Errors of Arrow become a PersonaError."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise missing("parquet files need pyarrow", "parquet") from None
    try:
        # Read as stored, so that a value that occurs a million times takes no more memory than on
        # disk.
        with pq.ParquetFile(path) as plain:
            schema, known = plain.schema_arrow, plain.metadata
        texts = [column.path for column in known.schema if column.physical_type == "BYTE_ARRAY"]
        with pq.ParquetFile(path, metadata=known, read_dictionary=texts) as file:
            yield file, schema
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:
            with placed(path):
                raise
        reason = str(error).partition("\n")[0][:100]
        raise PersonaError(f"{path} is no whole parquet file ({reason}): restore it") from None


def _read_column(file: Any, group: int, column: str) -> Any:
    """A column of one row group, as an Arrow array."""
    return file.read_row_group(group, columns=[column]).column(column)


def _find_columns(path: Path, schema: Any, *, labelled: bool) -> _Columns:
    import pyarrow.types as pt

    features = _features(path, schema)

    def feature(name: str) -> Any:
        value = features.get(name)
        return value.get("_type") if isinstance(value, dict) else None

    def holds(kind: Any, *these: Callable[[Any], bool]) -> bool:
        """Whether the values have one of these types, also if they are dictionary-encoded."""
        plain = kind.value_type if pt.is_dictionary(kind) else kind
        return any(is_this(plain) for is_this in these)

    def holds_bytes(kind: Any) -> bool:
        if pt.is_struct(kind):
            inner = kind.get_field_index("bytes")
            return inner >= 0 and holds_bytes(kind.field(inner).type)
        return holds(kind, pt.is_binary, pt.is_large_binary, pt.is_binary_view)

    images = [f.name for f in schema if holds_bytes(f.type)]
    texts = (pt.is_string, pt.is_large_string, pt.is_string_view)
    labels = [f.name for f in schema if holds(f.type, pt.is_integer, *texts)]
    image = _first(images, [n for n in images if feature(n) == "Image"], IMAGE_COLUMNS)
    label = None
    wanted = [("image column (bytes)", image, IMAGE_COLUMNS)]
    if labelled:
        label = _first(labels, [n for n in labels if feature(n) == "ClassLabel"], LABEL_COLUMNS)
        wanted += [("label column (whole numbers or text)", label, LABEL_COLUMNS)]
    for what, column, usual in wanted:
        if column is None:
            there = ", ".join(f"{field.name} ({field.type})" for field in schema)
            raise PersonaError(
                f"{path} has no {what} among {there[:200]}: expected one called "
                f"{' or '.join(usual)}"
                + ("; --unlabelled packs photos without identities" if column is not image else "")
            )
        if schema.names.count(column) > 1:
            raise PersonaError(f"{path} has two columns called {column!r}: write it anew with one")
    assert image is not None
    if label is None:
        return _Columns(image, None, None)
    names = features[label].get("names") if feature(label) == "ClassLabel" else None
    if names is not None and not (isinstance(names, list) and all(type(n) is str for n in names)):
        raise PersonaError(f"{path}: the class names of {label!r} are no list of names")
    twice = next((name for name, count in Counter(names or ()).items() if count > 1), None)
    if twice is not None:
        raise PersonaError(
            f"{path}: the class names of {label!r} name {twice!r} twice: write it anew, two "
            "identities would become one"
        )
    return _Columns(image, label, None if names is None else tuple(names))


def _first(found: list[str], marked: list[str], usual: tuple[str, ...]) -> str | None:
    """The first column that the metadata marks, otherwise the first with a usual name."""
    return next(iter([*marked, *(name for name in usual if name in found)]), None)


def _features(path: Path, schema: Any) -> dict[str, Any]:
    """The features that the datasets library wrote into the metadata."""
    written = (schema.metadata or {}).get(b"huggingface")
    if written is None:
        return {}
    try:
        features = json.loads(written)["info"]["features"]
        assert isinstance(features, dict)
    except (ValueError, KeyError, TypeError, AssertionError):
        raise PersonaError(f"{path}: its Hugging Face metadata is damaged: write it anew") from None
    return features
