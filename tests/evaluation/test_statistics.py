"""Intervals cover what they promise, and weights do what resampling by hand does."""

from __future__ import annotations

import numpy as np
import pytest

from persona.evaluation.compare import paired_differences, swapped_together
from persona.evaluation.metrics import decide_folds, det, roc, verification
from persona.evaluation.pairs import PairScores
from persona.evaluation.statistics import (
    Curve,
    Units,
    bootstrap_interval,
    connected,
    interval_of,
    num_resamples,
    units_of,
    verification_intervals,
)


def people_pairs(seed: int, people: int = 40, shift: float = 0.0, noise: float = 0.2):
    """Scores of genuine pairs of every person and of impostor pairs, which share people."""
    rng = np.random.default_rng(seed)
    same = np.arange(400) % 2 == 0
    a = rng.integers(people, size=400)
    b = np.where(same, a, (a + rng.integers(1, people, size=400)) % people)
    scores = rng.normal(np.where(same, 0.5 + shift, 0.2), noise)
    return scores, same, a, b, np.arange(400) // 40


def as_scores(scores, same, a, b, folds) -> PairScores:
    none = np.zeros(len(a), bool)
    return PairScores(folds, same, scores, a, b, a, b, none, 0)


def test_whole_weights_are_pairs_repeated() -> None:
    scores, same, _, _, folds = people_pairs(0)
    decided = decide_folds(scores, same, folds)
    counts = np.random.default_rng(1).integers(0, 3, size=len(scores))
    curve = Curve.of(scores, same, decided.right, np.zeros(len(scores), np.int64))
    found = curve.figures(counts[None].astype(float), (0.1, 0.01))
    repeated = [np.repeat(x, counts) for x in (scores, same, folds)]
    by_hand = verification(repeated[0], repeated[1], repeated[2], (0.1, 0.01))
    assert found["auc"][0] == pytest.approx(by_hand.auc)
    assert found["eer"][0] == pytest.approx(by_hand.eer)
    assert found["tar@0.1"][0] == pytest.approx(by_hand.tar_at_far["0.1"])
    assert found["tar@0.01"][0] == pytest.approx(by_hand.tar_at_far["0.01"])
    share = [np.average(decided.right[kind], weights=counts[kind]) for kind in (same, ~same)]
    assert found["accuracy"][0] == pytest.approx(np.mean(share))


def test_equal_weights_give_the_figures_themselves() -> None:
    scores, same, _, _, folds = people_pairs(0)
    scores = np.round(scores, 1)  # many equal scores
    decided = decide_folds(scores, same, folds)
    figures = Curve.of(scores, same, decided.right, folds).figures(np.ones((1, 400)), (0.1,))
    expected = verification(scores, same, folds, (0.1,))
    assert figures["accuracy"][0] == pytest.approx(expected.accuracy)
    assert figures["auc"][0] == pytest.approx(expected.auc)
    assert figures["eer"][0] == pytest.approx(expected.eer)
    assert figures["tar@0.1"][0] == expected.tar_at_far["0.1"]


@pytest.mark.parametrize("missing", [True, False])
def test_without_a_genuine_or_an_impostor_pair_no_figure_is_defined(missing: bool) -> None:
    scores, same, _, _, folds = people_pairs(0)
    curve = Curve.of(scores, same, decide_folds(scores, same, folds).right, folds)
    weights = np.vstack([same != missing, np.ones(400)]).astype(float)
    figures = curve.figures(weights, (0.1, 0.5))
    assert set(figures) == {"accuracy", "auc", "eer", "tar@0.1", "tar@0.5"}
    for name, (without, whole) in figures.items():
        assert np.isnan(without) and np.isfinite(whole), name


def test_the_interval_of_a_star_is_of_the_resamples_that_have_its_centre() -> None:
    """All impostor pairs are with one person, whom a third of the resamples does not draw."""
    people = 40
    rng = np.random.default_rng(0)
    same = np.arange(400) % 2 == 0
    a = np.where(same, rng.integers(people, size=400), 0)
    b = np.where(same, a, rng.integers(1, people, size=400))
    scores, folds = rng.normal(np.where(same, 0.6, 0.2), 0.1), np.arange(400) // 40
    curve = Curve.of(scores, same, decide_folds(scores, same, folds).right, folds)
    found = verification_intervals(curve, units_of(same, a, b), fars=(0.1,), resamples=300)
    interval = found["tar@0.1"]
    assert interval is not None and interval.low > 0.9


def test_a_drawn_identity_takes_all_its_pairs_along() -> None:
    units = Units("identities", np.array([0, 0, 1]), np.array([0, 1, 2]), 3)
    (weights,) = units.draw(200, 0)
    assert set(np.unique(weights[:, 0])) == {0, 1, 2, 3}
    assert weights[:, 0].mean() == pytest.approx(1, abs=0.2)
    # An impostor pair needs both of its people.
    assert (weights[weights[:, 0] == 0, 1] == 0).all()
    assert (weights[:, 0] * weights[:, 1] > 1).any()


def test_what_is_resampled() -> None:
    _, same, a, b, _ = people_pairs(0)
    assert units_of(same, a, b).kind == "identities"
    each = np.arange(800)
    assert units_of(same, each[:400], each[400:]).kind == "pairs"
    # Labels of a .bin fit the pairs, but each is that of one pair. One that returns is a person.
    own = units_of(same, each[:400], np.where(same, each[:400], each[400:]))
    assert (own.kind, own.count) == ("pairs", 400) and (own.a == own.b).all()
    known = units_of(same[:4], np.array([0, 1, 3, 4]), np.array([0, 2, 3, 0]))
    assert (known.kind, known.count) == ("identities", 5)
    each_alone = units_of(same[:4], np.array([0, 1, 3, 4]), np.array([0, 2, 3, 5]))
    assert each_alone.kind == "pairs"
    assert num_resamples(6000) == 1000 and num_resamples(10_000_000) == 100


def test_intervals_cover_a_mean_of_dependent_trials() -> None:
    covered = narrow = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        people = np.repeat(np.arange(50), 8)
        values = np.repeat(rng.normal(size=50), 8) + rng.normal(size=400) * 0.2
        for units in (people, None):
            interval = bootstrap_interval(values, units, resamples=200, seed=seed)
            assert interval is not None
            holds = interval.low <= 0 <= interval.high
            covered, narrow = (
                (covered + holds, narrow) if units is not None else (covered, narrow + holds)
            )
    assert covered >= 88
    assert narrow <= 70  # resampling trials would promise too much


def test_verification_intervals_hold_the_figures_and_repeat() -> None:
    scores, same, a, b, folds = people_pairs(3)
    decided = decide_folds(scores, same, folds)
    curve, units = Curve.of(scores, same, decided.right, folds), units_of(same, a, b)
    first = verification_intervals(curve, units, fars=(0.1, 1e-3), resamples=300)
    assert first == verification_intervals(curve, units, fars=(0.1, 1e-3), resamples=300)
    assert set(first) == {"accuracy", "auc", "eer", "tar@0.1"}  # 200 impostors: no FAR 0.001
    figures = verification(scores, same, folds)
    for name in ("accuracy", "auc", "eer"):
        interval = first[name]
        assert interval is not None
        assert interval.low < getattr(figures, name) < interval.high


def test_an_interval_of_nothing_is_none() -> None:
    assert interval_of([np.nan, np.nan, 1.0]) is None
    assert bootstrap_interval([]) is None


def test_without_an_error_there_is_no_interval() -> None:
    # 0 errors of 400 are no proof that there are none: [1, 1] would say so.
    scores, same, a, b, folds = people_pairs(0, noise=0.01)
    decided = decide_folds(scores, same, folds)
    assert decided.right.all()
    curve = Curve.of(scores, same, decided.right, folds)
    found = verification_intervals(curve, units_of(same, a, b), fars=(0.1,), resamples=100)
    assert found == {"accuracy": None, "auc": None, "eer": None, "tar@0.1": None}


def test_det_is_the_roc_with_the_misses() -> None:
    scores, same, *_ = people_pairs(0)
    far, frr, threshold = det(scores, same)
    np.testing.assert_allclose(roc(scores, same)[1], 1 - frr)
    assert len(far) == len(threshold)


def test_a_real_difference_is_found_and_chance_is_not() -> None:
    scores, same, a, b, folds = people_pairs(0)
    strong = as_scores(scores + np.where(same, 0.25, 0.0), same, a, b, folds)
    weak = as_scores(scores, same, a, b, folds)
    better = {d.figure: d for d in paired_differences(strong, weak, (0.1,), 300)}
    for figure in ("auc", "accuracy"):
        found = better[figure]
        assert found.p is not None and found.interval is not None
        assert found.difference > 0 and found.p < 0.05 and found.interval.low > 0
    assert better["tar@0.1"].p is None

    alike = [
        as_scores(scores + np.random.default_rng(s).normal(size=400) * 0.1, same, a, b, folds)
        for s in (1, 2)
    ]
    even = {d.figure: d for d in paired_differences(alike[0], alike[1], (0.1,), 300)}["auc"]
    assert even.p is not None and even.interval is not None
    assert even.p > 0.05 and even.interval.low < 0 < even.interval.high
    same_one = {d.figure: d for d in paired_differences(weak, weak, (0.1,), 100)}
    assert same_one["accuracy"].difference == 0 and same_one["accuracy"].p == 1
    # Another scale of scores changes no decision by rank.
    scaled = as_scores(scores * 0.1 + 0.5, same, a, b, folds)
    assert {d.figure: d for d in paired_differences(scaled, weak, (), 100)}["auc"].difference == 0


def test_pairs_that_share_people_hang_together() -> None:
    a, b = np.array([0, 1, 3, 4, 6, 7, 5]), np.array([1, 2, 3, 5, 6, 8, 5])
    cluster = connected(Units("identities", a, b, 9))
    same = [[int(x == y) for y in cluster] for x in cluster]
    chains = [0, 0, 1, 2, 3, 4, 2]  # 0-1-2, 3, 4-5, 6, 7-8
    assert same == [[int(x == y) for y in chains] for x in chains]
    long = np.random.default_rng(0).permutation(200)
    assert len(set(connected(Units("identities", long[:-1], long[1:], 200)).tolist())) == 1


@pytest.mark.parametrize(
    ("kind", "partner", "clusters"),
    [
        ("clusters", lambda person: person + 100, 12),  # each genuine pair with one impostor
        ("first photos", lambda person: (person + 1) % 12, 12),  # a ring of all people
        ("pairs", None, 24),
    ],
)
def test_what_is_swapped_together(kind: str, partner, clusters: int) -> None:
    person, same = np.tile(np.arange(12), 2), np.arange(24) < 12
    other = person + 100 if partner is None else np.where(same, person, partner(person))
    scores = as_scores(np.linspace(0, 1, 24), same, person, other, np.arange(24) % 2)
    cluster, found = swapped_together(scores)
    assert (found, len(set(cluster.tolist()))) == (kind, clusters)
