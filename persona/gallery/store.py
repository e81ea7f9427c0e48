"""What a gallery stores, and the interface of its stores.

    person    name, time of creation
    photo     template (the embedding, of unit length) and the network that made it; if the user
              asked for it, also the aligned crop and its five-point landmarks, from which another
              network can make its template, and how the crop was aligned, where the gallery has
              moved to a network that wants another alignment; after such a move, also the template
              of the network before, until the next move or until it is discarded
    facts     the network, its alignment, the threshold and the source of the threshold

A person is enrolled in one transaction. If the process is killed, the gallery has all of a person's
new photos or none. The SQLite store (`sqlite`) is one file on one machine. The PostgreSQL store
(`postgres`) serves many machines.

Shapes: N faces, E embedding, P probes.
"""

from __future__ import annotations

import contextlib
import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from persona.config import from_dict
from persona.data.align.spec import AlignSpec, Crop
from persona.errors import PersonaError
from persona.names import describe, hidden, legible, public_name
from persona.workspace import user_path

Templates = npt.NDArray[np.float32]

MAX_NAME = 200
"""Largest number of characters of a name."""
MATCHES = ("mean", "max")
"""A probe is compared with the mean of a person's templates, or with the nearest of them."""
HUB = "hf://"
POSTGRES = ("postgresql://", "postgres://")


@dataclass(frozen=True)
class Threshold:
    """Lowest cosine similarity at which two faces count as one person."""

    value: float
    """The cosine similarity, in [-1, 1]."""
    source: str
    """Text that says how and on what the threshold was chosen."""
    far: float | None = None
    """False accept rate for which it was chosen. None means that it was given as a number."""


@dataclass(frozen=True)
class Facts:
    """The network and the alignment with which a gallery's templates were made."""

    network: str
    """Name of the network, as `persona evaluate` takes it."""
    digest: str
    """Digest of the network's weights and settings."""
    width: int
    """Width E of an embedding."""
    align: AlignSpec
    """Alignment of the crops that the network embeds."""
    threshold: Threshold | None = None
    """Threshold for this network. None means that it was not chosen yet."""
    previous: Facts | None = None
    """The facts before the gallery moved to this network, to which `persona gallery rollback` goes
    back. None means that it never moved, or that they were discarded."""
    keeps_crops: bool | None = None
    """Whether the faces of new photos are kept, as the user answered when the gallery was new. None
    means that nobody was asked. It is a fact of the gallery and not of its network."""

    @property
    def alone(self) -> Facts:
        """The facts without those before."""
        return replace(self, previous=None)

    def moves(self, old: Facts) -> bool:
        """Whether a gallery of the `old` facts moves to another network by these."""
        return self.digest != old.digest

    def after(self, old: Facts) -> Facts:
        """Returns these facts with those before, for a gallery that had the `old` ones.

        The same network may embed anew with another alignment. The gallery is not moved then, and
        keeps what was before.
        """
        before = old.alone if self.moves(old) else old.previous
        return replace(self, previous=before, keeps_crops=old.keeps_crops)

    def adopting(self, old: Facts | None) -> Facts:
        """Returns these facts for a gallery without photos that had the `old` ones."""
        return self if old is None else replace(self, keeps_crops=old.keeps_crops)

    def to_json(self) -> dict[str, Any]:
        """Returns the facts as they are stored."""
        return asdict(self)

    @classmethod
    def from_text(cls, text: str, where: str) -> Facts:
        """Reads the facts from a JSON text; see `from_json`."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        return cls.from_json(value, where)

    @classmethod
    def from_json(cls, value: Any, where: str) -> Facts:
        """Reads the facts from a JSON value, which may come from an untrusted file.

        Args:
            value: the decoded JSON.
            where: what to call its source in an error.

        Raises:
            PersonaError: a field is missing or has a value that cannot be right.
        """
        try:
            threshold, previous = value["threshold"], value.get("previous")
            if previous is not None:
                previous = cls.from_json({**previous, "previous": None}, where)
            facts = cls(
                network=str(value["network"]),
                digest=str(value["digest"]),
                width=int(value["width"]),
                align=from_dict(AlignSpec, value["align"], where=where),
                threshold=None if threshold is None else _threshold(threshold),
                previous=previous,
                keeps_crops=_answer(value.get("keeps_crops")),
            )
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise PersonaError(f"{where} does not say which network it was made with") from None
        if facts.network.startswith(HUB):  # Persona writes the name under which it was pulled
            raise PersonaError(f"{where}: its network is on the hub; models are pulled by hand")
        unseen = hidden(facts.network + facts.digest)
        if unseen is not None:
            raise PersonaError(f"{where}: its network's name holds {describe(unseen)}")
        if facts.threshold is not None and not -1 <= facts.threshold.value <= 1:
            raise PersonaError(f"{where}: a threshold of {facts.threshold.value:g}")
        if not 8 <= facts.width <= 4096:
            raise PersonaError(f"{where}: templates of {facts.width} numbers; expected 8 to 4096")
        return facts


def _threshold(value: Any) -> Threshold:
    """Reads a threshold from untrusted JSON."""
    far = _rate(value.get("far"))
    return Threshold(float(value["value"]), str(value["source"]), far)


def _rate(far: Any) -> float | None:
    """Reads a false accept rate from untrusted JSON; older galleries have none."""
    return None if far is None else float(far)


def _answer(keeps: Any) -> bool | None:
    """Reads an answer from untrusted JSON; older galleries have none."""
    if keeps is not None and not isinstance(keeps, bool):
        raise TypeError(keeps)
    return keeps


@dataclass(frozen=True)
class Person:
    """A person who is enrolled."""

    name: str
    """The person's name, as it is stored."""
    photos: int
    """Number of enrolled photos."""
    created: str
    """UTC time at which the person was first enrolled, in ISO 8601."""


@dataclass(frozen=True)
class StoredPhoto:
    """What a gallery stores of one photo."""

    template: Templates
    """(E,) float32 embedding of unit length."""
    crop: bytes | None = None
    """Aligned crop as JPEG."""
    landmarks_62: npt.NDArray[np.float64] | None = None
    """(6, 2) landmarks and scale of the crop, see persona/landmarks.py."""
    align: AlignSpec | None = None
    """How the crop was aligned. None means as the gallery's facts say."""

    @property
    def as_crop(self) -> Crop:
        """The kept crop. Its bytes are empty if there is none."""
        return Crop(self.crop or b"", None, self.landmarks_62, align=self.align)


@dataclass(frozen=True)
class Nearest:
    """The nearest person to a probe."""

    name: str
    score: float
    """Cosine similarity to the probe, in [-1, 1]."""


class NobodyError(PersonaError):
    """Nobody of that name is enrolled."""


class TakenError(PersonaError):
    """Somebody of that name is enrolled already."""


class OtherNetworkError(PersonaError):
    """The templates were made by another network."""


class ReadOnlyError(PersonaError):
    """The gallery can be read, but not changed."""


class UnavailableError(PersonaError):
    """The store does not work at the moment. The same request may succeed later."""


class Store(ABC):
    """A store of people and templates. Any number of threads and processes may use one at once."""

    place: str
    """Name of the store in messages."""

    @abstractmethod
    def facts(self) -> Facts | None:
        """Returns the network and alignment of the gallery, or None if it is new."""

    @abstractmethod
    def adopt(self, facts: Facts) -> None:
        """Assigns a gallery without photos to this network.

        A gallery that belongs to the network already is left as it is.

        Raises:
            OtherNetworkError: the gallery's templates were made by another network.
        """

    @abstractmethod
    def check_writable(self) -> None:
        """Checks that the gallery can be changed, before costly work is done for a change.

        Raises:
            ReadOnlyError: the gallery can only be read.
        """

    @abstractmethod
    def changing(self) -> AbstractContextManager[None]:
        """Context in which all reads and writes are one transaction that excludes other writers.

        An exception rolls it back.
        """

    @abstractmethod
    def people(self) -> list[Person]:
        """Everybody who is enrolled, sorted by name."""

    @abstractmethod
    def photos(self, name: str | None = None) -> Iterator[tuple[str, int, StoredPhoto]]:
        """Yields name, number and photo, for one person or for everybody in order of enrolment."""

    @abstractmethod
    def face(self, name: str) -> bytes | None:
        """Returns the oldest stored crop of a person as JPEG, or None if there is none."""

    @abstractmethod
    def add(
        self, people: Mapping[str, Sequence[StoredPhoto]], digest: str, *, new: bool = False
    ) -> None:
        """Adds photos of people. If it fails, nothing is added.

        Args:
            people: photos by the person's name. A person who is enrolled already gets more photos.
            digest: digest of the network that made the templates.
            new: whether each person must be new.

        Raises:
            OtherNetworkError: the gallery belongs to another network.
            PersonaError: a person who must be new is enrolled, or the store cannot be written.
        """

    @abstractmethod
    def forget(self, name: str) -> int:
        """Removes a person for good, and checks that nothing is left.

        Returns:
            The number of templates that were removed.

        Raises:
            NobodyError: nobody of that name is enrolled.
            PersonaError: something of the person is left.
        """

    @abstractmethod
    def move(
        self,
        name: str,
        to: str,
        *,
        new: bool,
        photos: Collection[int] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> int:
        """Moves photos of a person to another one: all of them or none.

        A person who keeps no photo is removed, and nothing is left of the name. The other person
        was enrolled when the first of the two was.

        Args:
            name: the person's name, as it is stored.
            to: name of the person who gets the photos.
            new: whether that person must be new. Otherwise they must be enrolled.
            photos: numbers of the photos. None means all.
            check: called within the transaction, before anything is changed. If it raises, nothing
                is moved.

        Returns:
            The number of photos that were moved.

        Raises:
            NobodyError: one of the two is not enrolled.
            TakenError: the person who must be new is enrolled.
            PersonaError: a photo is not, or no longer, the person's; or the store cannot be
                written.
        """

    @abstractmethod
    def replace(self, facts: Facts, templates: dict[int, Templates]) -> None:
        """Replaces all templates by those of another network, which are given by photo number.

        The templates that are replaced are kept beside the new ones, and the facts as `previous`.
        Only one generation is kept. If the network is the same, what was kept before stays.
        Crops stay as they are, so each keeps the alignment that it was made with.

        Raises:
            PersonaError: a photo was added or removed meanwhile.
        """

    @abstractmethod
    def previous_templates(self) -> dict[int, Templates]:
        """Returns the kept templates of the network before, by photo number.

        A photo that was enrolled since the gallery moved has none.

        Raises:
            PersonaError: the store is of an older version and cannot be brought to this one.
        """

    @abstractmethod
    def discard_previous(self) -> int:
        """Removes the kept templates of the network before for good, and its facts.

        Returns:
            The number of templates that were removed.

        Raises:
            PersonaError: something of them is left.
        """

    @abstractmethod
    def nearest(
        self, probes_PE: Templates, match: str, *, without: str | None = None
    ) -> list[Nearest | None]:
        """Finds the nearest person to each of the (P, E) probes, or None where there is nobody.

        Args:
            probes_PE: (P, E) float32 embeddings of unit length.
            match: `mean` or `max`, see MATCHES.
            without: name of a person to leave out.

        Raises:
            OtherNetworkError: the templates are not, or no longer, of the network that was adopted.
        """

    def back_up(self, path: Path) -> None:
        """Copies the gallery to a new file, as it is at one moment, while others may use it.

        Raises:
            PersonaError: the file exists or cannot be written, or the gallery is no file.
        """
        raise PersonaError(f"{self.place} is no file: copy it with its database's own pg_dump")

    @abstractmethod
    def close(self) -> None:
        """Closes files and connections."""

    @abstractmethod
    def _keep_facts(self, facts: Facts) -> None:
        """Writes the facts, within a transaction."""

    def set_threshold(self, threshold: Threshold, digest: str) -> None:
        """Stores the threshold of the network of this digest.

        Raises:
            OtherNetworkError: the gallery belongs to another network, by now perhaps.
        """
        with self.changing():
            facts = self.facts()
            check_digest(facts, digest, self.place)
            assert facts is not None
            self._keep_facts(replace(facts, threshold=threshold))

    def answer_keeping(self, keeps_crops: bool) -> None:
        """Stores whether the faces of new photos are kept, for commands that do not say so."""
        with self.changing():
            facts = self.facts()
            assert facts is not None
            self._keep_facts(replace(facts, keeps_crops=keeps_crops))

    def take_name(self, network: str, digest: str) -> None:
        """Stores another name under which the network of this digest is found from now on.

        A gallery that can only be read keeps its name.

        Raises:
            OtherNetworkError: the gallery belongs to another network, by now perhaps.
        """
        with contextlib.suppress(ReadOnlyError), self.changing():
            facts = self.facts()
            check_digest(facts, digest, self.place)
            if facts is not None and facts.network != network:
                self._keep_facts(replace(facts, network=network))

    def person(self, name: str) -> Person:
        """Finds a person by name: as it is stored, in its composed form (NFC), or as it is shown.

        A gallery from elsewhere or of an older version may hold names that are refused today.

        Raises:
            NobodyError: nobody of that name is enrolled.
        """
        composed, people = _composed(name), self.people()
        known = {person.name: person for person in people}
        found = known.get(name) or known.get(composed)
        if found is None:
            shown = [person for person in people if legible(person.name) == composed]
            if len(shown) != 1:
                raise nobody(name, self.place)
            found = shown[0]
        return found

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_store(
    place: Path | str, *, passphrase: bytes | None = None, create: bool = False
) -> Store:
    """Opens a gallery's store: a file, or a database by its `postgresql://` URL.

    Args:
        place: path or URL.
        passphrase: passphrase of an encrypted gallery. A new gallery is encrypted with it.
        create: whether to create the gallery where there is none.

    Raises:
        PersonaError: there is no gallery, it was made by a newer version, or the passphrase is
            missing or wrong.
    """
    if str(place).startswith(POSTGRES):
        from persona.gallery.postgres import PostgresStore

        if passphrase is not None:
            raise PersonaError(
                "PostgreSQL has to see the templates that it compares: leave --passphrase-file "
                "out, and encrypt the database's disk"
            )
        return PostgresStore(str(place), create=create)
    from persona.gallery.sqlite import SqliteStore

    return SqliteStore(user_path(str(place)), passphrase=passphrase, create=create)


def own_align(photo: StoredPhoto, facts: Facts | None) -> str | None:
    """Returns the alignment of a photo's crop as it is stored: None where it is the gallery's."""
    if photo.crop is None or photo.align is None or (facts and photo.align == facts.align):
        return None
    return align_text(photo.align)


def align_text(align: AlignSpec) -> str:
    """Returns an alignment as it is stored of a crop."""
    return json.dumps(asdict(align))


def read_align(text: object, where: str) -> AlignSpec | None:
    """Reads the stored alignment of a crop, which may come from an untrusted file.

    Raises:
        PersonaError: it is no alignment.
    """
    if text is None:
        return None
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        value = None
    try:
        if isinstance(value, dict):
            return from_dict(AlignSpec, value, where=where)
    except PersonaError as error:
        raise PersonaError(f"{where}: the alignment of a kept face: {error}") from None
    raise PersonaError(f"{where}: the alignment of a kept face cannot be read: restore a copy")


def check_name(name: str) -> str:
    """Returns a person's name as it is stored: in NFC form, without surrounding blanks.

    Raises:
        PersonaError: the name is empty, too long, or holds invisible characters.
    """
    name = _composed(name)
    if len(name) > MAX_NAME:
        raise PersonaError(f"a name of {len(name)} characters: choose at most {MAX_NAME}")
    unseen = hidden(name)
    if unseen is not None:
        raise PersonaError(
            f"a name holds {describe(unseen)}, which cannot be seen and makes it look like another "
            "name: leave it out"
        )
    if not any(unicodedata.category(character)[0] in "LNPS" for character in name):
        raise PersonaError(f"a name holds nothing: choose 1 to {MAX_NAME} characters to be read")
    return name


def _composed(name: str) -> str:
    """Returns a name in Unicode's composed form (NFC), without surrounding blanks."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise PersonaError(f"the name {name!a} is no Unicode text") from None
    return unicodedata.normalize("NFC", name).strip()


def check_digest(facts: Facts | None, digest: str, place: str) -> None:
    """Raises PersonaError unless the gallery's templates were made by the network `digest`."""
    if facts is None:
        raise PersonaError(f"{place} does not say which network it was made with")
    if facts.digest != digest:
        raise OtherNetworkError(
            f"the templates of {place} were made by another network ("
            f"{public_name(facts.network)}): name that one with --model, or make them anew with "
            "`persona gallery rebuild --model NAME`"
        )


def check_width(
    facts: Facts | None, people: Mapping[str, Sequence[StoredPhoto]], place: str
) -> None:
    """Raises PersonaError unless the templates are as wide as the gallery's.

    A single one of another width would make the whole gallery unreadable.
    """
    shapes = {photo.template.shape for photos in people.values() for photo in photos}
    if facts is not None and (other := shapes - {(facts.width,)}):
        raise PersonaError(
            f"{place} has templates of {facts.width} numbers: these are {min(other)}, of another "
            "network"
        )


def there_already(name: str, place: str) -> PersonaError:
    """Returns the error for a name that should be new but is enrolled."""
    return PersonaError(f"{place} has somebody named {name!r} already: forget one of them")


def taken(name: str, place: str) -> TakenError:
    """Returns the error for a person's new name that somebody else has."""
    return TakenError(
        f"{place} has somebody named {name[:80]!r} already: choose another name, or merge the two "
        "with `persona gallery merge`"
    )


def not_theirs(name: str, place: str) -> PersonaError:
    """Returns the error for photos that are not, or no longer, a person's."""
    return PersonaError(
        f"{place}: some of these photos are not, or no longer, photos of {name[:80]!r}: look again"
    )


def read_only(place: str, why: str) -> ReadOnlyError:
    """Returns the error for changing a gallery that can only be read."""
    return ReadOnlyError(
        f"{place} can be read but not changed: {why}. Mend that, or let its owner do it"
    )


def still_there(name: str, place: str) -> PersonaError:
    """Returns the error for a removal that left something of a person or a network behind."""
    return PersonaError(
        f"{place} still holds something of {name[:80]!r} after it was removed: the gallery does "
        "not do what Persona tells it to; remove the whole of it"
    )


def changed_meanwhile(place: str) -> PersonaError:
    """Returns the error for a gallery that changed during its rebuild."""
    return PersonaError(
        f"{place} was changed while it was rebuilt: run `persona gallery rebuild` again"
    )


def nobody(name: str, place: str) -> NobodyError:
    """Returns the error for an unknown name. It does not list the names that are enrolled."""
    return NobodyError(f"{place} has nobody named {name[:80]!r}: see `persona gallery list`")


def unit(vectors_NE: npt.ArrayLike) -> Templates:
    """Scales (N, E) vectors to unit length, as float32.

    Templates are kept for years, so that they are scaled in float64 and rounded once. The last bit
    may differ from that of `landmarks.unit`.
    """
    vectors = np.asarray(vectors_NE, np.float64)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)
