"""Verification figures by group, where an annotation of the photos gives the groups.

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

MAX_NUMBER = 1e15
"""Annotations of this size or larger, or not finite, do not count as numbers."""


def groups_of(
    scores: PairScores, metas: dict[int, dict[str, object]], by: str
) -> npt.NDArray[np.str_]:
    """(P,) group of each pair; empty if its photos are of two groups or not annotated.

    `by` is the name of an annotation, and the group is the value that both photos share. With
    `-gap` after the name the group is the difference of the two values, in steps of ten: `0-9`,
    `10-19` and so on.

    Raises:
        PersonaError: no photo of the set has the annotation, or a gap is asked of values that are
            not numbers.
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
    keys = list(zip(scores.key_a.tolist(), scores.key_b.tolist(), strict=True))
    if column == by:
        both = ((value.get(a), value.get(b)) for a, b in keys)
        return np.array([str(a) if a is not None and a == b else "" for a, b in both])
    named = {key for pair in keys for key in pair if value.get(key) is not None}
    number = {key: as_number(value[key]) for key in named}
    if None in number.values():
        raise PersonaError(f"annotation {column!r} is no number: --by {column}")
    numbers = ((number.get(a), number.get(b)) for a, b in keys)
    gaps = (None if a is None or b is None else int(abs(a - b) // 10) * 10 for a, b in numbers)
    return np.array(["" if gap is None else f"{gap}-{gap + 9}" for gap in gaps])


def group_figures(
    scores: PairScores,
    decided: Folds,
    group_P: npt.NDArray[np.str_],
    fars: Sequence[float],
    resamples: int,
) -> dict[str, dict[str, Any]]:
    """Verification figures of each group, by the group's name.

    FAR, FRR and accuracy are at the thresholds chosen on all pairs, since a system in use has only
    one threshold (NIST IR 8280). Accuracy is the mean of the accuracies on genuine and on impostor
    pairs, so that groups with different shares of genuine pairs can be compared. If a group has
    only one kind of pairs, it is the accuracy on that kind. AUC, EER and TAR use the pairs of the
    group only.

    Args:
        scores: all pairs.
        decided: result of the k-fold procedure on them.
        group_P: (P,) result of `groups_of`. Pairs with an empty group are left out.
        fars: false accept rates at which the true accept rate is reported.
        resamples: bootstrap resamples for the intervals. 0 computes no intervals.
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
            # Genuine and impostor pairs each form a fold, so that accuracy is the mean over both.
            curve = own.curve(part, own.same.astype(np.int64))
            found["intervals"] = verification_intervals(
                curve, own.units(), fars=fars, resamples=resamples
            )
        groups[name] = found
    return groups


def _natural(name: str) -> tuple[float, str]:
    """Sort key: numbers in their order, then words."""
    head = name.partition("-")[0]
    number = as_number(head)
    return (np.inf if number is None else number, name)


def _attributes(meta: dict[str, object]) -> dict[str, object]:
    found = meta.get("attributes")
    return found if isinstance(found, dict) else {}


def as_number(value: object) -> float | None:
    """An annotation as a number, or None if it is not a number or too large (`MAX_NUMBER`)."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if abs(number) < MAX_NUMBER else None
