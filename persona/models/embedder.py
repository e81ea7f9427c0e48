"""A network as galleries, evaluation and programs use it: arrays in, arrays out. No torch.

Shapes: B batch, H W pixels, E embedding.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from persona.files import whole_number
from persona.landmarks import Floats
from persona.workers import usable_cores


class Embedder(ABC):
    """A network that embeds crops. Any number of threads may use one."""

    embedding_size: int
    num_classes = 0
    """Identities that it has logits of; only networks in torch have any."""
    uses_landmarks = False
    """Whether `embed` wants the five points of each crop."""

    @abstractmethod
    def embed(
        self, crops_BHW3: npt.NDArray[np.uint8], landmarks_B62: Floats | None = None
    ) -> npt.NDArray[np.float32]:
        """(B, E) float32 embeddings of unit length.

        Args:
            crops_BHW3: square uint8 RGB crops.
            landmarks_B62: the five points and the scale of each, see persona/landmarks.py; NaN
                where a crop has none. Needed only where `uses_landmarks`.

        Raises:
            PersonaError: it wants the five points and a crop has none.
        """


def own_threads() -> int:
    """Threads that a network may use: what OMP_NUM_THREADS says, else the cores of this process."""
    return whole_number(os.environ.get("OMP_NUM_THREADS", "")) or usable_cores()
