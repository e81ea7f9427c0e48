"""Training on all photos so far: the upper bound, which keeps everything and knows no budget."""

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
        """Everything so far."""
        return np.union1d(self.seen, photos)

    def after(self, photos: Ints, labels: Tensor) -> None:
        """Keeps the photos."""
        self.seen = np.union1d(self.seen, photos)

    def state(self) -> dict[str, Any]:
        """The photos so far."""
        return {"seen": torch.from_numpy(self.seen)}

    def load(self, state: dict[str, Any]) -> None:
        """Takes up `state`."""
        self.seen = state["seen"].numpy()

    def kept_bytes(self) -> dict[str, int]:
        """All photos."""
        return {"photos": int(self.context.photos.sizes[self.seen].sum())}
