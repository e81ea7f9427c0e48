"""The verdict: its sentences with known figures, the cards, and which value is the best."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from persona.evaluation.compare import Difference
from persona.evaluation.metrics import FARS
from persona.evaluation.pairs import PairScores
from persona.evaluation.statistics import Interval
from persona.report.looks import look
from persona.report.measure import Measured
from persona.report.verdict import best_of, cards, headline, share_of_time, tell, verdicts

PAIRS = 400


def difference(points: float, low: float, high: float, p: float) -> Difference:
    interval = Interval(low / 100, high / 100)
    return Difference("accuracy", 0.9, 0.9 - points / 100, points / 100, interval, p)


def test_a_student_below_its_teacher() -> None:
    found = difference(-1.4, -1.9, -0.9, 0.001)
    assert tell("small", "large", "lfw", found, 0.25, is_teacher=True).replace("\xa0", " ") == (
        "small is 1.4 points below its teacher large on lfw (95 % 0.9 to 1.9, p = 0.001); "
        "it needs a quarter of the time."
    )


def test_a_difference_that_may_be_chance_says_so() -> None:
    found = difference(0.3, -0.4, 1.0, 0.31)
    assert tell("a", "b", "lfw", found, 2.3).replace("\xa0", " ") == (
        "a is 0.3 points above b on lfw, which may be chance (95 % −0.4 to 1.0, p = 0.31); "
        "it needs 2.3 times the time."
    )
    # Intervals and permutations must both exclude chance.
    assert "may be chance" in tell("a", "b", "lfw", difference(0.3, 0.1, 0.5, 0.07), 1.0)
    assert "may be chance" in tell("a", "b", "lfw", difference(0.3, -0.1, 0.5, 0.01), 1.0)


def test_no_difference_at_all() -> None:
    found = Difference("accuracy", 1.0, 1.0, 0.0, None, 1.0)
    assert tell("a", "b", "lfw", found, 1.01) == (
        "a decides as many pairs of lfw right as b; it needs the same time."
    )
    tiny = tell("a", "b", "lfw", difference(-0.03, -0.05, -0.01, 0.01), 0.5)
    assert tiny.startswith("a is 0.03 points below b on lfw (95 % 0.01 to 0.05")


@pytest.mark.parametrize(
    ("times", "text"),
    [
        (0.5, "half the time"),
        (0.33, "a third of the time"),
        (0.26, "a quarter of the time"),
        (0.4, "40 % of the time"),
        (0.98, "the same time"),
        (3.96, "4.0 times the time"),
    ],
)
def test_times_in_words(times: float, text: str) -> None:
    assert share_of_time(times) == text


def measured(number: int, name: str, wrong: int, cpu_ms: float, *, teacher: bool = False) -> Any:
    """A model that decides `wrong` of 400 pairs wrongly, spread over ten folds."""
    same = np.arange(PAIRS) % 2 == 0
    score = np.where(same, 0.8, 0.2)
    score[:wrong] = 1 - score[:wrong]
    people = np.arange(PAIRS)
    scores = PairScores(
        *(people % 10, same, score, 2 * people, 2 * people + 1, people),
        np.where(same, people, people + PAIRS),
        np.zeros(PAIRS, bool),
        0,
    )
    decided = scores.decide()
    figures = scores.figures(FARS, decided)
    nothing: Any = None
    return Measured(
        look=look(number, name),
        teacher=teacher,
        figures=figures,
        intervals={"accuracy": Interval(0.9, 1.0)},
        resampled="pairs",
        scores=scores,
        decided=decided,
        groups=[],
        embedded=nothing,
        parameters=1000 * (number + 1),
        bytes=4000,
        cpu_ms=cpu_ms,
    )


def test_each_pair_of_models_has_a_sentence_and_the_teacher_comes_first() -> None:
    models = [
        measured(0, "a", 40, 1),
        measured(1, "b", 20, 1),
        measured(2, "t", 0, 4, teacher=True),
    ]
    found = [text.replace("\xa0", " ") for text in verdicts(models, "lfw", {"b": "t"})]
    assert [text.partition(" on lfw")[0] for text in found] == [
        "b is 5.0 points below its teacher t",
        "a is 5.0 points below b",
        "a is 10.0 points below t",
    ]
    assert all("may be chance" not in text and "(95 % " in text for text in found)
    assert found[0].endswith("it needs a quarter of the time.")
    (alone,) = verdicts(models[:1], "lfw", {})
    assert alone == "a decides 90.0 % of the pairs of lfw right (95 % 90.0 to 100.0)."


def test_cards_and_table_mark_the_best_value_and_chance() -> None:
    models = [measured(0, "a", 40, 1.0), measured(1, "b", 20, 2.0)]
    accuracy, second, times = cards(models)
    assert [(row.text, row.best) for row in accuracy.rows] == [("0.9000", False), ("0.9500", True)]
    assert (accuracy.chance, second.title) == (0.5, "AUC")  # 200 impostor pairs resolve no 1e-3
    assert [(row.text, row.best, row.share) for row in times.rows] == [
        ("1.0", True, 0.5),
        ("2.0", False, 1.0),
    ]
    table = headline(models)
    best = {table.rows[row][0]: table.columns[column] for row, column in table.best}
    assert best == {
        **{"accuracy": "b", "AUC": "b", "EER": "b", "TAR@FAR=1e-1": "b"},
        **{"parameters": "a", "CPU ms/face": "a"},
    }  # of equal values, as the file's size, none is
    chance = {row[0]: row[1] for row in table.rows}
    assert (chance["accuracy"], chance["TAR@FAR=1e-2"], chance["CPU ms/face"]) == (
        *("0.5000", "0.0100"),
        "",
    )


def test_the_best_of_numbers_as_they_are_shown() -> None:
    assert best_of(["0.9\n[0.8, 1.0]", "0.8", "not resolvable"], max) == [True, False, False]
    assert best_of(["1,000 bytes", "2,000 bytes"], min) == [True, False]
    assert best_of(["0.5", "0.5"], max) == [False, False]
    assert best_of(["unknown", "7"], min) == [False, False]
