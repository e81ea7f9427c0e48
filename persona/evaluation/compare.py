"""Compares two networks on the same pairs, with intervals and p-values of the differences.

Each resample draws the same pairs for both networks. The p-values come from paired permutations:
the two networks' decisions (for accuracy) or the ranks of their scores (for AUC: Venkatraman and
Begg 1996, Biometrika 83) are swapped at random.

Pairs that are swapped together must not depend on the other pairs (Winkler et al. 2015,
"Multi-level block permutation", NeuroImage 123). They are clusters of pairs that share people,
directly or through other pairs. LFW has hundreds of clusters, since its folds share no people. In
small sets nearly all pairs form one cluster. There, all pairs whose first photo shows the same
person are swapped together. Pairs that share the second person still depend on each other, so p may
be too low: in simulations it was below 0.05 in up to 15 % of comparisons of equal networks. The
fact `permuted` says which of the two was used.

Shapes: P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from persona.data.sets import FaceSet
from persona.evaluation.metrics import Bools, Floats, Ints, resolves, roc_auc
from persona.evaluation.pairs import PairScores
from persona.evaluation.processes import Processes
from persona.evaluation.protocols.base import Subject, check_measure, note_other_crops
from persona.evaluation.protocols.verification import (
    Verification,
    VerificationOptions,
    pair_scores,
)
from persona.evaluation.spread import has_collapsed, tell_collapse
from persona.evaluation.statistics import (
    RESAMPLES,
    SEED,
    Interval,
    connected,
    interval_of,
    num_resamples,
    permutation_p,
    resample_figures,
)
from persona.models.sources import Named

MIN_CLUSTERS = 10
"""Fewest clusters to swap. A two-sided test with 10 clusters can reach p = 0.002."""


@dataclass(frozen=True)
class Difference:
    """A figure of networks A and B and its difference."""

    figure: str
    """Name of the figure: `accuracy`, `auc`, `eer` or `tar@FAR`."""
    a: float
    b: float
    difference: float
    """A minus B."""
    interval: Interval | None
    """95 % interval of the difference. None as in `interval_of`."""
    p: float | None
    """Two-sided p-value of the permutations. None for figures other than accuracy and AUC."""


def compare(
    networks: tuple[Named, Named],
    faces: FaceSet,
    accelerator: Processes,
    options: VerificationOptions = VerificationOptions(),  # noqa: B008 - frozen
    *,
    batch_size: int = 128,
    workers: int | None = None,
    quiet: bool = False,
) -> tuple[list[Difference], dict[str, Any]]:
    """Measures two networks on the pairs of a set and compares their figures.

    Returns:
        The differences, and facts about the measurement such as the number of pairs. Those about
        the pairs are fields of `VerificationFigures`, see `pair_notes`.

    Raises:
        PersonaError: the set has no pairs, or does not fit one of the networks.
    """
    for named in networks:
        check_measure(Verification.name, named, faces.manifest, options)
        if accelerator.is_main_process:
            note_other_crops(named, faces.manifest)
    scores, collapses = [], []
    for named in networks:
        subject = Subject(named, faces, accelerator, options, batch_size, workers, quiet)
        found, facts = pair_scores(subject)
        if options.trained is None:  # it is of this network alone
            facts.pop("overlap", None)
        scores.append(found)
        if has_collapsed(subject.spread):
            collapses.append(tell_collapse(named.name, subject.spread, f"set {faces.name}"))
    first, second = scores
    resamples = options.resamples or RESAMPLES
    return paired_differences(first, second, options.fars, resamples), {
        "pairs": len(first),
        "resampled": first.units().kind,
        "permuted": swapped_together(first)[1],
        **{name: value for name, value in facts.items() if value is not None},
        **({"warnings": collapses} if collapses else {}),
    }


def paired_differences(
    first: PairScores, second: PairScores, fars: Any, resamples: int = RESAMPLES
) -> list[Difference]:
    """Differences of all figures of two networks on the same pairs.

    Args:
        first: scores of network A.
        second: scores of network B, on the same pairs in the same order.
        fars: false accept rates. Those that the pairs cannot resolve are left out.
        resamples: number of resamples for the intervals, and of permutations.
    """
    decided = first.decide(), second.decide()
    fars = [far for far in fars if resolves(far, int((~first.same).sum()))]
    whole = [s.figures(fars, d) for s, d in zip((first, second), decided, strict=True)]
    curves = [s.curve(d) for s, d in zip((first, second), decided, strict=True)]
    number = num_resamples(2 * len(first), resamples)
    drawn = resample_figures(curves, first.units(), fars, number)

    right = [d.right.astype(float) for d in decided]
    share = curves[0].size[np.argsort(curves[0].order)]  # 1 / size of its fold, in list order
    gain_P = (right[0] - right[1]) * share / share.sum()
    ranks = [_ranks(first.score), _ranks(second.score)]
    clusters_P, _ = swapped_together(first)

    def swapped_accuracy(swap_P: Bools) -> float:
        return float(np.where(swap_P, -gain_P, gain_P).sum())

    def swapped_auc(swap_P: Bools) -> float:
        a, b = np.where(swap_P, ranks[1], ranks[0]), np.where(swap_P, ranks[0], ranks[1])
        return roc_auc(a, first.same) - roc_auc(b, first.same)

    tests = {"accuracy": swapped_accuracy, "auc": swapped_auc}
    differences = []
    for name, values in drawn[0].items():
        a, b = (_figure(vars(w), name) for w in whole)
        p = None
        if name in tests:
            p = permutation_p(tests[name], a - b, clusters_P, number, SEED)
        interval = interval_of(values - drawn[1][name])
        differences.append(Difference(name, a, b, a - b, interval, p))
    return differences


def swapped_together(scores: PairScores) -> tuple[Ints, str]:
    """(P,) cluster of each pair, and the kind of cluster: `clusters`, `first photos` or `pairs`."""
    units = scores.units()
    cluster_P = connected(units)
    if units.kind == "pairs":
        return cluster_P, "pairs"
    if len(np.unique(cluster_P)) >= MIN_CLUSTERS:
        return cluster_P, "clusters"
    return scores.identity_a, "first photos"


def _figure(figures: dict[str, Any], name: str) -> float:
    """A figure by name (such as `eer` or `tar@0.01`) from those of `metrics.verification`."""
    kind, _, far = name.partition("@")
    return float(figures["tar_at_far"][far] if far else figures[kind])


def _ranks(scores_P: Floats) -> Floats:
    """Mid-ranks of scores. Ranks of two networks can be swapped, their scores cannot."""
    levels, place_P, counts = np.unique(scores_P, return_inverse=True, return_counts=True)
    del levels
    return (np.cumsum(counts) - (counts - 1) / 2)[place_P]
