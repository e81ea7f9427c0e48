"""Figures from scores and embeddings: pure functions on arrays, no torch, no rank.

A score is a cosine similarity; a pair counts as genuine when its score is at or above a threshold.

Shapes: P pairs, T triplets, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from persona.errors import PersonaError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

PAIR_BLOCK = 2048
"""Pairs scored at once: 8 MB of 512-d vectors, near the processor."""
FARS = (1e-1, 1e-2, 1e-3, 1e-4)
"""False accept rates to report the true accept rate at."""


def cosine_scores(a_PE: npt.ArrayLike, b_PE: npt.ArrayLike) -> Floats:
    """(P,) cosine similarity of each row of `a` with the same row of `b`, in float64."""
    a, b = np.asarray(a_PE, np.float64), np.asarray(b_PE, np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(np.einsum("pe,pe->p", a, b) / np.maximum(lengths, 1e-12), np.float64)


def listed_scores(embeddings_NE: npt.NDArray[np.float32], a_P: Ints, b_P: Ints) -> Floats:
    """(P,) what `cosine_scores` gives for rows `a` and `b`, a block of pairs at a time."""
    length_N, scores_P = np.empty(len(embeddings_NE)), np.empty(len(a_P))
    for start in range(0, len(embeddings_NE), PAIR_BLOCK):
        part = slice(start, start + PAIR_BLOCK)
        length_N[part] = np.linalg.norm(embeddings_NE[part].astype(np.float64), axis=1)
    for start in range(0, len(a_P), PAIR_BLOCK):
        part = slice(start, start + PAIR_BLOCK)
        a, b = a_P[part], b_P[part]
        dots = np.einsum("pe,pe->p", embeddings_NE[a], embeddings_NE[b], dtype=np.float64)
        scores_P[part] = dots / np.maximum(length_N[a] * length_N[b], 1e-12)
    return scores_P


def _check(scores_P: Floats, same_P: Bools) -> None:
    if scores_P.shape != same_P.shape or scores_P.ndim != 1:
        raise ValueError(f"scores {scores_P.shape} and labels {same_P.shape} must be (P,) alike")
    if not np.isfinite(scores_P).all():
        raise PersonaError("some scores are not finite: the network gives NaN for these faces")
    if same_P.all() or not same_P.any():
        raise PersonaError("the pairs are all genuine or all impostor: nothing can be measured")


def roc(scores_P: Floats, same_P: Bools) -> tuple[Floats, Floats, Floats]:
    """FAR, TAR and threshold at every distinct score, strictest first.

    Starts at (0, 0, inf). Agrees with scikit-learn's `roc_curve(drop_intermediate=False)`.
    """
    _check(scores_P, same_P)
    order = np.argsort(-scores_P, kind="stable")
    same, threshold = same_P[order], scores_P[order]
    del order  # of ten million pairs each column is 80 MB
    last = np.append(np.flatnonzero(np.diff(threshold)), len(same) - 1)  # of each equal score
    threshold = np.append(np.inf, threshold[last])
    accepted_same = np.cumsum(same)[last]
    far = np.append(0.0, (last + 1 - accepted_same) / (~same).sum())
    tar = np.append(0.0, accepted_same / same.sum())
    return far, tar, threshold


def det(scores_P: Floats, same_P: Bools) -> tuple[Floats, Floats, Floats]:
    """FAR, FRR and threshold at every distinct score, strictest first: the DET curve's points."""
    far, tar, threshold = roc(scores_P, same_P)
    return far, 1.0 - tar, threshold


def roc_auc(scores_P: Floats, same_P: Bools) -> float:
    """Area under the ROC curve, equal scores counted half."""
    far, tar, _ = roc(scores_P, same_P)
    return _area(far, tar)


def equal_error_rate(scores_P: Floats, same_P: Bools) -> float:
    """Where FAR equals FRR = 1 - TAR, linear between the two ROC points around it."""
    far, tar, _ = roc(scores_P, same_P)
    return _crossing(far, tar)


def tar_at_far(scores_P: Floats, same_P: Bools, far: float) -> float | None:
    """Highest TAR whose FAR is at most `far`; None: too few impostor pairs to resolve that FAR."""
    fars, tars, _ = roc(scores_P, same_P)
    return _highest(fars, tars, far) if resolves(far, int((~same_P).sum())) else None


def _area(far: Floats, tar: Floats) -> float:
    return float(np.trapezoid(tar, far))


def _crossing(far: Floats, tar: Floats) -> float:
    gap = far - (1.0 - tar)  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    before = after - 1
    share = -gap[before] / (gap[after] - gap[before])
    return float(far[before] + share * (far[after] - far[before]))


def _highest(fars: Floats, tars: Floats, far: float) -> float:
    return float(tars[np.searchsorted(fars, far, side="right") - 1])


def _lowest(fars: Floats, thresholds: Floats, far: float) -> float:
    """The lowest threshold whose FAR is at most `far`: just above the first of too many."""
    over = int(np.searchsorted(fars, far, side="right"))
    return float(np.nextafter(thresholds[over], np.inf) if over < len(fars) else thresholds[-1])


def resolves(rate: float, trials: int) -> bool:
    """Whether one error among `trials` is at most `rate`."""
    return rate * trials >= 1 - 1e-9


def _best_threshold(scores: Floats, same: Bools) -> float:
    """The threshold of highest accuracy of sorted pairs; of equally good ones the middle one.

    Candidates lie half-way between neighbouring scores, so that none depends on one photo's digits.
    """
    # Accepting from place i on is right for the impostors before it and wrong for the genuine ones.
    right = np.append(0, np.cumsum(np.where(same, -1, 1)))
    right[1:-1][np.diff(scores) == 0] = -len(scores) - 1  # equal scores cannot be told apart
    best = np.flatnonzero(right == right.max())
    place = int(best[len(best) // 2])
    below = scores[place - 1] if place else scores[0] - 1.0
    above = scores[place] if place < len(scores) else scores[-1] + 1.0
    return float((below + above) / 2)


@dataclass(frozen=True)
class Folds:
    """The k-fold procedure: each fold decided by the threshold chosen on all the others."""

    numbers: Ints
    thresholds: Floats
    accuracies: Floats
    right: Bools
    """Whether each pair was decided rightly."""


def decide_folds(scores_P: Floats, same_P: Bools, folds_P: Ints) -> Folds:
    """LFW's view 2 (Huang et al. 2008, section 5): mean and deviation over folds are reported.

    Raises:
        PersonaError: fewer than two folds.
    """
    _check(scores_P, same_P)
    numbers_K = np.unique(folds_P)
    if len(numbers_K) < 2:
        raise PersonaError("the pairs lie in one fold: a threshold needs others to be chosen on")
    right_P = np.empty(len(scores_P), bool)
    thresholds, accuracies = [], []
    order = np.argsort(scores_P, kind="stable")
    for fold in numbers_K:
        test = folds_P == fold
        rest = order[~test[order]]
        thresholds.append(_best_threshold(scores_P[rest], same_P[rest]))
        right_P[test] = (scores_P[test] >= thresholds[-1]) == same_P[test]
        accuracies.append(float(np.mean(right_P[test])))
    return Folds(numbers_K, np.array(thresholds), np.array(accuracies), right_P)


@dataclass(frozen=True)
class Verification:
    """The figures of a pairs protocol."""

    accuracy: float
    accuracy_std: float
    """Over folds; population standard deviation, as FaceNet's own evaluation has it."""
    auc: float
    eer: float
    tar_at_far: dict[str, float | None]
    """By FAR; None where the impostor pairs are too few to resolve it."""
    pairs: int
    impostors: int
    folds: list[float]
    """Accuracy on each."""
    threshold_at_far: dict[str, float | None]
    """Of the cosine, the lowest with that FAR."""


def verification(
    scores_P: Floats,
    same_P: Bools,
    folds_P: Ints,
    fars: Sequence[float] = FARS,
    decided: Folds | None = None,
) -> Verification:
    """All figures at once.

    Args:
        scores_P: (P,) cosine similarities.
        same_P: (P,) whether a pair is genuine.
        folds_P: (P,) fold numbers.
        fars: false accept rates to report the true accept rate at.
        decided: `decide_folds` of these pairs, if the caller has it.

    Raises:
        PersonaError: one class only, one fold only, or scores that are not finite.
    """
    decided = decided or decide_folds(scores_P, same_P, folds_P)
    far, tar, threshold = roc(scores_P, same_P)
    impostors = int((~same_P).sum())
    resolved = {f"{rate:g}": rate if resolves(rate, impostors) else None for rate in fars}
    return Verification(
        accuracy=float(decided.accuracies.mean()),
        accuracy_std=float(decided.accuracies.std()),
        auc=_area(far, tar),
        eer=_crossing(far, tar),
        tar_at_far={
            name: None if rate is None else _highest(far, tar, rate)
            for name, rate in resolved.items()
        },
        pairs=len(scores_P),
        impostors=impostors,
        folds=decided.accuracies.tolist(),
        threshold_at_far={
            name: None if rate is None else _lowest(far, threshold, rate)
            for name, rate in resolved.items()
        },
    )


def match_margins(anchor_TE: Floats, positive_TE: Floats, negative_TE: Floats) -> Floats:
    """(T,) by how much each triplet's anchor is closer to the positive than to the negative."""
    genuine, impostor = cosine_scores(anchor_TE, positive_TE), cosine_scores(anchor_TE, negative_TE)
    if not (np.isfinite(genuine).all() and np.isfinite(impostor).all()):
        raise PersonaError("some scores are not finite: the network gives NaN for these faces")
    return genuine - impostor


def match_accuracy(anchor_TE: Floats, positive_TE: Floats, negative_TE: Floats) -> float:
    """Share of triplets whose anchor is closer to the positive than to the negative."""
    return float(np.mean(match_margins(anchor_TE, positive_TE, negative_TE) > 0))
