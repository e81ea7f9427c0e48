from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import reset_accelerate
from little import LITTLE
from torch import nn

from persona.api.training import _own_accelerator
from persona.config import StudentConfig
from persona.errors import PersonaError
from persona.evaluation.processes import join_processes
from persona.models.student import Student
from persona.training.devices import build_accelerator, prepare, with_sync_batch_norm

GPU: Any = SimpleNamespace(device=torch.device("cuda"))
"""Stands for the accelerator of a GPU, which a conversion does not need."""


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


def test_a_training_after_an_evaluation_has_a_precision_of_its_own(fresh: None) -> None:
    for precision in ("bf16", "no", "bf16"):
        join_processes(Student(StudentConfig(LITTLE), 0, head="none"))
        with _own_accelerator():
            assert build_accelerator(precision).mixed_precision == precision


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


def test_synchronised_batch_norm_keeps_the_activations_of_timm() -> None:
    pytest.importorskip("timm", reason="timm is not installed: the extra `timm`")
    torch.manual_seed(0)
    config = StudentConfig("timm:mobilenetv4_conv_small")
    student = Student(config, 0, head="none", image_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = student.features(images)
        converted = with_sync_batch_norm(student, GPU).eval()
        after = converted.features(images)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in converted.modules())
    assert torch.allclose(before, after, atol=1e-6)


def test_synchronised_batch_norm_refuses_layers_that_do_more() -> None:
    class Squared(nn.BatchNorm2d):
        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            return super().forward(maps) ** 2

    plain: Any = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    converted: Any = with_sync_batch_norm(plain, GPU)
    assert isinstance(converted[1], nn.SyncBatchNorm)
    other: Any = nn.Sequential(nn.Conv2d(3, 4, 1), Squared(4))
    with pytest.raises(PersonaError, match="would lose what Squared computes beyond batch norm"):
        with_sync_batch_norm(other, GPU)
