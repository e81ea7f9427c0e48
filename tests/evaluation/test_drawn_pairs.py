"""Pairs drawn of the people of a set that has none of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from persona.data.pack import Packed
from persona.errors import PersonaError
from persona.evaluation.pair_lists import draw_pairs


def people(*photos: int) -> dict[int, dict[str, Any]]:
    """Metas of people with so many photos each."""
    names = [f"person {place}" for place, count in enumerate(photos) for _ in range(count)]
    return {7 + key: {"identity": name} for key, name in enumerate(names)}


def test_drawn_pairs_are_true_and_no_person_is_in_two_folds(train_set: Packed) -> None:
    metas = people(*[8, 9] * 20)
    drawn = draw_pairs(metas, 1000, train_set.manifest)
    a, b = ([metas[key]["identity"] for key in keys.tolist()] for keys in (drawn.a, drawn.b))
    assert [x == y for x, y in zip(a, b, strict=True)] == drawn.same.tolist()
    assert (drawn.a != drawn.b).all() and set(drawn.fold) == set(range(10))
    assert len({*zip(drawn.a.tolist(), drawn.b.tolist(), strict=True)}) == len(drawn)
    fold_of: dict[str, set[int]] = {}
    for person, fold in [*zip(a, drawn.fold, strict=True), *zip(b, drawn.fold, strict=True)]:
        fold_of.setdefault(person, set()).add(int(fold))
    assert all(len(folds) == 1 for folds in fold_of.values())
    for fold in range(10):
        here = drawn.fold == fold
        assert drawn.same[here].sum() == (~drawn.same[here]).sum() == 100


def test_drawn_pairs_are_the_same_each_time_and_favour_nobody(train_set: Packed) -> None:
    metas = people(*[6] * 19, 400)
    drawn = draw_pairs(metas, 300, train_set.manifest)
    again = draw_pairs(dict(reversed(metas.items())), 300, train_set.manifest)
    np.testing.assert_array_equal(np.stack(list(vars(drawn).values())), [*vars(again).values()])
    of_one = [metas[key]["identity"] == "person 19" for key in drawn.a[drawn.same].tolist()]
    # It shares a fold of 30 genuine pairs with one other person, who has 15.
    assert 15 <= sum(of_one) <= 25


def test_a_small_set_gives_the_pairs_that_it_has(train_set: Packed) -> None:
    drawn = draw_pairs(people(2, 2, 3, 1), 3000, train_set.manifest)
    assert drawn.same.sum() == 1 + 1 + 3 and set(drawn.fold) == {0, 1}
    shards = tuple(replace(shard, no_face=(7,)) for shard in train_set.manifest.shards)
    fewer = draw_pairs(people(2, 2, 3, 1), 3000, replace(train_set.manifest, shards=shards))
    assert fewer.same.sum() == 1 + 3 and 7 not in {*fewer.a, *fewer.b}


@pytest.mark.parametrize(
    ("photos", "message"),
    [
        ((9, 9, 9), "has no pairs and 3 people: pairs are drawn of at least 4"),
        ((1,) * 9, "one photo of each person"),
    ],
)
def test_too_few_people_or_photos(train_set: Packed, photos: Any, message: str) -> None:
    with pytest.raises(PersonaError, match=message):
        draw_pairs(people(*photos), 100, train_set.manifest)
