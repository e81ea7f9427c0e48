"""Verification figures from scores and embeddings: pure functions on NumPy arrays.

The module needs no torch and knows nothing of processes. A score is a cosine similarity. A pair is
accepted as genuine when its score is at or above a threshold. At the end are the figures of groups
of faces.

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
"""Pairs scored at once. Their 512-d embeddings take 8 MB, which fits the processor's cache."""
FARS = (1e-1, 1e-2, 1e-3, 1e-4)
"""False accept rates (FAR) at which the true accept rate (TAR) is reported."""


def cosine_scores(a_PE: npt.ArrayLike, b_PE: npt.ArrayLike) -> Floats:
    """Cosine similarity of each row of `a` with the same row of `b`.

    Args:
        a_PE: (P, E) embeddings of any length.
        b_PE: (P, E) embeddings to compare with, row by row.

    Returns:
        (P,) float64 in [-1, 1].
    """
    a, b = np.asarray(a_PE, np.float64), np.asarray(b_PE, np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(np.einsum("pe,pe->p", a, b) / np.maximum(lengths, 1e-12), np.float64)


def listed_scores(
    embeddings_NE: npt.NDArray[np.float32],
    a_P: Ints,
    b_P: Ints,
    second_ME: npt.NDArray[np.float32] | None = None,
) -> Floats:
    """Cosine similarity of the listed pairs of rows.

    It equals `cosine_scores` of the rows `a` and `b`, but copies only a block of pairs at a time.

    Args:
        embeddings_NE: (N, E) embeddings of any length.
        a_P: (P,) row of each pair's first photo.
        b_P: (P,) row of each pair's second photo.
        second_ME: (M, E) embeddings of the second photos, of which `b_P` are rows. None takes the
            same embeddings for both.

    Returns:
        (P,) float64 in [-1, 1].
    """
    length_N, scores_P = _lengths(embeddings_NE), np.empty(len(a_P))
    other_ME = embeddings_NE if second_ME is None else second_ME
    length_M = length_N if second_ME is None else _lengths(second_ME)
    for start in range(0, len(a_P), PAIR_BLOCK):
        part = slice(start, start + PAIR_BLOCK)
        a, b = a_P[part], b_P[part]
        dots = np.einsum("pe,pe->p", embeddings_NE[a], other_ME[b], dtype=np.float64)
        scores_P[part] = dots / np.maximum(length_N[a] * length_M[b], 1e-12)
    return scores_P


def _lengths(embeddings_NE: npt.NDArray[np.float32]) -> Floats:
    """(N,) lengths of embeddings, computed in float64 a block at a time."""
    length_N = np.empty(len(embeddings_NE))
    for start in range(0, len(embeddings_NE), PAIR_BLOCK):
        part = slice(start, start + PAIR_BLOCK)
        length_N[part] = np.linalg.norm(embeddings_NE[part].astype(np.float64), axis=1)
    return length_N


def _check(scores_P: Floats, same_P: Bools) -> None:
    if scores_P.shape != same_P.shape or scores_P.ndim != 1:
        raise ValueError(f"scores {scores_P.shape} and labels {same_P.shape} must be (P,) alike")
    if not np.isfinite(scores_P).all():
        raise PersonaError("some scores are not finite: the network gives NaN for these faces")
    if same_P.all() or not same_P.any():
        raise PersonaError("the pairs are all genuine or all impostor: nothing can be measured")


def roc(scores_P: Floats, same_P: Bools) -> tuple[Floats, Floats, Floats]:
    """FAR, TAR and threshold at every distinct score, strictest threshold first.

    The first point is (0, 0, inf). The result agrees with scikit-learn's
    `roc_curve(drop_intermediate=False)`.

    Raises:
        ValueError: the two arrays are not both (P,).
        PersonaError: the scores are not finite, or the pairs are all genuine or all impostor.
    """
    _check(scores_P, same_P)
    order = np.argsort(-scores_P, kind="stable")
    same, threshold = same_P[order], scores_P[order]
    del order  # frees memory: at ten million pairs each array takes 80 MB
    # Pairs of equal score are accepted together, so only the last of them is a point of the curve.
    last = np.append(np.flatnonzero(np.diff(threshold)), len(same) - 1)
    threshold = np.append(np.inf, threshold[last])
    accepted_same = np.cumsum(same)[last]
    far = np.append(0.0, (last + 1 - accepted_same) / (~same).sum())
    tar = np.append(0.0, accepted_same / same.sum())
    return far, tar, threshold


def det(scores_P: Floats, same_P: Bools) -> tuple[Floats, Floats, Floats]:
    """Points of the DET curve: FAR, FRR and threshold at every distinct score, strictest first.

    FRR is the false reject rate, 1 - TAR. See `roc` for the errors.
    """
    far, tar, threshold = roc(scores_P, same_P)
    return far, 1.0 - tar, threshold


def roc_auc(scores_P: Floats, same_P: Bools) -> float:
    """Area under the ROC curve; a genuine and an impostor pair of equal score count half."""
    far, tar, _ = roc(scores_P, same_P)
    return _area(far, tar)


def equal_error_rate(scores_P: Floats, same_P: Bools) -> float:
    """Equal error rate: the rate at which FAR equals FRR = 1 - TAR.

    It is interpolated linearly between the two neighbouring points of the ROC curve.
    """
    far, tar, _ = roc(scores_P, same_P)
    return _crossing(far, tar)


def tar_at_far(scores_P: Floats, same_P: Bools, far: float) -> float | None:
    """Highest TAR whose FAR is at most `far`.

    None means that there are too few impostor pairs to resolve that FAR, see `resolves`.
    """
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
    """The lowest threshold whose FAR is at most `far`.

    It is the next float above the highest score that would accept too many impostor pairs.
    """
    over = int(np.searchsorted(fars, far, side="right"))
    return float(np.nextafter(thresholds[over], np.inf) if over < len(fars) else thresholds[-1])


def resolves(rate: float, trials: int) -> bool:
    """Whether so many trials can resolve a rate: one error among `trials` is at most `rate`."""
    return rate * trials >= 1 - 1e-9


def _best_threshold(scores: Floats, same: Bools) -> float:
    """The threshold of highest accuracy for pairs sorted by rising score.

    Of equally good thresholds the middle one is taken. Candidates lie half-way between neighbouring
    scores, so that a threshold does not depend on the last digits of one score.
    """
    # A threshold before pair i rejects all pairs before i. That is right for the impostor pairs
    # among them and wrong for the genuine ones.
    right = np.append(0, np.cumsum(np.where(same, -1, 1)))
    right[1:-1][np.diff(scores) == 0] = -len(scores) - 1  # no threshold separates equal scores
    best = np.flatnonzero(right == right.max())
    place = int(best[len(best) // 2])
    below = scores[place - 1] if place else scores[0] - 1.0
    above = scores[place] if place < len(scores) else scores[-1] + 1.0
    return float((below + above) / 2)


@dataclass(frozen=True)
class Folds:
    """Result of the k-fold procedure: each fold is decided by the threshold of the other folds."""

    numbers: Ints
    """(K,) fold numbers, rising."""
    thresholds: Floats
    """(K,) cosine threshold that decided each fold."""
    accuracies: Floats
    """(K,) accuracy on each fold."""
    right: Bools
    """(P,) whether each pair was decided correctly."""


def decide_folds(scores_P: Floats, same_P: Bools, folds_P: Ints) -> Folds:
    """Decides each fold by the threshold of highest accuracy on all the other folds.

    This is the protocol of LFW's view 2 (Huang et al. 2008, section 5), which reports the mean and
    deviation of the accuracy over the folds.

    Args:
        scores_P: (P,) cosine similarities.
        same_P: (P,) whether a pair is genuine.
        folds_P: (P,) fold numbers.

    Raises:
        PersonaError: there are fewer than two folds, the scores are not finite, or the pairs are
            all genuine or all impostor.
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
class PairFigures:
    """The figures of a pairs protocol. Rates and accuracies are shares in [0, 1]."""

    accuracy: float
    """Mean accuracy over the folds."""
    accuracy_std: float
    """Population standard deviation over the folds, as in FaceNet's own evaluation."""
    auc: float
    """Area under the ROC curve."""
    eer: float
    """Equal error rate."""
    tar_at_far: dict[str, float | None]
    """TAR by FAR. None means that the impostor pairs are too few to resolve that FAR."""
    pairs: int
    """Pairs measured, genuine and impostor."""
    impostors: int
    """Impostor pairs among them."""
    folds: list[float]
    """Accuracy on each fold."""
    threshold_at_far: dict[str, float | None]
    """Lowest cosine threshold by FAR. None as in `tar_at_far`."""


def verification(
    scores_P: Floats,
    same_P: Bools,
    folds_P: Ints,
    fars: Sequence[float] = FARS,
    decided: Folds | None = None,
) -> PairFigures:
    """Computes all verification figures at once.

    Args:
        scores_P: (P,) cosine similarities.
        same_P: (P,) whether a pair is genuine.
        folds_P: (P,) fold numbers.
        fars: false accept rates at which the true accept rate is reported.
        decided: result of `decide_folds` for these pairs. None computes it.

    Raises:
        PersonaError: there are fewer than two folds, the scores are not finite, or the pairs are
            all genuine or all impostor.
    """
    decided = decided or decide_folds(scores_P, same_P, folds_P)
    far, tar, threshold = roc(scores_P, same_P)
    impostors = int((~same_P).sum())
    resolved = {f"{rate:g}": rate if resolves(rate, impostors) else None for rate in fars}
    return PairFigures(
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


def match_scores(
    anchor_TE: Floats, positive_TE: Floats, negative_TE: Floats
) -> tuple[Floats, Floats]:
    """Cosine similarity of each triplet's anchor with its positive and with its negative.

    Args:
        anchor_TE: (T, E) embeddings of the anchors.
        positive_TE: (T, E) embeddings of the positives.
        negative_TE: (T, E) embeddings of the negatives.

    Returns:
        (T,) genuine scores and (T,) impostor scores, float64.

    Raises:
        PersonaError: some embeddings are NaN or infinite.
    """
    genuine, impostor = cosine_scores(anchor_TE, positive_TE), cosine_scores(anchor_TE, negative_TE)
    if not (np.isfinite(genuine).all() and np.isfinite(impostor).all()):
        raise PersonaError("some scores are not finite: the network gives NaN for these faces")
    return genuine, impostor


def match_auc(genuine_T: Floats, impostor_T: Floats) -> float:
    """Area under the ROC curve of all genuine scores against all impostor scores of the triplets.

    It depends only on the order of the scores. Networks whose similarities lie close together are
    therefore compared fairly with others. It is also finer than the share of correct triplets: its
    smallest step is 1 / T², not 1 / T.

    Args:
        genuine_T: (T,) cosine similarities of anchor and positive.
        impostor_T: (T,) cosine similarities of anchor and negative.
    """
    same = np.repeat([True, False], len(genuine_T))
    return roc_auc(np.concatenate([genuine_T, impostor_T]), same)


def pairwise_f(group_N: Ints, label_N: Ints) -> tuple[float, float, float]:
    """Precision, recall and F of the pairs of faces that are in one group.

    Args:
        group_N: (N,) group of each face.
        label_N: (N,) person of each face.

    Example:
        >>> import numpy as np
        >>> pairwise_f(np.array([0, 0, 1]), np.array([0, 0, 0]))
        (1.0, 0.3333333333333333, 0.5)
    """
    both, grouped, right = (_pairs(sizes) for sizes in _shared_sizes(group_N, label_N)[:3])
    precision = both / grouped if grouped else 1.0
    recall = both / right if right else 1.0
    return precision, recall, _harmonic(precision, recall)


def b_cubed(group_N: Ints, label_N: Ints) -> tuple[float, float, float]:
    """B-cubed precision, recall and F (Bagga and Baldwin 1998): means over faces.

    A face's precision is the share of its group that shows its person, its recall the share of its
    person's faces that are in its group.

    Args:
        group_N: (N,) group of each face.
        label_N: (N,) person of each face.

    Example:
        >>> import numpy as np
        >>> [round(figure, 4) for figure in b_cubed(np.array([0, 0, 1]), np.array([0, 0, 0]))]
        [1.0, 0.5556, 0.7143]
    """
    both, groups, people, group_of, person_of = _shared_sizes(group_N, label_N)
    precision = float(np.sum(both**2 / groups[group_of]) / len(group_N))
    recall = float(np.sum(both**2 / people[person_of]) / len(group_N))
    return precision, recall, _harmonic(precision, recall)


def _shared_sizes(group_N: Ints, label_N: Ints) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    """Number of faces of each (group, person), of each group and of each person, and the group and
    person of the first."""
    group_N, label_N = (np.unique(side, return_inverse=True)[1] for side in (group_N, label_N))
    people = np.bincount(label_N)
    cell, both = np.unique(group_N * len(people) + label_N, return_counts=True)
    return both, np.bincount(group_N), people, cell // len(people), cell % len(people)


def _pairs(counts: Ints) -> int:
    return int((counts * (counts - 1) // 2).sum())


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0
