"""The groups of `persona group --out DIR` on the page: shown, named, merged, split and enrolled.

    GET  /api/groups?first=N&count=N&named=B     groups, the largest first, with small pictures
    POST /api/groups/name    group, name         names a group; a blank takes its name away
    POST /api/groups/merge   group, into         moves all faces of a group into another one
    POST /api/groups/split   group, faces        moves some faces of a group into a new one
    POST /api/groups/enroll  group, force        enrols the faces of a named group

A change is written to the folder's CSV before it is answered. Only one process at a time works on
a folder, but its user may edit the CSV meanwhile: it is then read again, and a change that was
chosen before is refused.
"""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from persona.errors import PersonaError
from persona.files import PRIVATE, folder_lock, whole_number, write_atomically
from persona.gallery import Enrolled, Gallery
from persona.gallery.grouped import (
    PAGE,
    ROWS,
    Faces,
    Groups,
    as_said,
    enroll_group,
    maker,
    read_groups,
    read_rows,
    stamp_of,
    write_rows,
)
from persona.gallery.grouped_page import page_of
from persona.serve.gate import Claim
from persona.serve.uploads import Form

MOST_SHOWN = 50
"""Largest number of groups in one answer."""
MOST_FACES = 200
"""Largest number of faces of a group in an answer: 0.5 MB."""


class GroupedFaceRow(BaseModel):
    """A face of a group."""

    face: int
    """Its number, for `faces` of a split."""
    photo: str
    """Name of the photo's file."""
    flaw: str | None
    copy_of: str | None
    """Name of the file of which the photo is nearly a copy."""
    picture: str
    """Small JPEG in base64."""


class GroupRow(BaseModel):
    """A group."""

    group: int
    name: str | None
    size: int
    """Number of faces, of which the first ones are listed."""
    faces: list[GroupedFaceRow]


class GroupsAnswer(BaseModel):
    """Some of the groups."""

    total: int
    """Number of all groups."""
    groups: list[GroupRow]


class ChangedGroup(BaseModel):
    """The group that now has the faces."""

    group: int


@dataclass
class OpenGroups:
    """The groups of a folder while they are served."""

    folder: Path
    groups: Groups
    stamp: str
    """Size and time of the CSV that the groups are those of."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def shown(self, first: int, count: int, *, named: bool = False) -> GroupsAnswer:
        """Lists some groups, the largest first; `named` lists those with a name alone."""
        with self.lock:
            self._read_edited()
            names = self.groups.names
            members = [one for one in self.groups.members().items() if not named or one[0] in names]
            chosen = members[max(0, first) :][: min(max(0, count), MOST_SHOWN)]
            rows = [
                GroupRow(
                    group=number,
                    name=names.get(number),
                    size=len(places),
                    faces=[self._face(place) for place in places[:MOST_FACES]],
                )
                for number, places in chosen
            ]
            return GroupsAnswer(total=len(members), groups=rows)

    def _face(self, place: int) -> GroupedFaceRow:
        face = self.groups.faces.faces[place]
        original = self.groups.duplicates.get(face.photo)
        return GroupedFaceRow(
            face=place,
            photo=Path(face.photo).name,
            flaw=face.flaw,
            copy_of=None if original is None else Path(original[0]).name,
            picture=base64.b64encode(self.groups.faces.thumbnails[place]).decode(),
        )

    def name(self, form: Form, claim: Claim) -> ChangedGroup:
        """Names the group of a form."""
        number = _number(form, "group")
        name = form.fields.get("name", "")
        return self._change(claim, lambda groups: groups.name(number, name))

    def merge(self, form: Form, claim: Claim) -> ChangedGroup:
        """Merges the group of a form into another one."""
        number, into = _number(form, "group"), _number(form, "into")
        return self._change(claim, lambda groups: groups.merge(number, into))

    def split(self, form: Form, claim: Claim) -> ChangedGroup:
        """Splits the group of a form."""
        number = _number(form, "group")
        places = [whole_number(text.strip()) for text in form.fields.get("faces", "").split(",")]
        chosen = [place for place in places if place is not None]
        if len(chosen) < len(places):
            raise PersonaError("faces are numbers with commas between them: send them so")
        return self._change(claim, lambda groups: groups.split(number, chosen))

    def _change(self, claim: Claim, change: Callable[[Groups], int]) -> ChangedGroup:
        """Changes a copy of the groups, writes it, and keeps it: all of a change or nothing."""
        with self.lock:
            self._check_unedited()
            old = self.groups
            changed = Groups(
                old.faces,
                *(old.numbers.copy(), old.given.copy(), dict(old.names)),
                threshold=old.threshold,
                duplicates=old.duplicates,
            )
            number = change(changed)
            claim()
            write_rows(self.folder, changed)
            self.groups, self.stamp = changed, stamp_of(self.folder / ROWS)
            return ChangedGroup(group=number)

    def _read_edited(self) -> bool:
        """Reads the CSV again if its user changed it, and returns whether that is so."""
        stamp = stamp_of(self.folder / ROWS)
        if stamp in {"", self.stamp}:  # one that was removed is written again by the next change
            return False
        path = self.folder / ROWS
        try:
            said = read_rows(path)
        except PersonaError as error:  # clients need not know the folder
            raise PersonaError(str(error).replace(str(path), ROWS)) from None
        self.groups, self.stamp = as_said(self.groups.faces, said), stamp
        return True

    def _check_unedited(self) -> None:
        if self._read_edited():
            raise PersonaError(f"{ROWS} was edited meanwhile: look at the groups again")

    def enroll(self, gallery: Gallery, form: Form, claim: Claim, *, force: bool) -> Enrolled:
        """Enrols the group of a form."""
        number = _number(form, "group")
        with self.lock:
            self._check_unedited()
            groups = self.groups
        return enroll_group(gallery, groups, number, force=force, claim=claim)


@contextlib.contextmanager
def open_groups(folder: Path, gallery: Gallery) -> Iterator[OpenGroups]:
    """Opens a folder of groups for this process alone. At the end its page is written anew.

    Raises:
        PersonaError: the folder holds no groups, another process works on it, or its faces were
            embedded by another network than the gallery's.
    """
    if not folder.is_dir():
        raise PersonaError(
            f"no folder of groups at {folder}: `persona group PHOTOS --out DIR` makes it"
        )
    with folder_lock(folder, doing="working on the groups in"):
        eyes = gallery.eyes
        made_by = maker(eyes.named.digest, eyes.align, eyes.min_face)
        empty = Faces(made_by, eyes.named.name, eyes.network.embedding_size)
        stamp = stamp_of(folder / ROWS)  # before it is read: an edit meanwhile is seen later
        opened = OpenGroups(folder, read_groups(folder, empty), stamp)
        try:
            yield opened
        finally:
            write_atomically(folder / PAGE, page_of(opened.groups), PRIVATE)


def _number(form: Form, field_name: str) -> int:
    number = whole_number(form.fields.get(field_name, ""))
    if number is None:
        raise PersonaError(f"no number {field_name} in the form: send one")
    return number
