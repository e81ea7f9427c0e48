"""docs/students.md counts what the networks have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from persona.config import StudentConfig
from persona.deploy.bench import count_macs
from persona.models.student import Student, count_parameters

PAGE = Path(__file__).parents[2] / "docs" / "students.md"
ROW = re.compile(
    r"^\| `(\w+)`(?:, `(\w+): (\d)`)? \| (\d+) x (\d+) x \5 \| ([\d.]+) \| (\d+) \|", re.MULTILINE
)


@pytest.mark.parametrize("row", ROW.findall(PAGE.read_text()), ids=" ".join)
def test_the_table_of_backbones_is_right(row: tuple[str, ...]) -> None:
    name, option, value, channels, side, parameters, macs = row
    options: dict[str, Any] = {option: int(value)} if option else {}
    config = StudentConfig(name, embedding_size=128, **options)
    student = Student(config, 0, head="none", image_size=112).eval()
    assert (student.channels, student.maps_side()) == (int(channels), int(side))
    assert f"{count_parameters(student) / 1e6:.2f}" == parameters
    assert round(count_macs(student) / 1e6) == int(macs)


def test_every_backbone_is_in_the_table() -> None:
    assert {row[0] for row in ROW.findall(PAGE.read_text())} == {
        "mobilenet_v3_small",
        "mobilenet_v3_large",
        "mobilefacenet",
    }
