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

MAX_NUMBER = 1e15
"""Annotations beyond it, and what is not finite, are no numbers to take a difference of."""


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
    number = as_number(head)
    return (np.inf if number is None else number, name)


def _attributes(meta: dict[str, object]) -> dict[str, object]:
    found = meta.get("attributes")
    return found if isinstance(found, dict) else {}


def as_number(value: object) -> float | None:
    """An annotation as a number; None: it is none, or none that can be told from others."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if abs(number) < MAX_NUMBER else None
