"""Students beside their teacher: all pairs of a set, and a gallery of one photo each."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persona.errors import PersonaError

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[..., Any]]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return runpy.run_path(str(SCRIPTS / "bench_students.py"))


def turned(*degrees: float) -> np.ndarray[Any, Any]:
    """(N, 2) unit vectors at these angles."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_all_pairs_tell_how_near_a_student_is_to_its_teacher(
    script: dict[str, Callable[..., Any]],
) -> None:
    labels = np.array([0, 0, 1, 1])
    teacher, student = turned(0, 10, 90, 100), turned(0, 60, 90, 150)
    told, learned = script["all_pairs"]({"teacher": teacher, "student": student}, labels)
    assert told["distance"] is None
    assert told["auc"] == 1
    apart = 1 - np.cos(np.radians([0, 50, 0, 50])).mean()
    assert learned["distance"] == pytest.approx(apart, abs=1e-6)
    # Genuine pairs lie 60 degrees apart; impostor pairs 90, 150, 30 and 90.
    assert learned["auc"] == pytest.approx(3 / 4)
    assert learned["tar_at_far"]["0.01"] is None  # four impostor pairs cannot resolve it
    table = script["pairs_table"]([told, learned])
    assert table.splitlines()[2] == "| teacher |  | 1.0000 | – | – | – |"


def test_distances_of_another_number_of_dimensions_are_left_out(
    script: dict[str, Callable[..., Any]],
) -> None:
    wide = np.eye(4, 3, dtype=np.float32)
    wide[3] = wide[0]
    rows = script["all_pairs"](
        {"teacher": turned(0, 10, 90, 100), "student": wide}, np.array([0, 0, 1, 1])
    )
    assert [row["distance"] for row in rows] == [None, None]


def test_one_photo_of_each_person_is_enrolled_and_no_stranger_is_one_of_them(
    script: dict[str, Callable[..., Any]],
) -> None:
    labels = np.array([0, 1, 0, 2, 1, 0, 3, 4, 4])
    drawn = script["draw_search"](labels, 2, 3, 0)
    enrolled = labels[drawn.gallery]
    assert len(set(enrolled)) == 2
    assert (labels[drawn.mated] == enrolled[drawn.mates]).all()
    assert not set(drawn.gallery) & set(drawn.mated)
    assert sorted({*enrolled, *labels[drawn.strangers]}) == [0, 1, 2, 3, 4]
    again = script["draw_search"](labels, 2, 3, 0)
    assert all((a == b).all() for a, b in zip(drawn, again, strict=True))
    with pytest.raises(PersonaError, match="3 people with several photos, of 5"):
        script["draw_search"](labels, 4, 1, 0)


def test_the_open_search_counts_who_is_named_rightly(
    script: dict[str, Callable[..., Any]],
) -> None:
    labels = np.array([0, 0, 1, 1, 2])
    drawn = script["draw_search"](labels, 2, 1, 0)
    right, swapped = turned(0, 5, 90, 95, 200), turned(0, 85, 90, 5, 200)
    rows = script["one_photo"]({"right": right, "swapped": swapped}, drawn, 10)
    assert [row["rank_1"]["value"] for row in rows] == [1, 0]
    assert "tpir@0.01" not in rows[0]  # one stranger cannot resolve it
    assert script["search_table"](rows).splitlines()[2] == "| right | 1.0000 | – | – |"
