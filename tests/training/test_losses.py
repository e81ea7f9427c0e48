"""Parity of every loss with its formula in float64."""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch

from persona.config import LossesConfig, from_dict
from persona.errors import PersonaError
from persona.training.losses import LOSSES, build_losses, head_kind, needs_projection
from persona.training.losses.adadistill import AdaDistill
from persona.training.losses.adaface import AdaFace
from persona.training.losses.arcface import ArcFace, arc_margin
from persona.training.losses.compatible import Compatible
from persona.training.losses.cosface import CosFace
from persona.training.losses.embedding_angular import EmbeddingAngular
from persona.training.losses.embedding_cosine import EmbeddingCosine
from persona.training.losses.embedding_l2 import EmbeddingL2
from persona.training.losses.feature_norm import FeatureNorm
from persona.training.losses.hard_labels import HardLabels
from persona.training.losses.relation_bank import RelationBank
from persona.training.losses.rkd_angle import RkdAngle
from persona.training.losses.rkd_distance import RkdDistance
from persona.training.losses.similarity import Similarity
from persona.training.losses.soft_targets import SoftTargets
from persona.training.losses.triplet import Triplet


@pytest.mark.parametrize("name", sorted(LOSSES.built_in))
def test_a_constructor_has_the_defaults_of_the_options(name: str) -> None:
    loss = LOSSES.find(name)
    taken = inspect.signature(loss).parameters
    for item in dataclasses.fields(loss.config_class):
        if item.name != "weight":
            assert taken[item.name].default in {item.default, inspect.Parameter.empty}


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


SHAPES = [(2, 4), (7, 16), (12, 128)]


def pair(shape: tuple[int, int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Student's and teacher's embeddings, of different lengths."""
    torch.manual_seed(seed)
    return 3 * torch.randn(shape), 10 * torch.randn(shape) + 1


def unit(vectors: torch.Tensor) -> Any:
    array = vectors.double().numpy()
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def cross_entropy(logits: Any, labels: torch.Tensor) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-np.mean([log_p[row, label] for row, label in enumerate(labels.tolist())]))


def close(loss: torch.Tensor, expected: Any) -> None:
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert float(loss) == pytest.approx(expected, rel=2e-4, abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_embedding_losses_agree_with_their_formulas(shape: tuple[int, int]) -> None:
    student, teacher = pair(shape)
    s, t = unit(student), unit(teacher)
    cosine = [float(a @ b) for a, b in zip(s, t, strict=True)]
    close(EmbeddingCosine()(student, teacher), np.mean([1 - c for c in cosine]))
    close(EmbeddingAngular()(student, teacher), np.mean([(1 - c) ** 2 for c in cosine]))
    raw = (student.double() - teacher.double()).numpy()
    close(EmbeddingL2()(student, teacher), np.mean([0.5 * float(d @ d) for d in raw]))
    close(EmbeddingL2(unit=True)(student, teacher), np.mean([1 - c for c in cosine]))


@pytest.mark.parametrize("loss", [EmbeddingCosine(), EmbeddingAngular(), EmbeddingL2()])
def test_embedding_losses_refuse_other_widths(loss: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="shapes"):
        loss(torch.randn(3, 8), torch.randn(3, 4))


@pytest.mark.parametrize("shape", [(3, 4), (7, 16)])
def test_rkd_agrees_with_park_2019(shape: tuple[int, int]) -> None:
    """Equations 4 to 8, in loops; student and teacher of different widths."""
    student, teacher = pair(shape)
    teacher = torch.cat([teacher, teacher.flip(1)], dim=1)
    count = len(student)

    def distances(e: Any) -> Any:
        d = np.array([[np.linalg.norm(a - b) for b in e] for a in e])
        return d / (d.sum() / (count * (count - 1)))

    ds, dt = distances(unit(student)), distances(unit(teacher))
    close(
        RkdDistance()(student, teacher),
        np.mean([huber(a - b) for a, b in zip(ds.ravel(), dt.ravel(), strict=True)]),
    )

    def angle(e: Any, i: int, j: int, k: int) -> float:
        if j in {i, k}:
            return 0.0
        one, two = e[i] - e[j], e[k] - e[j]
        return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))

    s, t = unit(student), unit(teacher)
    terms = [
        huber(angle(s, i, j, k) - angle(t, i, j, k))
        for i in range(count)
        for j in range(count)
        for k in range(count)
    ]
    close(RkdAngle()(student, teacher), float(np.mean(terms)))


def test_rkd_angle_bears_a_photo_that_comes_twice() -> None:
    """Two equal faces have no direction; rounding gives the teacher's a random one."""
    student, teacher = pair((6, 8))
    student[1], teacher[1] = student[0], teacher[0] * (1 + 1e-6)
    teacher[1, 0] += 1e-5
    student = student.requires_grad_()
    RkdAngle()(student, teacher).backward()
    assert student.grad is not None and float(student.grad.norm()) < 10


def test_rkd_has_a_gradient_and_takes_part_of_a_batch() -> None:
    student, teacher = pair((6, 8))
    student.requires_grad_()
    (RkdDistance()(student, teacher) + RkdAngle(photos=4)(student, teacher)).backward()
    assert student.grad is not None and torch.isfinite(student.grad).all()
    one = RkdAngle(photos=4)(student, teacher)
    torch.testing.assert_close(one, RkdAngle()(student[:4], teacher[:4]))
    assert float(RkdDistance()(teacher, teacher)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_similarity_agrees_with_tung_2019(shape: tuple[int, int]) -> None:
    student, teacher = pair(shape)

    def gram(a: Any) -> Any:
        g = a @ a.T
        return np.array([row / np.linalg.norm(row) for row in g])

    difference = gram(student.double().numpy()) - gram(teacher.double().numpy())
    close(Similarity()(student, teacher), float((difference**2).sum()) / shape[0] ** 2)


def margin_inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return 4 * torch.randn(6, 8), torch.randn(5, 8), torch.tensor([0, 1, 2, 3, 4, 0])


@pytest.mark.parametrize("margin", [0.0, 0.35, 0.5])
@pytest.mark.parametrize("scale", [1.0, 64.0])
def test_margin_heads_agree_with_their_formulas(margin: float, scale: float) -> None:
    features, centres, labels = margin_inputs()
    cosine = unit(features) @ unit(centres).T
    arc, cos = cosine.copy(), cosine.copy()
    for row, label in enumerate(labels.tolist()):
        arc[row, label] = math.cos(math.acos(cosine[row, label]) + margin)
        cos[row, label] -= margin
    close(ArcFace(margin, scale)(features, centres, labels), cross_entropy(scale * arc, labels))
    close(CosFace(margin, scale)(features, centres, labels), cross_entropy(scale * cos, labels))


def test_arcface_goes_on_falling_past_pi() -> None:
    """Turning away never pays, up to the opposite side, and every angle has a gradient."""
    angles = torch.linspace(0, math.pi, 181)
    cosine = angles.cos()[:, None].requires_grad_()
    own = arc_margin(cosine, torch.zeros(181, dtype=torch.long), 0.5)[:, 0]
    own.sum().backward()  # type: ignore[no-untyped-call]
    assert bool((own.diff() < 0).all())
    assert cosine.grad is not None and torch.isfinite(cosine.grad).all()


def test_arcface_past_pi_is_the_authors_line() -> None:
    """insightface, recognition/arcface_torch/losses.py (easy_margin off): cos(θ) - m sin(m)."""
    margin = 0.5
    for degrees in (152, 165, 179):
        cosine = torch.tensor([[math.cos(math.radians(degrees))]])
        own = arc_margin(cosine, torch.tensor([0]), margin)
        assert float(own) == pytest.approx(float(cosine) - margin * math.sin(margin), abs=1e-5)


def test_adaface_clips_norms_and_quality_and_lets_no_gradient_through_them() -> None:
    loss = AdaFace(margin=0.4, momentum=0.0).train()  # this batch's statistics alone
    features, centres, labels = margin_inputs()
    features[0] *= 1e4 / features[0].norm()  # counts as 100
    features.requires_grad_()
    value = loss(features, centres, labels)
    norms = np.clip(np.linalg.norm(features.detach().double().numpy(), axis=1), 0.001, 100)
    assert float(loss.mean) == pytest.approx(norms.mean(), rel=1e-5)
    assert float(loss.deviation) == pytest.approx(norms.std(ddof=1), rel=1e-5)
    # The loss depends on directions and on detached lengths: no gradient along a vector.
    value.backward()
    assert features.grad is not None
    along = (features.grad * torch.nn.functional.normalize(features.detach(), dim=1)).sum(dim=1)
    assert float(along.abs().max()) < 1e-5 * float(features.grad.norm())
    # z is held in [-1, 1]: with h large, every photo has one of the two extreme margins.
    extreme = AdaFace(margin=0.4, h=1e6, momentum=1.0).eval()
    extreme.mean.fill_(float(np.median(norms)))
    cosine = unit(features.detach()) @ unit(centres).T
    for row, label in enumerate(labels.tolist()):
        z = 1.0 if norms[row] > np.median(norms) else -1.0
        angle = np.clip(math.acos(cosine[row, label]) - 0.4 * z, 1e-3, math.pi - 1e-3)
        cosine[row, label] = math.cos(angle) - (0.4 + 0.4 * z)
    close(extreme(features.detach(), centres, labels), cross_entropy(64 * cosine, labels))


def test_learned_statistics_are_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if another process had the same batch, doubled in length and shifted by one label."""
    features, centres, labels = margin_inputs()
    norms = features.norm(dim=1)
    monkeypatch.setattr(
        "persona.training.losses.adaface.gather_batch", lambda rows: torch.cat([rows, 2 * rows])
    )
    loss = AdaFace(momentum=0.0).train()
    loss(features, centres, labels)
    assert float(loss.mean) == pytest.approx(float(norms.mean()) * 1.5, rel=1e-5)

    def others(rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([rows, rows + 1 if rows.dtype == torch.int64 else rows])

    monkeypatch.setattr("persona.training.losses.adadistill.gather_batch", others)
    learned = AdaDistill(num_classes=4, embedding_size=8).train()
    student, teacher = pair((2, 8))
    learned(student, teacher, torch.tensor([0, 2]))
    assert learned.seen.tolist() == [True] * 4
    torch.testing.assert_close(learned.centres[1], learned.centres[0])


def test_adadistill_bears_another_batch_before_the_gradient_is_taken() -> None:
    loss = AdaDistill(num_classes=3, embedding_size=8).train()
    student, teacher = pair((3, 8))
    student.requires_grad_()
    labels = torch.arange(3)
    one = loss(student, teacher, labels)
    alone = torch.autograd.grad(one, student, retain_graph=True)[0]
    loss(student.detach().flip(0), teacher.flip(0), labels)  # moves the centres
    torch.testing.assert_close(torch.autograd.grad(one, student)[0], alone)


@pytest.mark.parametrize("momentum", [0.99, 0.5])
def test_adaface_agrees_with_kim_2022(momentum: float) -> None:
    """Equations 13 to 17, with the authors' running statistics, over three batches."""
    loss = AdaFace(momentum=momentum).train()
    mean, deviation = 20.0, 100.0
    for seed in range(3):
        features, centres, labels = margin_inputs(seed)
        norms = np.clip(np.linalg.norm(features.double().numpy(), axis=1), 0.001, 100)
        mean = momentum * mean + (1 - momentum) * norms.mean()
        deviation = momentum * deviation + (1 - momentum) * norms.std(ddof=1)
        z = np.clip((norms - mean) / (deviation + 1e-3) * 0.333, -1, 1)
        cosine = unit(features) @ unit(centres).T
        logits = cosine.copy()
        for row, label in enumerate(labels.tolist()):
            angle = np.clip(math.acos(cosine[row, label]) - 0.4 * z[row], 1e-3, math.pi - 1e-3)
            logits[row, label] = math.cos(angle) - (0.4 + 0.4 * z[row])
        close(loss(features, centres, labels), cross_entropy(64 * logits, labels))
    before = loss.mean.clone()
    loss.eval()(features, centres, labels)
    assert torch.equal(loss.mean, before)


@pytest.mark.parametrize("penalty", ["arcface", "cosface"])
def test_adadistill_agrees_with_boutros_2024(penalty: str) -> None:
    """Centres that have been seen move by the authors' rule; the loss is a margin softmax."""
    torch.manual_seed(0)
    loss = AdaDistill(
        num_classes=5, embedding_size=8, penalty=penalty, margin=0.45, scale=64.0
    ).train()
    loss.seen.fill_(True)
    centres = loss.centres.double().numpy().copy()
    for seed in range(3):
        student, teacher = pair((4, 8), seed)
        labels = torch.tensor([0, 3, 1, 4])
        s, t = unit(student), unit(teacher)
        for row, label in enumerate(labels.tolist()):
            near = float(np.clip(s[row] @ t[row], -1, 1))
            centre = centres[label] / np.linalg.norm(centres[label])
            sure = float(np.clip(centre @ t[row], 1e-6, 1))
            alpha = float(np.clip(near * sure, 1e-6, 1))
            centres[label] = alpha * centres[label] + (1 - alpha) * t[row]
        cosine = s @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T
        for row, label in enumerate(labels.tolist()):
            own = cosine[row, label]
            cosine[row, label] = (
                math.cos(math.acos(own) + 0.45) if penalty == "arcface" else own - 0.45
            )
        close(loss(student, teacher, labels), cross_entropy(64 * cosine, labels))
        np.testing.assert_allclose(loss.centres.numpy(), centres, rtol=1e-4, atol=1e-6)


def test_adadistill_starts_from_the_first_photo_and_keeps_its_centres_in_evaluation() -> None:
    loss = AdaDistill(num_classes=3, embedding_size=4)
    student, teacher = pair((2, 4))
    labels = torch.tensor([2, 2])
    loss.train()(student, teacher, labels)
    expected = torch.nn.functional.normalize(teacher, dim=1).mean(dim=0)
    torch.testing.assert_close(loss.centres[2], expected)
    assert loss.seen.tolist() == [False, False, True]
    before = loss.centres.clone()
    loss.eval()(student, teacher, labels)
    assert torch.equal(loss.centres, before)


@pytest.mark.parametrize(("align", "boundary"), [(100.0, 1.0), (0.0, 2.0), (3.0, 0.0)])
def test_compatible_agrees_with_meng_2021(align: float, boundary: float) -> None:
    """The authors' two terms, with the centres and boundaries of all photos so far."""
    loss = Compatible(num_classes=5, embedding_size=8, align=align, boundary=boundary).train()
    photos: dict[int, list[Any]] = {}
    least = dict.fromkeys(range(5), 1.0)
    for seed in range(4):
        student, teacher = pair((6, 8), seed)
        torch.manual_seed(seed)
        centres, labels = torch.randn(5, 8), torch.tensor([0, 3, 1, 3, 0, 1])
        old, new, own = unit(teacher), unit(student), unit(centres)
        for row, label in enumerate(labels.tolist()):
            photos.setdefault(label, []).append(old[row])
        centre = {label: np.mean(rows, axis=0) for label, rows in photos.items()}
        centre = {label: mean / np.linalg.norm(mean) for label, mean in centre.items()}
        for row, label in enumerate(labels.tolist()):
            least[label] = min(least[label], old[row] @ centre[label])
        distance = np.mean([(own[label] - mean) ** 2 for label, mean in centre.items()])
        outside = np.mean(
            [
                max(0.0, least[label] - new[row] @ centre[label])
                for row, label in enumerate(labels.tolist())
            ]
        )
        close(loss(student, teacher, centres, labels), align * distance + boundary * outside)
    assert set(photos) == {0, 1, 3}  # the others are left out
    before = loss.sums.clone()
    loss.eval()(student, teacher, centres, labels)
    assert torch.equal(loss.sums, before)


def test_a_student_within_the_old_boundaries_costs_nothing() -> None:
    loss = Compatible(num_classes=2, embedding_size=8, align=0.0).train()
    _, teacher = pair((4, 8))
    labels = torch.tensor([0, 0, 1, 1])
    loss(teacher, teacher, torch.randn(2, 8), labels)
    centres = torch.nn.functional.normalize(loss.sums, dim=1)
    close(loss.eval()(teacher, teacher, centres, labels), 0)
    close(loss(centres[labels], teacher, centres, labels), 0)  # better than the old model
    assert float(loss(-teacher, teacher, centres, labels)) > 0.5
    loss.align = 1.0
    close(loss(3 * teacher, teacher, 2 * centres, labels), 0)
    close(Compatible(num_classes=2, embedding_size=8).eval()(teacher, teacher, centres, labels), 0)
    with pytest.raises(PersonaError, match=r"8 numbers and the teacher's 4.*embedding_size=4"):
        loss(teacher, teacher[:, :4], centres, labels)


def test_old_centres_are_those_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if another process had the same photos under the next labels."""

    def others(rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([rows, rows + 1 if rows.dtype == torch.int64 else rows])

    monkeypatch.setattr("persona.training.losses.compatible.gather_batch", others)
    loss = Compatible(num_classes=4, embedding_size=8).train()
    student, teacher = pair((2, 8))
    loss(student, teacher, torch.randn(4, 8), torch.tensor([0, 2]))
    torch.testing.assert_close(loss.sums[1], loss.sums[0])
    torch.testing.assert_close(loss.sums[0], torch.nn.functional.normalize(teacher[:1], dim=1)[0])


def test_triplet_agrees_with_facenets_semi_hard_rule() -> None:
    """Section 3.2 in loops: the nearest negative within the margin, else the furthest."""
    torch.manual_seed(3)
    labels = [0, 0, 1, 1, 2, 2, 2, 3]
    features = torch.randn(8, 3)
    e = unit(features)
    d = [[float(((a - b) ** 2).sum()) for b in e] for a in e]
    for margin in (0.05, 0.2, 1.0):
        terms = []
        for a in range(8):
            for p in range(8):
                if a == p or labels[a] != labels[p]:
                    continue
                negatives = [d[a][n] for n in range(8) if labels[n] != labels[a]]
                semi = [x for x in negatives if d[a][p] < x < d[a][p] + margin]
                terms.append(max(0.0, d[a][p] - (min(semi) if semi else max(negatives)) + margin))
        close(Triplet(margin)(features, torch.tensor(labels)), float(np.mean(terms)))


def test_triplet_without_a_positive_or_a_negative_is_zero_with_a_gradient() -> None:
    features = torch.randn(3, 4, requires_grad=True)
    for labels in ([0, 1, 2], [1, 1, 1]):
        loss = Triplet()(features, torch.tensor(labels))
        loss.backward()
        assert float(loss.detach()) == 0


def test_a_relation_bank_agrees_with_seed() -> None:
    """Equations 3 to 6 in loops, with a queue that a second and third batch go round."""
    loss = RelationBank(embedding_size=8, size=6, teacher_temperature=0.1, student_temperature=0.5)
    loss.train()
    queue: list[Any] = []
    for seed in range(3):
        student, teacher = pair((4, 8), seed)
        s, t = unit(student), unit(teacher)
        terms = []
        for z_s, z_t in zip(s, t, strict=True):
            rows = [*queue, z_t]  # D+ of the paper
            wanted = np.exp([z_t @ row / 0.1 for row in rows])
            found = np.exp([z_s @ row / 0.5 for row in rows])
            terms.append(-float(wanted / wanted.sum() @ np.log(found / found.sum())))
        close(loss(student, teacher), np.mean(terms))
        queue = [*queue, *t][-6:]
    kept = sorted(map(tuple, loss.bank.numpy().round(5).tolist()))
    np.testing.assert_allclose(kept, sorted(map(tuple, np.round(queue, 5).tolist())), atol=1e-4)
    assert (int(loss.place), int(loss.filled)) == (0, 6)
    again = RelationBank(embedding_size=8, size=6)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.bank, loss.bank) and int(again.filled) == 6
    before = loss.bank.clone()
    loss.eval()(student, teacher)
    assert torch.equal(loss.bank, before)


def test_a_batch_larger_than_the_bank_leaves_its_last_rows() -> None:
    loss = RelationBank(embedding_size=4, size=3).train()
    student, teacher = pair((5, 4))
    loss(student, teacher)
    np.testing.assert_allclose(loss.bank.numpy(), unit(teacher)[-3:], atol=1e-6)
    with pytest.raises(ValueError, match="shapes"):
        loss(student, teacher[:, :3])


@pytest.mark.parametrize("shape", SHAPES)
def test_feature_norms_are_compared_by_their_logarithms(shape: tuple[int, int]) -> None:
    student, teacher = pair(shape)
    wide = torch.cat([teacher, teacher], dim=1)  # of another size
    norms = [np.linalg.norm(x.double().numpy(), axis=1) for x in (student, wide)]
    close(FeatureNorm()(student, wide), np.mean((np.log(norms[0]) - np.log(norms[1])) ** 2))
    close(FeatureNorm()(teacher, teacher), 0)
    with pytest.raises(PersonaError, match="this teacher gives all of them the length 1"):
        FeatureNorm()(student, torch.nn.functional.normalize(teacher, dim=1).half())


def test_a_paired_loss_compares_at_the_teachers_size() -> None:
    terms: dict[str, Any] = {"adadistill": {}, "relation_bank": {}, "embedding_cosine": {}}
    config = from_dict(LossesConfig, terms, where="a test")
    built = build_losses(config, num_classes=5, embedding_size=16, teacher_size=8)
    assert built["adadistill"].get_buffer("centres").shape == (5, 8)
    assert built["relation_bank"].get_buffer("bank").shape == (4096, 8)
    assert needs_projection(config, 16, 8) and not needs_projection(config, 8, 8)
    alone = from_dict(LossesConfig, {"similarity": {}, "embedding_l2": {"weight": 0}}, where="t")
    assert not needs_projection(alone, 16, 8) and not needs_projection(config, 16, None)


@pytest.mark.parametrize("name", LOSSES.built_in)
def test_every_loss_can_be_named_and_trains_from_half_precision(name: str) -> None:
    config = from_dict(LossesConfig, {name: {}}, where="a test")
    loss = build_losses(config, num_classes=5, embedding_size=8)[name].train()
    torch.manual_seed(0)
    weight = torch.randn(8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = (1 + 0.1 * torch.randn(6, 8)) @ weight  # near one another: hard to tell apart
        assert features.dtype == torch.bfloat16
        found = {
            "student_features": features,
            "student_logits": features[:, :5],
            "class_centres": torch.randn(5, 8),
            "labels": torch.tensor([0, 0, 1, 1, 2, 4]),
            "teacher_features": torch.randn(6, 8).half(),
            "teacher_logits": torch.randn(6, 5),
        }
    inputs = [found[key] for key in LOSSES.find(name).inputs]
    loss(*inputs)  # a bank is empty before the first batch
    value = loss(*inputs)
    assert value.dtype == torch.float32 and torch.isfinite(value)
    value.backward()
    assert weight.grad is not None and bool((weight.grad != 0).any())


@pytest.mark.parametrize(
    ("terms", "kind"),
    [
        ({"soft_targets": {}, "arcface": {}}, "linear"),
        ({"arcface": {}, "embedding_cosine": {}}, "cosine"),
        ({"embedding_cosine": {}, "adadistill": {}, "hard_labels": {"weight": 0}}, "none"),
    ],
)
def test_the_head_follows_from_the_terms(terms: dict[str, dict[str, float]], kind: str) -> None:
    assert head_kind(from_dict(LossesConfig, terms, where="a test")) == kind
