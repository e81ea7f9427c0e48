"""Groups of faces from embeddings alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from persona.evaluation import grouping
from persona.evaluation.grouping import estimate_threshold, group_faces, ranked
from persona.evaluation.metrics import b_cubed, pairwise_f
from persona.gallery.store import unit


def people(count: int, photos: int, *, noise: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Embeddings of people in a drawn order, and who each is."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.repeat(np.arange(count), photos))
    centre = unit(rng.normal(size=(count, 64)))
    return unit(centre[label] + noise * rng.normal(size=(len(label), 64))).astype(np.float32), label


def same(group: np.ndarray, label: np.ndarray) -> bool:
    return pairwise_f(group, label) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("photos", [1, 3, 60])
def test_people_far_apart_are_found(photos: int) -> None:
    embeddings, label = people(12, photos, noise=0.05)
    group = group_faces(embeddings, 0.5)
    assert same(group, label)
    sizes = np.bincount(group)
    assert sizes.tolist() == sorted(sizes, reverse=True)  # the largest comes first


def test_a_person_with_more_photos_than_links_is_one_group() -> None:
    embeddings, label = people(3, 10 * grouping.NEIGHBOURS, noise=0.11)
    assert same(group_faces(embeddings, 0.4), label)


def test_a_chain_of_faces_is_not_one_person() -> None:
    """Each is like the next one, and the first is nothing like the last."""
    angles = np.linspace(0, np.pi, 40)
    chain = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    group = group_faces(chain, 0.9)
    assert group[0] != group[-1]
    for members in (np.flatnonzero(group == number) for number in np.unique(group)):
        similarity = chain[members] @ chain[members].T
        assert similarity.min() > 0


def test_no_faces_and_one_face() -> None:
    assert group_faces(np.zeros((0, 8), np.float32), 0.5).tolist() == []
    assert group_faces(np.eye(8, dtype=np.float32)[:1], 0.5).tolist() == [0]


def test_strangers_stay_alone() -> None:
    embeddings, _ = people(200, 1, noise=0.0)
    assert len(np.unique(group_faces(embeddings, 0.6))) == 200


def test_approximate_neighbours_group_as_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, label = people(60, 20, noise=0.08)
    exact = group_faces(embeddings, 0.45)
    monkeypatch.setattr(grouping, "EXACT", 100)
    assert same(exact, label) and same(group_faces(embeddings, 0.45), label)


def test_the_estimated_threshold_lies_between_strangers_and_people() -> None:
    embeddings, label = people(60, 5, noise=0.06)
    threshold = estimate_threshold(embeddings)
    similarity = embeddings @ embeddings.T
    one = label[:, None] == label[None]
    np.fill_diagonal(one, False)
    assert np.quantile(similarity[one], 0.01) > threshold
    assert np.mean(similarity[label[:, None] != label[None]] >= threshold) < 1e-3


def test_figures_follow_their_formulas() -> None:
    rng = np.random.default_rng(3)
    group, label = rng.integers(0, 6, 50), rng.integers(0, 5, 50)
    pairs = list(itertools.combinations(range(50), 2))
    grouped = {p for p in pairs if group[p[0]] == group[p[1]]}
    right = {p for p in pairs if label[p[0]] == label[p[1]]}
    both = len(grouped & right)
    precision, recall, f = pairwise_f(group, label)
    assert (precision, recall) == (both / len(grouped), both / len(right))
    assert f == pytest.approx(2 * both / (len(grouped) + len(right)))
    hit = (group[:, None] == group[None]) & (label[:, None] == label[None])
    precision, recall, _ = b_cubed(group, label)
    assert precision == pytest.approx((hit.sum(1) / (group[:, None] == group[None]).sum(1)).mean())
    assert recall == pytest.approx((hit.sum(1) / (label[:, None] == label[None]).sum(1)).mean())


def test_ranked_numbers_by_size_and_then_by_the_first_face() -> None:
    assert ranked(np.array([7, 3, 3, 9, 9, 5])).tolist() == [2, 0, 0, 1, 1, 3]
