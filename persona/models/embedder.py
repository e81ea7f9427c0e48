"""The interface to embed crops with NumPy arrays, for galleries, evaluation and programs.

This module does not import torch.

Shapes: B batch, H W pixels, E embedding.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from persona.errors import PersonaError
from persona.files import whole_number
from persona.landmarks import Floats
from persona.workers import usable_cores


class Embedder(ABC):
    """A network that embeds crops. Several threads may use the same one."""

    embedding_size: int
    """Dimensions of the embedding."""
    num_classes = 0
    """Number of identities of the logits. Only networks in torch have any."""
    uses_landmarks = False
    """Whether `embed` needs the five landmarks of each crop."""

    @abstractmethod
    def embed(
        self, crops_BHW3: npt.NDArray[np.uint8], landmarks_B62: Floats | None = None
    ) -> npt.NDArray[np.float32]:
        """Computes embeddings of unit length, (B, E) float32.

        Args:
            crops_BHW3: square uint8 RGB crops.
            landmarks_B62: the five landmarks and the scale of each crop, see persona/landmarks.py.
                They are NaN where a crop has none. Only networks with `uses_landmarks` need them.

        Raises:
            PersonaError: the network needs landmarks and a crop has none.
        """


def demand_landmarks(landmarks_B62: Floats | None, name: str) -> Floats:
    """Returns the landmarks of crops for a network that needs those of each.

    Raises:
        PersonaError: a crop has none.
    """
    if landmarks_B62 is None or np.isnan(landmarks_B62).any():
        raise PersonaError(
            f"{name} wants five points of each face and this set has none: pack it with --align "
            "mtcnn, landmarks or template"
        )
    return landmarks_B62


def own_threads() -> int:
    """Number of threads of a network: OMP_NUM_THREADS, or else the cores of this process."""
    return whole_number(os.environ.get("OMP_NUM_THREADS", "")) or usable_cores()
