"""Depthwise 5 x 5 convolutions with a faster gradient of the weights on the CPU.

Everything else about them is torch's. oneDNN's gradient of depthwise weights is fast for kernels of
three columns and several times slower for five (torch 2.15). This module computes the gradient of
five columns with kernels of three. Two neighbouring columns of a map form a pair: they are put side
by side as twice the channels, which is only a view in channels-last memory. Pair u holds the
columns 2u + s, for s = 0 and 1, so a step of one pair is a step of two columns.

- stride 1: pairs of the input with pairs of the gradient give the offsets -2, 0 and 2, each as a
  sum over s. The maps without pairs give the offsets -1, 0 and 1.
- stride 2: output column w meets the input columns 2w + j, j from -2 to 2. They lie in the pairs
  w + u, where j = 2u + s.

Maps of at most four columns, as the last ones of a student of 64 or 112 px, take oneDNN 15 to 50
times as long as a matrix product for each channel. It sums the products of each place of the input
with each place of the output over the batch, and the gradient of a weight is a sum of some of them.

The sums are those of the convolution's own gradient, in another order.

Shapes: B batch, C channel, H W pixels.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SIDE, PAD = 5, 2
COLUMNS = 3
"""Width of the kernels that are fast."""
NARROW, LOW = 4, 8
"""Largest width and height of a map whose gradient is computed by matrix products."""


class DepthwiseConv5(nn.Conv2d):
    """A depthwise 5 x 5 convolution of stride 1 or 2 with padding 2."""

    def _conv_forward(self, images_BCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        quick = (
            self.training  # export and compilers need torch's own operator
            and not torch.compiler.is_compiling()
            and images_BCHW.device.type == "cpu"
            and images_BCHW.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and images_BCHW.is_contiguous(memory_format=torch.channels_last)
        )
        if not quick:
            plain: Tensor = super()._conv_forward(images_BCHW, weight, bias)
            return plain
        found: Tensor = _Convolution.apply(images_BCHW, weight, self.stride[0])
        return found


def speed_up_depthwise(network: nn.Module) -> None:
    """Turns each depthwise 5 x 5 convolution of a network into a DepthwiseConv5, in place.

    Weights and results stay the same.
    """
    for module in network.modules():
        if (
            type(module) is nn.Conv2d
            and module.kernel_size == (SIDE, SIDE)
            and module.padding == (PAD, PAD)
            and module.stride in {(1, 1), (2, 2)}
            and module.dilation == (1, 1)
            and module.groups == module.in_channels == module.out_channels
            and module.bias is None
        ):
            module.__class__ = DepthwiseConv5


class _Convolution(torch.autograd.Function):
    """torch's convolution with another computation of the weights' gradient."""

    @staticmethod
    def forward(ctx: Any, images_BCHW: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(images_BCHW, weight)
        ctx.stride = stride
        return torch.conv2d(images_BCHW, weight, None, stride, PAD, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        images_BCHW, weight = ctx.saved_tensors
        grad_BCHW = grad_BCHW.contiguous(memory_format=torch.channels_last)
        images, weights = None, None
        if ctx.needs_input_grad[0]:
            stride = (ctx.stride, ctx.stride)
            images = _backward(grad_BCHW, images_BCHW, weight, stride, (PAD, PAD))[0]
        if ctx.needs_input_grad[1]:
            weights = weight_gradient(images_BCHW, grad_BCHW, ctx.stride)
            # With one input channel several strides mean the same memory. DDP warns about others
            # than the weights' own.
            weights = weights.as_strided(weight.shape, weight.stride())
        return images, weights, None


def weight_gradient(images_BCHW: Tensor, grad_BCHW: Tensor, stride: int) -> Tensor:
    """Computes the gradient of the weights, (C, 1, 5, 5).

    Args:
        images_BCHW: input of the convolution, channels last.
        grad_BCHW: gradient of its output, channels last.
        stride: 1 or 2, vertically and horizontally.
    """
    channels, height, width = images_BCHW.shape[1:]
    if width <= NARROW and height <= LOW:
        return _by_products(images_BCHW, grad_BCHW, stride)
    found = images_BCHW.new_empty(channels, 1, SIDE, SIDE)
    if stride == 1:
        near = _three_columns(images_BCHW, grad_BCHW, 1)
        left, right = _three_columns(_pairs(images_BCHW), _pairs(grad_BCHW), 1).chunk(2)
        found[..., 0::2], found[..., 1:4] = left + right, near
    else:
        twice = torch.cat([grad_BCHW, grad_BCHW], dim=1)
        even, odd = _three_columns(_pairs(images_BCHW), twice, 2).chunk(2)
        found[..., 0::2], found[..., 1::2] = even, odd[..., :2]
    return found


def _by_products(images_BCHW: Tensor, grad_BCHW: Tensor, stride: int) -> Tensor:
    """Computes the gradient of the weights, (C, 1, 5, 5), from products of places."""
    images_CBP, grad_CBQ = _places(images_BCHW), _places(grad_BCHW)
    products_CPQ = torch.bmm(images_CBP.transpose(1, 2), grad_CBQ)
    taken = _weight_of_places(*images_BCHW.shape[2:], *grad_BCHW.shape[2:], stride)
    return (products_CPQ.flatten(1) @ taken.to(products_CPQ.dtype)).view(-1, 1, SIDE, SIDE)


def _places(maps_BCHW: Tensor) -> Tensor:
    """Puts the channels first, (C, B, H W)."""
    batch, channels = maps_BCHW.shape[:2]
    return maps_BCHW.permute(0, 2, 3, 1).reshape(-1, channels).t().reshape(channels, batch, -1)


@functools.lru_cache(maxsize=64)
def _weight_of_places(
    height: int, width: int, grad_height: int, grad_width: int, stride: int
) -> Tensor:
    """Which weight joins which places: ones in (H W H' W', 25), of input H W and output H' W'."""
    weight = torch.arange(SIDE)
    row = torch.arange(height)[:, None] - stride * torch.arange(grad_height) + PAD
    column = torch.arange(width)[:, None] - stride * torch.arange(grad_width) + PAD
    rows_HGR = (row[..., None] == weight).float()
    columns_WGR = (column[..., None] == weight).float()
    joined = torch.einsum("hgr,wcs->hwgcrs", rows_HGR, columns_WGR)
    return joined.reshape(-1, SIDE * SIDE)


def _pairs(maps_BCHW: Tensor) -> Tensor:
    """Puts columns in pairs, (B, 2 C, H, W / 2). An odd last column is paired with zeros."""
    maps_BHWC = maps_BCHW.permute(0, 2, 3, 1)
    batch, height, width, channels = maps_BHWC.shape
    if width % 2:
        maps_BHWC = nn.functional.pad(maps_BHWC, (0, 0, 0, 1))
    return maps_BHWC.reshape(batch, height, -1, 2 * channels).permute(0, 3, 1, 2)


def _three_columns(images_BCHW: Tensor, grad_BCHW: Tensor, stride: int) -> Tensor:
    """Computes the gradient of a 5 x 3 kernel, (C, 1, 5, 3). Its horizontal stride is 1."""
    weight = images_BCHW.new_empty(images_BCHW.shape[1], 1, SIDE, COLUMNS)
    return _backward(grad_BCHW, images_BCHW, weight, (stride, 1), (PAD, 1), of_weights=True)[1]


def _backward(
    grad_BCHW: Tensor,
    images_BCHW: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    *,
    of_weights: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes torch's own gradient of a depthwise convolution: of the images or of the weights."""
    wanted = [not of_weights, of_weights, False]
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad_BCHW,
        images_BCHW,
        weight,
        None,
        stride,
        padding,
        (1, 1),
        False,
        (0, 0),
        len(weight),
        wanted,
    )
    return found
