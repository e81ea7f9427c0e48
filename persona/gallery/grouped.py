"""A folder of grouped faces: what `persona group` found, and what its user says about it.

    faces.npz    every face with its embedding and a small picture, and the photos looked at
    groups.csv   the group of each face and the name of each group, for its user to change
    index.html   a page of all groups

A group is found or given. The faces of a found group follow from their embeddings each time. A
group is given if its user named it, or moved a face into it or out of it. Given groups keep their
faces, and new faces join them.

The CSV is all there is about groups, so no two files can disagree after a kill. Its column `found`
is the number that Persona gave a face. Where `group` is another, the user changed it.

Shapes: N faces, E embedding.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import os
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from persona.data.align.spec import MIN_FACE_PX, AlignSpec, Box, Crop
from persona.errors import PersonaError, SkipPhoto
from persona.evaluation.grouping import estimate_threshold, group_linked, link
from persona.evaluation.metrics import Bools, Ints
from persona.files import (
    PRIVATE,
    bounded_lines,
    open_list,
    replacing,
    separator_of,
    whole_number,
    write_atomically,
)
from persona.gallery.faces import Eyes
from persona.gallery.people import DoubtError, Enrolled, Gallery
from persona.gallery.photos import read_photo
from persona.gallery.store import OtherNetworkError, Templates, check_name

TABLE, ROWS, PAGE = "faces.npz", "groups.csv", "index.html"
"""Files of a folder of groups."""
COLUMNS = ("group", "name", "photo", "x0", "y0", "x1", "y1", "flaw", "duplicate_of", "found")
MOST_FACES = 5_000_000
NEAR = 0.95
"""Cosine similarity from which two faces count as one face of one picture."""
MOVED_PX = 1.0
"""Largest distance between the sides of two boxes of one face."""

Key = tuple[str, Box]
"""A face: its photo, and its box in tenths of a px."""


@dataclass(frozen=True)
class GroupedFace:
    """A face, and the photo it is in."""

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

    @property
    def key(self) -> Key:
        """What tells the face from others, in the CSV too."""
        return _key(self.photo, self.box)


@dataclass
class Faces:
    """All faces of some photos with their embeddings, as one table."""

    made_by: str
    """The network and the alignment of the embeddings, see `maker`."""
    model: str
    """Name of the network, for messages."""
    width: int
    """Width E of an embedding."""
    faces: list[GroupedFace] = field(default_factory=list)
    embeddings: list[Templates] = field(default_factory=list)
    """Embedding of each face; zeros where it has a flaw."""
    thumbnails: list[bytes] = field(default_factory=list)
    """Small JPEG of each face."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Reasons by photo, for those without a face."""
    seen: dict[str, str] = field(default_factory=dict)
    """Size and time of each photo that was looked at."""

    def stacked(self) -> Templates:
        """(N, E) float32 embeddings."""
        return np.stack(self.embeddings) if self.faces else np.zeros((0, self.width), np.float32)

    def usable(self) -> Bools:
        """(N,) whether a face has an embedding."""
        return np.array([face.flaw is None for face in self.faces], bool)


@dataclass
class Given:
    """What a CSV of groups says."""

    number: dict[Key, int] = field(default_factory=dict)
    given: set[Key] = field(default_factory=set)
    """The faces of given groups."""
    names: dict[int, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    """By photo: an earlier photo of which it is nearly a copy."""


@dataclass
class Groups:
    """Faces, their groups, and the names of these. `name`, `merge` and `split` change them."""

    faces: Faces
    numbers: Ints
    """(N,) number of each face's group, from 1."""
    given: Bools
    """(N,) whether its group is given."""
    names: dict[int, str]
    threshold: float
    """Cosine similarity from which on two faces count as one person; NaN if it is not known."""
    duplicates: dict[str, tuple[str, float]]
    """By photo: an earlier photo of which it is nearly a copy, and the least similarity of their
    faces; NaN if it is not known."""

    def members(self) -> dict[int, list[int]]:
        """Places of the faces of each group; the largest group comes first."""
        places: dict[int, list[int]] = defaultdict(list)
        for place, number in enumerate(self.numbers.tolist()):
            places[number].append(place)
        return dict(sorted(places.items(), key=lambda item: (-len(item[1]), item[0])))

    def name(self, number: int, name: str) -> int:
        """Names a group, and joins it with the group that has this name.

        Args:
            number: the group.
            name: its name. A blank takes its name away.

        Returns:
            The number of the group that now has the faces.

        Raises:
            PersonaError: there is no such group, or the name cannot be used.
        """
        self._give(number)
        if not name.strip():
            self.names.pop(number, None)
            return number
        name = check_name(name)
        namesake = next((n for n, other in self.names.items() if other == name), number)
        self.names[number] = name
        return number if namesake == number else self.merge(number, namesake)

    def merge(self, number: int, into: int) -> int:
        """Moves all faces of a group into another one, and returns the number of that.

        Raises:
            PersonaError: there is no such group, or the groups have two names.
        """
        if number == into:
            raise PersonaError(f"group {number} cannot be merged into itself: name another one")
        names = {n: self.names[n] for n in (number, into) if n in self.names}
        if len(set(names.values())) > 1:
            raise PersonaError(
                f"group {number} is {names[number]!r} and group {into} is {names[into]!r}: take "
                "one of the names away first"
            )
        self._give(number)
        self._give(into)
        self.numbers[self.numbers == number] = into
        for name in names.values():
            self.names[into] = name
        self.names.pop(number, None)
        return into

    def split(self, number: int, places: Sequence[int]) -> int:
        """Moves some faces of a group into a new one, and returns the number of that.

        Raises:
            PersonaError: a face is not in the group, or no face would be left in it.
        """
        size = int((self.numbers == number).sum())
        chosen = np.unique(np.asarray(places, np.int64))
        inside = (chosen >= 0) & (chosen < len(self.numbers))
        if not inside.all() or not (self.numbers[chosen] == number).all():
            raise PersonaError(f"some of these faces are not in group {number}: look at it again")
        if not 0 < len(chosen) < size:
            raise PersonaError(f"choose some of the {size} faces of group {number}, but not all")
        self._give(number)
        new = int(max(self.numbers.max(), max(self.names, default=0))) + 1
        self.numbers[chosen] = new
        return new

    def _give(self, number: int) -> None:
        inside = self.numbers == number
        if not inside.any():
            raise PersonaError(f"there is no group {number}: look at the groups again")
        self.given |= inside


def maker(digest: str, align: AlignSpec, min_face: int = MIN_FACE_PX) -> str:
    """What made an embedding: two faces are comparable if it is the same.

    Args:
        digest: digest of the network.
        align: how its crops are made.
        min_face: side in px of the smallest face that was looked for. Another one gives other
            boxes, by which a face would not be found again.
    """
    # Boxes 2 are in px of the original. Before, those of photos over 16 MP were in smaller px.
    facts = align.facts | {"boxes": 2}
    if min_face != MIN_FACE_PX:
        facts["smallest"] = min_face
    return f"{digest} {json.dumps(facts, sort_keys=True)}"


def _key(photo: str, box: Sequence[float]) -> Key:
    x0, y0, x1, y1 = (round(float(value), 1) for value in box)
    return photo, (x0, y0, x1, y1)


# --- grouping ---------------------------------------------------------------------------------


def group_table(faces: Faces, before: Given, threshold: float | None) -> Groups:
    """Groups the faces of a table, around the groups that are given.

    Args:
        faces: the table.
        before: what the CSV of an earlier call says.
        threshold: lowest cosine similarity of two faces of one person. None estimates it.
    """
    good_N, embedding_NE = faces.usable(), faces.stacked()
    good_NE = embedding_NE[good_N]
    if threshold is None:
        threshold = estimate_threshold(good_NE)
    links = link(good_NE, min(threshold, NEAR))
    found_N = np.zeros(len(good_N), np.int64)
    found_N[good_N] = group_linked(good_NE, links, threshold)
    found_N[~good_N] = found_N[good_N].max(initial=-1) + 1 + np.arange((~good_N).sum())
    keys = [face.key for face in faces.faces]
    before_N = np.array([before.number.get(key, 0) for key in keys], np.int64)
    given_N = np.array([key in before.given for key in keys], bool)
    joined_N = _join_given(embedding_NE, found_N, before_N, given_N)
    taken = set(np.unique(joined_N).tolist()) | set(before.names)
    free = joined_N == 0
    following = max([0, *before.number.values(), *before.names]) + 1
    number_N = joined_N.copy()
    number_N[free] = _as_before(found_N[free], before_N[free], taken, following)
    here = set(number_N.tolist())
    names = {number: name for number, name in before.names.items() if number in here}
    at = np.flatnonzero(good_N)
    near = links.weight >= NEAR
    pairs = (at[links.source[near]], at[links.target[near]], links.weight[near])
    return Groups(
        *(faces, number_N, np.isin(number_N, np.unique(before_N[given_N])), names, threshold),
        duplicates=_duplicates(faces, *pairs),
    )


def _join_given(embedding_NE: Templates, found_N: Ints, before_N: Ints, given_N: Bools) -> Ints:
    """(N,) number of the given group that each face is in or joins, or else 0.

    A face joins the given group that is in its found group; of several, the most similar one.
    """
    number_N = np.where(given_N, before_N, 0)
    if not given_N.any():
        return number_N
    order = np.argsort(found_N, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(found_N[order])) + 1):
        given, others = members[given_N[members]], members[~given_N[members]]
        if not len(given) or not len(others):
            continue
        candidates = np.unique(before_N[given])
        mean_GE = np.stack([embedding_NE[given[before_N[given] == n]].mean(0) for n in candidates])
        number_N[others] = candidates[(embedding_NE[others] @ mean_GE.T).argmax(axis=1)]
    return number_N


def _as_before(found_N: Ints, before_N: Ints, taken: set[int], following: int) -> Ints:
    """Gives groups the numbers that most of their faces had, and new groups new numbers."""
    votes = Counter(zip(found_N.tolist(), before_N.tolist(), strict=True))
    numbers: dict[int, int] = {}
    used = taken | {0}
    # The most faces first: each number is given once.
    for new, old in sorted(votes, key=lambda pair: (-votes[pair], pair[::-1])):
        if new not in numbers and old not in used:
            numbers[new] = old
            used.add(old)
    for new in np.unique(found_N).tolist():
        if new not in numbers:
            numbers[new] = following
            following += 1
    return np.array([numbers[new] for new in found_N.tolist()], np.int64)


def _duplicates(
    faces: Faces, source: Ints, target: Ints, weight: npt.NDArray[np.float32]
) -> dict[str, tuple[str, float]]:
    """Photos that are nearly copies of an earlier one: the same file, or the same faces.

    Args:
        faces: the table.
        source: number of a face.
        target: number of a face that is nearly the same.
        weight: their similarity.
    """
    boxes: dict[str, list[Box]] = defaultdict(list)
    for face in faces.faces:
        boxes[face.photo].append(face.box)
    good = Counter(face.photo for face in faces.faces if face.flaw is None)
    first_of: dict[tuple[str, str], str] = {}
    found: dict[str, tuple[str, float]] = {}
    sizes = Counter((stamp.partition(" ")[0], *boxes[photo]) for photo, stamp in faces.seen.items())
    for photo in sorted(faces.seen):
        size = faces.seen[photo].partition(" ")[0]
        if sizes[(size, *boxes[photo])] > 1 and (digest := _digest(photo)) is not None:
            first = first_of.setdefault((size, digest), photo)
            if first != photo:
                found[photo] = (first, 1.0)
    matched: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for a, b, similarity in zip(source.tolist(), target.tolist(), weight.tolist(), strict=True):
        photo, other = faces.faces[a].photo, faces.faces[b].photo
        if other < photo:
            best = matched[photo, other]
            best[a] = max(best.get(a, -1.0), similarity)
    for (photo, other), similarities in sorted(matched.items()):
        same = len(boxes[photo]) == len(boxes[other]) and good[photo] == good[other]
        if photo not in found and same and len(similarities) == good[photo]:
            # Of many copies each names the first.
            first = found.get(other, (other, 1.0))[0]
            found[photo] = (first, min(1.0, *similarities.values()))
    return found


def _digest(photo: str) -> str | None:
    try:
        with open(photo, "rb") as file:  # noqa: PTH123 - a name may hold any bytes
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


# --- enrolling --------------------------------------------------------------------------------


def check_maker(faces: Faces, gallery: Gallery) -> None:
    """Raises OtherNetworkError unless the gallery's templates are made as those of the table."""
    eyes = gallery.eyes
    if faces.made_by != maker(eyes.named.digest, eyes.align, eyes.min_face):
        raise OtherNetworkError(
            f"the groups were made by {faces.model}, and {gallery.store.place} by another network, "
            f"alignment or --min-face ({eyes.named.name}, {eyes.min_face} px): group the photos "
            "again with --model and --min-face"
        )


def enroll_group(
    gallery: Gallery,
    groups: Groups,
    number: int,
    *,
    force: bool = False,
    claim: Callable[[], None] = lambda: None,
) -> Enrolled:
    """Adds the faces of a named group to the gallery. Those that are enrolled already stay so.

    Args:
        gallery: the open gallery.
        groups: the groups.
        number: the group.
        force: whether to enrol whatever doubt there is.
        claim: called last, before the transaction is committed.

    Raises:
        DoubtError: the faces look like two people, or like somebody who is enrolled.
        PersonaError: the group has no name, or no face that can be recognised.
    """
    check_maker(groups.faces, gallery)
    if number not in groups.names:
        raise PersonaError(f"group {number} has no name: name it first")
    labels, refused, places, crops = [], [], [], []
    for place in np.flatnonzero(groups.numbers == number).tolist():
        face = groups.faces.faces[place]
        label = Path(face.photo).name
        reason = face.flaw
        if reason is None and gallery.keep_crops:
            try:
                crops.append(_cut_again(gallery.eyes, face))
            except SkipPhoto as error:
                reason = str(error)
        if reason is None:
            places.append(place)
            labels.append(label)
        else:
            refused.append(f"{label}: {reason}")
    return gallery.enroll_templates(
        groups.names[number],
        *(labels, groups.faces.stacked()[places], crops),
        refused=refused,
        accept=(DoubtError,) if force else (),
        claim=claim,
    )


def enroll_groups(
    gallery: Gallery, groups: Groups, *, force: bool = False
) -> tuple[list[Enrolled], dict[str, str]]:
    """Enrols every named group; returns the results, and the reasons by name of those who are not.

    Raises:
        PersonaError: the gallery cannot be written, or its network is another one.
    """
    gallery.store.check_writable()
    check_maker(groups.faces, gallery)
    done, failed = [], {}
    for number, name in sorted(groups.names.items()):
        try:
            done.append(enroll_group(gallery, groups, number, force=force))
        except PersonaError as error:
            failed[name] = str(error)
    return done, failed


def _cut_again(eyes: Eyes, face: GroupedFace) -> Crop:
    """Finds a face in its photo once more, for its crop."""
    photo = read_photo(Path(face.photo))
    for seen in eyes.find(photo.pixels):
        moved = np.abs(np.subtract(photo.whole_face(seen.face).box, face.box)).max()
        if seen.crop is not None and moved <= MOVED_PX:
            return seen.crop
    raise SkipPhoto("its face was not found again: the photo has changed")


# --- files ------------------------------------------------------------------------------------


def read_groups(folder: Path, empty: Faces) -> Groups:
    """Reads a folder of groups as they are, without grouping anything anew.

    Args:
        folder: the folder.
        empty: a table of the network that is in use, without faces.

    Raises:
        PersonaError: the folder holds no groups, its files are damaged, or another network made
            them.
    """
    if not (folder / TABLE).is_file() or not (folder / ROWS).is_file():
        raise PersonaError(f"{folder} holds no groups: `persona group PHOTOS --out DIR` makes them")
    return as_said(read_table(folder / TABLE, empty), read_rows(folder / ROWS))


def as_said(table: Faces, said: Given) -> Groups:
    """Groups the faces of a table as a CSV says. A face that it does not have is alone."""
    keys = [face.key for face in table.faces]
    following = itertools.count(max([0, *said.number.values(), *said.names]) + 1)
    numbers = [said.number[key] if key in said.number else next(following) for key in keys]
    return Groups(
        *(table, np.array(numbers, np.int64), np.array([key in said.given for key in keys], bool)),
        *(said.names, float("nan")),
        duplicates={photo: (original, float("nan")) for photo, original in said.copies.items()},
    )


def read_table(path: Path, empty: Faces, spelled: dict[str, str] | None = None) -> Faces:
    """Reads the faces of photos that are still there and have not changed.

    Args:
        path: the file. Where there is none, the table is empty.
        empty: a table of the network that is in use, without faces.
        spelled: by absolute path, the photos to read as they were given. None reads all faces,
            also of photos that are not there at the moment.

    Raises:
        PersonaError: the table is damaged, or another model made it.
    """
    if not path.exists():
        return empty
    stored = _stored(path)
    if stored["made_by"] != empty.made_by:
        raise PersonaError(
            f"{path.parent} was made by {stored['model']}, not by {empty.model} as it and "
            f"Persona are now, or with another --min-face: name another folder, or remove {path}, "
            "and all photos are looked at again"
        )
    table = empty
    photos = dict(zip(stored["seen"], stored["stamp"], strict=True))
    given = {photo: photo for photo in photos} if spelled is None else spelled
    fresh = {
        photo
        for photo, stamp in photos.items()
        if spelled is None or (photo in given and stamp == stamp_of(Path(photo)))
    }
    table.seen = {given[photo]: photos[photo] for photo in sorted(fresh)}
    had_faces = set()
    starts = stored["start"]
    for place, photo in enumerate(stored["photo"]):
        if photo not in fresh:
            continue
        had_faces.add(photo)
        x0, y0, x1, y1 = stored["box"][place].tolist()
        flaw = stored["flaw"][place] or None
        table.faces.append(GroupedFace(given[photo], (x0, y0, x1, y1), flaw))
        table.embeddings.append(stored["embedding"][place])
        table.thumbnails.append(stored["thumbnail"][starts[place] : starts[place + 1]].tobytes())
    table.left_out = dict.fromkeys(sorted(given[p] for p in fresh - had_faces), "no face")
    return table


_DAMAGED = (
    *(OSError, ValueError, LookupError, EOFError, AttributeError, TypeError),
    *(zipfile.BadZipFile, RuntimeError),  # the latter of a member with a password
)
"""What reading a damaged table may raise."""


def _stored(path: Path) -> dict[str, Any]:
    """Reads the arrays and texts of a table from an untrusted file."""
    try:
        with zipfile.ZipFile(path) as archive:  # as written here, so that nothing can unfold
            if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
                raise ValueError
        with np.load(path, allow_pickle=False) as file:
            stored: dict[str, Any] = {name: file[name] for name in file.files}
        for name in ("photo", "flaw", "seen", "stamp", "model", "made_by"):
            text = stored[name].tobytes().decode("utf-8", "surrogateescape")
            stored[name] = text.split("\0")[:-1]
        (stored["model"],), (stored["made_by"],) = stored["model"], stored["made_by"]
        kept, starts = stored["embedding"], stored["start"]
        count = len(kept)
        sound = (
            count <= MOST_FACES
            and kept.dtype == np.float32
            and kept.ndim == 2
            and stored["thumbnail"].dtype == np.uint8
            and stored["thumbnail"].ndim == starts.ndim == 1
            and starts.dtype.kind == "i"
            and stored["box"].dtype.kind in "if"
            and stored["box"].shape == (count, 4)
            and len(stored["photo"]) == len(stored["flaw"]) == count == len(starts) - 1
            and len(stored["seen"]) == len(stored["stamp"])
            and bool((np.diff(starts) >= 0).all())
            and bool(starts[0] >= 0 and starts[-1] <= len(stored["thumbnail"]))
        )
    except _DAMAGED:
        sound = False
    if not sound:
        raise PersonaError(f"{path} is damaged: remove it, and all photos are looked at again")
    return stored


def write_table(path: Path, table: Faces) -> None:
    """Writes the faces with absolute paths, so that they are found again from everywhere."""
    where = {photo: os.path.abspath(photo) for photo in table.seen}  # noqa: PTH100 - links stay
    texts: dict[str, Sequence[str]] = {
        "model": [table.model],
        "made_by": [table.made_by],
        "photo": [where[face.photo] for face in table.faces],
        "flaw": [face.flaw or "" for face in table.faces],
        "seen": list(where.values()),
        "stamp": list(table.seen.values()),
    }
    with replacing(path, PRIVATE) as file:
        np.savez(
            file,
            allow_pickle=False,
            embedding=table.stacked(),
            box=np.array([face.box for face in table.faces], np.float32).reshape(-1, 4),
            thumbnail=np.frombuffer(b"".join(table.thumbnails), np.uint8),
            start=np.cumsum([0, *map(len, table.thumbnails)]),
            # One text of all takes less than an array whose rows are as long as the longest path.
            **{name: _bytes_of(lines) for name, lines in texts.items()},
        )


def _bytes_of(lines: Sequence[str]) -> npt.NDArray[np.uint8]:
    text = "".join(f"{line}\0" for line in lines)
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)


def stamp_of(path: Path) -> str:
    """Size and time of a file, or nothing where there is none."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def rows_of(groups: Groups) -> bytes:
    """The groups as CSV."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for number, places in groups.members().items():
        for place in places:
            face = groups.faces.faces[place]
            original = groups.duplicates.get(face.photo)
            writer.writerow(
                (
                    *(number, groups.names.get(number, "")),
                    os.path.abspath(face.photo),  # noqa: PTH100
                    *(f"{value:.1f}" for value in face.box),
                    face.flaw or "",
                    os.path.abspath(original[0]) if original else "",  # noqa: PTH100
                    "" if groups.given[place] else number,
                )
            )
    return file.getvalue().encode("utf-8", "surrogateescape")


def write_rows(folder: Path, groups: Groups) -> None:
    """Writes the CSV of a folder of groups."""
    write_atomically(folder / ROWS, rows_of(groups), PRIVATE)


def read_rows(path: Path) -> Given:
    """Reads the groups of a CSV, which its user may have changed.

    A name in one row names the whole group. Where the rows of a group have several names, each
    name takes its rows, and the others keep the number. Groups of one name are one group.

    Raises:
        PersonaError: the file is no such CSV, or holds a number or a name that cannot be used.
    """
    kept: list[tuple[Key, int, str, int]] = []
    copies = {}
    if not path.exists():
        return Given()
    try:
        with open_list(path, "a CSV of groups", newline="", errors="surrogateescape") as file:
            lines = bounded_lines(file, path)
            head = next(lines, "")
            separator = separator_of(head)
            columns = next(csv.reader([head], delimiter=separator), [])
            if missing := [name for name in COLUMNS if name not in columns]:
                raise PersonaError(
                    f"{path} has no column {missing[0]!r}: restore it, or remove it and group anew"
                )
            reader = csv.DictReader(lines, columns, delimiter=separator)
            for row in reader:
                kept.append(_read_row(row, f"{path} line {reader.line_num + 1}"))
                if row["duplicate_of"]:
                    copies[row["photo"]] = row["duplicate_of"]
    except csv.Error as error:
        raise PersonaError(f"{path} cannot be read as CSV: {error}") from None
    result = _given(kept)
    result.copies = copies
    return result


def _read_row(row: dict[str, str], where: str) -> tuple[Key, int, str, int]:
    number, found = whole_number(row["group"] or ""), whole_number(row["found"] or "0")
    if not number or found is None:
        raise PersonaError(f"{where}: group {row['group']!r} is no number from 1")
    try:
        box = [float((row[side] or "").replace(",", ".")) for side in ("x0", "y0", "x1", "y1")]
        name = row["name"] or ""
        key = _key(row["photo"] or "", box)
        return key, number, check_name(name) if name.strip() else "", found
    except (PersonaError, ValueError) as error:
        raise PersonaError(f"{where}: {error}") from None


def _given(rows: Sequence[tuple[Key, int, str, int]]) -> Given:
    said: dict[int, list[str]] = defaultdict(list)
    for _, number, name, _ in rows:
        if name and name not in said[number]:
            said[number].append(name)
    alone = [(number, names[0]) for number, names in said.items() if len(names) == 1]
    named = {name: number for number, name in sorted(alone, reverse=True)}
    following = max((max(number, found) for _, number, _, found in rows), default=0) + 1
    for name in dict.fromkeys(name for names in said.values() for name in names):
        if name not in named:
            named[name] = following
            following += 1
    result = Given(names={number: name for name, number in named.items()})
    changed = set(result.names)
    for key, number, own, found in rows:
        name = own if len(said[number]) != 1 else said[number][0]
        now = named[name] if name else number
        result.number[key] = now
        if now != found:
            changed |= {now, found}
    result.given = {key for key, number in result.number.items() if number in changed}
    return result
