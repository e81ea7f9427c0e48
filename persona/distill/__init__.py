"""Distillation, as a callable module that is fast to import.

`persona.distill(…)` runs persona/api/training.py. `from persona.distill import distill` and
`python -m persona.distill` run the recipe, persona/distill/recipe.py.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persona.distill.recipe import distill as distill

__all__ = ["distill"]


class _Callable(ModuleType):
    """A module that can be called.

    The import system binds `persona.distill` to this module, but users call it as a function.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from persona.api.training import distill_student
        from persona.extras import check_training

        check_training("distilling")
        return distill_student(*arguments, **options)


sys.modules[__name__].__class__ = _Callable


def __getattr__(name: str) -> Any:
    """Imports the recipe, and with it torch, on first use (PEP 562)."""
    if name == "distill":
        from persona.distill.recipe import distill

        return distill
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
