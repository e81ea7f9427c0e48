"""Enrolling and recognising people: `persona.open_gallery`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, cast

from persona.api.model import Model
from persona.api.photos import PhotoLike, look
from persona.errors import PersonaError, SkipPhoto
from persona.gallery.people import DoubtError, Enrolled, Gallery, Sighting, gallery_of
from persona.gallery.store import Person, Threshold
from persona.gallery.unknown_faces import file_of, open_kept
from persona.workspace import Workspace, user_path

if TYPE_CHECKING:
    from persona.gallery.audit import Audit
    from persona.gallery.importing import Imported, PeopleSource
    from persona.gallery.photos import LookedAt


class People:
    """An open gallery. Use it in a `with` block, or call `close`.

    Example:
        with persona.open_gallery("gallery.db", model, threshold=0.4) as people:
            people.enroll("Ada", ["ada-1.jpg", "ada-2.jpg"])
            print([person.name for person in people.list()])
    """

    def __init__(self, gallery: Gallery, workspace: Workspace | None = None) -> None:
        self._gallery = gallery
        self._workspace = workspace or Workspace.locate()

    @property
    def threshold(self) -> float:
        """Lowest cosine similarity at which a face counts as an enrolled person."""
        return self._gallery.threshold

    def enroll(
        self, name: str, photos: PhotoLike | Sequence[PhotoLike], *, force: bool = False
    ) -> Enrolled:
        """Adds photos of a person, who may be new or enrolled already.

        Args:
            name: the person's name, 1 to 200 characters.
            photos: one photo or several, each showing one face.
            force: whether to enrol photos that look like two people, or like another person who
                is enrolled.

        Returns:
            How many photos were `added` and how many were there `already`, and those that were
            `refused`, each with its reason. `looks_like` names another person of such a face.

        Raises:
            PersonaError: no photo can be used, the photos look like two people or like somebody
                else who is enrolled, or the name cannot be used.

        Example:
            done = people.enroll("Ada", ["ada-1.jpg", "ada-2.jpg"])
            print(done.added, done.refused)
        """
        several = list(photos) if isinstance(photos, list | tuple) else [cast(PhotoLike, photos)]
        accept = (DoubtError,) if force else ()
        return self._gallery.enroll(name, _readable(several), accept=accept)

    def recognise(self, photo: PhotoLike) -> tuple[Sighting, ...]:
        """Recognises every face of a photo, from left to right; an unknown face has no name.

        Raises:
            PersonaError: the photo cannot be read.

        Example:
            for face in people.recognise("party.jpg"):
                print(face.box, face.name or "unknown", face.score)
        """
        looked = look(photo)
        found = self._gallery.recognise(looked.pixels, shrink=looked.shrink)
        return tuple(replace(face, box=looked.whole(face.box)) for face in found)

    def rename(self, name: str, to: str) -> None:
        """Gives a person another name.

        Raises:
            PersonaError: nobody has the name, somebody has the new one, or it cannot be used.

        Example:
            people.rename("Ada", "Ada Lovelace")
        """
        self._gallery.rename(name, to)

    def merge(self, name: str, into: str, *, force: bool = False) -> int:
        """Makes two people one, and returns how many photos were moved.

        Args:
            name: name of the person who is removed.
            into: name of the person who gets the photos.
            force: whether to merge two people who do not look alike.

        Raises:
            PersonaError: one of them is not enrolled, or they do not look alike.

        Example:
            moved = people.merge("A. Lovelace", into="Ada Lovelace")
        """
        return self._gallery.merge(name, into, force=force).photos

    def forget(self, name: str) -> int:
        """Removes a person from the gallery for good, and returns how many photos were removed.

        Unknown faces that `persona serve --keep-unknown` keeps, and that look like the person, are
        deleted, too.

        Raises:
            PersonaError: nobody of that name is enrolled.

        Example:
            removed = people.forget("Ada Lovelace")
        """
        return self._gallery.forget(name)

    def import_list(self, file: str | Path, *, force: bool = False, workers: int = 0) -> Imported:
        """Enrols everybody of a list of names and photos, as `persona gallery import` does.

        Interrupted and called again, it continues.

        Args:
            file: a .csv or .parquet file with the columns `name` and `photo`. Paths are relative to
                the file, or absolute.
            force: whether to enrol photos that look like two people, or a new name that looks like
                somebody who is enrolled.
            workers: number of processes. 0 works in this process, which a network of one's own
                (`persona.wrap`) needs.

        Returns:
            Number of `people` who are enrolled and of photos that were `added`; the `refused` rows
            and the `failed` people, each with the reason. Nothing is raised for these.

        Raises:
            PersonaError: the list cannot be read, or the gallery cannot be written.

        Example:
            with persona.open_gallery("gallery.db", model, threshold=0.4) as people:
                done = people.import_list("people.csv")
                print(done.people, [(one.row, one.reason) for one in done.refused])
        """
        from persona.gallery.import_list import SUFFIXES, read_list

        path, place = user_path(str(file)), self._workspace
        if path.suffix.lower() not in SUFFIXES:
            raise PersonaError(f"{path} is no list: give a .csv or .parquet file")
        if workers < 0:
            raise PersonaError(f"{workers} workers: choose 0 or more")
        return self._import(read_list(path, place.models, workers), force=force)

    def import_server(self, url: str, *, token: str | None = None, force: bool = False) -> Imported:
        """Enrols everybody of another gallery, as `persona gallery import URL` does.

        Interrupted and called again, it continues. With the same network, templates are taken as
        they are. With another one, the faces that are kept there are embedded anew.

        Args:
            url: address of a `persona serve --share-templates`. Beyond this machine it must be
                https.
            token: the server's token.
            force: as for `import_list`.

        Returns:
            As `import_list`.

        Raises:
            PersonaError: the server is not reached, refuses or answers nonsense, its faces do not
                fit the network, or the gallery cannot be written.

        Example:
            with persona.open_gallery("gallery.db", model, threshold=0.4) as people:
                done = people.import_server("https://faces.example.org", token=token)
        """
        from persona.gallery.import_server import read_server

        return self._import(read_server(url, token), force=force)

    def _import(self, source: PeopleSource, *, force: bool) -> Imported:
        from persona.gallery.importing import import_from, open_journal

        with open_journal(self._workspace.gallery.parent, self._gallery, source) as journal:
            return import_from(source, self._gallery, journal, force=force)

    def audit(self) -> Audit:
        """Looks for people and photos that should be looked at, as `persona gallery audit` does.

        Returns:
            People who look `alike`, photos `far` from the others of their person, and people whose
            only photo is `poor`. Nothing is changed.

        Raises:
            PersonaError: nobody is enrolled.

        Example:
            with persona.open_gallery("gallery.db", model, threshold=0.4) as people:
                for pair in people.audit().alike:
                    print(pair.a, pair.b, pair.similarity)
        """
        from persona.gallery.audit import audit_gallery

        return audit_gallery(self._gallery.store, self._gallery.calibration)

    def list(self) -> list[Person]:
        """Everybody who is enrolled, sorted by name."""
        return self._gallery.people()

    def close(self) -> None:
        """Closes the gallery's file."""
        self._gallery.close()

    def __enter__(self) -> People:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _readable(photos: Sequence[PhotoLike]) -> Iterator[LookedAt | SkipPhoto]:
    for photo in photos:
        try:
            yield look(photo)
        except PersonaError as error:
            yield SkipPhoto(str(error))


def open_gallery(
    place: str | Path,
    model: Model,
    *,
    threshold: float | None = None,
    keep_crops: bool | None = None,
) -> People:
    """Opens a gallery, or creates it where there is none.

    Args:
        place: a file, or a `postgresql://` URL.
        model: the network that embeds the faces. A gallery belongs to one network, and aligns faces
            as it did when it was new.
        threshold: lowest cosine similarity at which a face counts as an enrolled person. None
            means the gallery's own threshold, or the model's where the gallery has none.
        keep_crops: whether to store the aligned crops too, from which another network can make
            its embeddings later. None means as the gallery's user answered when it was new, or
            not.

    Raises:
        PersonaError: the gallery belongs to another network, or there is no threshold.

    Example:
        with persona.open_gallery("gallery.db", model, threshold=0.4) as people:
            people.enroll("Ada", ["ada-1.jpg", "ada-2.jpg"])
            print(people.recognise("party.jpg"))
    """
    if threshold is not None and not -1 <= threshold <= 1:
        raise PersonaError(f"threshold {threshold:g}: choose -1 to 1, it is a cosine")
    chosen = model.threshold if threshold is None else Threshold(threshold, "given by the caller")
    gallery = gallery_of(place, model.sight, chosen, model.workspace, keep_crops=keep_crops)
    try:
        if threshold is not None and chosen is not None:
            gallery.calibration, gallery.follows = chosen, False
        gallery.unknown = open_kept(file_of(place, model.workspace.gallery))
    except BaseException:
        gallery.close()
        raise
    return People(gallery, model.workspace)
