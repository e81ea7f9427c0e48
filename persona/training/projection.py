"""The projection head between a student and a teacher of another embedding size.

A loss that compares embeddings number by number compares the teacher's with the projected ones. The
head is trained with the student and saved in checkpoints alone: the embedding of the student, which
is evaluated and exported, is taken before the head.

Shapes: B batch, C channel, H W pixels, E embedding of the student, T of the teacher, K identities.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from persona.models.output import FaceNetwork, FaceOutput


class ProjectedOutput(NamedTuple):
    """The result of a forward pass."""

    features: Tensor
    """Embeddings before normalisation, (B, E)."""
    logits: Tensor
    """Logits, (B, K)."""
    projected: Tensor
    """Embeddings in the width of the teacher's, (B, T)."""


class ProjectedStudent(nn.Module):
    """A student and its projection head, as the module that is trained."""

    def __init__(self, student: FaceNetwork, size: int) -> None:
        """Draws the head: a linear map without bias whose rows or columns are orthonormal.

        Args:
            student: the student. It is not copied.
            size: the teacher's embedding size.
        """
        super().__init__()
        self.student = student
        self.projection = nn.Linear(student.embedding_size, size, bias=False)
        # From a narrow student to a wide teacher such a map keeps all cosines.
        nn.init.orthogonal_(self.projection.weight)

    def forward(self, images_BCHW: Tensor) -> ProjectedOutput:
        """Computes features, logits and projected features."""
        output: FaceOutput = self.student(images_BCHW)
        return ProjectedOutput(*output, self.projection(output.features))
