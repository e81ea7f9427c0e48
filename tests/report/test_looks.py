"""Looks: short names that stay different, and ten styles that nobody confuses."""

from __future__ import annotations

import pytest

from persona.report.looks import LIGHTER, LONGEST, PALETTE, look, short_names
from persona.report.page import SHAPES, swatch


def test_short_names() -> None:
    made = "20261129-051421-e94f"
    names = [f"mobilenet_v3_small-{made}", f"mobilenet_v3_small-{made}-ema", "teacher.onnx"]
    assert short_names(names) == ["small · e94f", "small · e94f · EMA", "teacher.onnx"]
    assert short_names(["mobilenet_v3_large"], ["mobilenet_v3_large"]) == ["large · untrained"]
    assert short_names([f"timm-resnet18-{made}"]) == ["resnet18 · e94f"]
    (long,) = short_names(["a-face-network-with-a-very-long-name.onnx"])
    assert long == "a-face-network-…ame.onnx" and len(long) == LONGEST


def test_names_that_would_become_equal_stay_different() -> None:
    one, other = (f"mobilenet_v3_small-2026112{day}-051421-e94f" for day in (8, 9))
    assert short_names([one, other, "x"]) == [one, other, "x"]
    assert short_names(["a.onnx", "a.onnx"]) == ["a.onnx (1)", "a.onnx (2)"]  # of two folders


@pytest.mark.parametrize("part", ["colour", "dash", "symbol"])
def test_ten_looks_differ_in_each_of_colour_dash_and_symbol(part: str) -> None:
    assert len({getattr(look(number, "m"), part) for number in range(10)}) == 10


def test_more_looks_still_differ() -> None:
    looks = {(own.colour, own.dash, own.symbol) for own in (look(n, "m") for n in range(100))}
    assert len(looks) == 100


def test_every_look_can_be_drawn_on_a_dark_page_too() -> None:
    assert set(LIGHTER) <= set(PALETTE)
    assert {swatch(look(number, "m"))["path"] for number in range(10)} == set(SHAPES.values())
    assert swatch(look(0, "m"))["dark"] == LIGHTER[PALETTE[0]] != PALETTE[0]
