"""The examples in the docstrings of the public API run, and give what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect

import pytest

import persona

MODULES = ("model", "people", "photos", "sets", "training", "verification", "embedding")


@pytest.mark.parametrize("name", [*(f"api.{name}" for name in MODULES), "training.callbacks"])
def test_examples_run(name: str) -> None:
    module = importlib.import_module(f"persona.{name}")
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_public_functions_have_an_example() -> None:
    for name in ("load", "wrap", "verify", "open_set", "distill", "open_gallery"):
        thing = getattr(persona, name)
        doc = inspect.getdoc(persona.api.training.distill_student if name == "distill" else thing)
        assert doc is not None and "Example:" in doc, name
