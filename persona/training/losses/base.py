"""The base class of loss terms: a name, the tensors that the term compares, and its options.

A new loss is one file with one subclass. Defining the class registers it, so a recipe can name it:

    @dataclass(frozen=True)
    class HuberConfig(Term):
        delta: float = between(0, 10, default=1.0)

    class Huber(Loss):
        name = "huber"
        inputs = ("student_features", "teacher_features")
        paired = True
        config_class = HuberConfig

        def __init__(self, delta: float = 1.0) -> None:
            super().__init__()
            self.delta = delta

        def forward(self, student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
            return F.huber_loss(student_BE.float(), teacher_BE.float(), delta=self.delta)

`inputs` names the tensors that the task (persona/training/task.py) passes to `forward`, in order:

| input | tensor |
|---|---|
| `student_features` | (B, E) the student's embeddings before normalisation |
| `student_logits` | (B, K) |
| `class_centres` | (K, E) weights of the student's last layer, which is a cosine head |
| `teacher_features` | (B, E) the teacher's embeddings before normalisation |
| `teacher_logits` | (B, K) |
| `labels` | (B,) int64 |

Every term takes any float dtype and returns its mean over the batch, () float32. The task calls it
outside autocast.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from persona import registry
from persona.config import Term
from persona.registry import Registry


class Loss(nn.Module):
    """A loss term. Its constructor takes the fields of `config_class` except `weight`."""

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]
    """Names of the tensors that `forward` takes; see the table in this module's docstring."""
    paired: ClassVar[bool] = False
    """Whether the features of student and teacher must have the same size. If their embeddings have
    not, the student's go through a projection head first (persona/training/projection.py)."""
    needs_classes: ClassVar[bool] = False
    """Whether the constructor also takes `num_classes` and `embedding_size`."""
    needs_size: ClassVar[bool] = False
    """Whether the constructor also takes `embedding_size`, that of the features it compares."""
    config_class: ClassVar[type[Term]] = Term

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" in vars(cls):
            LOSSES.add(cls.name, cls)


LOSSES: Registry[type[Loss]] = registry.LOSSES
