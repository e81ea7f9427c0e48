"""A torch network as an Embedder.

Shapes: B batch, H W pixels, E embedding.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from persona.data.transforms import normalise
from persona.landmarks import Floats
from persona.models.embedder import Embedder
from persona.models.output import FaceNetwork, for_inference


class TorchEmbedder(Embedder):
    """An Embedder that runs a torch network with folded batch norms.

    The network that it is given is put into eval mode and not changed otherwise.
    """

    def __init__(self, network: FaceNetwork) -> None:
        self.network = for_inference(network)
        self.embedding_size = network.embedding_size
        self.num_classes = network.num_classes
        placed = next(network.parameters(), None)
        self._device = torch.device("cpu") if placed is None else placed.device

    @property
    def uses_landmarks(self) -> bool:  # type: ignore[override]
        """Whether `embed` needs the five-point landmarks of each crop."""
        return self.network.uses_landmarks

    def embed(
        self, crops_BHW3: npt.NDArray[np.uint8], landmarks_B62: Floats | None = None
    ) -> npt.NDArray[np.float32]:
        """(B, E) float32 embeddings of unit length, from (B, H, W, 3) uint8 square RGB crops."""
        points = None
        if self.uses_landmarks and landmarks_B62 is not None:
            points = torch.from_numpy(np.ascontiguousarray(landmarks_B62))
        pixels = torch.from_numpy(np.ascontiguousarray(crops_BHW3)).to(self._device)
        with torch.inference_mode():
            found = self.network.embed(normalise(pixels.permute(0, 3, 1, 2)), points)
        vectors: npt.NDArray[np.float32] = found.cpu().numpy().astype(np.float32)
        return vectors
