"""Gives the weights of a narrow network to a wider one that computes the same.

A wider layer repeats the channels of the narrow one, and the layer behind it divides its weights
among the repeats (Chen, Goodfellow and Shlens 2016, Net2Net, arXiv:1511.05641, section 2.2,
Net2WiderNet). The paper draws the channels that are repeated, and adds noise so that repeats learn
different things. Here channel j repeats channel j modulo the narrow count: the two sides of a
residual sum then repeat alike without being told of each other. And the divided weights differ
from repeat to repeat, so repeats get different gradients although nothing is added to the function.

That holds where both have the same layers and connections. MobileNetV3 rounds channels to multiples
of 8: of width 0.5, 0.7 or 0.9, blocks of 40 and 48 channels become alike in its small network, and
get a residual connection that widths 0.75 and 1 do not have. `compute_the_same` tells.

Shapes: B batch, O output channels, I input channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from persona.errors import PersonaError
from persona.models.student import Student

TOLERANCE = 1e-3
"""Largest difference of two embeddings, before normalisation, that comes from rounding alone."""


def widen_state(narrow: Mapping[str, Tensor], wide: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Widens a state dict: it computes in the wide network what it does in the narrow one.

    It works for networks of convolutions (of one group, or one a channel), linear layers behind a
    pooling to 1 x 1, batch norm and activations of one number a channel. Seed torch first: the
    shares of repeated channels are drawn.

    Args:
        narrow: the state dict of the narrow network.
        wide: a state dict of the wide network, whose values are not used.

    Returns:
        The state dict for the wide network, of the same names as `narrow`.

    Raises:
        PersonaError: a tensor of `wide` is missing, or smaller than the narrow one.

    Example:
        >>> narrow = {"weight": torch.tensor([[6.0]]), "bias": torch.tensor([1.0])}
        >>> wide = widen_state(narrow, {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)})
        >>> wide["bias"], wide["weight"].sum(dim=1)
        (tensor([1., 1.]), tensor([6., 6.]))
    """
    widened = {}
    for name, values in narrow.items():
        was, shape = values.shape, wide[name].shape if name in wide else torch.Size()
        if len(shape) != len(was) or any(n < o for n, o in zip(shape, was, strict=True)):
            raise PersonaError(f"{name} of {tuple(was)} cannot be widened to {tuple(shape)}")
        widened[name] = _widen(values, shape)
    return widened


def compute_the_same(one: Student, two: Student) -> bool:
    """Whether two students give the same embeddings, of crops of noise.

    Args:
        one: a student.
        two: a student of the same crops and dimensions.

    Returns:
        True if they do, within `TOLERANCE`. A missing connection differs by far more.
    """
    generator = torch.Generator().manual_seed(0)
    side = one.image_size
    crops_BCHW = torch.rand((2, 3, side, side), generator=generator) * 2 - 1
    was = one.training, two.training
    try:
        with torch.no_grad():
            first_BE, second_BE = (s.eval().features(crops_BCHW) for s in (one, two))
    finally:
        one.train(was[0])
        two.train(was[1])
    return torch.allclose(first_BE, second_BE, rtol=TOLERANCE, atol=TOLERANCE)


def _widen(values: Tensor, shape: torch.Size) -> Tensor:
    """Repeats output channels, (O, ...), and divides the weights of repeated input channels."""
    if values.shape == shape:
        return values
    values = values[torch.arange(shape[0]) % len(values)]
    if values.dim() == 1 or values.shape[1] == shape[1]:
        return values
    repeated_I = torch.arange(shape[1]) % values.shape[1]
    part_OI = torch.rand(shape[:2]) + 0.5
    total_OI = torch.zeros(values.shape[:2]).index_add_(1, repeated_I, part_OI)
    share_OI = part_OI / total_OI[:, repeated_I]
    return values[:, repeated_I] * share_OI.reshape(*shape[:2], *[1] * (values.dim() - 2))
