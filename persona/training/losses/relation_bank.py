"""Relations to a bank of past embeddings: Fang et al. 2021, "SEED: Self-supervised Distillation for
Visual Representation" (arXiv:2101.04731), equations 3 to 6. With the teacher's embeddings alone in
the bank it is close to CompRess-1q (Koohpayegani et al. 2020, arXiv:2010.14713).

Shapes: B batch, E embedding, N rows of the bank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from persona.config import Term, between
from persona.training.collectives import gather_batch
from persona.training.losses.base import Loss

EMPTY = -1e4
"""Similarity to a row that is still empty. At any temperature its softmax is 0 in float32."""


@dataclass(frozen=True)
class RelationBankConfig(Term):
    """Options of the relations to a bank."""

    size: int = between(2, 1_000_000, default=4096)
    """Number of the teacher's past embeddings that the bank holds."""
    teacher_temperature: float = between(0.001, 10, default=0.01)
    """Temperature of the teacher's similarities. The paper has 0.01."""
    student_temperature: float = between(0.001, 10, default=0.2)
    """Temperature of the student's similarities. The paper has 0.2."""


class RelationBank(Loss):
    """The cross-entropy of two softmaxes over the similarities to a bank of past embeddings.

    One is of the teacher's embedding of a photo, the other of the student's. The bank is a queue of
    the teacher's embeddings of earlier batches; the teacher's embedding of the photo itself is its
    last entry. Each batch replaces the oldest rows, after its loss is computed. The batches of all
    processes go into the bank in order of rank, so it is the same on every process. It is part of
    the checkpoint. The first batch of a run meets an empty bank, and its loss is 0.
    """

    name = "relation_bank"
    inputs = ("student_features", "teacher_features")
    paired = True
    needs_size = True
    config_class = RelationBankConfig
    bank: Tensor
    place: Tensor
    filled: Tensor

    def __init__(
        self,
        *,
        embedding_size: int,
        size: int = 4096,
        teacher_temperature: float = 0.01,
        student_temperature: float = 0.2,
    ) -> None:
        super().__init__()
        self.temperatures = student_temperature, teacher_temperature
        self.register_buffer("bank", torch.zeros(size, embedding_size))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, teacher_BE: Tensor) -> None:
        """Replaces the oldest rows by a batch, in the same way on all processes."""
        rows_BE, size = gather_batch(teacher_BE)[-len(self.bank) :], len(self.bank)
        places_B = (self.place + torch.arange(len(rows_BE), device=rows_BE.device)) % size
        self.bank[places_B] = rows_BE
        self.place.copy_((self.place + len(rows_BE)) % size)
        self.filled.copy_((self.filled + len(rows_BE)).clamp(max=size))

    def forward(self, student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
        """Computes the loss, () float32.

        Args:
            student_BE: student features (B, E) of any norm.
            teacher_BE: teacher features (B, E) of any norm.

        Raises:
            ValueError: the shapes of the features differ.
        """
        if student_BE.shape != teacher_BE.shape:
            raise ValueError(f"vectors of shapes {student_BE.shape} and {teacher_BE.shape}")
        student_BE = F.normalize(student_BE.float(), dim=1)
        teacher_BE = F.normalize(teacher_BE.float(), dim=1)
        # Cloned, because a later batch may change the bank in place before the backward pass.
        bank_NE = self.bank.clone()
        empty_N = torch.arange(len(bank_NE), device=bank_NE.device) >= self.filled

        def similarities(vectors_BE: Tensor) -> Tensor:
            bank_BN = (vectors_BE @ bank_NE.T).masked_fill(empty_N, EMPTY)
            own_B = (vectors_BE * teacher_BE).sum(dim=1)
            return torch.cat([bank_BN, own_B[:, None]], dim=1)

        student_temperature, teacher_temperature = self.temperatures
        wanted = F.softmax(similarities(teacher_BE) / teacher_temperature, dim=1)
        loss = F.cross_entropy(similarities(student_BE) / student_temperature, wanted)
        if self.training:
            self.update(teacher_BE)
        return loss
