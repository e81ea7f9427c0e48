"""Bootstrap intervals of a figure and tests of paired differences, on NumPy arrays.

Identities are resampled where they are known. Pairs that share a person are not independent, so
resampling pairs would give intervals that are too narrow. In a resample, a genuine pair counts as
often as its identity was drawn. An impostor pair counts as often as the product of the draws of its
two identities. This is the vertex bootstrap (Snijders and Borgatti 1999, "Non-parametric standard
errors and tests for network statistics", Connections 22; for 1:1 matching Fogliato, Patil and
Perona 2024, "Confidence intervals for error rates in 1:1 matching tasks", IJCV). Where the two
photos of a genuine pair have different labels, or every pair has labels of its own, identities are
not known and pairs are resampled (Efron 1979).

Intervals are percentile intervals (Efron and Tibshirani 1993, chapter 13). Thresholds are not
chosen again in a resample; each fold keeps the threshold of the other folds.

Shapes: P pairs, N trials, U units, R resamples, D distinct scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from persona.evaluation.metrics import FARS, Bools, Floats, Ints, resolves

RESAMPLES = 1000
SEED = 0
"""Seed of the draws, so that the same data give the same interval."""
LEVEL = 0.95
MAX_WORK = 1_000_000_000
"""Most weights drawn in all. Very many pairs get fewer resamples, but at least 100."""
BLOCK = 4_000_000
"""Weights held in memory at once (32 MB of float64)."""


class Interval(NamedTuple):
    """The 95 % confidence interval of a figure."""

    low: float
    high: float


@dataclass(frozen=True)
class Units:
    """What is resampled (identities or pairs), and which units each pair belongs to."""

    kind: str
    """What the units are: `identities` or `pairs`."""
    a: Ints
    b: Ints
    """(P,) unit of each pair's first (`a`) and second (`b`) photo, from 0. If pairs are resampled,
    both are the pair itself."""
    count: int
    """Number of units."""

    def draw(self, resamples: int, seed: int) -> Iterator[Floats]:
        """Yields (R, P) float64 weights in blocks, the same for the same seed and units."""
        rng = np.random.default_rng(seed)
        rows = max(1, BLOCK // max(len(self.a), self.count))
        for start in range(0, resamples, rows):
            number = min(rows, resamples - start)
            drawn_RU = np.empty((number, self.count))
            for row in drawn_RU:
                row[:] = np.bincount(
                    rng.integers(self.count, size=self.count), minlength=self.count
                )
            second_RP = np.where(self.a == self.b, 1.0, drawn_RU[:, self.b])
            yield drawn_RU[:, self.a] * second_RP


def units_of(same_P: Bools, identity_a_P: Ints, identity_b_P: Ints) -> Units:
    """The units to resample: identities if the labels fit the pairs, pairs otherwise.

    Labels fit if they agree for every genuine pair and differ for every impostor pair, and if one
    of them is in several pairs. A `bin:` file names nobody: its labels stand for pairs.
    """
    each_once = np.concatenate([identity_a_P, identity_b_P[~same_P]])
    if np.array_equal(identity_a_P == identity_b_P, same_P) and (
        len(np.unique(each_once)) < len(each_once)
    ):
        both, place = np.unique(np.concatenate([identity_a_P, identity_b_P]), return_inverse=True)
        return Units("identities", place[: len(same_P)], place[len(same_P) :], len(both))
    each = np.arange(len(same_P))
    return Units("pairs", each, each, len(same_P))


def connected(units: Units) -> Ints:
    """(P,) cluster of each pair. Pairs joined by a chain of shared units are in one cluster."""
    cluster_U = np.arange(units.count)
    while True:
        lower_P = np.minimum(cluster_U[units.a], cluster_U[units.b])
        found_U = cluster_U.copy()
        np.minimum.at(found_U, units.a, lower_P)
        np.minimum.at(found_U, units.b, lower_P)
        if np.array_equal(found_U, cluster_U):
            return np.asarray(cluster_U[units.a], np.int64)
        cluster_U = found_U[found_U]


def num_resamples(pairs: int, wanted: int = RESAMPLES) -> int:
    """Number of resamples for so many pairs: `wanted`, or fewer (at least 100) for very many."""
    return min(wanted, max(100, MAX_WORK // max(pairs, 1)))


def interval_of(values_R: npt.ArrayLike) -> Interval | None:
    """The percentile interval of resampled figures.

    None means that most resamples could not be measured, or that all resamples agree. Without a
    single error in the data no resample has one, which does not prove that errors are impossible.
    """
    values = np.asarray(values_R, np.float64)
    values = values[np.isfinite(values)]
    if not len(values) or len(values) * 2 < np.size(values_R):
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high)) if high - low > 1e-12 else None


def bootstrap_interval(
    values_N: npt.ArrayLike,
    units_N: npt.ArrayLike | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval | None:
    """The bootstrap interval of a mean, as `interval_of` defines it.

    Args:
        values_N: (N,) one value for each trial, such as whether it was correct.
        units_N: (N,) unit (identity) of each trial. None makes each trial a unit.
        resamples: number of resamples.
        seed: seed of the random draws.
    """
    values = np.asarray(values_N, np.float64)
    units = np.arange(len(values)) if units_N is None else np.asarray(units_N)
    _, place_N = np.unique(units, return_inverse=True)
    count = int(place_N.max(initial=-1)) + 1
    if not count:
        return None
    sums_U, sizes_U = np.bincount(place_N, values), np.bincount(place_N)
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(num_resamples(count, resamples)):
        drawn = rng.integers(count, size=count)
        means.append(sums_U[drawn].sum() / sizes_U[drawn].sum())
    return interval_of(means)


@dataclass(frozen=True)
class Curve:
    """Pairs sorted by score, highest first, so that the figures of a resample are a few sums."""

    order: Ints
    """(P,) place of each sorted pair in the caller's arrays."""
    last: Ints
    """(D,) last place of each distinct score."""
    same: Bools
    """(P,) whether a pair is genuine."""
    share: Floats
    """(P,) 1 / size of its fold if the pair was decided correctly, else 0. Accuracy is the mean
    over folds, so a pair of a small fold counts more."""
    size: Floats
    """(P,) 1 / size of the pair's fold."""

    @classmethod
    def of(cls, scores_P: Floats, same_P: Bools, right_P: Bools, folds_P: Ints) -> Curve:
        """Sorts the pairs.

        Args:
            scores_P: (P,) cosine similarities.
            same_P: (P,) whether a pair is genuine.
            right_P: (P,) whether a pair was decided correctly.
            folds_P: (P,) fold numbers.
        """
        order = np.argsort(-scores_P, kind="stable")
        last = np.append(np.flatnonzero(np.diff(scores_P[order])), len(order) - 1)
        _, fold_P, sizes_K = np.unique(folds_P, return_inverse=True, return_counts=True)
        size = (1.0 / sizes_K)[fold_P][order]
        return cls(order, last, same_P[order], right_P[order] * size, size)

    def figures(self, weights_RP: Floats, fars: Sequence[float]) -> dict[str, Floats]:
        """Figures under each row of (R, P) weights.

        Returns:
            (R,) values of `accuracy`, `auc`, `eer` and `tar@FAR` by name; NaN where undefined.
        """
        weights = weights_RP[:, self.order]
        found = {}
        with np.errstate(divide="ignore", invalid="ignore"):
            # Genuine and impostor pairs are averaged apart: a resample's share of genuine pairs
            # varies by chance and must not change the accuracy.
            right = np.zeros(len(weights))
            for kind in (self.same, ~self.same):
                if kind.any():
                    mean = weights @ (self.share * kind) / (weights @ (self.size * kind))
                    right += mean * self.size[kind].sum()
            found["accuracy"] = right / self.size.sum()
            tar = np.cumsum(weights * self.same, axis=1)[:, self.last]
            far = np.cumsum(weights * ~self.same, axis=1)[:, self.last]
            zero = np.zeros((len(weights), 1))
            tar = np.hstack([zero, tar / tar[:, -1:]])
            far = np.hstack([zero, far / far[:, -1:]])
            found["auc"] = np.sum(np.diff(far) * (tar[:, 1:] + tar[:, :-1]), axis=1) / 2
            gap = far - (1.0 - tar)
            after = np.maximum(np.argmax(gap >= 0, axis=1), 1)
            rows = np.arange(len(weights))
            below, above = gap[rows, after - 1], gap[rows, after]
            far_0, far_1 = far[rows, after - 1], far[rows, after]
            found["eer"] = far_0 - below / (above - below) * (far_1 - far_0)
            both_R = np.isfinite(tar[:, -1] + far[:, -1])  # genuine and impostor pairs are drawn
            for rate in fars:
                place = np.sum(far <= rate, axis=1) - 1
                found[f"tar@{rate:g}"] = np.where(both_R, tar[rows, place], np.nan)
        return found


def resample_figures(
    curves: Sequence[Curve], units: Units, fars: Sequence[float], resamples: int
) -> list[dict[str, Floats]]:
    """(R,) figures of each curve by name, see `Curve.figures`, all over the same resamples."""
    parts: list[list[dict[str, Floats]]] = [[] for _ in curves]
    for weights in units.draw(resamples, SEED):
        for part, curve in zip(parts, curves, strict=True):
            part.append(curve.figures(weights, fars))
    return [{name: np.concatenate([p[name] for p in part]) for name in part[0]} for part in parts]


def verification_intervals(
    curve: Curve, units: Units, *, fars: Sequence[float] = FARS, resamples: int = RESAMPLES
) -> dict[str, Interval | None]:
    """Intervals of `accuracy`, `auc`, `eer` and `tar@FAR` by name.

    A FAR that the impostor pairs cannot resolve is left out. None as in `interval_of`.
    """
    impostors = int((~curve.same).sum())
    fars = [far for far in fars if resolves(far, impostors)]
    number = num_resamples(len(curve.same), resamples)
    (found,) = resample_figures([curve], units, fars, number)
    return {name: interval_of(values) for name, values in found.items()}


def permutation_p(
    swap_figure: Callable[[Bools], float],
    observed: float,
    clusters_P: Ints,
    resamples: int,
    seed: int,
) -> float:
    """Two-sided p-value of a paired difference of two models, by random swaps.

    It is never 0 (Phipson and Smyth 2010).

    Args:
        swap_figure: gives the difference after the marked pairs (P,) swap models.
        observed: the difference without swaps.
        clusters_P: (P,) cluster of each pair. The pairs of a cluster are swapped together.
        resamples: number of random swaps.
        seed: seed of the random draws.
    """
    _, place_P = np.unique(clusters_P, return_inverse=True)
    rng = np.random.default_rng(seed)
    extreme = 0
    for _ in range(resamples):
        swapped_P = rng.random(int(place_P.max()) + 1)[place_P] < 0.5
        extreme += abs(swap_figure(swapped_P)) >= abs(observed) - 1e-12
    return (extreme + 1) / (resamples + 1)


def interval_text(interval: Interval | None, sign: str = "") -> str | None:
    """An interval as text, such as `0.9001 to 0.9502`. With `sign` "+" both ends are signed."""
    if interval is None:
        return None
    return f"{interval[0]:{sign}.4f} to {interval[1]:{sign}.4f}"
