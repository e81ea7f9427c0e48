"""Is one network better than another on the same pairs, or is it chance?

Both are scored on the pairs that both can be scored on; each resample draws the same pairs for
both. The p-values are of paired permutations: the two networks' decisions (accuracy) or the ranks
of their scores (AUC: Venkatraman and Begg 1996, Biometrika 83) are swapped at random.

What is swapped together must not depend on the rest (Winkler et al. 2015, "Multi-level block
permutation", NeuroImage 123): clusters of pairs that share people, directly or through others. LFW
has hundreds, as its folds share nobody. In small sets nearly all pairs hang together; there all
pairs whose first photo shows one person are swapped at once. Pairs that share the other person
still depend on one another, and p may be too low: simulated, it was below 0.05 in up to 15 % of
comparisons of equal networks. `permuted` tells which it was.

Shapes: P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from persona.data.shards import Manifest
from persona.data.storage import SetFolder
from persona.evaluation.metrics import Bools, Floats, Ints, resolves, roc_auc
from persona.evaluation.pairs import PairScores
from persona.evaluation.processes import Processes
from persona.evaluation.protocols.base import Options, Subject, check_measure
from persona.evaluation.protocols.verification import Verification, pair_scores
from persona.evaluation.spread import has_collapsed, tell_collapse
from persona.evaluation.statistics import (
    RESAMPLES,
    Interval,
    connected,
    interval_of,
    num_resamples,
    permutation_p,
    resample_figures,
)
from persona.models.sources import Named

MIN_CLUSTERS = 10
"""Two-sided, so many swaps reach p = 0.002."""


@dataclass(frozen=True)
class Difference:
    """A figure of both networks, and A less B."""

    figure: str
    a: float
    b: float
    difference: float
    interval: Interval | None
    p: float | None
    """Of the permutations; of accuracy and AUC alone."""


def compare(
    networks: tuple[Named, Named],
    folder: SetFolder,
    manifest: Manifest,
    accelerator: Processes,
    options: Options = Options(),  # noqa: B008 - frozen
    *,
    batch_size: int = 128,
    workers: int | None = None,
    quiet: bool = False,
) -> tuple[list[Difference], dict[str, Any]]:
    """Every figure's difference, and what was measured.

    Raises:
        PersonaError: the set has no pairs, or does not fit one of the networks.
    """
    for named in networks:
        check_measure(Verification.name, named, manifest, options)
    scores, collapses = [], []
    for named in networks:
        subject = Subject(named, folder, manifest, accelerator, options, batch_size, workers, quiet)
        found, facts = pair_scores(subject)
        scores.append(found)
        if has_collapsed(subject.spread):
            collapses.append(tell_collapse(named.name, subject.spread, f"set {manifest.name}"))
    first, second = scores
    resamples = options.resamples or RESAMPLES
    return paired_differences(first, second, options.fars, resamples), {
        "pairs": len(first),
        "resampled": first.units().kind,
        "permuted": swapped_together(first)[1],
        **{name: facts[name] for name in ("no_face", "absent", "no_face_policy")},
        **({"warnings": collapses} if collapses else {}),
    }


def paired_differences(
    first: PairScores, second: PairScores, fars: Any, resamples: int = RESAMPLES, seed: int = 0
) -> list[Difference]:
    """Every figure of two networks on the same pairs.

    Args:
        first: of network A.
        second: of network B, on the same pairs in the same order.
        fars: false accept rates; those that the pairs cannot resolve are left out.
        resamples: how many, of the intervals and of the permutations.
        seed: of both.
    """
    decided = first.decide(), second.decide()
    fars = [far for far in fars if resolves(far, int((~first.same).sum()))]
    whole = [s.figures(fars, d) for s, d in zip((first, second), decided, strict=True)]
    curves = [s.curve(d) for s, d in zip((first, second), decided, strict=True)]
    number = num_resamples(2 * len(first), resamples)
    drawn = resample_figures(curves, first.units(), fars, number, seed)

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
            p = permutation_p(tests[name], a - b, clusters_P, number, seed)
        interval = interval_of(values - drawn[1][name])
        differences.append(Difference(name, a, b, a - b, interval, p))
    return differences


def swapped_together(scores: PairScores) -> tuple[Ints, str]:
    """(P,) the cluster of each pair, and what clusters are: `clusters`, `first photos`, `pairs`."""
    units = scores.units()
    cluster_P = connected(units)
    if units.kind == "pairs":
        return cluster_P, "pairs"
    if len(np.unique(cluster_P)) >= MIN_CLUSTERS:
        return cluster_P, "clusters"
    return scores.identity_a, "first photos"


def _figure(figures: dict[str, Any], name: str) -> float:
    """`tar@0.01` and so on from the figures of `metrics.verification`."""
    kind, _, far = name.partition("@")
    return float(figures["tar_at_far"][far] if far else figures[kind])


def _ranks(scores_P: Floats) -> Floats:
    """Mid-ranks, so that two networks' scores can be swapped."""
    levels, place_P, counts = np.unique(scores_P, return_inverse=True, return_counts=True)
    del levels
    return (np.cumsum(counts) - (counts - 1) / 2)[place_P]
