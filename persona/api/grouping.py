"""Groups the faces of a photo folder into people, without names: `persona group`.

1. find and embed every face of every photo; a table of an earlier call is read, and photos that
   have not changed are not looked at again
2. group the embeddings (persona/evaluation/grouping.py) around the groups that the user has given
   (persona/gallery/grouped.py); faces that are too poor to be recognised are each alone
3. write the groups as CSV, as a page, or as a folder with both and the table
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from persona.api.embedding import NO_FACE, find_faces
from persona.api.model import Face, Model
from persona.errors import PersonaError
from persona.files import PRIVATE, check_writable, folder_lock, write_atomically
from persona.gallery.grouped import (
    PAGE,
    ROWS,
    TABLE,
    Faces,
    Given,
    GroupedFace,
    Groups,
    group_table,
    maker,
    read_rows,
    read_table,
    rows_of,
    stamp_of,
    write_rows,
    write_table,
)
from persona.gallery.grouped_page import page_of
from persona.workers import in_threads

BATCH = 64
THUMBNAIL_PX = 64
QUALITY = 80
FILES = frozenset({".csv", ".html"})
KEPT_EVERY_S, SHARE_OF_WRITING = 30.0, 20.0
"""The table is written after so many seconds, and after so many times the seconds that took."""
ESTIMATED = "estimated from these photos: calibrate a threshold on a set like them for a better one"
WORKING = "working on the groups in"


@dataclass(frozen=True)
class Grouping:
    """The groups of `group_photos`."""

    groups: dict[int, list[GroupedFace]]
    """Faces of each group by its number, the largest group first."""
    names: dict[int, str]
    """Names of groups by their number, of those that have one."""
    threshold: float
    """Cosine similarity from which on two faces count as one person."""
    source: str
    """Where the threshold comes from."""
    model: str
    """Name of the model that embedded the faces."""
    duplicates: dict[str, tuple[str, float]]
    """By photo: an earlier photo of which it is nearly a copy, and how similar their faces are."""
    left_out: dict[str, str]
    """Reasons by photo, for those without a face."""
    state: Groups = field(repr=False, compare=False)
    """The groups with their embeddings, for enrolling."""

    @property
    def people(self) -> int:
        """Number of groups of two faces or more."""
        return sum(len(faces) > 1 for faces in self.groups.values())

    @property
    def faces(self) -> int:
        """Number of faces."""
        return sum(map(len, self.groups.values()))

    def to_json(self) -> dict[str, Any]:
        """Returns the groups as `persona group --json` prints them."""
        groups = [
            {"id": number}
            | ({"name": self.names[number]} if number in self.names else {})
            | {"faces": [face.to_json() for face in faces]}
            for number, faces in self.groups.items()
        ]
        duplicates = [
            {"photo": photo, "of": original, "similarity": similarity}
            for photo, (original, similarity) in self.duplicates.items()
        ]
        about = {"threshold": self.threshold, "source": self.source, "model": self.model}
        return {"groups": groups, **about, "duplicates": duplicates, "left_out": self.left_out}


def group_photos(
    model: Model,
    photos: Sequence[Path],
    *,
    threshold: float | None = None,
    out: Path | None = None,
    names: Mapping[int, str] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Grouping:
    """Groups every face of the photos into people.

    Args:
        model: the network that detects and embeds the faces.
        photos: paths of the photos. A photo that cannot be read is left out.
        threshold: lowest cosine similarity of two faces of one person. None means the model's own
            threshold, or where it has none an estimate from the photos.
        out: a CSV file, an HTML page, or a folder. A folder holds both and a table of the faces;
            another call with it looks only at new photos, and groups keep their numbers. What was
            changed in its CSV is kept.
        names: names of groups by their number in the CSV of the folder.
        advance: called with 1 after each photo.

    Raises:
        PersonaError: `out` has another suffix, its files are damaged or of another model, what was
            changed in its CSV is about photos or faces that are not among these, or there is no
            such group to name.
    """
    if threshold is not None and not -1 <= threshold <= 1:
        raise PersonaError(f"threshold {threshold:g}: choose -1 to 1, it is a cosine")
    check_out(out)
    spelled = {os.path.abspath(photo): str(photo) for photo in photos}  # noqa: PTH100
    made_by = maker(model.named.digest, model.align, model.min_face)
    table = Faces(made_by, model.name, model.embedding_size)
    folder = out if out is not None and is_folder(out) else None
    with contextlib.ExitStack() as stack:
        before = Given()
        if folder is not None:
            stack.enter_context(folder_lock(folder, doing=WORKING))
            _given_before(folder, spelled, names or {})  # what cannot be used is said at once
            table = read_table(folder / TABLE, table, spelled)
        elif names:
            raise PersonaError("groups are named in the folder that --out names: name one")
        look_at_photos(model, photos, table, advance, folder)
        if folder is not None:
            write_table(folder / TABLE, table)
            before = _given_before(folder, spelled, names or {})  # edited meanwhile, perhaps
            _check_found(before, table, folder)
        source = "given by the caller"
        if threshold is None and model.threshold is not None:
            threshold, source = model.threshold.value, model.threshold.source
        elif threshold is None:
            source = ESTIMATED
        state = group_table(table, before, threshold)
        if out is not None and folder is None:
            page = out.suffix.lower() == ".html"
            content = page_of(state) if page else rows_of(state)
            write_atomically(out, content, PRIVATE)
        elif folder is not None:
            write_rows(folder, state)
            write_atomically(folder / PAGE, page_of(state), PRIVATE)
    groups = {
        number: [table.faces[place] for place in places]
        for number, places in state.members().items()
    }
    return Grouping(
        *(groups, state.names, state.threshold, source, model.name),
        duplicates=state.duplicates,
        left_out=table.left_out,
        state=state,
    )


def _given_before(folder: Path, spelled: dict[str, str], names: Mapping[int, str]) -> Given:
    """Reads what the CSV of a folder says, with the photos as they are given now.

    Raises:
        PersonaError: it says something about photos that were not given, or has no group to name.
    """
    found = read_rows(folder / ROWS)
    lost = sorted({photo for photo, _ in found.given if photo not in spelled})
    if lost:
        raise PersonaError(
            f"{folder / ROWS} names or changes groups of other photos, such as {lost[0]} "
            f"({len(lost)} in all): name a folder that holds them too, or another --out; where "
            "photos were moved or removed, change their paths or remove their rows in it"
        )

    def now(photo: str) -> str:
        return spelled.get(photo, photo)

    number = {(now(photo), box): n for (photo, box), n in found.number.items()}
    before = Given(number, {(now(photo), box) for photo, box in found.given}, found.names)
    _add_names(before, names, folder)
    return before


def _check_found(before: Given, table: Faces, folder: Path) -> None:
    """Raises PersonaError unless the table has every face of the groups that are given."""
    lost = sorted(before.given - {face.key for face in table.faces})
    if lost:
        raise PersonaError(
            f"{folder / ROWS} names or changes groups of faces that are not found now, such as one "
            f"in {lost[0][0]} ({len(lost)} in all): restore the photos, or remove these rows in it"
        )


def _add_names(before: Given, names: Mapping[int, str], folder: Path) -> None:
    """Names groups of an earlier call."""
    if not names:
        return
    keys = list(before.number)
    number_N = np.array([before.number[key] for key in keys], np.int64)
    given_N = np.array([key in before.given for key in keys], bool)
    state = Groups(
        *(Faces("", "", 0), number_N, given_N, dict(before.names), float("nan")), duplicates={}
    )
    for number, name in names.items():
        if number not in number_N:
            raise PersonaError(f"{folder / ROWS} has no group {number}: look at its groups again")
        state.name(number, name)
    before.number = dict(zip(keys, state.numbers.tolist(), strict=True))
    before.given = {key for key, given in zip(keys, state.given, strict=True) if given}
    before.names = state.names


def _look_at(model: Model, path: Path) -> tuple[str, str, list[Face] | str]:
    """The photo, its size and time, and its faces or the reason why there is none."""
    stamp = stamp_of(path)  # before it is read: what is written meanwhile is looked at anew
    found = find_faces(model, path)
    return str(path), stamp, found


def look_at_photos(
    model: Model,
    photos: Sequence[Path],
    table: Faces,
    advance: Callable[[int], None] = lambda _: None,
    folder: Path | None = None,
) -> None:
    """Adds the faces of each photo to the table, unless they are in it.

    The table is written to `folder` from time to time, so that an interrupted call continues.
    """
    waiting: list[tuple[int, Face]] = []
    due_s = time.monotonic() + KEPT_EVERY_S

    def flush() -> None:
        if waiting:
            rows = model.embed([face for _, face in waiting])
            for (place, _), row in zip(waiting, rows, strict=True):
                table.embeddings[place] = row
            waiting.clear()

    _ = model.sight  # built once, before the threads ask for it
    new = [path for path in dict.fromkeys(photos) if str(path) not in table.seen]
    advance(len(photos) - len(new))
    for name, stamp, found in in_threads(partial(_look_at, model), new):
        advance(1)
        table.left_out.pop(name, None)
        if isinstance(found, str):  # it is looked at again by the next call
            table.left_out[name] = found
            continue
        table.seen[name] = stamp
        if not found:
            table.left_out[name] = NO_FACE
        for face in found:
            if face.flaw is None:
                waiting.append((len(table.faces), face))
            table.faces.append(GroupedFace(name, face.box, face.flaw))
            table.embeddings.append(np.zeros(model.embedding_size, np.float32))
            table.thumbnails.append(_thumbnail(face.crop))
        if len(waiting) >= BATCH:
            flush()
        if folder is not None and time.monotonic() > due_s:
            flush()
            start_s = time.monotonic()
            write_table(folder / TABLE, table)
            took_s = time.monotonic() - start_s
            due_s = time.monotonic() + max(KEPT_EVERY_S, SHARE_OF_WRITING * took_s)
    flush()


def _thumbnail(crop: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    small = Image.fromarray(crop).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR)
    small.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def is_folder(out: Path) -> bool:
    """Whether `out` names a folder: one that is there, or a name without a suffix."""
    return not out.suffix or out.is_dir()


def check_out(out: Path | None) -> None:
    """Raises PersonaError unless `out` is a folder, or a CSV file or HTML page to be written."""
    if out is None:
        return
    if not is_folder(out) and out.suffix.lower() not in FILES:
        raise PersonaError(f"--out {out}: name a folder, or something.csv or something.html")
    if not out.suffix and out.exists() and not out.is_dir():
        raise PersonaError(f"--out {out} is a file: name a folder")
    if not is_folder(out):  # a folder is locked before the photos are looked at
        check_writable(out)
