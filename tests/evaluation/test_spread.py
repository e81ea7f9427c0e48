"""The spread of embeddings, by hand, and that a collapse of any kind is seen."""

from __future__ import annotations

import numpy as np
import pytest

from persona.evaluation.spread import COLLAPSED, has_collapsed, spread, tell_collapse


def unit(rows: np.ndarray) -> np.ndarray:
    directions: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return directions.astype(np.float32)


def around(people: int, noise: float, width: int = 64) -> np.ndarray:
    """Embeddings around one direction."""
    rng = np.random.default_rng(people)
    return unit(np.eye(width)[:1] + noise * rng.normal(size=(people, width)))


def test_orthogonal_people_have_all_of_it_and_one_line_has_none() -> None:
    assert spread(np.eye(8), np.arange(8)) == pytest.approx(1)
    line = np.eye(8)[[0] * 6] * np.array([1, -1, 1, 1, -1, 1])[:, None]
    for rows in (np.eye(8)[[0] * 6], line):
        assert spread(rows, np.arange(6)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("cosine", [0.0, 0.5, -0.5, 0.98, 0.9999])
def test_of_two_people_it_is_what_their_cosine_lacks(cosine: float) -> None:
    rows = np.array([[1, 0], [cosine, np.sqrt(1 - cosine**2)]])
    assert spread(rows, np.array([3, 5])) == pytest.approx(1 - abs(cosine), abs=1e-9)


@pytest.mark.parametrize("people", [2, 3, 10, 200, 5000])
def test_it_does_not_depend_on_how_many_people_there_are(people: int) -> None:
    """Near one direction it is the mean of 1 - cosine over pairs of people."""
    rows = around(people, 0.01)
    value = spread(rows, np.arange(people))
    assert value == pytest.approx(64 * 1e-4, rel=0.4 if people < 10 else 0.1)
    assert has_collapsed(value)
    assert not has_collapsed(spread(around(people, 0.1), np.arange(people)))


def test_photos_of_one_person_may_be_alike() -> None:
    """A good network on a set of a few people with many photos each has not collapsed."""
    labels = np.repeat([0, 1, 2], 50)
    assert spread(np.eye(16)[labels], labels) == pytest.approx(1)
    assert spread(np.eye(16)[labels], np.zeros(150)) is None
    assert not has_collapsed(None)


def test_what_is_not_finite_or_zero_has_no_spread() -> None:
    for value in (np.nan, np.inf, 0.0):
        assert has_collapsed(spread(np.full((5, 8), value, np.float32), np.arange(5)))
    broken = np.eye(8)
    broken[3, 3] = np.nan
    assert spread(broken, np.arange(8)) == 0


def test_what_is_said_names_network_set_and_a_remedy() -> None:
    told = tell_collapse("m1", 1.2e-6, "lfw")
    assert "m1 has collapsed" in told and "lfw" in told and "1.2e-06" in told and "--lr" in told
    assert "\n" not in told and f"{COLLAPSED:g}" in told
