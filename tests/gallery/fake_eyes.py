"""Galleries without a detector and a network: a photo's first pixels are its template."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from persona.data.align.spec import AlignSpec, Crop, FoundFace
from persona.gallery.faces import SeenFace
from persona.gallery.people import Gallery
from persona.gallery.store import Facts, Store, StoredPhoto, Templates, Threshold, open_store, unit

WIDTH = 8
FACTS = Facts("net", "digest", WIDTH, AlignSpec())
BOX = (10.0, 20.0, 110.0, 140.0)


def vectors(count: int, seed: int = 0, width: int = WIDTH) -> Templates:
    """Unit vectors in any direction."""
    return unit(np.random.default_rng(seed).normal(size=(count, width)))


def near(template: Templates, cosine: float, seed: int = 0) -> Templates:
    """A unit vector of that similarity to another."""
    other = np.random.default_rng(100 + seed).normal(size=template.shape)
    other -= template * float(other @ template)
    other /= np.linalg.norm(other)
    return unit(cosine * template + np.sqrt(1 - cosine**2) * other)


def photo_of(*templates: Templates, flaw: str | None = None) -> Any:
    """What `FakeEyes` sees faces of these templates in: a `LookedAt`, and its pixels."""
    photo = SimpleNamespace(templates=templates, flaw=flaw, shrink=1)
    photo.pixels = photo
    return photo


class FakeEyes:
    """Finds what `photo_of` put there."""

    named = SimpleNamespace(name="net", digest=FACTS.digest)
    align, min_face = FACTS.align, 20
    network = SimpleNamespace(uses_landmarks=False, embedding_size=WIDTH)

    def find(self, photo: Any, *, shrink: int = 1) -> list[SeenFace]:
        return [
            SeenFace(
                FoundFace(BOX, 1.0),
                Crop(template.tobytes(), None, np.arange(12.0).reshape(6, 2)),
                photo.flaw,
            )
            for template in photo.templates
        ]

    def embed(self, crops: Sequence[Crop]) -> Templates:
        rows = [np.frombuffer(crop.jpeg, np.float32) for crop in crops]
        return np.stack(rows) if rows else np.zeros((0, WIDTH), np.float32)


def new_store(path: Path, **options: Any) -> Store:
    """An empty gallery of the network of `FACTS`."""
    store = open_store(path, create=True, **options)
    store.adopt(FACTS)
    return store


def gallery(path: Path, threshold: float = 0.5, **options: Any) -> Gallery:
    """A gallery that sees through `FakeEyes`."""
    eyes: Any = FakeEyes()
    return Gallery(new_store(path), eyes, Threshold(threshold, "test"), **options)


def kept(*templates: Templates) -> list[StoredPhoto]:
    return [StoredPhoto(template) for template in templates]


def jpeg_of(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def enroll_at_once(some: Gallery, other: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enrols one photo of Ann's twice: both look for it before either adds it, if they can."""
    both = threading.Barrier(2)

    def hold_up(store: Store) -> None:
        photos = store.photos

        def late(name: str | None = None) -> Any:
            found = list(photos(name))
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(0.2)  # the other has looked too, unless it has to wait for this one
            return iter(found)

        monkeypatch.setattr(store, "photos", late)

    for one in {some, other}:
        hold_up(one.store)
    arguments = ("Ann", [photo_of(vectors(1)[0])])
    threads = [threading.Thread(target=one.enroll, args=arguments) for one in (some, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
