"""The examples in the docstrings of the public API run, and give what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
import runpy
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


def test_the_page_says_what_the_docstrings_say() -> None:
    """Run `python scripts/api_page.py` where this fails."""
    page = runpy.run_path(str(ROOT / "scripts" / "api_page.py"))["page"]()
    assert (ROOT / "docs" / "api.md").read_text() == page
