"""Pairs by an annotation of their photos: the same figures for each group.

Shapes: P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from persona.errors import PersonaError, unknown
from persona.evaluation.metrics import Folds, equal_error_rate, resolves, roc_auc, tar_at_far
from persona.evaluation.pairs import PairScores
from persona.evaluation.statistics import verification_intervals


def groups_of(
    scores: PairScores, metas: dict[int, dict[str, object]], by: str
) -> npt.NDArray[np.str_]:
    """(P,) the group of each pair; empty where its photos are of two groups or not annotated.

    `by` is an annotation, whose value both photos share, or ends in `-gap`: the difference of a
    number, in tens.

    Raises:
        PersonaError: no photo of the set has that annotation, or it is no number.
    """
    column = by.removesuffix("-gap")
    value = {key: _attributes(meta).get(column) for key, meta in metas.items()}
    if all(item is None for item in value.values()):
        known = {name for meta in metas.values() for name in _attributes(meta)}
        if not known:
            raise PersonaError(
                "this set has no annotations to group by: pack it with --annotations FILE"
            )
        raise unknown("annotation", column, known)
    first = [value.get(key) for key in scores.key_a.tolist()]
    second = [value.get(key) for key in scores.key_b.tolist()]
    both = zip(first, second, strict=True)
    if column == by:
        return np.array([str(a) if a is not None and a == b else "" for a, b in both])
    try:
        gaps = [None if a is None or b is None else abs(_number(a) - _number(b)) for a, b in both]
    except ValueError:
        raise PersonaError(f"annotation {column!r} is no number: --by {column}") from None
    tens = (None if gap is None else int(gap // 10) * 10 for gap in gaps)
    return np.array(["" if ten is None else f"{ten}-{ten + 9}" for ten in tens])


def group_figures(
    scores: PairScores,
    decided: Folds,
    group_P: npt.NDArray[np.str_],
    fars: Sequence[float],
    resamples: int,
) -> dict[str, dict[str, Any]]:
    """The figures of each group.

    FAR, FRR and accuracy are at the thresholds of all pairs, as a system in use has but one (NIST
    IR 8280). Accuracy is the mean over genuine and over impostor pairs, so that groups with another
    share of them can be compared; of a group with one kind alone it is that kind's. AUC, EER and
    TAR are of the group by itself.

    Args:
        scores: all pairs.
        decided: their folds.
        group_P: (P,) of `groups_of`; pairs of an empty one are left out.
        fars: false accept rates to report the true accept rate at.
        resamples: of the intervals; 0: none.
    """
    groups = {}
    for name in sorted(set(group_P.tolist()) - {""}, key=_natural):
        which = group_P == name
        own, right = scores.take(which), decided.right[which]
        genuine, impostors = int(own.same.sum()), int((~own.same).sum())
        both = genuine > 0 and impostors > 0
        frr = 1.0 - float(right[own.same].mean()) if genuine else None
        far = 1.0 - float(right[~own.same].mean()) if impostors else None
        errors = [error for error in (frr, far) if error is not None]
        found: dict[str, Any] = {
            "pairs": len(own),
            "impostors": impostors,
            "accuracy": 1.0 - sum(errors) / len(errors),
            "far": far,
            "frr": frr,
            "auc": roc_auc(own.score, own.same) if both else None,
            "eer": equal_error_rate(own.score, own.same) if both else None,
            "tar_at_far": {
                f"{rate:g}": tar_at_far(own.score, own.same, rate)
                if both and resolves(rate, impostors)
                else None
                for rate in fars
            },
        }
        if resamples:
            part = Folds(decided.numbers, decided.thresholds, decided.accuracies, right)
            # A fold a kind: the mean over both, wherever the folds were cut.
            curve = own.curve(part, own.same.astype(np.int64))
            found["intervals"] = verification_intervals(
                curve, own.units(), fars=fars, resamples=resamples
            )
        groups[name] = found
    return groups


def _natural(name: str) -> tuple[float, str]:
    """Numbers in their order, before words."""
    head = name.partition("-")[0]
    return (float(head) if head.isdigit() else np.inf, name)


def _attributes(meta: dict[str, object]) -> dict[str, object]:
    found = meta.get("attributes")
    return found if isinstance(found, dict) else {}


def _number(value: object) -> float:
    return float(str(value))
