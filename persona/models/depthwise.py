"""Depthwise 5 x 5 convolutions whose weights learn faster on the CPU; else they are torch's.

oneDNN's gradient of depthwise weights is fast where a kernel has three columns, and several times
slower where it has five (torch 2.15). Here five columns come from kernels of three. Neighbouring
columns, put side by side as twice the channels, which in channels-last memory is a mere view, make
pairs: pair u holds the columns 2u + s, s = 0 and 1, so that steps of one pair are two columns.

- stride 1: pairs of the input against pairs of the gradient give the offsets -2, 0 and 2, each as a
  sum over s; the maps as they are give -1, 0 and 1
- stride 2: the output w meets the columns 2w + j, j from -2 to 2: the pair w + u, where j = 2u + s

The sums are those of the convolution's own gradient, in another order.

Shapes: B batch, C channel, H W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SIDE, PAD = 5, 2
COLUMNS = 3
"""Of the kernels that are fast."""


class DepthwiseConv5(nn.Conv2d):
    """One channel each, 5 x 5, padded to keep its size or half of it."""

    def _conv_forward(self, images_BCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        quick = (
            self.training  # graphs for export and compilers are torch's own
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
    """Makes those convolutions of a network that are such ones learn faster; they keep weights."""
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
    """torch's, but for the gradient of the weights."""

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
        return images, weights, None


def weight_gradient(images_BCHW: Tensor, grad_BCHW: Tensor, stride: int) -> Tensor:
    """(C, 1, 5, 5) gradient of the weights.

    Args:
        images_BCHW: what is convolved, channels last.
        grad_BCHW: gradient of what comes out, channels last.
        stride: 1 or 2, down and across.
    """
    channels = images_BCHW.shape[1]
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


def _pairs(maps_BCHW: Tensor) -> Tensor:
    """(B, 2 C, H, W / 2) columns in pairs; an odd last one stands beside zeros."""
    maps_BHWC = maps_BCHW.permute(0, 2, 3, 1)
    batch, height, width, channels = maps_BHWC.shape
    if width % 2:
        maps_BHWC = nn.functional.pad(maps_BHWC, (0, 0, 0, 1))
    return maps_BHWC.reshape(batch, height, -1, 2 * channels).permute(0, 3, 1, 2)


def _three_columns(images_BCHW: Tensor, grad_BCHW: Tensor, stride: int) -> Tensor:
    """(C, 1, 5, 3) gradient of such a kernel; its stride across is 1."""
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
    """torch's own gradients of a depthwise convolution: of the images, or of the weights."""
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
