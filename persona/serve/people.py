"""The people of a gallery on the page: their faces and photos, renamed, merged and split.

    POST /api/faces   names                          a face of each of some people
    POST /api/photos  name, first, count             photos of a person
    POST /api/rename  name, to                       gives a person another name
    POST /api/merge   name, into, photos, force      moves photos to somebody who is enrolled
    POST /api/split   name, photos, to               moves some photos to a new person
    POST /api/templates  name, first, count          templates of a person, with --share-templates

`names` is a JSON list. `photos` are numbers with commas between them. A face can be shown if it was
enrolled with --keep-crops. A change is one transaction.
"""

from __future__ import annotations

import base64
import dataclasses
import json

from pydantic import BaseModel

from persona.errors import PersonaError
from persona.files import whole_number
from persona.gallery import Gallery
from persona.serve.gate import Claim
from persona.serve.uploads import Form

MOST_FACES = 50
"""Largest number of people in a request for faces."""
MOST_PHOTOS = 200
"""Largest number of photos in an answer."""
MOST_BYTES = 60_000
"""Largest crop in bytes that is sent. Those that Persona keeps have about 10,000."""
MOST_DIGITS = 18
"""Largest number of digits of a photo's number in a database."""
YES = {"1", "true", "yes"}


class PersonFace(BaseModel):
    """A person's face as JPEG in base64, or None if no photo was enrolled with its crop."""

    name: str
    picture: str | None


class FacesAnswer(BaseModel):
    """The faces of some people."""

    faces: list[PersonFace]


class PhotoRow(BaseModel):
    """A photo of a person."""

    photo: int
    """Its number, for `photos` of a merge or split."""
    picture: str | None
    """Aligned crop as JPEG in base64. None means that it was not kept."""
    similarity: float
    """Cosine similarity to the mean of the person's photos."""


class PhotosAnswer(BaseModel):
    """Some photos of a person, in the order of enrolment."""

    name: str
    total: int
    """Number of all photos of the person."""
    photos: list[PhotoRow]


class SharedPhoto(BaseModel):
    """What is stored of a photo, for another gallery."""

    template: str
    """Embedding of unit length: little-endian float32 numbers in base64."""
    crop: str | None
    """Aligned crop as JPEG in base64. None means that it was not kept."""
    landmarks: list[list[float]] | None
    """(6, 2) landmarks and scale of the crop, in px."""
    align: dict[str, str | int] | None = None
    """How the crop was aligned. None means as the gallery's network wants it."""


class SharedPhotos(BaseModel):
    """Some photos of a person in the order of enrolment, for `persona gallery import URL`."""

    name: str
    digest: str
    """Digest of the network that made the templates."""
    total: int
    """Number of all photos of the person."""
    photos: list[SharedPhoto]


class MovedPhotos(BaseModel):
    """The person who has the photos now, and how many were moved."""

    name: str
    photos: int


def list_faces(gallery: Gallery, form: Form) -> FacesAnswer:
    """Returns a face of each of the people whom a form names."""
    try:
        names = json.loads(form.fields.get("names", ""))
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(map(_is_text, names)):
        raise PersonaError("names are a JSON list of texts: send them so")
    if len(names) > MOST_FACES:
        raise PersonaError(f"{len(names)} names: send at most {MOST_FACES}")
    faces = [PersonFace(name=name, picture=picture_of(gallery.face(name))) for name in names]
    return FacesAnswer(faces=faces)


def list_photos(gallery: Gallery, form: Form) -> PhotosAnswer:
    """Returns some photos of the person whom a form names."""
    name = text_of(form, "name")
    first = _number(form, "first", 0)
    count = min(_number(form, "count", MOST_PHOTOS), MOST_PHOTOS)
    photos = gallery.photos(name)
    rows = [
        PhotoRow(photo=one.number, picture=picture_of(one.crop), similarity=one.similarity)
        for one in photos[first : first + count]
    ]
    return PhotosAnswer(name=name, total=len(photos), photos=rows)


def list_templates(gallery: Gallery, form: Form) -> SharedPhotos:
    """Returns what is stored of some photos of the person whom a form names, as `/api/people` does.

    Somebody who was removed meanwhile has none.
    """
    name = text_of(form, "name")
    first = _number(form, "first", 0)
    count = min(_number(form, "count", MOST_PHOTOS), MOST_PHOTOS)
    rows = list(gallery.store.photos(name))
    facts = gallery.store.facts()
    photos = [
        SharedPhoto(
            template=base64.b64encode(photo.template.astype("<f4").tobytes()).decode(),
            crop=picture_of(photo.crop),
            landmarks=None if photo.landmarks_62 is None else photo.landmarks_62.tolist(),
            align=None if photo.align is None else photo.align.facts,
        )
        for _, _, photo in rows[first : first + count]
    ]
    digest = "" if facts is None else facts.digest
    return SharedPhotos(name=name, digest=digest, total=len(rows), photos=photos)


def rename(gallery: Gallery, form: Form, claim: Claim) -> MovedPhotos:
    """Renames the person of a form."""
    moved = gallery.rename(text_of(form, "name"), text_of(form, "to"), claim=claim)
    return MovedPhotos(**dataclasses.asdict(moved))


def merge(gallery: Gallery, form: Form, claim: Claim) -> MovedPhotos:
    """Merges the person of a form, or some of their photos, into another person."""
    moved = gallery.merge(
        *(text_of(form, "name"), text_of(form, "into")),
        photos=_photos(form) if "photos" in form.fields else None,
        force=form.fields.get("force", "").lower() in YES,
        claim=claim,
    )
    return MovedPhotos(**dataclasses.asdict(moved))


def split(gallery: Gallery, form: Form, claim: Claim) -> MovedPhotos:
    """Splits some photos off the person of a form."""
    moved = gallery.split(text_of(form, "name"), _photos(form), text_of(form, "to"), claim=claim)
    return MovedPhotos(**dataclasses.asdict(moved))


def text_of(form: Form, name: str) -> str:
    """Returns a field of a form.

    Raises:
        PersonaError: the form does not have it.
    """
    if name not in form.fields:
        raise PersonaError(f"no {name} in the form: send one")
    return form.fields[name]


def _is_text(value: object) -> bool:
    """Whether a value of JSON is a text, and without halves of characters, which JSON allows."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _number(form: Form, name: str, default: int) -> int:
    number = whole_number(form.fields.get(name, str(default)))
    if number is None:
        raise PersonaError(f"{name} is no number: send one from 0 on")
    return number


def _photos(form: Form) -> set[int]:
    texts = text_of(form, "photos").split(",")
    numbers = {whole_number(text.strip(), MOST_DIGITS) for text in texts}
    if None in numbers:
        raise PersonaError("photos are numbers with commas between them: send them so")
    return {number for number in numbers if number is not None}


def picture_of(crop: bytes | None) -> str | None:
    """Returns a crop as text. A gallery from elsewhere may hold anything of any size."""
    return None if crop is None or len(crop) > MOST_BYTES else base64.b64encode(crop).decode()
