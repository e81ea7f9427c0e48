from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from persona.data.pack import Packed
from persona.errors import PersonaError
from persona.evaluation import embed, thresholds
from persona.evaluation.embed import Embedded
from persona.evaluation.metrics import resolves
from persona.evaluation.processes import Alone
from persona.evaluation.search import Embeddings
from persona.evaluation.thresholds import faces_of, thin_out, threshold_at, threshold_interval
from persona.gallery.calibrate import calibrate


def vectors(count: int, seed: int = 0, width: int = 8) -> Embeddings:
    """Unit vectors in any direction."""
    drawn = np.random.default_rng(seed).normal(size=(count, width))
    unit: Embeddings = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return unit


@pytest.mark.parametrize("far", [0.3, 1e-2, 1e-3])
def test_agrees_with_the_definition(far: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "BLOCK", 17)
    embeddings, labels = vectors(90), np.arange(90) % 9
    threshold, tar, impostors = threshold_at(embeddings, labels, far, "x")
    scores = embeddings @ embeddings.T
    pairs = np.triu_indices(90, 1)
    same = labels[pairs[0]] == labels[pairs[1]]
    accepted = scores[pairs] >= np.float32(threshold)
    assert impostors == (~same).sum()
    assert accepted[~same].mean() <= far
    assert tar == pytest.approx(accepted[same].mean())
    # And the next lower one accepts too many.
    lower = scores[pairs][~same & (scores[pairs] < threshold)].max()
    assert (scores[pairs][~same] >= lower).mean() > far


@pytest.mark.parametrize(
    ("photos", "people", "each"),
    [
        ([3] * 1000, 100, {2}),  # two of each hundredth person's three
        ([3] * 99 + [1], 100, {1, 2}),  # two of each person's are 199
        ([50] * 20, 20, {10}),
        ([300, *[4] * 10], 11, {4, 160}),
        ([1000], 1, {200}),
    ],
)
def test_a_large_set_keeps_people_with_two_photos(
    photos: list[int], people: int, each: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos at even distances of a set in the order of people left most people with one."""
    monkeypatch.setattr(thresholds, "MAX_SAMPLES", 200)
    labels = np.repeat(np.arange(len(photos)), photos)
    rows = thin_out(labels)
    assert len(rows) <= 200 and (np.diff(rows) > 0).all()
    found, counts = np.unique(labels[rows], return_counts=True)
    assert len(found) == people and {found[0], found[-1]} == {0, len(photos) - 1}
    assert set(counts.tolist()) == each
    if people > 1:
        threshold_at(vectors(len(rows)), labels[rows], 0.01, "x")
    mixed = np.random.default_rng(0).permutation(labels)  # whatever the order of the photos
    assert set(np.unique(mixed[thin_out(mixed)], return_counts=True)[1].tolist()) == each
    assert thin_out(labels[:200]).tolist() == list(range(200))


def test_faces_of_a_large_set(train_set: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "MAX_SAMPLES", 7)
    labels = np.repeat(np.arange(10), 3)
    rows = Embedded(np.arange(30), vectors(30)[:, None], labels[:, None], labels[:, None])
    monkeypatch.setattr(embed, "embed_set", lambda *_: rows)
    network = SimpleNamespace(uses_landmarks=False)
    named: Any = SimpleNamespace(name="x", image_size=None, alignment=None, network=network)
    faces, found = faces_of(named, train_set.faces, Alone())
    assert found.tolist() == [0, 0, 4, 4, 9, 9]
    np.testing.assert_array_equal(faces, vectors(30)[[0, 2, 12, 14, 27, 29]])


def test_a_set_that_was_thinned_out_says_so(
    train_set: Packed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def embedded(*_: Any) -> Embedded:
        keys, labels = np.arange(30), np.repeat(np.arange(6), 5)[:, None]
        return Embedded(keys, vectors(30)[:, None], labels, np.zeros((30, 1, 0), np.int64))

    monkeypatch.setattr(embed, "embed_set", embedded)
    caplog.set_level("INFO")
    named: Any = SimpleNamespace(
        name="n", image_size=None, alignment=None, network=SimpleNamespace(uses_landmarks=False)
    )
    whole = calibrate(named, train_set.faces, Alone(), 0.1)
    assert "among" not in whole.source and not caplog.records
    with pytest.raises(PersonaError, match=r"or more, or a larger set$"):
        calibrate(named, train_set.faces, Alone(), 1e-9)
    monkeypatch.setattr(thresholds, "MAX_SAMPLES", 20)
    told = f"18 of the 30 faces of {train_set.manifest.name}"
    assert f" among {told}), TAR" in calibrate(named, train_set.faces, Alone(), 0.1).source
    assert caplog.messages == [f"{told} are compared, of 6 people"]
    with pytest.raises(PersonaError, match=r"choose --far [\d.]+ or more$"):
        calibrate(named, train_set.faces, Alone(), 1e-9)


def test_what_cannot_be_resolved() -> None:
    with pytest.raises(
        PersonaError,
        match=r"the 54 pairs of two people in x cannot resolve a FAR of 0\.001.* 0\.019 or",
    ):
        threshold_at(vectors(11), np.array([0, *range(10)]), 1e-3, "x")
    for people in (2, 5, 10, 67, 100):  # what is proposed is accepted, and the next lower is not
        labels = np.array([0, *range(people)])
        with pytest.raises(PersonaError, match="cannot resolve") as refused:
            threshold_at(vectors(people + 1), labels, 1e-9, "x")
        proposed = float(str(refused.value).partition("--far ")[2].split()[0])
        threshold_at(vectors(people + 1), labels, proposed, "x")
        assert not resolves(proposed * 0.9, (people + 1) * people // 2 - 1)
    with pytest.raises(PersonaError, match="x has no two photos of one person"):
        threshold_at(vectors(9), np.arange(9), 1e-3, "x")
    with pytest.raises(PersonaError, match="choose a set of several people"):
        threshold_at(vectors(9), np.zeros(9, np.int64), 1e-3, "x")


def test_one_photo_under_two_names() -> None:
    rows = vectors(6)[[0, 0, 1, 1, 2, 3]]
    labels = np.array([0, 1, 0, 1, 2, 2])
    with pytest.raises(PersonaError, match="x has the same photo under several people's names"):
        threshold_at(rows, labels, 1 / 12, "x")
    threshold, *_ = threshold_at(rows, labels, 2 / 12, "x")
    assert threshold < 1


def test_the_interval_of_a_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "BLOCK", 17)
    faces, labels = vectors(200), np.arange(200) // 4
    threshold, *_ = threshold_at(faces, labels, 0.01, "x")
    interval = threshold_interval(faces, labels, 0.01, resamples=200)
    assert interval is not None and interval[0] < threshold < interval[1]
    assert interval[1] - interval[0] < 0.1
    assert interval == threshold_interval(faces, labels, 0.01, resamples=200)
    assert threshold_interval(faces, np.zeros(200, np.int64), 0.01) is None


def test_an_interval_covers_what_other_people_give() -> None:
    labels = np.arange(120) // 3
    true, *_ = threshold_at(vectors(3000, 99), np.arange(3000) // 3, 0.05, "x")
    intervals = [
        threshold_interval(vectors(120, seed), labels, 0.05, resamples=100) for seed in range(40)
    ]
    covered = sum(found is not None and found[0] <= true <= found[1] for found in intervals)
    assert covered >= 34
