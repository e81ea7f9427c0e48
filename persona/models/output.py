"""What every face network returns: nothing depends on a hidden "classify" switch.

Shapes: B batch, C channel, H W pixels, E embedding (512), K identities.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from persona.errors import PersonaError

EMBEDDING_SIZE = 512
"""FaceNet's, and a student's unless its recipe says otherwise."""
COSINE_SCALE = 64.0
"""Of a cosine head's logits: the margin losses' usual scale."""
HEADS = ("linear", "cosine", "none")


class FaceOutput(NamedTuple):
    """One forward pass."""

    features: Tensor
    """(B, E): the vector before L2 normalisation; logits are linear in it."""
    logits: Tensor
    """(B, K)."""

    @property
    def embedding(self) -> Tensor:
        """(B, E) of unit length: what faces are compared by."""
        return F.normalize(self.features, dim=1)


class ClassifierHead(nn.Module):
    """The last layer: from a vector before normalisation to the logits of K identities.

    `linear`: `W x + b`. `cosine`: 64 times the cosine with the identity's centre, a row of W, as
    margin losses train it. `none`: no identities, for students of embeddings alone.
    """

    def __init__(self, embedding_size: int, num_classes: int, kind: str) -> None:
        super().__init__()
        assert kind in HEADS
        self.kind = kind
        if kind != "none":
            drawn = nn.Linear(embedding_size, num_classes, bias=kind == "linear")
            self.weight, self.bias = drawn.weight, drawn.bias

    def forward(self, features_BE: Tensor) -> Tensor:
        """(B, K) logits; (B, 0) without identities."""
        if self.kind == "none":
            return features_BE.new_zeros(len(features_BE), 0)
        if self.kind == "linear":
            return F.linear(features_BE, self.weight, self.bias)
        return COSINE_SCALE * F.normalize(features_BE, dim=1) @ F.normalize(self.weight, dim=1).T


class FaceNetwork(nn.Module):
    """A network from normalised crops (B, 3, H, W) float32 to a FaceOutput."""

    num_classes: int
    """0: it gives embeddings and no logits."""
    embedding_size: int
    uses_landmarks = False
    """Whether `features` wants the five points of each crop."""
    computes_itself = False
    """Whether another runtime than torch computes it: torch's precisions mean nothing to it."""
    from_elsewhere = False
    """Whether its settings may be wrong for its weights: persona/evaluation/sanity.py looks."""

    def features(self, images_BCHW: Tensor, landmarks_B62: Tensor | None = None) -> Tensor:
        """(B, E) before normalisation, without the cost of the logits.

        Args:
            images_BCHW: normalised crops.
            landmarks_B62: (B, 6, 2) points and scale of each, see persona/landmarks.py; needed only
                where `uses_landmarks`.
        """
        raise NotImplementedError

    def head(self) -> ClassifierHead:
        """The last layer by itself.

        Raises:
            PersonaError: this network has none.
        """
        raise PersonaError(f"{type(self).__name__} gives embeddings and no logits")

    def classify(self, features_BE: Tensor) -> Tensor:
        """(B, K) logits of features."""
        raise NotImplementedError

    def count_parameters(self) -> int | None:
        """Parameters that an embedding costs and those of the last layer; None: not known."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, images_BCHW: Tensor) -> FaceOutput:
        """Features and logits at once."""
        features_BE = self.features(images_BCHW)
        return FaceOutput(features_BE, self.classify(features_BE))

    def embed(self, images_BCHW: Tensor, landmarks_B62: Tensor | None = None) -> Tensor:
        """(B, E) embeddings of unit length."""
        return F.normalize(self.features(images_BCHW, landmarks_B62).float(), dim=1)


def freeze(network: FaceNetwork) -> FaceNetwork:
    """For inference alone: eval mode, no gradients, channels last in memory."""
    network.eval().requires_grad_(False)
    return network.to(memory_format=torch.channels_last)


def for_inference(network: FaceNetwork) -> FaceNetwork:
    """A copy in eval mode, each batch norm folded into the convolution before it.

    The embeddings are the same within float32 rounding, for a fifth less time on the CPU. Only
    inside `nn.Sequential` does one module certainly follow another, so nothing else is folded; a
    network without such a pair (FaceNet, ONNX) comes back as it is, in eval mode.
    """
    network.eval()
    if not any(_foldable(module) for module in network.modules()):
        return network
    folded = copy.deepcopy(network).requires_grad_(False)
    for block in list(folded.modules()):
        if isinstance(block, nn.Sequential):
            for place, convolution, norm in _foldable(block):
                block[place] = fuse_conv_bn_eval(convolution, norm)
                block[place + 1] = nn.Identity()
    return folded.to(memory_format=torch.channels_last)


def _foldable(block: nn.Module) -> list[tuple[int, nn.Conv2d, nn.BatchNorm2d]]:
    """The place of each convolution with a batch norm right after it, and both."""
    if not isinstance(block, nn.Sequential):
        return []
    pairs = zip(block, list(block)[1:], strict=False)
    return [
        (place, one, after)
        for place, (one, after) in enumerate(pairs)
        if isinstance(one, nn.Conv2d) and isinstance(after, nn.BatchNorm2d)
    ]
