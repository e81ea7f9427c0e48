from __future__ import annotations

import numpy as np
import pytest
from fake_eyes import vectors

from persona.errors import PersonaError
from persona.evaluation.metrics import resolves
from persona.gallery import calibrate
from persona.gallery.calibrate import threshold_at


@pytest.mark.parametrize("far", [0.3, 1e-2, 1e-3])
def test_agrees_with_the_definition(far: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "BLOCK", 17)
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
