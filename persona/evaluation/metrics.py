"""Figures from scores and embeddings: pure functions on arrays, no torch, no rank.

A score is a cosine similarity; a pair counts as genuine when its score is at or above a threshold.

Shapes: P pairs, T triplets, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from persona.errors import PersonaError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


def cosine_scores(a_PE: npt.ArrayLike, b_PE: npt.ArrayLike) -> Floats:
    """(P,) cosine similarity of each row of `a` with the same row of `b`, in float64."""
    a, b = np.asarray(a_PE, np.float64), np.asarray(b_PE, np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(np.einsum("pe,pe->p", a, b) / np.maximum(lengths, 1e-12), np.float64)


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
    scores, same = scores_P[order], same_P[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # last of each equal score
    accepted_same = np.cumsum(same)[last]
    accepted_other = last + 1 - accepted_same
    far = np.append(0.0, accepted_other / (~same).sum())
    tar = np.append(0.0, accepted_same / same.sum())
    return far, tar, np.append(np.inf, scores[last])


def roc_auc(scores_P: Floats, same_P: Bools) -> float:
    """Area under the ROC curve, equal scores counted half."""
    far, tar, _ = roc(scores_P, same_P)
    return float(np.trapezoid(tar, far))


def equal_error_rate(scores_P: Floats, same_P: Bools) -> float:
    """Where FAR equals FRR = 1 - TAR, linear between the two ROC points around it."""
    far, tar, _ = roc(scores_P, same_P)
    gap = far - (1.0 - tar)  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    before = after - 1
    share = -gap[before] / (gap[after] - gap[before])
    return float(far[before] + share * (far[after] - far[before]))


def tar_at_far(scores_P: Floats, same_P: Bools, far: float) -> float:
    """Highest TAR whose FAR is at most `far`.

    With fewer than 1 / `far` impostor pairs this is the TAR without any false accept.
    """
    fars, tars, _ = roc(scores_P, same_P)
    return float(tars[fars <= far].max())


def best_threshold(scores_P: Floats, same_P: Bools) -> float:
    """The threshold of highest accuracy; of equally good ones the middle one.

    Candidates lie half-way between neighbouring scores, so that none depends on one photo's digits.
    """
    order = np.argsort(scores_P, kind="stable")
    scores, same = scores_P[order], same_P[order]
    # Accepting from place i on is right for the impostors before it and the genuine ones after.
    right = np.append(0, np.cumsum(~same)) + np.append(np.cumsum(same[::-1])[::-1], 0)
    possible = np.append(True, np.append(np.diff(scores) > 0, True))
    right = np.where(possible, right, -1)
    best = np.flatnonzero(right == right.max())
    place = int(best[len(best) // 2])
    padded = np.concatenate(([scores[0] - 1.0], scores, [scores[-1] + 1.0]))
    return float((padded[place] + padded[place + 1]) / 2)


def fold_accuracies(scores_P: Floats, same_P: Bools, folds_P: Ints) -> Floats:
    """Accuracy on each fold, with the threshold chosen on all the others.

    LFW's view 2 (Huang et al. 2008, section 5): mean and deviation over ten folds are reported.

    Raises:
        PersonaError: fewer than two folds.
    """
    _check(scores_P, same_P)
    folds = np.unique(folds_P)
    if len(folds) < 2:
        raise PersonaError("the pairs lie in one fold: a threshold needs others to be chosen on")
    accuracies = []
    for fold in folds:
        test = folds_P == fold
        threshold = best_threshold(scores_P[~test], same_P[~test])
        accuracies.append(float(np.mean((scores_P[test] >= threshold) == same_P[test])))
    return np.array(accuracies)


@dataclass(frozen=True)
class Verification:
    """The figures of a pairs protocol."""

    accuracy: float
    accuracy_std: float
    """Over folds; population standard deviation, as FaceNet's own evaluation has it."""
    auc: float
    eer: float
    tar_at_far: dict[str, float]
    pairs: int
    impostors: int


def verification(
    scores_P: Floats, same_P: Bools, folds_P: Ints, fars: tuple[float, ...] = (1e-3,)
) -> Verification:
    """All figures at once.

    Args:
        scores_P: (P,) cosine similarities.
        same_P: (P,) whether a pair is genuine.
        folds_P: (P,) fold numbers.
        fars: false accept rates to report the true accept rate at.

    Raises:
        PersonaError: one class only, one fold only, or scores that are not finite.
    """
    accuracies = fold_accuracies(scores_P, same_P, folds_P)
    return Verification(
        accuracy=float(accuracies.mean()),
        accuracy_std=float(accuracies.std()),
        auc=roc_auc(scores_P, same_P),
        eer=equal_error_rate(scores_P, same_P),
        tar_at_far={f"{far:g}": tar_at_far(scores_P, same_P, far) for far in fars},
        pairs=len(scores_P),
        impostors=int((~same_P).sum()),
    )


def match_accuracy(anchor_TE: Floats, positive_TE: Floats, negative_TE: Floats) -> float:
    """Share of triplets whose anchor is closer to the positive than to the negative."""
    genuine, impostor = cosine_scores(anchor_TE, positive_TE), cosine_scores(anchor_TE, negative_TE)
    if not (np.isfinite(genuine).all() and np.isfinite(impostor).all()):
        raise PersonaError("some scores are not finite: the network gives NaN for these faces")
    return float(np.mean(genuine > impostor))
