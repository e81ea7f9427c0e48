"""What a gallery keeps, and the one interface to the places that keep it.

    person    name, when it was made
    photo     a template (E numbers of unit length), the network that made it; if the user chose to
              keep them, the aligned crop and its five points, from which templates can be made anew
    facts     the network, how faces are cut for it, the threshold and where that is from

A person is enrolled in one transaction: killed at any moment, a gallery has all of a person's new
photos or none. SQLite (`sqlite`) is one file on one machine; PostgreSQL (`postgres`) is for many.

Shapes: E embedding, P probes.
"""

from __future__ import annotations

import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from persona.config import from_dict
from persona.data.align.spec import AlignSpec
from persona.errors import PersonaError
from persona.names import describe, hidden, legible
from persona.workspace import user_path

Templates = npt.NDArray[np.float32]

MAX_NAME = 200
"""Characters."""
SAME = 1 - 1e-5
"""Templates that are so near to each other are of one photo."""
MATCHES = ("mean", "max")
"""A person is as near as the mean of the templates, or as the nearest of them."""
POSTGRES = ("postgresql://", "postgres://")


@dataclass(frozen=True)
class Threshold:
    """From which similarity on a face is somebody."""

    value: float
    source: str
    """For people: what it was chosen on."""
    far: float | None = None
    """The false accept rate that it was chosen for; None: it was given as a number."""


@dataclass(frozen=True)
class Facts:
    """What a gallery's templates were made with."""

    network: str
    """Its name, as `persona evaluate` takes it."""
    digest: str
    """Of its weights and settings."""
    width: int
    """E."""
    align: AlignSpec
    threshold: Threshold | None = None

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return asdict(self)

    @classmethod
    def from_text(cls, text: str, where: str) -> Facts:
        """`from_json` of JSON's text."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        return cls.from_json(value, where)

    @classmethod
    def from_json(cls, value: Any, where: str) -> Facts:
        """What JSON, perhaps a stranger's, stands for.

        Raises:
            PersonaError: it is no such thing.
        """
        try:
            threshold = value["threshold"]
            facts = cls(
                network=str(value["network"]),
                digest=str(value["digest"]),
                width=int(value["width"]),
                align=from_dict(AlignSpec, value["align"], where=where),
                threshold=threshold
                and Threshold(
                    float(threshold["value"]),
                    str(threshold["source"]),
                    _rate(threshold.get("far")),
                ),
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            raise PersonaError(f"{where} does not say which network it was made with") from None
        unseen = hidden(facts.network + facts.digest)
        if unseen is not None:
            raise PersonaError(f"{where}: its network's name holds {describe(unseen)}")
        if facts.threshold is not None and not -1 <= facts.threshold.value <= 1:
            raise PersonaError(f"{where}: a threshold of {facts.threshold.value:g}")
        if not 8 <= facts.width <= 4096:
            raise PersonaError(f"{where}: templates of {facts.width} numbers; expected 8 to 4096")
        return facts


def _rate(far: Any) -> float | None:
    """A false accept rate from JSON, perhaps a stranger's; galleries of before have none."""
    return None if far is None else float(far)


@dataclass(frozen=True)
class Person:
    """Somebody of the gallery."""

    name: str
    photos: int
    created: str
    """UTC, ISO 8601."""


@dataclass(frozen=True)
class StoredPhoto:
    """What is kept of a photo."""

    template: Templates
    """(E,) of unit length."""
    crop: bytes | None = None
    """JPEG."""
    landmarks_62: npt.NDArray[np.float64] | None = None
    """(6, 2) of the crop, see persona/landmarks.py."""


@dataclass(frozen=True)
class Match:
    """The nearest person to a probe."""

    name: str
    score: float
    """Cosine similarity."""


class NobodyError(PersonaError):
    """There is nobody of that name."""


class OtherNetworkError(PersonaError):
    """The templates are another network's."""


class ReadOnlyError(PersonaError):
    """The gallery can be read, but not changed."""


class Store(ABC):
    """A gallery's people and templates. Any number of threads and processes may use one at once."""

    place: str
    """For messages."""

    @abstractmethod
    def facts(self) -> Facts | None:
        """What the gallery was made with; None: it is new."""

    @abstractmethod
    def adopt(self, facts: Facts) -> None:
        """Makes a gallery without photos one of this network; nothing where it is that already.

        Raises:
            OtherNetworkError: its templates are another network's.
        """

    @abstractmethod
    def check_writable(self) -> None:
        """Tells before a change is worked for whether it can be made.

        Raises:
            ReadOnlyError: the gallery may only be read.
        """

    @abstractmethod
    def changing(self) -> AbstractContextManager[None]:
        """What is asked and then added in here is one transaction: no other writer comes between.

        An exception undoes it.
        """

    @abstractmethod
    def people(self) -> list[Person]:
        """Everybody, by name."""

    @abstractmethod
    def photos(self, name: str | None = None) -> Iterator[tuple[str, int, StoredPhoto]]:
        """Name, number and photo: of one person, or of everybody in the order of enrolment."""

    @abstractmethod
    def add(
        self, people: Mapping[str, Sequence[StoredPhoto]], digest: str, *, new: bool = False
    ) -> None:
        """Adds photos of people, all of them or, where that fails, none.

        Args:
            people: photos by name; of somebody who is there already they are added.
            digest: of the network that made the templates.
            new: nobody of them may be there already.

        Raises:
            OtherNetworkError: another network's templates.
            PersonaError: somebody is there, or nothing can be written.
        """

    @abstractmethod
    def forget(self, name: str) -> int:
        """Removes somebody for good, and looks whether that is so; how many templates that were.

        Raises:
            NobodyError: there is nobody of that name.
            PersonaError: something of them is left.
        """

    @abstractmethod
    def replace(self, facts: Facts, templates: dict[int, Templates]) -> None:
        """Puts another network's templates, by photo number, in the place of all that are there.

        Raises:
            PersonaError: a photo came or went meanwhile.
        """

    @abstractmethod
    def nearest(
        self, probes_PE: Templates, match: str, *, without: str | None = None
    ) -> list[Match | None]:
        """The nearest person to each probe, leaving out `without`; None: there is nobody.

        Raises:
            OtherNetworkError: the templates are not, or no longer, of the network that was adopted.
        """

    @abstractmethod
    def close(self) -> None:
        """Lets go of files and connections."""

    @abstractmethod
    def _keep_facts(self, facts: Facts) -> None:
        """Writes them, within a transaction."""

    def set_threshold(self, threshold: Threshold) -> None:
        """Keeps a threshold with the network it was chosen for."""
        with self.changing():
            facts = self.facts()
            assert facts is not None
            self._keep_facts(replace(facts, threshold=threshold))

    def person(self, name: str) -> Person:
        """Somebody by name: as it is kept, as it is composed, or as it is shown.

        An older gallery, or a stranger's, may hold names that nobody is enrolled under any more.

        Raises:
            NobodyError: there is nobody of that name.
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
    """A gallery's store: a file, or a database by its `postgresql://` URL.

    Args:
        place: path or URL.
        passphrase: of an encrypted gallery; a new one is encrypted with it.
        create: make it where there is none.

    Raises:
        PersonaError: it is not there, is no gallery, is a newer version's, or the passphrase is
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


def check_name(name: str) -> str:
    """A person's name as it is kept: composed (NFC), without blanks around it.

    Raises:
        PersonaError: empty, too long, or with characters that are not seen but acted on.
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
    """A name in the one form of its characters (NFC), without blanks around it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise PersonaError(f"the name {name!a} is no Unicode text") from None
    return unicodedata.normalize("NFC", name).strip()


def check_digest(facts: Facts | None, digest: str, place: str) -> None:
    """Raises PersonaError if templates of the network `digest` do not belong in a gallery."""
    if facts is None:
        raise PersonaError(f"{place} does not say which network it was made with")
    if facts.digest != digest:
        raise OtherNetworkError(
            f"the templates of {place} were made by another network ({facts.network}): name that "
            "one with --model, or make them anew with `persona gallery rebuild --model NAME`"
        )


def there_already(name: str, place: str) -> PersonaError:
    """The error for a name that was to be new."""
    return PersonaError(f"{place} has somebody named {name!r} already: forget one of them")


def read_only(place: str, why: str) -> ReadOnlyError:
    """The error for a change of what may only be read."""
    return ReadOnlyError(
        f"{place} can be read but not changed: {why}. Mend that, or let its owner do it"
    )


def still_there(name: str, place: str) -> PersonaError:
    """The error for a forget after which something was left."""
    return PersonaError(
        f"{place} still holds something of {name[:80]!r} after it was removed: the gallery does "
        "not do what Persona tells it to; remove the whole of it"
    )


def changed_meanwhile(place: str) -> PersonaError:
    """The error for a rebuild into which somebody came."""
    return PersonaError(
        f"{place} was changed while it was rebuilt: run `persona gallery rebuild` again"
    )


def nobody(name: str, place: str) -> NobodyError:
    """The error for a name that is not there; it does not list those that are."""
    return NobodyError(f"{place} has nobody named {name[:80]!r}: see `persona gallery list`")


def unit(vectors_NE: npt.ArrayLike) -> Templates:
    """(N, E) float32 of unit length."""
    vectors = np.asarray(vectors_NE, np.float64)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)
