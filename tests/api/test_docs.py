"""The examples in the docstrings of the public API run, and give what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import persona

ROOT = Path(__file__).parents[2]
MODULES = (
    "model",
    "people",
    "photos",
    "sets",
    "training",
    "verification",
    "embedding",
    "reporting",
)


NAMES = [name for name in persona.__all__ if name.islower()]


@pytest.mark.parametrize("name", [*(f"api.{name}" for name in MODULES), "training.callbacks"])
def test_examples_run(name: str) -> None:
    module = importlib.import_module(f"persona.{name}")
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_public_functions_have_an_example() -> None:
    for name in NAMES:
        thing = getattr(persona, name)
        doc = inspect.getdoc(persona.api.training.distill_student if name == "distill" else thing)
        assert doc is not None and "Example:" in doc, name


def test_the_reference_page_has_every_public_name() -> None:
    """mkdocstrings writes the docstrings below the names of this page."""
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    places = re.findall(r"^::: persona\.([\w.]+)\.(\w+)$", page, re.MULTILINE)
    named = {f"{module}:{name}" for module, name in places}
    wanted = {*persona._PLACES.values(), "api.training:distill_student"}
    assert named == wanted and len(places) == len(wanted)
