"""A wider network that computes what a narrow one does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from persona.config import StudentConfig
from persona.errors import PersonaError
from persona.models.student import Student
from persona.models.widen import compute_the_same, widen_state


def made(width: float, name: str = "mobilenet_v3_small", **options: Any) -> Student:
    config = StudentConfig(name, embedding_size=16, width=width, **options)
    return Student(config, 5, image_size=64).eval()


def with_statistics(student: Student) -> Student:
    """Batch norm and biases with values that a trained network has."""
    generator = torch.Generator().manual_seed(3)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            count = module.num_features
            state = {
                "weight": torch.rand(count, generator=generator) + 0.5,
                "bias": torch.randn(count, generator=generator) * 0.1,
                "running_mean": torch.randn(count, generator=generator) * 0.1,
                "running_var": torch.rand(count, generator=generator) + 0.5,
            }
            module.load_state_dict(state, strict=False)
    return student


@pytest.mark.parametrize("widths", [(0.75, 1.0), (0.5, 0.9)])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobilenet_v3_small", {"pooling": "average"}),
        ("mobilenet_v3_small", {"pooling": "depthwise", "activation": "prelu"}),
        ("mobilenet_v3_small", {"pooling": "full", "first_stride": 1}),
        ("mobilenet_v3_large", {"pooling": "full"}),
    ],
)
def test_the_wide_network_computes_the_same(
    name: str, options: dict[str, str | int], widths: tuple[float, float]
) -> None:
    torch.manual_seed(0)
    narrow = with_statistics(made(widths[0], name, **options))
    wide = made(widths[1], name, **options)
    photos = torch.rand(3, 3, 64, 64)
    before = wide(photos)[0]
    wide.load_state_dict(widen_state(narrow.state_dict(), wide.state_dict()))
    for one, two in zip(narrow(photos), wide(photos), strict=True):
        assert torch.allclose(one, two, atol=1e-4)
    assert not torch.allclose(before, wide(photos)[0], atol=1e-2)
    assert compute_the_same(narrow, wide) and not narrow.training


def test_a_connection_that_the_wide_network_lacks_is_noticed() -> None:
    torch.manual_seed(0)
    narrow, wide = with_statistics(made(0.5)), made(1.0).train()
    wide.load_state_dict(widen_state(narrow.state_dict(), wide.state_dict()))
    assert not compute_the_same(narrow, wide) and wide.training


def test_repeated_channels_get_gradients_of_their_own() -> None:
    torch.manual_seed(0)
    narrow = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1))
    wide = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    wide.load_state_dict(widen_state(narrow.state_dict(), wide.state_dict()))
    first = wide[0]
    assert isinstance(first, nn.Conv2d) and torch.equal(first.weight[0], first.weight[2])
    wide(torch.rand(2, 3, 4, 4)).square().sum().backward()
    assert first.weight.grad is not None
    assert not torch.allclose(first.weight.grad[0], first.weight.grad[2], rtol=1e-3)


def test_the_same_width_is_the_same_network() -> None:
    state = made(0.5).state_dict()
    widened = widen_state(state, state)
    assert all(torch.equal(values, widened[name]) for name, values in state.items())


@pytest.mark.parametrize("shape", [(3, 2), (4, 1), (4,), (4, 2, 1)])
def test_what_is_not_wider_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PersonaError, match=r"weight of \(4, 2\) cannot be widened to"):
        widen_state({"weight": torch.zeros(4, 2)}, {"weight": torch.zeros(shape)})


def test_a_tensor_that_the_wide_network_lacks_is_refused() -> None:
    with pytest.raises(PersonaError, match=r"weight of \(4,\) cannot be widened to \(\)"):
        widen_state({"weight": torch.zeros(4)}, {})
