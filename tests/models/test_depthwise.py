from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from persona.config import StudentConfig
from persona.models import depthwise
from persona.models.depthwise import DepthwiseConv5, speed_up_depthwise, weight_gradient
from persona.models.student import Student


def convolution(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 5, stride, 2, groups=channels, bias=False)


def random_maps(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return maps.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "size", [(10, 10), (5, 5), (7, 4), (1, 1), (2, 3), (20, 11), (4, 4), (9, 4)]
)
def test_the_gradient_is_torchs(stride: int, size: tuple[int, int]) -> None:
    plain = convolution(6, stride).double()
    images = random_maps(3, 6, *size, dtype=torch.float64)
    out = plain(images)
    grad = random_maps(*out.shape, dtype=torch.float64)
    out.backward(grad)
    assert plain.weight.grad is not None
    found = weight_gradient(images, grad, stride)
    torch.testing.assert_close(found, plain.weight.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("architecture", ["mobilenet_v3_small", "mobilenet_v3_large"])
def test_a_student_learns_the_same(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = StudentConfig(architecture=architecture, width=0.5)
    quick = Student(config, 5, image_size=64).train().to(memory_format=torch.channels_last)
    plain = copy.deepcopy(quick)
    count = 0
    for module in plain.modules():
        if isinstance(module, DepthwiseConv5):
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
            count += 1
    assert count == {"mobilenet_v3_small": 8, "mobilenet_v3_large": 6}[architecture]
    calls = []
    original = weight_gradient

    def counted(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(depthwise, "weight_gradient", counted)
    images = random_maps(4, 3, 64, 64)
    for student in (quick, plain):
        student(images).logits.square().mean().backward()
        for parameter in student.parameters():
            assert parameter.grad is not None and parameter.grad.stride() == parameter.stride()
    assert len(calls) == count
    for (name, one), two in zip(quick.named_parameters(), plain.parameters(), strict=True):
        assert one.grad is not None and two.grad is not None
        scale = float(two.grad.abs().max())
        torch.testing.assert_close(one.grad, two.grad, rtol=0, atol=1e-3 * scale + 1e-7, msg=name)


def test_torchs_own_where_it_is_not_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Tensor:
        raise AssertionError("not here")

    monkeypatch.setattr(depthwise, "weight_gradient", refuse)
    module = convolution(4, 1)
    speed_up_depthwise(module)
    assert isinstance(module, DepthwiseConv5)
    images = random_maps(2, 4, 6, 6)
    module(images.contiguous()).sum().backward()
    module.double()(images.double()).sum().backward()
    module.float()
    with torch.autocast("cpu", torch.bfloat16):
        module(images).sum().backward()
    module.eval()(images).sum().backward()
    with pytest.raises(AssertionError, match="not here"):
        module.train()(images).sum().backward()


def test_others_stay_as_they_are() -> None:
    others = nn.ModuleList(
        [
            nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
            nn.Conv2d(4, 4, 5, padding=2, bias=False),
            nn.Conv2d(4, 4, 5, groups=4, bias=False),
            nn.Conv2d(4, 4, 5, padding=2, groups=4),
            nn.Conv2d(4, 8, 5, padding=2, groups=4, bias=False),
            nn.Conv2d(4, 4, 5, padding=4, dilation=2, groups=4, bias=False),
        ]
    )
    speed_up_depthwise(others)
    assert {type(module) for module in others} == {nn.Conv2d}
