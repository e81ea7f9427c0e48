"""People who are enrolled, and recognising them: `persona.open_gallery`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import cast

from persona.api.model import Model
from persona.api.photos import PhotoLike, Pixels, to_pixels
from persona.errors import PersonaError, SkipPhoto
from persona.gallery.people import DoubtError, Enrolled, Gallery, Sighting, gallery_of
from persona.gallery.store import Person, Threshold


class People:
    """An open gallery. Use it in a `with` block, or call `close`."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery

    @property
    def threshold(self) -> float:
        """The similarity from which on a face is somebody."""
        return self._gallery.threshold

    def enroll(
        self, name: str, photos: PhotoLike | Sequence[PhotoLike], *, force: bool = False
    ) -> Enrolled:
        """Adds photos of somebody, new or known.

        Args:
            name: 1 to 200 characters.
            photos: one or several, each showing one face.
            force: also where the photos look like two people, or like somebody who is enrolled.

        Raises:
            PersonaError: no photo can be used, the photos look like two people or like somebody
                else who is enrolled, or the name cannot be used.
        """
        several = list(photos) if isinstance(photos, list | tuple) else [cast(PhotoLike, photos)]
        accept = (DoubtError,) if force else ()
        return self._gallery.enroll(name, _readable(several), accept=accept)

    def recognise(self, photo: PhotoLike) -> tuple[Sighting, ...]:
        """Who is in a photo: every face from the left, with a name or None.

        Raises:
            PersonaError: it is no photo.
        """
        return self._gallery.recognise(to_pixels(photo))

    def forget(self, name: str) -> int:
        """Removes somebody so that nothing is left; how many photos that were.

        Raises:
            PersonaError: there is nobody of that name.
        """
        return self._gallery.forget(name)

    def list(self) -> list[Person]:
        """Everybody, by name."""
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


def _readable(photos: Sequence[PhotoLike]) -> Iterator[Pixels | SkipPhoto]:
    for photo in photos:
        try:
            yield to_pixels(photo)
        except PersonaError as error:
            yield SkipPhoto(str(error))


def open_gallery(
    place: str | Path, model: Model, *, threshold: float | None = None, keep_crops: bool = False
) -> People:
    """Opens a gallery, or makes it where there is none.

    Args:
        place: a file, or `postgresql://…`.
        model: the network that knows the people; a gallery belongs to one network.
        threshold: the similarity from which on a face is somebody; None: the gallery's own, else
            the model's.
        keep_crops: keep the aligned faces too, so that another network can be put in later.

    Raises:
        PersonaError: it is another network's gallery, or there is no threshold.

    Example:
        with persona.open_gallery("gallery.db", model, threshold=0.4) as people:
            people.enroll("Ada", ["ada-1.jpg", "ada-2.jpg"])
            print(people.recognise("party.jpg"))
    """
    if threshold is not None and not -1 <= threshold <= 1:
        raise PersonaError(f"threshold {threshold:g}: choose -1 to 1, it is a cosine")
    chosen = model.threshold if threshold is None else Threshold(threshold, "given by the caller")
    gallery = gallery_of(place, model.sight, chosen, keep_crops=keep_crops)
    if threshold is not None and chosen is not None:
        gallery.calibration = chosen
    return People(gallery)
