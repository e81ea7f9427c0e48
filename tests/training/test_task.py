"""Student, teacher and terms as one module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from persona.config import DistillConfig, LossesConfig, from_dict
from persona.errors import PersonaError
from persona.models.output import ClassifierHead, FaceNetwork
from persona.training.losses.similarity import Similarity
from persona.training.projection import ProjectedStudent
from persona.training.task import DistillationTask
from persona.training.teacher import Teacher, check_losses

REFERENCE = DistillConfig().losses


def losses(**terms: dict[str, float]) -> LossesConfig:
    return from_dict(LossesConfig, terms, where="a test")


class Linear(FaceNetwork):
    """The smallest network with batch norm."""

    num_classes = 4
    embedding_size = 6

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(12, 6)
        self.bn = torch.nn.BatchNorm1d(6)
        self.logits = ClassifierHead(6, 4, "linear")

    def features(
        self, images_BCHW: torch.Tensor, landmarks_B62: torch.Tensor | None = None
    ) -> torch.Tensor:
        result: torch.Tensor = self.bn(self.body(images_BCHW.flatten(1)))
        return result

    def classify(self, features_BE: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.logits(features_BE)
        return result

    def head(self) -> ClassifierHead:
        return self.logits


def task_of(student: Linear, teacher: Linear | None, config: LossesConfig) -> DistillationTask:
    side = None if teacher is None else Teacher(teacher, teacher.head())
    return DistillationTask(student, student, side, config, 4)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 3, 2, 2), torch.arange(8) % 4


def test_the_task_is_the_reference_recipe() -> None:
    torch.manual_seed(0)
    student, teacher = Linear(), Linear()
    images, labels = batch()
    total, terms = task_of(student, teacher, REFERENCE)(images, labels)
    student_logits, teacher_logits = student(images).logits, teacher(images).logits
    soft = 16 * F.kl_div(
        F.log_softmax(student_logits / 4, 1),
        F.softmax(teacher_logits / 4, 1),
        reduction="batchmean",
    )
    hard = F.cross_entropy(student_logits, labels)
    torch.testing.assert_close(total, 0.9 * soft + 0.1 * hard)
    torch.testing.assert_close(terms, {"soft_targets": soft, "hard_labels": hard})
    assert not terms["soft_targets"].requires_grad


def test_the_teacher_is_frozen_in_eval_and_unseen() -> None:
    student, teacher = Linear(), Linear()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    task = task_of(student, teacher, REFERENCE)
    task.train()
    assert not teacher.training and student.training
    assert {id(p) for p in task.parameters()} == {id(p) for p in student.parameters()}
    assert not any("teacher" in name for name in task.state_dict())
    total, _ = task(*batch())
    total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])


def test_kept_vectors_stand_in_for_the_teacher() -> None:
    """The teacher's embeddings and its last layer give the loss that the teacher gives."""
    student, teacher = Linear(), Linear()
    config = losses(soft_targets={}, embedding_cosine={"weight": 2}, rkd_distance={})
    online = task_of(student, teacher, config).eval()
    kept = DistillationTask(student, student, Teacher(None, teacher.head()), config, 4).eval()
    images, labels = batch()
    vectors = teacher.features(images).half()
    expected, terms = online(images, labels)
    total, kept_terms = kept(images, labels, vectors)
    torch.testing.assert_close(total, expected, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(kept_terms, terms, rtol=2e-3, atol=1e-3)
    assert kept.teacher is not None and kept.teacher.network is None


def test_terms_are_float32_under_autocast() -> None:
    student = Linear()
    task = task_of(student, None, losses(arcface={}, triplet={}))
    images, labels = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert student(images).logits.dtype == torch.bfloat16
        total, terms = task.eval()(images, labels)
    assert {value.dtype for value in (total, *terms.values())} == {torch.float32}
    plain, _ = task(images, labels)
    torch.testing.assert_close(total, plain, rtol=0.05, atol=0.05)


def test_a_weight_of_zero_is_not_computed_and_weights_multiply() -> None:
    student = Linear()
    images, labels = batch()
    config = losses(hard_labels={"weight": 0.25}, triplet={"weight": 0})
    total, terms = task_of(student, None, config)(images, labels)
    assert set(terms) == {"hard_labels"}
    torch.testing.assert_close(total, 0.25 * F.cross_entropy(student(images).logits, labels))


def test_margin_heads_train_the_students_last_layer() -> None:
    student = Linear()
    total, _ = task_of(student, None, losses(cosface={}))(*batch())
    total.backward()
    assert student.logits.weight.grad is not None and bool(student.logits.weight.grad.any())


@pytest.mark.parametrize(
    ("terms", "teacher", "has_logits", "message"),
    [
        ({"soft_targets": {}}, "none", False, "soft_targets compares with a teacher"),
        ({"soft_targets": {}}, "onnx:a.onnx", False, "wants the teacher's logits, and onnx"),
        ({"rkd_angle": {}, "similarity": {}}, "t", False, None),
    ],
)
def test_terms_that_a_teacher_cannot_feed_are_refused_by_name(
    terms: dict[str, dict[str, float]],
    teacher: str,
    has_logits: bool,
    message: str | None,
) -> None:
    config = losses(**terms)
    if message is None:
        check_losses(config, teacher=teacher, has_logits=has_logits)
        return
    with pytest.raises(PersonaError, match=message):
        check_losses(config, teacher=teacher, has_logits=has_logits)


@pytest.mark.parametrize("size", [3, 12])
def test_paired_terms_compare_projected_features_and_others_the_students(size: int) -> None:
    """Student of 6 dimensions, teacher of fewer or more."""
    torch.manual_seed(0)
    student, images, labels = Linear(), *batch()
    config = losses(embedding_cosine={}, similarity={})
    trained: Any = ProjectedStudent(student, size)
    task = DistillationTask(trained, student, Teacher(None, None), config, 4, size)
    targets = torch.randn(8, size)
    total, terms = task(images, labels, targets)
    total.backward()
    weight = trained.projection.weight
    assert weight.grad is not None and bool(weight.grad.any())
    narrow = weight @ weight.T if size < 6 else weight.T @ weight
    torch.testing.assert_close(narrow, torch.eye(len(narrow)), atol=1e-5, rtol=0)
    features = student(images).features
    projected = features @ weight.T
    cosine = 1 - F.cosine_similarity(projected, targets, dim=1).mean()
    torch.testing.assert_close(terms["embedding_cosine"], cosine.detach())
    torch.testing.assert_close(terms["similarity"], Similarity()(features, targets).detach())
