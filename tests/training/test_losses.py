"""Parity of every loss with its formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from persona.config import LossConfig
from persona.errors import PersonaError
from persona.models.output import FaceNetwork
from persona.training.losses import HardLabels, SoftTargets
from persona.training.task import DistillationTask


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("shape", [(1, 2), (8, 30), (4, 8631)])
def test_soft_targets_agree_with_hintons_formula(
    temperature: float, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    student, teacher = 5 * torch.randn(shape), 5 * torch.randn(shape)
    p = torch.exp(teacher.double() / temperature)
    p /= p.sum(dim=1, keepdim=True)
    q = torch.exp(student.double() / temperature)
    q /= q.sum(dim=1, keepdim=True)
    expected = temperature**2 * (p * (p / q).log()).sum(dim=1).mean()
    loss = SoftTargets(temperature)(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)


def test_soft_target_gradients_keep_their_size_when_t_grows() -> None:
    """Section 2 of the paper: T² undoes the 1/T² of the gradients."""
    torch.manual_seed(0)
    teacher = torch.randn(64, 10)
    norms = []
    for temperature in (10.0, 40.0):
        student = torch.randn(
            64, 10, generator=torch.Generator().manual_seed(1), requires_grad=True
        )
        SoftTargets(temperature)(student, teacher).backward()
        assert student.grad is not None
        norms.append(float(student.grad.norm()))
    assert norms[0] / norms[1] == pytest.approx(1, abs=0.1)


def test_soft_targets_of_equal_logits_are_zero_and_refuse_other_shapes() -> None:
    logits = torch.randn(3, 5)
    assert float(SoftTargets(4)(logits, logits)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="shapes"):
        SoftTargets(4)(logits, logits[:, :4])
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(PersonaError, match="choose a number above 0"):
            SoftTargets(temperature)


def test_hard_labels_are_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 9), torch.arange(6)
    p = torch.exp(logits.double())
    expected = -(p[range(6), labels] / p.sum(dim=1)).log().mean()
    torch.testing.assert_close(HardLabels()(logits, labels).double(), expected, rtol=1e-5, atol=0)


class Linear(FaceNetwork):
    """The smallest network with batch norm."""

    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(12, 6)
        self.bn = torch.nn.BatchNorm1d(6)
        self.head = torch.nn.Linear(6, 4)

    def features(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.bn(self.body(images_BCHW.flatten(1)))
        return result

    def classify(self, features_BE: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(features_BE)
        return result


def test_the_task_is_the_reference_recipe() -> None:
    torch.manual_seed(0)
    student, teacher = Linear(), Linear()
    images, labels = torch.randn(8, 3, 2, 2), torch.arange(8) % 4
    task = DistillationTask(student, teacher, LossConfig(temperature=4.0))
    total, terms = task(images, labels)
    student_logits, teacher_logits = student(images).logits, teacher(images).logits
    soft = 16 * F.kl_div(
        F.log_softmax(student_logits / 4, 1),
        F.softmax(teacher_logits / 4, 1),
        reduction="batchmean",
    )
    hard = F.cross_entropy(student_logits, labels)
    torch.testing.assert_close(total, 0.9 * soft + 0.1 * hard)
    torch.testing.assert_close(terms, {"soft": soft, "hard": hard})
    assert not terms["soft"].requires_grad


def test_the_teacher_is_frozen_in_eval_and_unseen() -> None:
    student, teacher = Linear(), Linear()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    task = DistillationTask(student, teacher, LossConfig())
    task.train()
    assert not teacher.training and student.training
    assert {id(p) for p in task.parameters()} == {id(p) for p in student.parameters()}
    assert not any("teacher" in name for name in task.state_dict())
    total, _ = task(torch.randn(8, 3, 2, 2), torch.zeros(8, dtype=torch.long))
    total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])


def test_without_a_teacher_hard_labels_count_in_full() -> None:
    student = Linear()
    images, labels = torch.randn(8, 3, 2, 2), torch.arange(8) % 4
    total, terms = DistillationTask(student, None, LossConfig())(images, labels)
    assert set(terms) == {"hard"}
    torch.testing.assert_close(total, F.cross_entropy(student(images).logits, labels))
