"""Classification by the nearest class mean of embeddings (Mensink et al. 2013, equation 4).

Shapes: N photos, E embedding, K identities.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class ClassMeans:
    """Sums and counts of unit-length embeddings, one row per identity.

    An identity without photos has no mean.
    """

    def __init__(self, embedding_size: int) -> None:
        self.sums_KE = torch.zeros(0, embedding_size)
        self.counts_K = torch.zeros(0, dtype=torch.int64)

    def add(self, embeddings_NE: Tensor, labels_N: Tensor) -> None:
        """Adds (N, E) embeddings with their (N,) labels to the sums."""
        missing = int(labels_N.max()) + 1 - len(self.counts_K) if len(labels_N) else 0
        if missing > 0:
            self.sums_KE = F.pad(self.sums_KE, (0, 0, 0, missing))
            self.counts_K = F.pad(self.counts_K, (0, missing))
        self.sums_KE.index_add_(0, labels_N, embeddings_NE)
        self.counts_K.index_add_(0, labels_N, torch.ones_like(labels_N))

    @property
    def known(self) -> Tensor:
        """Labels of the identities that have a mean, rising."""
        return torch.nonzero(self.counts_K).flatten()

    def unit(self) -> Tensor:
        """(K, E) means of the `known` identities in the same order, scaled to unit length."""
        return F.normalize(self.sums_KE[self.known], dim=1)

    def nearest(self, embeddings_NE: Tensor) -> Tensor:
        """(N,) labels of the means with the highest cosine similarity to (N, E) embeddings."""
        return self.known[(embeddings_NE @ self.unit().T).argmax(dim=1)]

    @property
    def bytes(self) -> int:
        """Size of the means in bytes."""
        return len(self.known) * self.sums_KE.shape[1] * 4

    def state(self) -> dict[str, Any]:
        """The sums and counts as tensors, for a checkpoint."""
        return {"sums": self.sums_KE, "counts": self.counts_K}

    def load(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        self.sums_KE, self.counts_K = state["sums"], state["counts"]
