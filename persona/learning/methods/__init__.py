"""Methods of continual learning, one a file, each citing its source.

| method | keeps | names faces by |
|---|---|---|
| `finetune` | nothing: the lower bound | logits |
| `joint` | all photos: the upper bound | logits |
| `ncm` | class means; the weights stay | class means |
| `lwf` | the old network while it learns | logits |
| `ewc` | Fisher information and weights | logits |
| `replay`, `replay-herding` | photos | logits |
| `icarl` | photos, the old network while it learns | means of the photos |
| `der++` | photos and their logits | logits |
| `anchor` | class means, and asks the original teacher | class means |
"""

from __future__ import annotations

from persona.learning.methods.base import METHODS, Context, LearnBatch, Method


def build_method(context: Context) -> Method:
    """The method that the config names.

    Raises:
        PersonaError: the config gives it nothing to work with.
    """
    return METHODS.find(context.config.method)(context)


__all__ = ["METHODS", "Context", "LearnBatch", "Method", "build_method"]
