"""Reads a user's annotations: a CSV whose first column is `photo` or `identity`.

    photo,pose,glasses                  identity,gender
    Tony_Blair/Tony_Blair_0001.jpg,…    Tony_Blair,m

`photo` is a path below the dataset's folder. An empty field is no annotation. Paths and names are
compared in Unicode's composed form (NFC).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from persona.data.raw.base import Index, Photo, PhotoList
from persona.errors import PersonaError
from persona.files import iter_csv
from persona.names import composed, describe, hidden

Attributes = dict[str, str | int]

log = logging.getLogger(__name__)


def annotate(index: Index, path: Path) -> Index:
    """Adds the CSV's annotations to an index. They replace the dataset's own of the same name.

    Rows that are about nothing in the dataset cause a warning. They are no error, because a file
    may be about all splits of a dataset.

    Raises:
        PersonaError: If it is no CSV of that layout, two rows disagree, or no row is about a photo
            of the index.
    """
    kind, rows = _read(path)
    used: set[str] = set()
    elsewhere = (*index.missing, *index.nobody) if kind == "photo" else index.classes
    known = set(map(composed, elsewhere))

    def annotated() -> Iterator[Photo]:
        for photo in index.photos:
            subject = composed(photo.source if kind == "photo" else photo.identity)
            attributes = rows.get(subject)
            if attributes is not None:
                known.add(subject)
            if attributes:
                used.add(subject)
                merged = tuple(sorted((dict(photo.attributes) | attributes).items()))
                yield replace(photo, attributes=merged)
            else:
                yield photo

    photos = PhotoList.gather(annotated())
    if not used:
        example = index.photos[0].source if kind == "photo" else index.photos[0].identity
        raise PersonaError(
            f"{path}: none of its {len(rows)} rows is about a {kind} of this dataset, which are "
            f"named like {example!r}"
        )
    strangers = [subject for subject in rows if subject not in known]
    if strangers:
        log.warning(
            "%s: %d of its %d rows are about no %s of this dataset, the first is %r",
            *(path, len(strangers), len(rows), kind, strangers[0]),
        )
    return replace(index, photos=photos)


def _read(path: Path) -> tuple[str, dict[str, Attributes]]:
    lines = iter_csv(path, "a CSV of annotations")
    header = [name.strip().lower() for name in next(lines, (1, []))[1]]
    if len(header) < 2 or header[0] not in {"photo", "identity"} or not all(header):
        raise PersonaError(
            f"{path}: expected a header of photo (or identity) and names of annotations, found "
            f"{','.join(header)[:80]!r}"
        )
    _check_seen(header, f"{path} line 1")
    rows: dict[str, Attributes] = {}
    for number, line in lines:
        where = f"{path} line {number}"
        _check_seen(line, where)
        if len(line) != len(header):
            raise PersonaError(f"{where}: {len(line)} fields, its header has {len(header)}")
        values = {
            name: _value(item.strip()) for name, item in zip(header[1:], line[1:], strict=True)
        }
        subject = composed(line[0].strip())
        attributes = {name: item for name, item in values.items() if item != ""}
        if rows.setdefault(subject, attributes) != attributes:
            raise PersonaError(
                f"{where}: {subject[:80]} has a row already, which says something else; keep one "
                "of them"
            )
    return header[0], rows


def _check_seen(line: list[str], where: str) -> None:
    """Raises PersonaError if a field holds what cannot be seen.

    The first column is not checked, because it must equal a name in the dataset.
    """
    unseen = hidden("".join(line[1:]))
    if unseen is not None:
        raise PersonaError(
            f"{where} holds {describe(unseen)}, which cannot be seen and makes one annotation look "
            "like another: take it out"
        )


def _value(text: str) -> str | int:
    return int(text) if text.isdecimal() and len(text) < 16 else text
