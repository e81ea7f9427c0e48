"""Groups the faces of a photo folder into people, without names: `persona group`.

1. find and embed every face of every photo; a table of an earlier call is read, and photos that
   have not changed are not looked at again
2. group the embeddings (persona/evaluation/grouping.py)
3. faces that are too poor to be recognised are each in a group of their own
4. write the groups as CSV, as a page, or as a folder with both and the table

Shapes: N faces, E embedding.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from persona.api.model import Face, Model
from persona.data.align.spec import Box
from persona.errors import PersonaError
from persona.evaluation.grouping import estimate_threshold, group_faces
from persona.files import PRIVATE, write_atomically

BATCH = 64
THUMBNAIL_PX = 64
QUALITY = 80
TABLE, ROWS, PAGE = "faces.npz", "groups.csv", "index.html"
"""Files of a folder of groups."""
FILES = frozenset({".csv", ".html"})
MOST_FACES = 5_000_000
KEPT_EVERY_S, SHARE_OF_WRITING = 30.0, 20.0
"""The table is written after so many seconds, and after so many times the seconds that took."""
NOT_GROUPED = -1
ESTIMATED = "estimated from these photos: calibrate a threshold on a set like them for a better one"


@dataclass(frozen=True)
class GroupedFace:
    """A face, and the group it is in."""

    photo: str
    """Path of the photo, as it was given."""
    box: Box
    """Box (x0, y0, x1, y1) in px of the upright photo."""
    flaw: str | None = None
    """Why the face is too poor to be recognised. Such a face is in a group of its own."""

    def to_json(self) -> dict[str, Any]:
        """Returns the face as `persona group --json` prints it."""
        found: dict[str, Any] = {"photo": self.photo, "box": [round(n, 1) for n in self.box]}
        return found if self.flaw is None else found | {"flaw": self.flaw}


@dataclass
class Faces:
    """All faces of some photos with their embeddings, as one table."""

    faces: list[GroupedFace] = field(default_factory=list)
    embeddings: list[npt.NDArray[np.float32]] = field(default_factory=list)
    """Embedding of each face; zeros where it has a flaw."""
    thumbnails: list[bytes] = field(default_factory=list)
    """Small JPEG of each face."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Reasons by photo, for those without a face."""
    seen: dict[str, str] = field(default_factory=dict)
    """Size and time of each photo that was looked at."""
    before: dict[int, int] = field(default_factory=dict)
    """Group of a face, by its place in `faces`, from an earlier call."""


@dataclass(frozen=True)
class Grouping:
    """The groups of `group_photos`."""

    groups: dict[int, list[GroupedFace]]
    """Faces of each group by its number, the largest group first."""
    threshold: float
    """Cosine similarity from which on two faces count as one person."""
    source: str
    """Where the threshold comes from."""
    model: str
    """Name of the model that embedded the faces."""
    left_out: dict[str, str]
    """Reasons by photo, for those without a face."""

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
            {"id": number, "faces": [face.to_json() for face in faces]}
            for number, faces in self.groups.items()
        ]
        about = {"threshold": self.threshold, "source": self.source, "model": self.model}
        return {"groups": groups, **about, "left_out": self.left_out}


def group_photos(
    model: Model,
    photos: Sequence[Path],
    *,
    threshold: float | None = None,
    out: Path | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Grouping:
    """Groups every face of the photos into people.

    Args:
        model: the network that detects and embeds the faces.
        photos: paths of the photos. A photo that cannot be read is left out.
        threshold: lowest cosine similarity of two faces of one person. None means the model's own
            threshold, or where it has none an estimate from the photos.
        out: a CSV file, an HTML page, or a folder. A folder holds both and a table of the faces;
            another call with it looks only at new photos, and groups keep their numbers.
        advance: called with 1 after each photo.

    Raises:
        PersonaError: `out` has another suffix, or its table is damaged or of another model.
    """
    if threshold is not None and not -1 <= threshold <= 1:
        raise PersonaError(f"threshold {threshold:g}: choose -1 to 1, it is a cosine")
    check_out(out)
    table, keep = Faces(), None
    if out is not None and is_folder(out):
        table = _read_table(out / TABLE, model, {str(photo) for photo in photos})
        keep = out / TABLE
    look_at_photos(model, photos, table, advance, keep)
    embedding_NE = _stacked(table.embeddings, model.embedding_size)
    good = np.array([face.flaw is None for face in table.faces], bool)
    source = "given by the caller"
    if threshold is None and model.threshold is not None:
        threshold, source = model.threshold.value, model.threshold.source
    elif threshold is None:
        threshold, source = estimate_threshold(embedding_NE[good]), ESTIMATED
    number_N = np.zeros(len(good), np.int64)
    number_N[good] = group_faces(embedding_NE[good], threshold)
    number_N[~good] = number_N[good].max(initial=-1) + 1 + np.arange((~good).sum())
    number_N = _as_before(number_N, table.before)
    groups: dict[int, list[GroupedFace]] = defaultdict(list)
    for number, face in zip(number_N.tolist(), table.faces, strict=True):
        groups[number].append(face)
    ordered = dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))
    found = Grouping(ordered, threshold, source, model.name, table.left_out)
    if out is not None:
        _write(out, found, table, number_N, model)
    return found


def look_at_photos(
    model: Model,
    photos: Sequence[Path],
    table: Faces,
    advance: Callable[[int], None] = lambda _: None,
    keep: Path | None = None,
) -> None:
    """Adds the faces of each photo to the table, unless they are in it.

    The table is written to `keep` from time to time, so that an interrupted call continues.
    """
    waiting: list[tuple[int, Face]] = []
    due_s = time.monotonic() + KEPT_EVERY_S

    def flush() -> None:
        if waiting:
            for (place, _), row in zip(
                waiting, model.embed([face for _, face in waiting]), strict=True
            ):
                table.embeddings[place] = row
            waiting.clear()

    for path in photos:
        advance(1)
        name = str(path)
        if name in table.seen:
            continue
        table.left_out.pop(name, None)
        try:
            found = model.find(path)
            table.seen[name] = _stamp(path)
        except PersonaError as reason:
            table.left_out[name] = str(reason).removeprefix(f"photo {path}: ")
            continue
        if not found:
            table.left_out[name] = "no face"
        for face in found:
            if face.flaw is None:
                waiting.append((len(table.faces), face))
            table.faces.append(GroupedFace(name, face.box, face.flaw))
            table.embeddings.append(np.zeros(model.embedding_size, np.float32))
            table.thumbnails.append(_thumbnail(face.crop))
        if len(waiting) >= BATCH:
            flush()
        if keep is not None and time.monotonic() > due_s:
            flush()
            start_s = time.monotonic()
            number_N = [table.before.get(place, NOT_GROUPED) for place in range(len(table.faces))]
            _write_table(keep, table, np.array(number_N, np.int64), model)
            took_s = time.monotonic() - start_s
            due_s = time.monotonic() + max(KEPT_EVERY_S, SHARE_OF_WRITING * took_s)
    flush()


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def _thumbnail(crop: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    small = Image.fromarray(crop).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR)
    small.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _stacked(rows: Sequence[npt.NDArray[np.float32]], width: int) -> npt.NDArray[np.float32]:
    return np.stack(rows) if rows else np.zeros((0, width), np.float32)


def _as_before(number_N: npt.NDArray[np.int64], before: dict[int, int]) -> npt.NDArray[np.int64]:
    """Gives groups the numbers that most of their faces had, and new groups new numbers."""
    if not before:
        return number_N + 1
    votes: dict[int, Counter[int]] = defaultdict(Counter)
    for place, old in before.items():
        votes[int(number_N[place])][old] += 1
    wanted = sorted((-n, old, new) for new, olds in votes.items() for old, n in olds.items())
    named: dict[int, int] = {}
    for _, old, new in wanted:  # the most faces first: each number is given once
        if new not in named and old not in named.values():
            named[new] = old
    following = max(before.values()) + 1
    for new in np.unique(number_N).tolist():
        if new not in named:
            named[new] = following
            following += 1
    return np.array([named[number] for number in number_N.tolist()], np.int64)


# --- files ------------------------------------------------------------------------------------


def is_folder(out: Path) -> bool:
    """Whether `out` names a folder: one that is there, or a name without a suffix."""
    return not out.suffix or out.is_dir()


def check_out(out: Path | None) -> None:
    """Raises PersonaError unless `out` is a CSV file, an HTML page or a folder."""
    if out is None:
        return
    if not is_folder(out) and out.suffix.lower() not in FILES:
        raise PersonaError(f"--out {out}: name a folder, or something.csv or something.html")
    if not out.suffix and out.exists() and not out.is_dir():
        raise PersonaError(f"--out {out} is a file: name a folder")


def _read_table(path: Path, model: Model, photos: set[str]) -> Faces:
    """Reads the faces of photos that are still there and have not changed.

    Raises:
        PersonaError: the table is damaged, or another model made it.
    """
    table = Faces()
    if not path.exists():
        return table
    try:
        with zipfile.ZipFile(path) as archive:  # as written here, so that nothing can unfold
            if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
                raise ValueError
        with np.load(path, allow_pickle=False) as file:
            stored = {name: file[name] for name in file.files}
        kept = stored["embedding"].astype(np.float32)
        count = len(kept)
        columns = [stored[name] for name in ("photo", "box", "flaw", "group", "start")]
        sound = kept.ndim == 2 and all(len(column) >= count for column in columns)
        made_by = str(stored["model"])
        stamps = dict(zip(stored["seen"].tolist(), stored["stamp"].tolist(), strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        sound, made_by = False, ""
    if not sound or count > MOST_FACES:
        raise PersonaError(f"{path} is damaged: remove it, and all photos are looked at again")
    if made_by != model.name or (count and kept.shape[1] != model.embedding_size):
        raise PersonaError(
            f"{path.parent} was made by {made_by}, not by {model.name}: name another folder"
        )
    fresh = {p for p, stamp in stamps.items() if p in photos and stamp == _stamp(Path(p))}
    table.seen = {photo: stamps[photo] for photo in sorted(fresh)}
    bytes_of = stored["thumbnail"].tobytes()
    starts = stored["start"].tolist()
    had_faces = set()
    for place in range(count):
        photo = str(stored["photo"][place])
        if photo not in fresh:
            continue
        had_faces.add(photo)
        x0, y0, x1, y1 = stored["box"][place].tolist()
        flaw = str(stored["flaw"][place]) or None
        if (before := int(stored["group"][place])) != NOT_GROUPED:
            table.before[len(table.faces)] = before
        table.faces.append(GroupedFace(photo, (x0, y0, x1, y1), flaw))
        table.embeddings.append(kept[place])
        table.thumbnails.append(bytes_of[starts[place] : starts[place + 1]])
    table.left_out = dict.fromkeys(sorted(fresh - had_faces), "no face")
    return table


def _write(
    out: Path, found: Grouping, table: Faces, number_N: npt.NDArray[np.int64], model: Model
) -> None:
    if not is_folder(out):
        page = out.suffix.lower() == ".html"
        write_atomically(out, _page(found, table, number_N) if page else _rows(found), PRIVATE)
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / ROWS, _rows(found), PRIVATE)
        write_atomically(out / PAGE, _page(found, table, number_N), PRIVATE)
        _write_table(out / TABLE, table, number_N, model)  # last: another call reads it


def _rows(found: Grouping) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(("group", "photo", "x0", "y0", "x1", "y1", "flaw"))
    for number, faces in found.groups.items():
        for face in faces:
            box = (f"{value:.1f}" for value in face.box)
            writer.writerow((number, face.photo, *box, face.flaw or ""))
    return file.getvalue().encode("utf-8", "surrogateescape")


def _write_table(path: Path, table: Faces, number_N: npt.NDArray[np.int64], model: Model) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    sizes = [0, *map(len, table.thumbnails)]
    np.savez(
        file,
        model=np.array(model.name),
        photo=np.array([face.photo for face in table.faces], np.str_),
        box=np.array([face.box for face in table.faces], np.float32).reshape(-1, 4),
        flaw=np.array([face.flaw or "" for face in table.faces], np.str_),
        group=number_N,
        embedding=_stacked(table.embeddings, model.embedding_size),
        thumbnail=np.frombuffer(b"".join(table.thumbnails), np.uint8),
        start=np.cumsum(sizes),
        seen=np.array(list(table.seen), np.str_),
        stamp=np.array(list(table.seen.values()), np.str_),
    )
    write_atomically(path, file.getvalue(), PRIVATE)


STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif }
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
section { margin: 1.5rem 0 }
h2 { font-size: 1rem; margin: 0 0 .4rem }
img { width: 64px; height: 64px; border-radius: 6px; margin: 2px }
"""


def _page(found: Grouping, table: Faces, number_N: npt.NDArray[np.int64]) -> bytes:
    """One page of all groups, which loads nothing from elsewhere."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, number in enumerate(number_N.tolist()):
        places[number].append(place)
    parts, alone = [], []
    for number in found.groups:
        pictures = "".join(_picture(table, place) for place in places[number])
        if len(places[number]) == 1:
            alone.append(pictures)
            continue
        parts.append(
            f"<section><h2>Group {number}: {len(places[number])} faces</h2>{pictures}</section>"
        )
    if alone:
        parts.append(
            f"<details><summary>{len(alone)} faces in a group of their own</summary>"
            f"{''.join(alone)}</details>"
        )
    summary = (
        f"{found.faces} faces, {found.people} people with two faces or more. Model "
        f"{html.escape(found.model)}, threshold {found.threshold:.3f} "
        f"({html.escape(found.source)})."
    )
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Groups of faces</title>'
        '<meta name="viewport" content="width=device-width"><meta http-equiv='
        '"Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<style>{STYLE}</style><h1>Groups of faces</h1><p>{summary}</p>{''.join(parts)}</html>"
    )
    return text.encode("utf-8", "replace")


def _picture(table: Faces, place: int) -> str:
    data = base64.b64encode(table.thumbnails[place]).decode()
    photo = html.escape(table.faces[place].photo, quote=True)
    return f'<img src="data:image/jpeg;base64,{data}" alt="" title="{photo}">'
