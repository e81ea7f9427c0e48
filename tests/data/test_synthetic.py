from __future__ import annotations

from pathlib import Path

import numpy as np

from persona.data.raw import open_dataset
from persona.data.raw.synthetic import Population, draw_datasets
from persona.data.synthetic import draw_identity, draw_photo


def test_same_numbers_same_pixels() -> None:
    one, two = (np.asarray(draw_photo(draw_identity(3, 4), 5, 96)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert one.shape == (96, 96, 3)
    assert draw_identity(3, 4) != draw_identity(3, 5) != draw_identity(4, 5)


def test_photos_of_a_person_differ() -> None:
    person = draw_identity(0, 0)
    one, two = (np.asarray(draw_photo(person, seed, 64), np.float32) for seed in (1, 2))
    assert np.abs(one - two).mean() > 10


def test_drawn_datasets_are_whole_and_share_nobody(tmp_path: Path) -> None:
    population = Population(
        train_identities=3,
        test_identities=2,
        lfw_identities=20,
        photos=4,
        pairs_per_fold=5,
        size_px=48,
    )
    draw_datasets(tmp_path, population, workers=1)
    train = open_dataset("synthetic", tmp_path, "train").index()
    test = open_dataset("synthetic", tmp_path, "test").index()
    assert (len(train.photos), len(test.photos)) == (12, 8)
    assert not set(train.classes) & set(test.classes)
    lfw = open_dataset("synthetic-lfw", tmp_path)
    pairs = lfw.pairs()
    assert pairs is not None
    sources = {photo.source for photo in lfw.index().photos}
    assert len(pairs) == 100
    assert {pair.a for pair in pairs} | {pair.b for pair in pairs} <= sources
    for pair in pairs:
        assert pair.same == (pair.a.split("/")[0] == pair.b.split("/")[0])
    people = [
        {s.split("/")[0] for p in pairs if p.fold == fold for s in (p.a, p.b)} for fold in range(10)
    ]
    assert sum(map(len, people)) == len(set().union(*people))  # no person in two folds

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    gone = next(iter(before))
    content = gone.read_bytes()
    gone.unlink()
    draw_datasets(tmp_path, population, workers=1)
    assert gone.read_bytes() == content
    assert all(path.stat().st_mtime_ns == t for path, t in before.items() if path != gone)
