"""The objective as one module: student, teacher and a weighted list of loss terms.

Shapes: B batch, C channel, H W pixels, E embedding, K identities.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from persona.config import LossesConfig
from persona.models.output import FaceNetwork
from persona.training.losses import build_losses, counting, inputs_of
from persona.training.teacher import FROM_TEACHER, Teacher


class DistillationTask(nn.Module):
    """Student, teacher and losses as one module: `total, terms = task(images, labels, …)`.

    `train()` puts the student and the losses into training mode. The teacher stays in eval mode.
    """

    def __init__(
        self,
        student: nn.Module,
        bare_student: FaceNetwork,
        teacher: Teacher | None,
        config: LossesConfig,
        num_identities: int,
        teacher_size: int | None = None,
    ) -> None:
        """Builds the loss terms.

        Args:
            student: the network that is called; it may be wrapped (DDP, torch.compile) and have a
                projection head.
            bare_student: the network inside `student`.
            teacher: the frozen teacher, if any.
            config: the terms and their weights.
            num_identities: identities of the labels, also if the student has no logits.
            teacher_size: the teacher's embedding size. None means the student's.
        """
        super().__init__()
        self.student = student
        self.losses = build_losses(
            config,
            num_classes=num_identities,
            embedding_size=bare_student.embedding_size,
            teacher_size=teacher_size,
        )
        self.weights = {name: term.weight for name, term in counting(config).items()}
        self.inputs = inputs_of(config)
        self.paired = {name for name, loss in self.losses.items() if loss.paired}
        self.wanted = {name for inputs in self.inputs.values() for name in inputs}
        # Lists hide them from nn.Module, which would register them as submodules.
        self._teacher = [teacher]
        self._bare_student = [bare_student]

    @property
    def teacher(self) -> Teacher | None:
        """The teacher, or None."""
        return self._teacher[0]

    def forward(
        self,
        images_BCHW: Tensor,
        labels_B: Tensor,
        targets_BE: Tensor | None = None,
        landmarks_B62: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss of a batch.

        Args:
            images_BCHW: normalised views, (B, 3, H, W) float32 in [-1, 1].
            labels_B: (B,) int64.
            targets_BE: (B, E) kept features of the teacher for these views. None means that the
                teacher computes them.
            landmarks_B62: (B, 6, 2) landmarks and scale, for a teacher that uses them.

        Returns:
            The weighted sum of the terms, () float32, and each term without its weight, detached.
        """
        output = self.student(images_BCHW)
        found: dict[str, Tensor] = {
            "student_features": output.features,
            "student_logits": output.logits,
            "labels": labels_B,
        }
        if "class_centres" in self.wanted:
            found["class_centres"] = self._bare_student[0].head().weight
        if self.teacher is not None and self.wanted & set(FROM_TEACHER):
            if targets_BE is None:
                targets_BE = self.teacher.features(images_BCHW, landmarks_B62)
            found["teacher_features"] = targets_BE.float()
            if "teacher_logits" in self.wanted:
                found["teacher_logits"] = self.teacher.logits(targets_BE)
        projected = found | {"student_features": getattr(output, "projected", output.features)}
        total = torch.zeros((), device=images_BCHW.device)
        terms: dict[str, Tensor] = {}
        # Losses run in float32: cosines and softmaxes lose too much precision in 16 bits.
        with torch.autocast(images_BCHW.device.type, enabled=False):
            for name, loss in self.losses.items():
                values = projected if name in self.paired else found
                terms[name] = loss(*(values[key] for key in self.inputs[name]))
                total = total + self.weights[name] * terms[name]
        return total, {name: term.detach() for name, term in terms.items()}
