"""What a loss term is: a name, the tensors that it compares, and its options.

Another loss is one file with one subclass; defining it registers it, and a recipe may name it:

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

`inputs` names what the task (persona/training/task.py) hands to `forward`, in order:

| input | what |
|---|---|
| `student_features` | (B, E) the student's vectors before normalisation |
| `student_logits` | (B, K) |
| `class_centres` | (K, E) weights of the student's last layer, for heads of cosines |
| `teacher_features` | (B, E) the teacher's vectors before normalisation |
| `teacher_logits` | (B, K) |
| `labels` | (B,) int64 |

Every term takes any float type and gives a () float32, the mean over the batch; the task calls it
outside autocast.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from persona import registry
from persona.config import Term
from persona.registry import Registry


class Loss(nn.Module):
    """A loss term; its constructor takes what its options hold, less the weight."""

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]
    """The tensors that `forward` takes, see this module."""
    paired: ClassVar[bool] = False
    """Whether it compares student's and teacher's vectors number by number."""
    needs_classes: ClassVar[bool] = False
    """Whether its constructor takes `num_classes` and `embedding_size` as well."""
    config_class: ClassVar[type[Term]] = Term

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" in vars(cls):
            LOSSES.add(cls.name, cls)


LOSSES: Registry[type[Loss]] = registry.LOSSES
