"""A look over a gallery: who looks like whom, which photos do not fit, whose only photo is poor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_eyes import FACTS, WIDTH, jpeg_of, kept, near, new_store, vectors
from PIL import Image, ImageFilter

from persona.data.synthetic import draw_identity, draw_photo
from persona.errors import PersonaError
from persona.gallery import audit as module
from persona.gallery.audit import Audit, audit_gallery, own_threshold
from persona.gallery.audit_page import page_of
from persona.gallery.store import StoredPhoto, Threshold, unit
from persona.workspace import Workspace

A, B, C = (np.eye(WIDTH, dtype=np.float32)[n] for n in (0, 1, 2))
HALF = Threshold(0.5, "test")


def audited(path: Path, people: dict[str, list[StoredPhoto]], threshold: float = 0.5) -> Audit:
    with new_store(path / "g.db") as store:
        store.add(people, FACTS.digest)
        return audit_gallery(store, Threshold(threshold, "test"))


def test_who_looks_like_whom(tmp_path: Path) -> None:
    found = audited(
        tmp_path,
        {
            "Ann": kept(A),
            "Bob": kept(B),
            "Anna": kept(unit(0.8 * A + 0.6 * C)),
            "Nan": kept(unit(0.49 * A - 0.87 * C)),
        },
    )
    assert (found.people, found.templates) == (4, 4)
    assert [(one.a, one.b) for one in found.alike] == [("Ann", "Anna")]
    assert found.alike[0].similarity == pytest.approx(0.8, abs=1e-5)


def test_people_are_compared_by_the_means_of_their_photos(tmp_path: Path) -> None:
    # One of Bob's photos is Ann's; his mean is not.
    found = audited(tmp_path, {"Ann": kept(A), "Bob": kept(B, near(B, 0.9), A)}, 0.8)
    assert found.alike == ()
    # The others of the strange photo are Bob's; those of a right one have the strange one.
    assert next((one.name, one.photo, one.photos) for one in found.far) == ("Bob", 3, 3)
    assert found.far[0].similarity == pytest.approx(float(unit(B + near(B, 0.9)) @ A), abs=1e-5)


def test_a_photo_is_compared_with_the_others_alone(tmp_path: Path) -> None:
    # With itself in the mean, its similarity would be 0.71.
    found = audited(tmp_path, {"Ann": kept(A, B), "Bob": kept(C, near(C, 0.9)), "Cy": kept(-A)})
    assert [(one.name, one.photo) for one in found.far] == [("Ann", 1), ("Ann", 2)]
    assert [one.similarity for one in found.far] == pytest.approx([0, 0], abs=1e-6)
    numbers = [one.number for one in found.far]
    assert numbers == [1, 2]


def photo(image: Image.Image, scale: float = 1.0) -> StoredPhoto:
    points = np.array([[40, 50], [75, 50], [56, 70], [42, 92], [70, 92], [scale, scale]], float)
    return StoredPhoto(vectors(1)[0], jpeg_of(image), points)


def test_an_only_photo_may_be_poor(tmp_path: Path) -> None:
    sharp = draw_photo(draw_identity(0, 1), 0, 160).convert("RGB")
    blurred = sharp.filter(ImageFilter.GaussianBlur(4))
    away = vectors(6, seed=3)
    people = {
        "blurred": [photo(blurred)],
        "fine": [photo(sharp)],
        "small": [photo(sharp, scale=2.0)],
        "broken": [StoredPhoto(away[0], b"no image", np.ones((6, 2)))],
        "unknown": [StoredPhoto(away[1])],
        "two": [photo(blurred), photo(blurred)],
    }
    found = audited(tmp_path, people, 0.9999999)
    reasons = {one.name: one.reason.partition(":")[0] for one in found.poor}
    assert reasons == {"blurred": "blurred", "small": "small", "broken": "unreadable"}
    assert "the eyes are 18 px apart" in next(o.reason for o in found.poor if o.name == "small")
    assert (found.one_photo, found.unknown_quality) == (5, 1)


@pytest.mark.parametrize("exact", [0, 20_000])
def test_many_people(tmp_path: Path, exact: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks, and through links, the same pairs are found as by comparing everybody."""
    monkeypatch.setattr(module, "EXACT", exact)
    monkeypatch.setattr(module, "BLOCK", 3_000)
    rng = np.random.default_rng(0)
    all_NE = unit(rng.normal(size=(400, 32)))
    all_NE[300:310] = [unit(x + 0.02 * rng.normal(size=32)) for x in all_NE[:10]]
    a, b, similarity = module._alike(all_NE, 0.9)
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    assert sorted(pairs) == [(n, 300 + n) for n in range(10)]
    assert (np.diff(similarity) <= 0).all()


def test_the_page_escapes_and_shows_faces(tmp_path: Path) -> None:
    face = jpeg_of(Image.new("RGB", (16, 16)))
    people = {
        "<b>Ann</b>": [StoredPhoto(A, face)],
        "Anna": kept(near(A, 0.8)),
        "Bob": kept(B, C),
    }
    text = page_of(audited(tmp_path, people)).decode()
    assert "<b>Ann" not in text
    assert "&lt;b&gt;Ann&lt;/b&gt;" in text
    assert text.count("<img") == 2  # as one who looks like Anna, and as a blurred only photo
    assert "look alike: 1" in text
    assert "of their person: 2" in text
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "")


def test_nobody_and_no_threshold(tmp_path: Path) -> None:
    with new_store(tmp_path / "g.db") as store:
        with pytest.raises(PersonaError, match="has nobody to look at: `persona enroll`"):
            audit_gallery(store, HALF)
        store.add({"Ann": kept(A)}, FACTS.digest)
        with pytest.raises(PersonaError, match="has no threshold for net: choose one with"):
            audit_gallery(store, None)
        place = Workspace.locate(home=tmp_path)
        assert own_threshold(store, None, place) is None
        with pytest.raises(PersonaError, match="a similarity is between -1 and 1"):
            own_threshold(store, 1.5, place)
        store.set_threshold(HALF, FACTS.digest)
        assert own_threshold(store, None, place) == HALF
