"""What a reader wants to know first: sentences, three cards and the table of all figures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from persona.evaluation.compare import Difference, paired_differences
from persona.evaluation.sentences import ends, tell_difference
from persona.figure_names import label_of
from persona.report.figures import COIN, rate, with_interval
from persona.report.measure import Measured
from persona.report.page import CardRow, FigureCard, PageTable

SHARES = ((1 / 2, "half"), (1 / 3, "a third"), (1 / 4, "a quarter"), (1 / 5, "a fifth"))
NEAR = 0.06
"""Largest relative distance at which a ratio of times is called by the name of a share."""
CARD_FAR = "0.001"
"""False accept rate of the second card, if the pairs resolve it."""


def verdicts(models: Sequence[Measured], of: str, teachers: dict[str, str]) -> list[str]:
    """One sentence for each pair of models, those of a student and its teacher first.

    Args:
        models: at least one. A single model gets a sentence of its own.
        of: name of the set.
        teachers: short name of the teacher of each student that is shown beside it.
    """
    if len(models) == 1:
        (only,) = models
        interval = only.intervals.get("accuracy")
        spread = "" if interval is None else f" (95 % {ends(*interval, 100)})"
        right = f"{100 * only.figures.accuracy:.1f} % of the pairs of {of} right"
        return [f"{only.name} decides {right}{spread}."]
    pairs = [
        (b, a) if teachers.get(b.name) == a.name or (a.teacher and not b.teacher) else (a, b)
        for a, b in itertools.combinations(models, 2)
    ]
    pairs.sort(key=lambda pair: teachers.get(pair[0].name) != pair[1].name)  # stable
    return [
        tell(
            *(a.name, b.name, of, accuracy_difference(a, b), a.cpu_ms / b.cpu_ms),
            is_teacher=teachers.get(a.name) == b.name,
        )
        for a, b in pairs
    ]


def accuracy_difference(first: Measured, second: Measured) -> Difference:
    """The paired difference of the accuracies of two models, from the same test as `compare`."""
    found = paired_differences(first.scores, second.scores, fars=())
    return next(difference for difference in found if difference.figure == "accuracy")


def tell(
    first: str, second: str, of: str, found: Difference, times: float, *, is_teacher: bool = False
) -> str:
    """A sentence on the difference of two models.

    Args:
        first: short name of the model that the sentence is about.
        second: short name of the other.
        of: name of the set.
        found: the accuracy of the first minus that of the second.
        times: time of the first by that of the second.
        is_teacher: whether the second is the teacher of the first.

    Example:
        tell("small", "large", "lfw", difference, 0.25, is_teacher=True)
        # small is 1.4 points below its teacher large on lfw (95 % 0.9 to 1.9, p = 0.001); it
        # needs a quarter of the time.
    """
    told = tell_difference(first, second, of, found, is_teacher=is_teacher)
    return f"{told}; it needs {share_of_time(times)}."


def share_of_time(times: float) -> str:
    """A ratio of times in words, such as `a quarter of the time`."""
    for share, name in SHARES:
        if abs(times / share - 1) <= NEAR:
            return f"{name} of the time" if name != "half" else "half the time"
    if abs(times - 1) <= NEAR:
        return "the same time"
    return f"{100 * times:.0f} % of the time" if times < 1 else f"{times:.1f} times the time"


def cards(models: Sequence[Measured]) -> list[FigureCard]:
    """Three cards: accuracy, TAR at a low FAR (or AUC, if there are too few pairs), and time."""
    accuracy = [model.figures.accuracy for model in models]
    if any(model.figures.tar_at_far.get(CARD_FAR) is None for model in models):
        second = FigureCard(
            "AUC", _rows(models, "auc", [model.figures.auc for model in models]), COIN
        )
    else:
        tars = [model.figures.tar_at_far[CARD_FAR] or 0.0 for model in models]
        rows = _rows(models, f"tar@{CARD_FAR}", tars)
        second = FigureCard(label_of(f"tar@{CARD_FAR}"), rows, float(CARD_FAR))
    times = [model.cpu_ms for model in models]
    return [
        FigureCard("Accuracy", _rows(models, "accuracy", accuracy), chance_accuracy(models[0])),
        second,
        FigureCard(
            "CPU ms/face",
            [
                CardRow(model.look, f"{own:.1f}", "", own / max(times), best)
                for model, own, best in zip(
                    models, times, best_of([f"{own:.1f}" for own in times], min), strict=True
                )
            ],
            None,
        ),
    ]


def _rows(models: Sequence[Measured], figure: str, values: list[float]) -> list[CardRow]:
    texts = [rate(value) for value in values]
    rows = []
    for model, value, text, best in zip(models, values, texts, best_of(texts, max), strict=True):
        interval = model.intervals.get(figure)
        spread = "" if interval is None else f"{interval.low:.4f} to {interval.high:.4f}"
        rows.append(CardRow(model.look, text, spread, value, best))
    return rows


def best_of(texts: Sequence[str], chosen: Callable[[list[float]], float]) -> list[bool]:
    """Which of several numbers, as a reader sees them, are the best.

    None is if all are equal or there is only one. Text that is no number is never the best.
    """
    numbers = [_number(text) for text in texts]
    there = [number for number in numbers if number is not None]
    if len(set(there)) < 2:
        return [False] * len(texts)
    return [number == chosen(there) for number in numbers]


def _number(text: str) -> float | None:
    try:
        return float(text.split(maxsplit=1)[0].replace(",", ""))
    except (ValueError, IndexError):
        return None


def chance_accuracy(model: Measured) -> float:
    """Accuracy of a network that gives every pair the more frequent answer."""
    share = model.figures.impostors / model.figures.pairs
    return max(share, 1 - share)


def headline(models: Sequence[Measured]) -> PageTable:
    """All figures of all models, with what chance would reach, and the best of each row marked."""
    if not models:
        return PageTable([], [])
    first = models[0].figures
    half = rate(COIN)
    rows: list[tuple[Callable[[list[float]], float] | None, list[str]]] = [
        (max, ["accuracy", rate(chance_accuracy(models[0])), *_column(models, "accuracy")]),
        (max, ["AUC", half, *_column(models, "auc")]),
        (min, ["EER", half, *_column(models, "eer")]),
    ]
    for far in first.tar_at_far:
        tars = [(m.figures.tar_at_far[far], m.intervals.get(f"tar@{far}")) for m in models]
        cells = [with_interval(*tar) for tar in tars]
        rows.append((max, [label_of(f"tar@{far}"), rate(float(far)), *cells]))
    sizes = ["unknown" if m.parameters is None else f"{m.parameters:,}" for m in models]
    rows.append((min, ["parameters", "", *sizes]))
    rows.append((min, ["size of the file", "", *(f"{m.bytes:,} bytes" for m in models)]))
    rows.append((min, ["CPU ms/face", "", *(f"{m.cpu_ms:.1f}" for m in models)]))
    best = {
        (place, column)
        for place, (chosen, row) in enumerate(rows)
        if chosen is not None
        for column, is_best in enumerate(best_of(row[2:], chosen), start=2)
        if is_best
    }
    return PageTable(
        ["figure", "chance", *(model.name for model in models)],
        [row for _, row in rows],
        frozenset(best),
    )


def _column(models: Sequence[Measured], name: str) -> list[str]:
    return [with_interval(getattr(m.figures, name), m.intervals.get(name)) for m in models]
