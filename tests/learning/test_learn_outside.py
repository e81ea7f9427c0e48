"""The pairs of people outside the stream."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from persona.learning.outside import draw_pairs, pair_at


def test_every_pair_has_a_number() -> None:
    i, j = pair_at(np.arange(10 * 9 // 2))
    assert list(zip(j.tolist(), i.tolist(), strict=True)) == [
        (b, a) for b in range(10) for a in range(b)
    ]
    last = 3_000_000 * 2_999_999 // 2 - 1
    i, j = pair_at(np.array([last, last - 2_999_998, last - 2_999_999]))
    assert i.tolist() == [2_999_998, 0, 2_999_997]
    assert j.tolist() == [2_999_999, 2_999_999, 2_999_998]


def test_few_pairs_are_all_drawn_and_of_many_a_sample_of_each_kind() -> None:
    identity = np.random.default_rng(0).integers(0, 5, 30)
    a, b, same = draw_pairs(identity, 1000, seed=0)
    found = {frozenset(pair) for pair in zip(a.tolist(), b.tolist(), strict=True)}
    assert found == set(map(frozenset, itertools.combinations(range(30), 2)))
    assert len(a) == len(found) == len(same)
    assert (same == (identity[a] == identity[b])).all()

    many = np.arange(40_000) // 20  # 800 million pairs
    a, b, same = draw_pairs(many, 5000, seed=0)
    assert (same == (many[a] == many[b])).all()
    assert (same.sum(), (~same).sum()) == (5000, 5000)
    assert len(set(zip(a.tolist(), b.tolist(), strict=True))) == 10_000
    assert (np.bincount(many[a[same]] // 200, minlength=10) > 400).all()  # evenly, about 500
    again, _, _ = draw_pairs(many, 5000, seed=1)
    assert (again != a).any()


def test_few_strangers_among_many_photos_of_one_person_are_all_drawn() -> None:
    identity = np.array([0] * 300 + [1, 2])  # 45,451 pairs, of which 601 are of two people
    a, b, same = draw_pairs(identity, 1000, seed=0)
    assert (same.sum(), (~same).sum()) == (1000, 601)
    assert len(set(zip(a.tolist(), b.tolist(), strict=True))) == 1601 and (a != b).all()


@pytest.mark.parametrize("identity", [[], [0], [0, 1], [0, 0]])
def test_hardly_anybody(identity: list[int]) -> None:
    a, _, same = draw_pairs(np.array(identity, np.int64), 10, seed=0)
    assert len(a) == len(same) == (len(identity) == 2)
