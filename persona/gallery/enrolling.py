"""Enrolling people from files: `persona enroll NAME PHOTO...`, or a folder of people's folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from persona.errors import PersonaError
from persona.gallery.people import DoubtError, Enrolled, Gallery
from persona.gallery.photos import folders_of, iter_photos, photos_of
from persona.gallery.store import check_name
from persona.names import command_line
from persona.pictures import READ_WORDS
from persona.progress import progress_bar

Ask = Callable[[DoubtError, str], bool]
"""Asks about a doubt on the photos of a name, and returns whether to enrol them all the same."""


def people_of(
    what: Sequence[str], told: Callable[[str], None] = lambda _line: None
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Reads a name and its photos, or a folder of people's folders.

    Args:
        what: a name followed by photos and folders of photos, or one folder that holds a folder of
            photos for each person.
        told: called with a note about each folder whose subfolders are left out.

    Returns:
        The photos by name, and, for a folder of folders, the reasons by folder for those whose
        name cannot be used.

    Raises:
        PersonaError: there are no photos, or it is not clear whom they show.
    """
    if len(what) == 1:
        folder = Path(what[0])
        folders = folders_of(folder) if folder.is_dir() else []
        if not folders:
            raise PersonaError(
                f"{what[0]!r}: give a name and photos (NAME PHOTO...), or a folder that holds a "
                "folder of photos for each person"
            )
        people: dict[str, list[Path]] = {}
        failed = {}
        for person in folders:
            try:
                # Two folders may give one name, which differ in Unicode's form or in blanks.
                people.setdefault(check_name(person.name), []).extend(photos_in(person, told))
            except PersonaError as error:
                failed[person.name] = str(error)
        return people, failed
    name, paths = check_name(what[0]), [Path(path) for path in what[1:]]
    if os.path.isfile(what[0]):  # noqa: PTH113 - a name may be too long for a path
        raise PersonaError(f"{what[0]!r} is a file: whose photo is it? Give a name first")
    photos = []
    for path in paths:
        if not path.exists():
            raise PersonaError(f"no photo or folder at {path}")
        found = photos_in(path, told) if path.is_dir() else [path]
        if not found:
            several = path.is_dir() and folders_of(path)
            each = f"`{command_line('enroll', path)}` enrols its folders as people"
            remedy = each if several else ""
            raise PersonaError(f"{path} holds no photos: {remedy or READ_WORDS}")
        photos += found
    return {name: photos}, {}


def photos_in(folder: Path, told: Callable[[str], None]) -> list[Path]:
    """The photos directly in a folder. `told` is called with a note if it has folders too."""
    found, below = photos_of(folder), len(folders_of(folder))
    if found and below:
        told(f"note: {folder} is looked into, {below} folder(s) in it are not")
    return found


def enroll_people(
    gallery: Gallery,
    people: dict[str, list[Path]],
    failed: dict[str, str],
    *,
    force: bool = False,
    ask: Ask | None = None,
) -> list[Enrolled]:
    """Enrols people.

    Args:
        gallery: the open gallery.
        people: the photos by name.
        failed: the reason by name. Those of people who are not enrolled are added to it.
        force: whether to enrol photos that raise doubts without asking.
        ask: asks the user about doubts. None means that nobody can be asked.

    Returns:
        The result for each person who is enrolled.

    Raises:
        PersonaError: the gallery cannot be written, or the only person is not enrolled.
    """
    gallery.store.check_writable()  # one error instead of the same one for every person
    if len(people) + len(failed) == 1:
        return [_enroll(gallery, *one, force=force, ask=ask) for one in people.items()]
    done = []
    doubtful = []
    total = sum(map(len, people.values()))
    with progress_bar("enrolling", total=total, unit="photos") as advance:
        for name, photos in people.items():
            labels = [path.name for path in photos]
            seen = iter_photos(photos, advance)
            try:
                done.append(gallery.enroll(name, seen, force=force, labels=labels))
            except PersonaError as error:
                failed[name] = str(error)
                if isinstance(error, DoubtError) and ask is not None:
                    doubtful.append(name)
    for name in doubtful:  # after the progress bar, so that nothing else writes on the terminal
        try:
            done.append(_enroll(gallery, name, people[name], force=force, ask=ask))
            del failed[name]
        except PersonaError as error:
            failed[name] = str(error)
    return done


def _enroll(
    gallery: Gallery, name: str, photos: list[Path], *, force: bool, ask: Ask | None
) -> Enrolled:
    """Enrols a person, and asks about one doubt after the other."""
    labels = [path.name for path in photos]
    accept: set[type[DoubtError]] = set()
    while True:
        try:
            with progress_bar("enrolling", total=len(photos), unit="photos") as advance:
                return gallery.enroll(
                    *(name, iter_photos(photos, advance)),
                    force=force,
                    accept=accept,
                    labels=labels,
                )
        except DoubtError as doubt:
            if ask is None:
                raise
            if not ask(doubt, name):
                raise PersonaError(f"{name!r} is not enrolled") from None
            accept.add(type(doubt))
