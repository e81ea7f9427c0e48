"""The gallery: people who are known by their photos, without touching a network's weights."""

from __future__ import annotations

from persona.gallery.people import (
    DoubtError,
    DuplicateError,
    Enrolled,
    Gallery,
    Sighting,
    TwoPeopleError,
    open_gallery,
)
from persona.gallery.store import Person, Store, open_store

__all__ = [
    "DoubtError",
    "DuplicateError",
    "Enrolled",
    "Gallery",
    "Person",
    "Sighting",
    "Store",
    "TwoPeopleError",
    "open_gallery",
    "open_store",
]
