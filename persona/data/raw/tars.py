"""Tars of photos: webdataset's (`000.jpg`, `000.cls`) and plain ones (`<identity>/<photo>.jpg`).

1. walk: members that follow one another and share their key are a sample; as in webdataset, a key
   ends at the first dot of the base name (`000.face.jpg` and `000.cls` are both of `000`)
2. join: a photo's identity is what a label of its sample says, else the folder part of its name
3. look back: labels that met no photo, and texts that are no names, stop the run, because folders
   or captions would have been taken for people
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
"""The first that names an identity counts."""
PURE_LABELS = frozenset({"cls", "label"})
"""Those that are nothing but labels; a `json` or `txt` may also be a readme."""
JSON_FIELDS = ("identity", "class", "label", "cls")
TELLING = ("ident", "class", "label", "cls", "person", "people", "subject", "target", "pid")
"""A JSON field that holds one of these, and is none of `JSON_FIELDS`, may name an identity too."""
MAX_LABEL_BYTES = 1 << 20
MAX_NAME_WORDS = 6
"""A text of more is a caption."""
FEW = 3
"""Of fewer, nothing can be said."""
MOST = 0.8
"""From this share of photos on, a text for each is a caption."""
HALF = 0.5
"""From this share of photos on, members that may be labels are."""
READ_AHEAD = 1 << 14
"""Photos are large: more would be read for nothing while the headers are walked."""
FOLDERS = b"5g"
"""Kinds of members that are passed over, with pax headers that hold for all."""


class _Member(NamedTuple):
    """A file of a tar."""

    name: str
    part: str
    """What stands between the key and the suffix: `face` of `000.face.jpg`."""
    suffix: str
    offset: int
    size: int


@dataclass
class _Sample:
    """Members that follow one another and share their key."""

    key: str = ""
    photos: list[_Member] = field(default_factory=list)
    labels: dict[str, dict[str, _Member]] = field(default_factory=dict)
    """By their part and suffix."""
    others: list[_Member] = field(default_factory=list)


@dataclass
class _Count:
    """Members of one sort, over all tars."""

    number: int = 0
    first: str = ""

    def add(self, where: str) -> None:
        """Counts one."""
        self.number += 1
        self.first = self.first or where

    def __str__(self) -> str:
        more = f" and {self.number - 1} more" if self.number > 1 else ""
        return f"{self.first}{more}"


@dataclass
class _Joined:
    """How photos came to their identities."""

    by_folder: int = 0
    texts: Counter[str] = field(default_factory=Counter)
    """What each `txt` said that named a photo."""
    lone_labels: list[str] = field(default_factory=list)
    """`PURE_LABELS` beside no photo."""
    lone_texts: _Count = field(default_factory=_Count)
    """Other labels beside no photo."""
    unread: _Count = field(default_factory=_Count)
    """Members beside photos that are named by their folder, and may themselves name somebody."""


class Tars(RawDataset):
    """Every tar of a folder, read at random where it lies.

    Where a sample has several photos, each is named by the label that shares its part, such as
    `000.left.jpg` by `000.left.cls`, else by the sample's own.
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
        """Yields the photos of every tar; members of other kinds are passed over.

        Raises:
            PersonaError: a tar is damaged, cut short or compressed, holds links or names that
                leave it, a photo has no identity, or it is not clear what its labels are.
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
        found = (path for path in self.root.rglob("*.tar") if path.is_file())  # no pipe
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
        """The photos of a sample with their identities, and whether a label named each."""
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
            return  # what is labelled may be a picture of a kind that is not read here
        for label in (label for own in sample.labels.values() for label in own.values()):
            if label.suffix in PURE_LABELS:
                joined.lone_labels.append(self._source(path, label))
            else:
                joined.lone_texts.add(self._source(path, label))

    def _look_back(self, joined: _Joined) -> None:
        """Takes labels without a photo for photos that are not there, where all others have one.

        Raises:
            PersonaError: photos were named by their folders, but there are labels too.
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
        """The identity that labels of one photo name; None: no JSON among them has one.

        `unread` gets a JSON that may name an identity in a field
        of another name.
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
        """What a label member says; None: it is a JSON that names nobody."""
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
        """Whether a member that is no label could be one under another suffix."""
        if not 0 < member.size <= MAX_NAME:
            return False
        try:
            text = self._read(path, member.offset, member.size).decode().strip()
        except UnicodeDecodeError:
            return False
        return hidden(text) is None and _reads_like_name(text)

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


def _reads_like_name(text: str) -> bool:
    """Whether a text may name an identity: a few words or a number, but no list of numbers."""
    words = text.split(maxsplit=MAX_NAME_WORDS)
    numbers = all(word.strip("-+.,;").replace(".", "", 1).isdecimal() for word in words)
    return 0 < len(words) <= MAX_NAME_WORDS and (len(words) == 1 or not numbers)


def _captions(where: Path, what: str) -> PersonaError:
    """The error for texts that are no names."""
    return PersonaError(
        f"{where}: {what}: its .txt read as captions, which would become people: if they do name "
        "people, call them .cls; else take them out, or add a .cls that does"
    )
