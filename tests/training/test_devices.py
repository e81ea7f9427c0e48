from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import reset_accelerate
from torch import nn

from persona.training.devices import build_accelerator, prepare


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    reset_accelerate()
    yield
    reset_accelerate()


def layers(network: nn.Module) -> int:
    """How many functions lie around the `forward` of a network."""
    forward: Any = network.forward
    count = 0
    while hasattr(forward, "__wrapped__"):
        forward, count = forward.__wrapped__, count + 1
    return count


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_student_that_is_prepared_again_has_one_layer_of_mixed_precision(
    fresh: None, wrapped: bool
) -> None:
    accelerator = build_accelerator("bf16")
    student = nn.Linear(4, 2)
    found = []
    for _ in range(3):
        accelerator.free_memory()
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        prepared, _ = prepare(accelerator, student, optimizer)
        found.append(layers(student))
        assert prepared(torch.zeros(1, 4)).dtype == torch.float32
        if wrapped:  # with several processes, the wrapper of DDP has the mark
            del student._is_accelerate_prepared
    assert found[0] > 0 and found == found[:1] * 3
