"""Reads photos from tars: webdataset's (`000.jpg`, `000.cls`) and plain (`<identity>/<photo>.jpg`).

1. walk: consecutive members with the same key are a sample. As in webdataset, a key ends at the
   first dot of the base name (`000.face.jpg` and `000.cls` both have the key `000`)
2. join: a photo's identity comes from a label of its sample, otherwise from the folder in its name
3. look back: labels without a photo, and texts that are no names, stop the run. Otherwise folders
   or captions would become identities
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from persona.data.raw.base import (
    MAX_NAME,
    MAX_PHOTO_BYTES,
    UNLABELLED,
    Photo,
    RandomReader,
    RawDataset,
    identity_name,
    is_litter,
)
from persona.data.tars import TarError, iter_members
from persona.errors import PersonaError, SkipPhoto
from persona.names import hidden
from persona.pictures import IMAGE_SUFFIXES

LABEL_SUFFIXES = ("cls", "label", "json", "txt")
"""Suffixes of labels. The first one that gives an identity counts."""
PURE_LABELS = frozenset({"cls", "label"})
"""Suffixes that can only be labels. A `json` or `txt` may also be a readme."""
JSON_FIELDS = ("identity", "class", "label", "cls")
TELLING = ("ident", "class", "label", "cls", "person", "people", "subject", "target", "pid")
"""Words in the names of JSON fields that may give an identity, besides `JSON_FIELDS`."""
MAX_LABEL_BYTES = 1 << 20
MAX_NAME_WORDS = 6
"""Largest number of words in a name. A longer text is a caption."""
FEW = 3
"""Smallest number of members on which a decision is based."""
MOST = 0.8
"""If the fraction of distinct texts is at least this large, they are captions."""
HALF = 0.5
"""If members that may be labels are at least this fraction of the photos, they count as labels."""
READ_AHEAD = 1 << 14
"""Bytes per read of the headers. Photos are large, so a longer read would mostly be wasted."""
FOLDERS = b"5g"
"""Types of members that are skipped: folders, and pax headers that hold for all members."""


class _Member(NamedTuple):
    """A file in a tar."""

    name: str
    part: str
    """The part of the name between key and suffix: `face` in `000.face.jpg`."""
    suffix: str
    offset: int
    size: int


@dataclass
class _Sample:
    """Consecutive members with the same key."""

    key: str = ""
    photos: list[_Member] = field(default_factory=list)
    labels: dict[str, dict[str, _Member]] = field(default_factory=dict)
    """Labels by part, then by suffix."""
    others: list[_Member] = field(default_factory=list)


@dataclass
class _Count:
    """Counts members of one sort over all tars, and keeps the first one's name."""

    number: int = 0
    first: str = ""

    def add(self, where: str) -> None:
        """Counts one member."""
        self.number += 1
        self.first = self.first or where

    def __str__(self) -> str:
        more = f" and {self.number - 1} more" if self.number > 1 else ""
        return f"{self.first}{more}"


@dataclass
class _Joined:
    """Statistics of how photos got their identities."""

    by_folder: int = 0
    texts: Counter[str] = field(default_factory=Counter)
    """How often each text of a `txt` label gave an identity."""
    lone_labels: list[str] = field(default_factory=list)
    """Labels in `PURE_LABELS` without a photo."""
    lone_texts: _Count = field(default_factory=_Count)
    """Other labels without a photo."""
    unread: _Count = field(default_factory=_Count)
    """Members that may be labels, beside photos whose identity comes from their folder."""


class Tars(RawDataset):
    """All tars of a folder, read at random without unpacking.

    If a sample has several photos, each gets the label with the same part (`000.left.cls` for
    `000.left.jpg`), otherwise the sample's own label.
    """

    kind = "tars"
    layout = (
        "a folder of .tar files (or one) with <identity>/<photo>.jpg, or with <key>.jpg and "
        "<key>.cls, .label, .json or .txt"
    )

    def __init__(self, root: Path, split: str | None = None, *, scan_workers: int = 8) -> None:
        super().__init__(root, split, scan_workers=scan_workers)
        self._read = RandomReader()

    @property
    def _folder(self) -> Path:
        return self.root if self.root.is_dir() else self.root.parent

    def iter_photos(self) -> Iterator[Photo]:
        """Yields the photos of every tar. Members of other kinds are skipped.

        Raises:
            PersonaError: If a tar is damaged, cut short or compressed, holds links or names that
                point outside it, a photo has no identity, or the labels are ambiguous.
        """
        names: dict[str, str] = {}
        joined = _Joined()
        for path in self._tars():
            by_label, by_folder = _Count(), _Count()
            try:
                with path.open("rb") as stream:
                    for sample in self._samples(path, stream):
                        if not sample.photos and not self.unlabelled:
                            self._count_lone(path, sample, joined)
                            continue
                        if self.unlabelled:
                            for member in sample.photos:
                                source = self._source(path, member)
                                yield Photo(source, UNLABELLED, member.offset)
                            continue
                        for photo, labelled in self._join(path, sample, joined):
                            (by_label if labelled else by_folder).add(photo.source)
                            name = names.setdefault(photo.identity, photo.identity)
                            yield Photo(photo.source, name, photo.offset)
            except TarError as error:
                raise PersonaError(
                    f"{path} is no whole, uncompressed tar of plain files ({error}): restore it, "
                    "or pack it anew"
                ) from None
            if by_label.number and by_folder.number:
                raise PersonaError(
                    f"{path}: {by_label.number:,} photos have a label, {by_folder} have none, and "
                    "would be named by their folders: label them, or take them out"
                )
            joined.by_folder += by_folder.number
        self._look_back(joined)
        differing, texts = len(joined.texts), joined.texts.total()
        if differing >= max(FEW, MOST * texts):
            raise _captions(self.root, f"{differing:,} of its {texts:,} .txt differ")

    def _tars(self) -> list[Path]:
        if not self.root.is_dir():
            return [self.root]
        found = (path for path in self.root.rglob("*.tar") if path.is_file())  # a pipe never ends
        return sorted(p for p in found if not any(map(is_litter, p.relative_to(self.root).parts)))

    def _samples(self, path: Path, stream: BinaryIO) -> Iterator[_Sample]:
        sample = _Sample()
        for encoded, offset, size in iter_members(stream, FOLDERS, READ_AHEAD):
            try:
                text = encoded.decode()
            except UnicodeDecodeError:
                raise TarError("a name that is not UTF-8") from None
            name = PurePosixPath(text)
            if name.is_absolute() or ".." in name.parts or min(text, default=" ") < " ":
                raise PersonaError(f"{path}: {text[:80]!r} leaves the tar: pack it anew")
            if not name.name or any(map(is_litter, name.parts)):
                continue
            base, _, extension = name.name.partition(".")
            key = str(name.with_name(base))
            if key != sample.key:
                yield sample
                sample = _Sample(key)
            part, _, suffix = extension.lower().rpartition(".")
            member = _Member(str(name), part, suffix, offset, size)
            if f".{suffix}" in IMAGE_SUFFIXES:
                sample.photos.append(member)
            elif suffix in LABEL_SUFFIXES:
                sample.labels.setdefault(part, {})[suffix] = member
            else:
                sample.others.append(member)
        yield sample

    def _join(self, path: Path, sample: _Sample, joined: _Joined) -> Iterator[tuple[Photo, bool]]:
        """Yields a sample's photos with their identities, and whether each has a label."""
        unread: list[_Member] = []
        said = {part: self._said(path, own, joined, unread) for part, own in sample.labels.items()}
        parts = {photo.part for photo in sample.photos}
        of_all = {name for part, name in said.items() if name and part not in parts}
        by_folder = 0
        for photo in sample.photos:
            identity = said.get(photo.part) or said.get("")
            if not identity and of_all:
                if len(of_all) > 1:
                    raise PersonaError(
                        f"{path}: {photo.name} has labels that differ: keep one of them, as "
                        f"{sample.key}.cls"
                    )
                (identity,) = of_all
            labelled = bool(identity)
            if not identity:
                by_folder += 1
                identity = PurePosixPath(photo.name).parent.name
            if not identity:
                raise PersonaError(
                    f"{path}: {photo.name} has no identity: expected a {sample.key}.cls, .label, "
                    f".json (with one of {', '.join(JSON_FIELDS)}) or .txt right before or after "
                    "it, or <identity>/<photo>.jpg; --unlabelled packs photos without identities"
                )
            source = self._source(path, photo)
            yield Photo(source=source, identity=identity, offset=photo.offset), labelled
        if by_folder:
            unread += (other for other in sample.others if self._may_name(path, other))
            for member in unread[:by_folder]:
                joined.unread.add(self._source(path, member))

    def _source(self, path: Path, member: _Member) -> str:
        return f"{path.relative_to(self._folder).as_posix()}/{member.name}"

    def _count_lone(self, path: Path, sample: _Sample, joined: _Joined) -> None:
        """Counts the labels of a sample without a photo."""
        for member in sample.others:
            if self._may_name(path, member):
                joined.lone_texts.add(self._source(path, member))
        if any(member.size > MAX_NAME for member in sample.others):
            return  # the sample may hold a picture of an unsupported kind
        for label in (label for own in sample.labels.values() for label in own.values()):
            if label.suffix in PURE_LABELS:
                joined.lone_labels.append(self._source(path, label))
            else:
                joined.lone_texts.add(self._source(path, label))

    def _look_back(self, joined: _Joined) -> None:
        """Counts labels without a photo as missing photos, if all other photos have a label.

        Raises:
            PersonaError: If photos got their identities from folders although there are labels.
        """
        named = joined.by_folder
        if not named:
            self.missing += joined.lone_labels
            return
        folders = "and photos would be named by their folders"
        lone = joined.lone_texts
        if joined.lone_labels:
            lone = _Count(len(joined.lone_labels), joined.lone_labels[0])
        if joined.lone_labels or lone.number >= max(FEW, HALF * named):
            raise PersonaError(
                f"{self.root}: {lone} match no photo, {folders}: a photo and its label follow one "
                "another and share their name up to its first dot, as 000.jpg and 000.cls"
            )
        if joined.unread.number >= max(FEW, HALF * named):
            raise PersonaError(
                f"{self.root}: {joined.unread} may say who is in the photos beside them, "
                f"{folders}: call them .cls (in a .json, call the field {JSON_FIELDS[0]}), or take "
                "them out"
            )

    def _said(
        self, path: Path, labels: dict[str, _Member], joined: _Joined, unread: list[_Member]
    ) -> str | None:
        """The identity in the labels of one photo. None if there is none.

        A JSON that may give an identity in another field is added to `unread`.
        """
        for suffix in LABEL_SUFFIXES:
            member = labels.get(suffix)
            if member is None:
                continue
            value = self._value(path, member, unread)
            if value is None:
                continue
            where = f"{path}: {member.name}"
            if suffix != "txt":
                return identity_name(value, where)
            if not _reads_like_name(value):
                raise _captions(path, f"{member.name} is no name")
            identity = identity_name(value, where)
            joined.texts[identity] += 1
            return identity
        return None

    def _value(self, path: Path, member: _Member, unread: list[_Member]) -> Any:
        """The value of a label. None if it is a JSON without an identity."""
        if member.size > MAX_LABEL_BYTES:
            raise PersonaError(f"{path}: {member.name} has {member.size:,} bytes, too many")
        try:
            text = self._read(path, member.offset, member.size).decode().strip()
            if member.suffix != "json":
                return text
            fields = json.loads(text)
        except (ValueError, RecursionError):
            raise PersonaError(f"{path}: {member.name} is no {member.suffix} text") from None
        known = fields if isinstance(fields, dict) else {}
        there = [known[name] for name in JSON_FIELDS if name in known]
        found = next((value for value in there if value is not None), None)
        if there and found is None:
            raise PersonaError(f"{path}: {member.name} names null: expected an identity")
        if found is None and any(word in name.lower() for name in known for word in TELLING):
            unread.append(member)
        return found

    def _may_name(self, path: Path, member: _Member) -> bool:
        """Whether a member that is no label could be a label with another suffix."""
        if not 0 < member.size <= MAX_NAME:
            return False
        try:
            text = self._read(path, member.offset, member.size).decode().strip()
        except UnicodeDecodeError:
            return False
        return hidden(text) is None and _reads_like_name(text)

    def read(self, photo: Photo) -> bytes:
        """Reads the photo's file from its tar. The member's header lies right before it."""
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


def _reads_like_name(text: str) -> bool:
    """Whether a text may be a name: a few words or one number, but not a list of numbers."""
    words = text.split(maxsplit=MAX_NAME_WORDS)
    numbers = all(word.strip("-+.,;").replace(".", "", 1).isdecimal() for word in words)
    return 0 < len(words) <= MAX_NAME_WORDS and (len(words) == 1 or not numbers)


def _captions(where: Path, what: str) -> PersonaError:
    """The error for texts that are no names."""
    return PersonaError(
        f"{where}: {what}: its .txt read as captions, which would become people: if they do name "
        "people, call them .cls; else take them out, or add a .cls that does"
    )
