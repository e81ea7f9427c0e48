"""The interface of face networks, and what a forward pass returns: features and logits.

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
from persona.models.depthwise import DepthwiseConv5

EMBEDDING_SIZE = 512
"""Embedding size of FaceNet, and of a student unless its recipe sets another."""
COSINE_SCALE = 64.0
"""Scale of a cosine head's logits, the usual scale of margin losses."""
HEADS = ("linear", "cosine", "none")


class FaceOutput(NamedTuple):
    """The result of a forward pass."""

    features: Tensor
    """Embeddings before L2 normalisation, (B, E)."""
    logits: Tensor
    """Logits, (B, K)."""

    @property
    def embedding(self) -> Tensor:
        """Embeddings of unit length, (B, E), by which faces are compared."""
        return F.normalize(self.features, dim=1)


class ClassifierHead(nn.Module):
    """The last layer: it maps embeddings before normalisation to the logits of K identities.

    Kinds:

    - `linear`: `W x + b`
    - `cosine`: 64 times the cosine with the identity's class centre, which is a row of W. Margin
      losses train this kind.
    - `none`: no logits
    """

    def __init__(self, embedding_size: int, num_classes: int, kind: str) -> None:
        super().__init__()
        assert kind in HEADS
        self.kind = kind
        if kind != "none":
            drawn = nn.Linear(embedding_size, num_classes, bias=kind == "linear")
            self.weight, self.bias = drawn.weight, drawn.bias

    def forward(self, features_BE: Tensor) -> Tensor:
        """Computes the logits, (B, K), or (B, 0) for kind `none`."""
        if self.kind == "none":
            return features_BE.new_zeros(len(features_BE), 0)
        if self.kind == "linear":
            return F.linear(features_BE, self.weight, self.bias)
        return COSINE_SCALE * F.normalize(features_BE, dim=1) @ F.normalize(self.weight, dim=1).T


class FaceNetwork(nn.Module):
    """A network that maps normalised crops, (B, 3, H, W) float32 in [-1, 1], to a FaceOutput."""

    num_classes: int
    """Number of identities of the logits. 0 means that there are no logits."""
    embedding_size: int
    """Dimensions of the embedding."""
    uses_landmarks = False
    """Whether `features` needs the five landmarks of each crop."""
    computes_itself = False
    """Whether a runtime other than torch computes it. torch's precisions then have no effect."""
    from_elsewhere = False
    """Whether its settings may not fit its weights, so that persona/evaluation/sanity.py checks."""

    def features(self, images_BCHW: Tensor, landmarks_B62: Tensor | None = None) -> Tensor:
        """Computes the embeddings before normalisation, (B, E), without the cost of the logits.

        Args:
            images_BCHW: normalised crops.
            landmarks_B62: (B, 6, 2) landmarks and scale of each crop, see persona/landmarks.py.
                Only networks with `uses_landmarks` need them.
        """
        raise NotImplementedError

    def head(self) -> ClassifierHead:
        """The last layer.

        Raises:
            PersonaError: this network has no last layer.
        """
        raise PersonaError(f"{type(self).__name__} gives embeddings and no logits")

    def classify(self, features_BE: Tensor) -> Tensor:
        """Computes the logits, (B, K), of features."""
        raise NotImplementedError

    def count_parameters(self) -> int | None:
        """The number of parameters, the last layer included. None means that it is not known."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, images_BCHW: Tensor) -> FaceOutput:
        """Computes features and logits."""
        features_BE = self.features(images_BCHW)
        return FaceOutput(features_BE, self.classify(features_BE))

    def embed(self, images_BCHW: Tensor, landmarks_B62: Tensor | None = None) -> Tensor:
        """Computes embeddings of unit length, (B, E) float32."""
        return F.normalize(self.features(images_BCHW, landmarks_B62).float(), dim=1)


def freeze(network: FaceNetwork) -> FaceNetwork:
    """Prepares a network for inference in place: eval mode, no gradients, channels last."""
    network.eval().requires_grad_(False)
    return network.to(memory_format=torch.channels_last)


def for_inference(network: FaceNetwork) -> FaceNetwork:
    """Returns a copy in eval mode with each batch norm folded into the convolution before it.

    The embeddings are the same within float32 rounding, and take a fifth less time on the CPU.
    Pairs are folded only inside `nn.Sequential`, where one module certainly follows the other. A
    network without such a pair (FaceNet, ONNX), or that cannot be copied, is itself returned, in
    eval mode.
    """
    network.eval()
    if not any(_foldable(module) for module in network.modules()):
        return network
    try:
        folded = copy.deepcopy(network).requires_grad_(False)
    except RuntimeError:  # as with torch.nn.utils.weight_norm, whose weights are results
        return network
    for block in list(folded.modules()):
        if isinstance(block, nn.Sequential):
            for place, convolution, norm in _foldable(block):
                block[place] = fuse_conv_bn_eval(convolution, norm)
                block[place + 1] = nn.Identity()
    return folded.to(memory_format=torch.channels_last)


def _foldable(block: nn.Module) -> list[tuple[int, nn.Conv2d, nn.BatchNorm2d]]:
    """The index of each convolution with a batch norm right after it, with both modules.

    Subclasses are left alone, because they may compute something else, as are modules with hooks.
    """
    if not isinstance(block, nn.Sequential) or type(block).forward is not nn.Sequential.forward:
        return []
    pairs = zip(block, list(block)[1:], strict=False)
    return [
        (place, one, after)
        for place, (one, after) in enumerate(pairs)
        if isinstance(one, nn.Conv2d) and type(one) in {nn.Conv2d, DepthwiseConv5}
        if type(after) is nn.BatchNorm2d and after.running_mean is not None
        if not _is_hooked(one) and not _is_hooked(after)
    ]


def _is_hooked(module: nn.Module) -> bool:
    """Whether something else is computed before or after the module itself."""
    return bool(module._forward_pre_hooks or module._forward_hooks)
