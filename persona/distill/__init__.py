"""Distillation: a module that can be called, and nothing else that takes time to import.

`persona.distill(…)` is persona/api/training.py; `from persona.distill import distill` and
`python -m persona.distill` are the recipe, persona/distill/recipe.py.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persona.distill.recipe import distill as distill

__all__ = ["distill"]


class _Callable(ModuleType):
    """The import system binds `persona.distill` to this module, so it must be the function too."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from persona.api.training import distill_student

        return distill_student(*arguments, **options)


sys.modules[__name__].__class__ = _Callable


def __getattr__(name: str) -> Any:
    """Imports the recipe, and torch with it, when it is first used (PEP 562)."""
    if name == "distill":
        from persona.distill.recipe import distill

        return distill
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
