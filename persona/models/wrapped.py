"""A torch network of the user as a FaceNetwork: `persona.wrap`.

Shapes: B batch, C channel, H W pixels, E embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from persona.errors import PersonaError
from persona.models.output import FaceNetwork

PIXEL_MEAN, PIXEL_SCALE = 127.5, 128.0
"""Normalisation of the crops (persona/data/transforms.py), undone before the user's own."""


class WrappedNetwork(FaceNetwork):
    """Any module from (B, 3, H, W) to (B, E). It gives embeddings and no logits."""

    num_classes = 0

    def __init__(
        self,
        network: nn.Module,
        image_size: int,
        mean: float | Sequence[float],
        std: float | Sequence[float],
    ) -> None:
        """Runs the network once to find its embedding size.

        Args:
            network: the user's network.
            image_size: side of its crops in px.
            mean: mean of the pixels (0 to 255), one number or one per channel. It is subtracted.
            std: standard deviation, likewise. The difference is divided by it.

        Raises:
            PersonaError: the network does not take such crops or does not return (B, E), or `mean`
                or `std` is invalid.
        """
        super().__init__()
        self.wrapped, self.image_size = network, image_size
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", _per_channel(mean, "mean"))
        self.register_buffer("std", _per_channel(std, "std"))
        training = network.training
        network.eval()
        try:
            with torch.no_grad():
                found = self.features(torch.zeros(2, 3, image_size, image_size))
        except (RuntimeError, TypeError, ValueError) as error:
            raise PersonaError(
                f"the wrapped network failed on a (2, 3, {image_size}, {image_size}) batch: {error}"
            ) from None
        finally:
            network.train(training)
        self.embedding_size = found.shape[1]

    def features(self, images_BCHW: Tensor, landmarks_B62: Tensor | None = None) -> Tensor:
        """Computes the embeddings before normalisation, (B, E).

        Raises:
            PersonaError: the network's output has another shape.
        """
        pixels = images_BCHW * PIXEL_SCALE + PIXEL_MEAN
        side = self.image_size
        if pixels.shape[2] != side:
            pixels = F.interpolate(
                pixels, (side, side), mode="bilinear", antialias=True, align_corners=False
            )
        found = self.wrapped((pixels - self.mean) / self.std)
        # `len` would fix the batch of an exported graph.
        batch = images_BCHW.shape[0]
        if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[0] != batch:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise PersonaError(
                f"the wrapped network gives {shape} for {len(images_BCHW)} faces: it must give a "
                "(batch, numbers) tensor"
            )
        return found

    def classify(self, features_BE: Tensor) -> Tensor:
        """Returns logits of shape (B, 0), because the network has no identities."""
        return features_BE.new_zeros(len(features_BE), 0)

    def digest(self) -> str:
        """SHA-256 of the weights and the normalisation. Equal digests give equal embeddings."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return found.hexdigest()


def _per_channel(value: float | Sequence[float], what: str) -> Tensor:
    values = torch.as_tensor(value, dtype=torch.float32).flatten()
    if len(values) not in {1, 3} or not values.isfinite().all():
        raise PersonaError(f"{what}: give one number, or three, one a channel")
    if what == "std" and not (values > 0).all():
        raise PersonaError("std: give numbers above 0")
    return values.view(1, -1, 1, 1)
