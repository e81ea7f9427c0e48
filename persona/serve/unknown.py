"""Unknown faces that came back, on the page: proposed, enrolled under a name, or deleted.

    GET  /api/unknown                               the people who are proposed, most visits first
    POST /api/unknown/enroll  person, name, accept  enrols one of them, and deletes the kept faces
    POST /api/unknown/forget  person                deletes the kept faces of one of them

There are such faces only with `--keep-unknown HOURS`, see persona/gallery/unknown_faces.py.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pydantic import BaseModel

from persona.errors import PersonaError
from persona.files import whole_number
from persona.gallery import DoubtError, Enrolled, Gallery
from persona.gallery.unknown_faces import (
    Proposal,
    UnknownFaces,
    enroll_proposal,
    find_proposal,
    propose,
)
from persona.serve.gate import Claim
from persona.serve.people import picture_of, text_of
from persona.serve.uploads import Form

MOST_SHOWN = 50
"""Largest number of proposals in an answer."""
MOST_DIGITS = 18


class UnknownPerson(BaseModel):
    """An unknown person who came back."""

    person: int
    """Number of the proposal."""
    faces: int
    """Number of kept faces."""
    visits: int
    first: str
    """UTC time of the first face, in ISO 8601."""
    last: str
    nearest: str | None
    """The nearest person who is enrolled, and how near."""
    score: float | None
    picture: str | None
    """Aligned crop as JPEG in base64. None means that it is too large to be one."""


class UnknownAnswer(BaseModel):
    """The unknown people who came back."""

    hours: float
    """How long an unknown face is kept."""
    total: int
    people: list[UnknownPerson]


class ForgottenFaces(BaseModel):
    """The number of kept faces that were deleted."""

    faces: int


@dataclass
class Unknowns:
    """The unknown faces of a gallery while it is served."""

    gallery: Gallery
    unknown: UnknownFaces

    def shown(self) -> UnknownAnswer:
        """Lists the people who are proposed."""
        found = propose(self.gallery, self.unknown)
        return UnknownAnswer(
            hours=self.unknown.hours or 0.0,
            total=len(found),
            people=[
                UnknownPerson(
                    person=one.number,
                    faces=len(one.faces),
                    visits=one.visits,
                    first=one.first,
                    last=one.last,
                    nearest=one.nearest,
                    score=one.score,
                    picture=picture_of(one.picture),
                )
                for one in found[:MOST_SHOWN]
            ],
        )

    def enroll(self, form: Form, claim: Claim, accept: Collection[type[DoubtError]]) -> Enrolled:
        """Enrols the person of a form."""
        name = text_of(form, "name")
        return enroll_proposal(
            self.gallery, self.unknown, self._chosen(form), name, accept=accept, claim=claim
        )

    def forget(self, form: Form, claim: Claim) -> ForgottenFaces:
        """Deletes the kept faces of the person of a form."""
        chosen = self._chosen(form)
        claim()
        return ForgottenFaces(faces=self.unknown.forget(chosen.faces))

    def _chosen(self, form: Form) -> Proposal:
        number = whole_number(text_of(form, "person"), MOST_DIGITS)
        if number is None:
            raise PersonaError("person is no number: send one")
        return find_proposal(propose(self.gallery, self.unknown), number)
