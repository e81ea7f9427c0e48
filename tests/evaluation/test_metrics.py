"""Parity with scikit-learn, and with the reference 10-fold procedure written out plainly.

scikit-learn is imported by the tests that compare with it, because every test process imports every
test file, and scikit-learn takes 3 s.
"""

from __future__ import annotations

import numpy as np
import pytest

from persona.errors import PersonaError
from persona.evaluation.metrics import (
    cosine_scores,
    decide_folds,
    equal_error_rate,
    listed_scores,
    match_auc,
    match_scores,
    roc,
    roc_auc,
    tar_at_far,
    verification,
)


def random_pairs(seed: int, count: int = 400, decimals: int = 8):
    """Scores of overlapping classes; few decimals make ties."""
    rng = np.random.default_rng(seed)
    same = rng.random(count) < 0.5
    scores = np.round(rng.normal(np.where(same, 0.5, 0.2), 0.2), decimals)
    return scores, same, np.arange(count) * 10 // count


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [1, 8])
def test_roc_and_auc_agree_with_scikit_learn(seed: int, decimals: int) -> None:
    from sklearn.metrics import roc_auc_score, roc_curve

    scores, same, _ = random_pairs(seed, decimals=decimals)
    far, tar, threshold = roc(scores, same)
    expected_far, expected_tar, expected_threshold = roc_curve(
        same, scores, drop_intermediate=False
    )
    np.testing.assert_allclose(far, expected_far)
    np.testing.assert_allclose(tar, expected_tar)
    np.testing.assert_allclose(threshold, expected_threshold)
    assert roc_auc(scores, same) == pytest.approx(roc_auc_score(same, scores))


@pytest.mark.parametrize("seed", range(5))
def test_tar_at_far_and_eer_agree_with_scikit_learns_curve(seed: int) -> None:
    from sklearn.metrics import roc_curve

    scores, same, _ = random_pairs(seed, 4000)
    far, tar, _ = roc_curve(same, scores, drop_intermediate=False)
    for wanted in (1e-1, 1e-2, 1e-3):
        assert tar_at_far(scores, same, wanted) == tar[far <= wanted].max()
    assert tar_at_far(scores, same, 1e-4) is None  # 2,000 impostor pairs cannot resolve it
    eer = equal_error_rate(scores, same)
    frr = 1 - tar  # the two cross between the last point with FAR < FRR and the next
    assert np.minimum(far, frr).max() <= eer <= np.maximum(far, frr).min()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [1, 8])
def test_folds_agree_with_the_procedure_written_out(seed: int, decimals: int) -> None:
    from sklearn.metrics import accuracy_score

    scores, same, folds = random_pairs(seed, decimals=decimals)
    expected = []
    for fold in range(10):
        train, test = folds != fold, folds == fold
        levels = np.unique(scores[train])
        candidates = [levels[0] - 1, *((levels[1:] + levels[:-1]) / 2), levels[-1] + 1]
        accuracy = [np.mean(same[train] == (scores[train] >= c)) for c in candidates]
        best = np.flatnonzero(np.isclose(accuracy, max(accuracy)))
        threshold = candidates[best[len(best) // 2]]
        expected.append(accuracy_score(same[test], scores[test] >= threshold))
    np.testing.assert_allclose(decide_folds(scores, same, folds).accuracies, expected)


def test_the_threshold_never_sees_the_test_fold() -> None:
    scores, same, folds = random_pairs(0)
    before = decide_folds(scores, same, folds).accuracies
    flipped = np.where(folds == 3, ~same, same)
    after = decide_folds(scores, flipped, folds).accuracies
    assert after[3] == pytest.approx(1 - before[3])


def test_a_perfect_and_a_useless_network() -> None:
    same = np.arange(100) % 2 == 0
    folds = np.arange(100) // 10
    perfect = verification(np.where(same, 0.9, 0.1), same, folds)
    assert (perfect.accuracy, perfect.accuracy_std, perfect.auc, perfect.eer) == (1, 0, 1, 0)
    assert perfect.tar_at_far == {"0.1": 1.0, "0.01": None, "0.001": None, "0.0001": None}
    assert perfect.folds == [1.0] * 10
    useless = verification(np.zeros(100), same, folds)
    assert (useless.auc, useless.eer) == (0.5, 0.5)
    assert useless.tar_at_far["0.1"] == 0.0
    assert useless.accuracy == 0.5


@pytest.mark.parametrize("far", [1.0, 0.5, 0.1, 0.02])
@pytest.mark.parametrize("decimals", [1, 3])
def test_the_threshold_at_a_far_is_the_lowest_that_keeps_it(far: float, decimals: int) -> None:
    scores, same, folds = random_pairs(1, decimals=decimals)
    scores[~same & (scores == scores[~same].max())] = 1.0  # above every genuine pair
    found = verification(scores, same, folds, (far, 1e-4)).threshold_at_far
    threshold = found[f"{far:g}"]
    assert threshold is not None
    assert np.mean(scores[~same] >= threshold) <= far
    lower = np.nextafter(threshold, -np.inf)
    assert far == 1.0 or np.mean(scores[~same] >= lower) > far
    assert np.mean(scores[same] >= threshold) == tar_at_far(scores, same, far)
    assert found["0.0001"] is None


def test_threshold_lies_in_the_gap() -> None:
    scores = np.tile([0.1, 0.2, 0.8, 0.9], 2)
    decided = decide_folds(scores, scores > 0.5, np.repeat([0, 1], 4))
    assert decided.thresholds == pytest.approx([0.5, 0.5])


def test_cosines() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50, 8))
    expected = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(cosine_scores(a, b), expected)
    first, second = rng.integers(50, size=(2, 40_000))  # more than a block
    np.testing.assert_array_equal(
        listed_scores(a, first, second), cosine_scores(a[first], a[second])
    )


def test_triplets_are_scored_by_order_alone() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    anchor, negative = rng.normal(size=(2, 200, 8))
    positive = anchor + rng.normal(size=(200, 8))
    genuine, impostor = match_scores(anchor, positive, negative)
    np.testing.assert_allclose(genuine, cosine_scores(anchor, positive))
    np.testing.assert_allclose(impostor, cosine_scores(anchor, negative))
    same = np.repeat([True, False], 200)
    auc = match_auc(genuine, impostor)
    assert auc == pytest.approx(roc_auc_score(same, np.append(genuine, impostor)))
    assert match_auc(impostor, genuine) == pytest.approx(1 - auc)
    assert 0.5 < auc < 1
    for scale in (0.5, 2.0**-10, 4.0):  # distances so many times as large
        assert match_auc(1 - scale * (1 - genuine), 1 - scale * (1 - impostor)) == pytest.approx(
            auc
        )
    far = np.linspace(-1.0, -0.9, 200)
    assert match_auc(far + 1, far) == match_auc(far / 100 + 1, far / 100) == 1.0


@pytest.mark.parametrize(
    ("scores", "same", "folds", "message"),
    [
        ([0.1, np.nan], [True, False], [0, 1], "not finite"),
        ([0.1, 0.2], [True, True], [0, 1], "all genuine or all impostor"),
        ([0.1, 0.2], [True, False], [0, 0], "lie in one fold"),
    ],
)
def test_what_cannot_be_measured_is_said(scores, same, folds, message: str) -> None:
    with pytest.raises(PersonaError, match=message):
        verification(np.array(scores), np.array(same), np.array(folds))


def test_what_no_figure_is_made_of() -> None:
    broken = np.full((2, 3), np.nan)
    with pytest.raises(PersonaError, match="some scores are not finite: the network gives NaN"):
        match_scores(np.ones((2, 3)), np.ones((2, 3)), broken)
    with pytest.raises(ValueError, match=r"scores \(2,\) and labels \(3,\) must be \(P,\) alike"):
        roc(np.ones(2), np.ones(3, bool))
