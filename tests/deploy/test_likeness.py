"""How like a file's embeddings are to those of its model."""

from __future__ import annotations

import numpy as np
import pytest

from persona.deploy.likeness import ERROR_MARGIN, MARGIN, Likeness, Tolerance, compare
from persona.landmarks import unit

FACES = unit(np.random.default_rng(0).normal(size=(40, 16)))


def test_the_same_embeddings_are_alike() -> None:
    found = compare(FACES, FACES)
    assert found.cosine == pytest.approx(1, abs=1e-6) and found.error == 0


def test_the_error_is_a_share_of_the_spread_of_the_similarities() -> None:
    other = unit(FACES + 0.05 * np.random.default_rng(1).normal(size=FACES.shape))
    found = compare(other, FACES)
    pairs = np.triu_indices(len(FACES), 1)
    before, after = (FACES @ FACES.T)[pairs], (other @ other.T)[pairs]
    assert found.error == pytest.approx(np.sqrt(((after - before) ** 2).mean()) / before.std())
    # A turn of all embeddings changes no similarity, but every embedding.
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(16, 16)))[0].astype(np.float32)
    turned = compare(FACES @ turn, FACES)
    assert turned.error < 1e-5 and turned.cosine < 0.9


def test_one_face_that_is_lost_shows_in_the_cosine() -> None:
    lost = FACES.copy()
    lost[3] = -lost[3]
    assert compare(lost, FACES).cosine == pytest.approx(-1)
    assert compare(lost[:2], FACES[:2]).error == 0  # too few pairs to speak of a spread


def test_bounds() -> None:
    bounds = Tolerance(0.9, 0.2)
    assert bounds.allow(Likeness(0.9, 0.2))
    assert not bounds.allow(Likeness(0.89, 0.1)) and not bounds.allow(Likeness(0.95, 0.21))
    assert not bounds.allow(Likeness(float("nan"), 0.1))
    assert not bounds.allow(Likeness(0.95, float("nan")))
    assert Tolerance(0.9).allow(Likeness(0.9, 5))
    assert bounds.tighter() == Tolerance(0.9 + MARGIN, 0.2 - ERROR_MARGIN)
    assert str(bounds) == "a worst cosine of at least 0.9 and an error of at most 0.2"
    assert str(Tolerance(0.999)) == "a worst cosine of at least 0.999"
