"""Methods of continual learning, one a file. Each cites its source.

| method | keeps | classifies by |
|---|---|---|
| `finetune` | nothing (the lower bound) | logits |
| `joint` | all photos (the upper bound) | logits |
| `ncm` | class means; weights do not change | class means |
| `lwf` | the old network during an experience | logits |
| `ewc` | Fisher information and weights | logits |
| `replay`, `replay-herding` | photos | logits |
| `icarl` | photos; the old network during an experience | means of the kept photos |
| `der++` | photos and their logits | logits |
| `anchor` | class means; needs the original teacher | class means |
"""

from __future__ import annotations

from persona.learning.methods.base import METHODS, Context, LearnBatch, Method


def build_method(context: Context) -> Method:
    """Builds the method that the config names.

    Raises:
        PersonaError: the method is unknown, or the config lacks what it needs.
    """
    return METHODS.find(context.config.method)(context)


__all__ = ["METHODS", "Context", "LearnBatch", "Method", "build_method"]
