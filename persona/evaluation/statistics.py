"""How sure a figure is: bootstrap intervals and paired differences, on arrays alone.

What is resampled are identities where they are known: pairs that share a person are not
independent, and resampling pairs gives intervals that are too narrow. A genuine pair then counts as
often as its identity was drawn, an impostor pair as often as the product of its two (the vertex
bootstrap: Snijders and Borgatti 1999, "Non-parametric standard errors and tests for network
statistics", Connections 22; for 1:1 matching Fogliato, Patil and Perona 2024, "Confidence intervals
for error rates in 1:1 matching tasks", IJCV). Where the two photos of a genuine pair have different
labels, identities are not known, and pairs are resampled (Efron 1979).

Intervals are percentiles (Efron and Tibshirani 1993, chapter 13); thresholds stay those that the
training folds chose.

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
LEVEL = 0.95
MAX_WORK = 1_000_000_000
"""Weights drawn in all: of very many pairs fewer resamples are drawn, but never below 100."""
BLOCK = 4_000_000
"""Weights held at once."""


class Interval(NamedTuple):
    """Where a figure lies with 95 % confidence."""

    low: float
    high: float


@dataclass(frozen=True)
class Units:
    """What is resampled, and how often each pair then counts."""

    kind: str
    """`identities` or `pairs`."""
    a: Ints
    b: Ints
    """(P,) the unit of each photo, from 0; of pairs both are the pair."""
    count: int

    def draw(self, resamples: int, seed: int) -> Iterator[Floats]:
        """Yields (R, P) weights in blocks, the same for the same seed and units."""
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
    """Identities, if the labels of every genuine pair agree and of every impostor pair do not."""
    if np.array_equal(identity_a_P == identity_b_P, same_P):
        both, place = np.unique(np.concatenate([identity_a_P, identity_b_P]), return_inverse=True)
        return Units("identities", place[: len(same_P)], place[len(same_P) :], len(both))
    each = np.arange(len(same_P))
    return Units("pairs", each, each, len(same_P))


def connected(units: Units) -> Ints:
    """(P,) the cluster of each pair: pairs that a chain of shared units joins are in one."""
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
    """How many resamples so many pairs get."""
    return min(wanted, max(100, MAX_WORK // max(pairs, 1)))


def interval_of(values_R: npt.ArrayLike, level: float = LEVEL) -> Interval | None:
    """The percentile interval of resampled figures.

    None: most resamples could not be measured, or they do not differ. Where there are no errors,
    none can be drawn, which is no proof that there are none.
    """
    values = np.asarray(values_R, np.float64)
    values = values[np.isfinite(values)]
    if not len(values) or len(values) * 2 < np.size(values_R):
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high)) if high - low > 1e-12 else None


def bootstrap_interval(
    values_N: npt.ArrayLike,
    units_N: npt.ArrayLike | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """The interval of a mean.

    Args:
        values_N: (N,) one value a trial, such as whether it was right.
        units_N: (N,) what trial belongs to which unit (an identity); None: each is one of its own.
        resamples: how many.
        seed: of the draws.
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
    """Pairs sorted once, so that each resample's figures cost a few sums."""

    order: Ints
    last: Ints
    """The last place of each distinct score."""
    same: Bools
    share: Floats
    """Whether a pair was right, over the size of its fold: accuracy is the mean of folds."""
    size: Floats
    """1 / size of its fold."""

    @classmethod
    def of(cls, scores_P: Floats, same_P: Bools, right_P: Bools, folds_P: Ints) -> Curve:
        """All in the order of the scores, highest first."""
        order = np.argsort(-scores_P, kind="stable")
        last = np.append(np.flatnonzero(np.diff(scores_P[order])), len(order) - 1)
        _, fold_P, sizes_K = np.unique(folds_P, return_inverse=True, return_counts=True)
        size = (1.0 / sizes_K)[fold_P][order]
        return cls(order, last, same_P[order], right_P[order] * size, size)

    def figures(self, weights_RP: Floats, fars: Sequence[float]) -> dict[str, Floats]:
        """(R,) accuracy, auc, eer and `tar@FAR` under each row of weights; NaN where undefined."""
        weights = weights_RP[:, self.order]
        found = {}
        with np.errstate(divide="ignore", invalid="ignore"):
            # By class: a resample's share of genuine pairs is not what is asked about.
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
            for rate in fars:
                place = np.sum(far <= rate, axis=1) - 1
                found[f"tar@{rate:g}"] = np.where(place >= 0, tar[rows, place], np.nan)
        return found


def resample_figures(
    curves: Sequence[Curve], units: Units, fars: Sequence[float], resamples: int, seed: int = 0
) -> list[dict[str, Floats]]:
    """(R,) figures of each curve over the same resamples."""
    parts: list[list[dict[str, Floats]]] = [[] for _ in curves]
    for weights in units.draw(resamples, seed):
        for part, curve in zip(parts, curves, strict=True):
            part.append(curve.figures(weights, fars))
    return [{name: np.concatenate([p[name] for p in part]) for name in part[0]} for part in parts]


def verification_intervals(
    curve: Curve,
    units: Units,
    *,
    fars: Sequence[float] = FARS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval | None]:
    """The intervals of accuracy, auc, eer and of `tar@FAR` where the impostor pairs resolve it."""
    impostors = int((~curve.same).sum())
    fars = [far for far in fars if resolves(far, impostors)]
    number = num_resamples(len(curve.same), resamples)
    (found,) = resample_figures([curve], units, fars, number, seed)
    return {name: interval_of(values) for name, values in found.items()}


def permutation_p(
    swap_figure: Callable[[Bools], float],
    observed: float,
    clusters_P: Ints,
    resamples: int,
    seed: int,
) -> float:
    """Two-sided p-value of a paired difference (Phipson and Smyth 2010: never 0).

    Args:
        swap_figure: the difference once the pairs marked are swapped between the two models.
        observed: the difference as it is.
        clusters_P: (P,) pairs that are swapped together.
        resamples: how many.
        seed: of the draws.
    """
    _, place_P = np.unique(clusters_P, return_inverse=True)
    rng = np.random.default_rng(seed)
    extreme = 0
    for _ in range(resamples):
        swapped_P = rng.random(int(place_P.max()) + 1)[place_P] < 0.5
        extreme += abs(swap_figure(swapped_P)) >= abs(observed) - 1e-12
    return (extreme + 1) / (resamples + 1)


def interval_text(interval: Interval | None, sign: str = "") -> str | None:
    """An interval as a table has it: `0.9001 to 0.9502`; with sign `+` each end has its own."""
    if interval is None:
        return None
    return f"{interval[0]:{sign}.4f} to {interval[1]:{sign}.4f}"
