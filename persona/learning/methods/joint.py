"""Joint training on all photos so far.

It is the upper bound for the other methods: it keeps every photo, without a memory budget.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from persona.learning.methods.finetune import Finetune
from persona.learning.photos import Ints


class Joint(Finetune):
    """Cross-entropy on photos drawn evenly from all experiences so far."""

    name = "joint"
    remembers = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seen: Ints = np.empty(0, np.int64)

    def pool(self, photos: Ints) -> Ints:
        """All photos so far, with those of the new experience."""
        return np.union1d(self.seen, photos)

    def after(self, photos: Ints, labels: Tensor) -> None:
        """Adds the photos to those seen."""
        self.seen = np.union1d(self.seen, photos)

    def state(self) -> dict[str, Any]:
        """Numbers of the photos so far."""
        return {"seen": torch.from_numpy(self.seen)}

    def load(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        self.seen = state["seen"].numpy()

    def kept_bytes(self) -> dict[str, int]:
        """Bytes of all photos so far."""
        return {"photos": int(self.context.photos.sizes[self.seen].sum())}
