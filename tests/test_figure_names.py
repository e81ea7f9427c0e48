"""A figure is spelled in one way, in code and in documents."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from persona.figure_names import label_of, power

ROOT = Path(__file__).parents[1]
WRONG = re.compile(
    r"TAR ?@ FAR|TAR@FAR (?!=)|TPIR @|TAR at FAR ?=|TAR at FAR 0|ROC AUC|\bFAR (of )?0\.\d"
)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        *(("accuracy", "accuracy"), ("auc", "AUC"), ("eer", "EER"), ("rank_1", "rank-1")),
        *(("tar@0.001", "TAR@FAR=1e-3"), ("tar@1e-06", "TAR@FAR=1e-6")),
        *(("tpir@0.01", "TPIR@FPIR=1e-2"), ("non_mated", "non mated"), ("mine@x", "mine@x")),
    ],
)
def test_the_label_of_a_figure(name: str, label: str) -> None:
    assert label_of(name) == label


def test_a_rate_is_a_power_of_ten() -> None:
    assert [power(rate) for rate in ("0.001", 0.05, 1, "inf", "few")] == [
        *("1e-3", "5e-2", "1e0", "inf", "few")
    ]


def test_no_text_spells_it_otherwise() -> None:
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    files += [path for folder in ("persona", "scripts") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 200
    found = [f"{path}: {m[0]}" for path in files for m in WRONG.finditer(path.read_text())]
    assert not found


def test_the_title_of_a_column_in_the_documents_is_a_label() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        lines = path.read_text().splitlines()
        for line, below in itertools.pairwise(lines):
            if set(below) <= set("|-: ") and below.startswith("|-"):
                assert "TAR at FAR 1e" not in line, path
