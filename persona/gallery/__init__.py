"""The gallery: people are enrolled and recognised by embeddings, without training a network."""

from __future__ import annotations

from persona.gallery.people import (
    DoubtError,
    DuplicateError,
    Enrolled,
    Gallery,
    NoPhotoError,
    Sighting,
    TwoPeopleError,
    open_gallery,
)
from persona.gallery.store import Person, Store

__all__ = [
    "DoubtError",
    "DuplicateError",
    "Enrolled",
    "Gallery",
    "NoPhotoError",
    "Person",
    "Sighting",
    "Store",
    "TwoPeopleError",
    "open_gallery",
]
