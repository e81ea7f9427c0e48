"""Each method's loss against its formula, word by word in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import NO_ALIGN, jpeg
from little import LITTLE

from persona.config import LearnConfig, StudentConfig
from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.data.sets import open_set
from persona.data.transforms import normalise
from persona.learning.learner import Learner
from persona.learning.means import ClassMeans
from persona.learning.memory import Exemplar
from persona.learning.methods import METHODS, Context, LearnBatch, Method
from persona.learning.methods.anchor import Anchor
from persona.learning.methods.der_plus_plus import DerPlusPlus, logits_loss
from persona.learning.methods.ewc import Ewc, EwcConfig, penalty
from persona.learning.methods.icarl import Icarl, icarl_loss
from persona.learning.methods.lwf import Lwf, kept_answers
from persona.learning.methods.replay import Replay, WithMemory
from persona.learning.photos import Photos, decode
from persona.learning.stream import Experience, build_experience
from persona.models.student import Student
from persona.training.teacher import Teacher

NAMES = ("Ann", "Ben", "Cat", "Dan")


def doubles(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    """Four people with three photos each."""
    home = tmp_path_factory.mktemp("home")
    for number in range(12):
        path = home / "raw" / NAMES[number // 3] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    dataset = open_dataset(f"folders:{home / 'raw'}", home)
    pack_photos(dataset, home / "shards" / "people", NO_ALIGN)
    return Photos([open_set("people", home / "shards")])


def learner_of(method: str, photos: Photos, folder: Path, **options: Any) -> Learner:
    torch.manual_seed(0)
    student = Student(StudentConfig(LITTLE, embedding_size=8), 0, head="none", image_size=32)
    options = {"steps": 2, "batch_size": 8, "memory": 8, **options}
    config = LearnConfig("student", "people", method, **options)
    teacher = None
    if method == "anchor":
        torch.manual_seed(1)
        network = Student(StudentConfig(LITTLE, embedding_size=8), 0, head="none", image_size=32)
        teacher = Teacher(network, None)
    accelerator = Accelerator(cpu=True)
    return Learner(
        config, student, (), photos, accelerator, folder=folder, teacher=teacher, quiet=True
    )


def experiences(photos: Photos) -> list[Experience]:
    everything = np.arange(12)
    return [
        build_experience(photos, number, names, everything, 0, 0)
        for number, names in enumerate((NAMES[:2], NAMES[2:]))
    ]


def batch_of(learner: Learner, experience: Experience) -> LearnBatch:
    return learner._batch(learner._source(experience), 0)


# --- the formulas ---------------------------------------------------------------------------------


def test_lwf_equations_2_and_3() -> None:
    new, old, temperature = doubles(3, 5), doubles(3, 5, seed=1), 2.0
    wanted = 0.0
    for row in range(3):
        y = [math.exp(v) / sum(map(math.exp, new[row].tolist())) for v in new[row].tolist()]
        y_old = [math.exp(v) / sum(map(math.exp, old[row].tolist())) for v in old[row].tolist()]
        soft = [v ** (1 / temperature) for v in y]
        soft_old = [v ** (1 / temperature) for v in y_old]
        wanted -= sum(
            a / sum(soft_old) * math.log(b / sum(soft)) for a, b in zip(soft_old, soft, strict=True)
        )
    assert float(kept_answers(new, old, temperature)) == pytest.approx(wanted / 3, rel=1e-6)


def test_ewc_equation_3() -> None:
    now = {"a": doubles(4, 3), "b": doubles(2, seed=1)}
    then = {"a": doubles(3, 3, seed=2), "b": doubles(2, seed=3)}  # a last layer grew by a row
    fisher = {"a": doubles(3, 3, seed=4) ** 2, "b": doubles(2, seed=5) ** 2}
    wanted = sum(
        0.5 * float(fisher[name].flatten()[i])
        * float(now[name][: len(then[name])].flatten()[i] - then[name].flatten()[i]) ** 2
        for name in now
        for i in range(then[name].numel())
    )  # fmt: skip
    assert float(penalty(now, then, fisher)) == pytest.approx(wanted, rel=1e-12)


def test_icarl_algorithm_3() -> None:
    logits, old, labels = doubles(3, 5), doubles(3, 2, seed=1), torch.tensor([4, 0, 2])
    wanted = 0.0
    for row in range(3):
        for k in range(5):
            g = 1 / (1 + math.exp(-float(logits[row, k])))
            d = float(labels[row] == k)
            q = 1 / (1 + math.exp(-float(old[row, k]))) if k < 2 else d
            wanted -= q * math.log(g) + (1 - q) * math.log(1 - g)
    assert float(icarl_loss(logits, labels, old)) == pytest.approx(wanted / 3, rel=1e-6)


def test_der_equation_6() -> None:
    logits, kept = doubles(2, 4), [doubles(2, seed=1), doubles(4, seed=2)]
    squares = [
        float(logits[row, k] - kept[row][k]) ** 2 for row in range(2) for k in range(len(kept[row]))
    ]
    wanted = sum(squares) / 6  # numbers that are compared
    assert float(logits_loss(logits, kept)) == pytest.approx(wanted, rel=1e-6)


def test_class_means_are_equation_4() -> None:
    embeddings = torch.nn.functional.normalize(doubles(6, 3).float(), dim=1)
    labels = torch.tensor([2, 0, 2, 0, 2, 0])
    means = ClassMeans(3)
    means.add(embeddings[:3], labels[:3])
    means.add(embeddings[3:], labels[3:])
    assert means.known.tolist() == [0, 2]
    centre = {k: embeddings[labels == k].mean(dim=0) for k in (0, 2)}
    probes = torch.nn.functional.normalize(doubles(20, 3, seed=1).float(), dim=1)
    wanted = [
        min((0, 2), key=lambda k: float((probe - centre[k] / centre[k].norm()).norm()))
        for probe in probes
    ]
    assert means.nearest(probes).tolist() == wanted
    again = ClassMeans(3)
    again.load(means.state())
    assert again.nearest(probes).tolist() == wanted


# --- the methods ----------------------------------------------------------------------------------


def test_the_head_keeps_its_rows_when_it_grows(photos: Photos, tmp_path: Path) -> None:
    learner = learner_of("finetune", photos, tmp_path)
    first, second = experiences(photos)
    learner.grow(first)
    rows = learner.student.logits.weight.clone()
    learner.grow(second)
    assert learner.classes == list(NAMES)
    assert learner.student.num_classes == 4
    assert torch.equal(learner.student.logits.weight[:2], rows)


def test_lwf_asks_the_student_as_it_was(photos: Photos, tmp_path: Path) -> None:
    learner = learner_of("lwf", photos, tmp_path)
    method = learner.method
    assert isinstance(method, Lwf)
    first, second = experiences(photos)
    learner.learn(first)
    before = learner.student(batch_of(learner, second).images).logits.detach()
    learner.grow(second)
    method.before(second.train, learner.labels(second.train))
    batch = batch_of(learner, second)
    assert torch.allclose(method.old_logits(batch.images), before, atol=1e-5)
    terms = method.step(batch)
    # Nothing has moved yet: the answers differ from the old ones by their entropy alone.
    probability = torch.softmax(before / 2, dim=1)
    entropy = -(probability * probability.log()).sum(dim=1).mean()
    assert float(terms["old answers"].detach()) == pytest.approx(float(entropy), rel=1e-4)


def test_ewc_holds_what_mattered(photos: Photos, tmp_path: Path) -> None:
    learner = learner_of("ewc", photos, tmp_path)
    method = learner.method
    assert isinstance(method, Ewc)
    first, second = experiences(photos)
    learner.learn(first)
    # Fisher information: the mean square of each photo's gradient.
    name = "last_linear.weight"
    labels, squares = learner.labels(first.train), []
    for photo, label in zip(first.train, labels, strict=True):
        gradient = method._gradient(photo, label)[name]
        squares.append(gradient**2)
    assert torch.allclose(method.fisher[name], torch.stack(squares).mean(dim=0), rtol=1e-4)
    before = method.fisher[name].clone()
    learner.learn(second)
    assert (method.fisher[name] >= 0.9 * before - 1e-12).all()  # online: faded and added to
    assert method.fisher["logits.weight"].shape == (4, 8)


def test_fisher_information_fades_by_schwarz_s_gamma(photos: Photos, tmp_path: Path) -> None:
    learner = learner_of("ewc", photos, tmp_path, methods={"ewc": EwcConfig(decay=0.5)})
    method = learner.method
    assert isinstance(method, Ewc)
    first, second = experiences(photos)
    learner.learn(first)
    earlier = dict(method.fisher)
    learner.learn(second)
    alone = learner_of("ewc", photos, tmp_path)
    alone.student.resize_head(4)
    alone.student.load_state_dict(learner.student.state_dict())
    assert isinstance(alone.method, Ewc)
    alone.method.after(second.train, learner.labels(second.train))
    for name, latest in alone.method.fisher.items():
        wanted = latest.clone()
        wanted[: len(earlier[name])] += 0.5 * earlier[name]
        assert torch.allclose(method.fisher[name], wanted, rtol=1e-4, atol=1e-9), name
        assert torch.equal(method.then[name], learner.student.state_dict()[name])


def test_replay_is_the_cross_entropy_of_new_and_kept_alike(photos: Photos, tmp_path: Path) -> None:
    learner = learner_of("replay", photos, tmp_path)
    method = learner.method
    assert isinstance(method, Replay)
    first, second = experiences(photos)
    learner.learn(first)
    learner.grow(second)
    batch = batch_of(learner, second)
    recalled = method.recall(4, *batch.seeds)
    assert recalled is not None
    images, labels = torch.cat([batch.images, recalled[1]]), torch.cat([batch.labels, recalled[2]])
    logits = learner.student(images).logits.double()
    wanted = -torch.log_softmax(logits, dim=1)[range(8), labels].mean().detach()
    assert float(method.step(batch)["labels"].detach()) == pytest.approx(float(wanted), rel=1e-5)


def test_icarl_names_by_its_exemplars_as_the_student_sees_them_now(
    photos: Photos, tmp_path: Path
) -> None:
    learner = learner_of("icarl", photos, tmp_path)
    method = learner.method
    assert isinstance(method, Icarl)
    for experience in experiences(photos):
        learner.learn(experience)
    kept = method.memory.exemplars
    assert [(e.label, e.priority) for e in kept] == [(k, m) for k in range(4) for m in range(2)]
    images = normalise(decode([e.jpeg for e in kept], 32))
    embeddings = learner.student.embed(images).detach().double()
    for label in range(4):
        mean = embeddings[2 * label : 2 * label + 2].mean(dim=0)
        found = method.means.unit()[label].double()
        assert torch.allclose(found, mean / mean.norm(), atol=1e-5)


def test_who_comes_again_is_counted_once(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted twice, a photo that was kept would pull the mean to itself."""
    learner = learner_of("replay-herding", photos, tmp_path, memory=2)
    method = learner.method
    assert isinstance(method, WithMemory)
    of_ann = build_experience(photos, 0, NAMES[:1], np.arange(12), 0, 0)
    angles = torch.deg2rad(torch.tensor([0.0, 50.0, 90.0]))
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    monkeypatch.setattr(Context, "embed", lambda _self, _photos: vectors)
    monkeypatch.setattr(Context, "embed_images", lambda _self, images: vectors[-len(images) :])
    jpegs = [photos.jpeg(photo) for photo in of_ann.train.tolist()]
    method.memory.exemplars = [Exemplar(0, 0, jpegs[2])]
    learner.grow(of_ann)
    method.after(of_ann.train, learner.labels(of_ann.train))
    # Their mean lies at 47 degrees: 50 is nearest, and after it 0 brings the two closer than 90.
    assert [e.jpeg for e in method.memory.exemplars] == [jpegs[1], jpegs[0]]


def test_der_keeps_the_logits_of_their_moment(photos: Photos, tmp_path: Path) -> None:
    learner = learner_of("der++", photos, tmp_path)
    method = learner.method
    assert isinstance(method, DerPlusPlus)
    first, second = experiences(photos)
    learner.learn(first)
    assert {len(e.logits) for e in method.memory.exemplars if e.logits is not None} == {2}
    assert len(method.memory) == 6
    learner.grow(second)
    terms = method.step(batch_of(learner, second))
    assert set(terms) == {"labels", "kept logits", "kept labels"}
    assert {len(e.logits) for e in method.memory.exemplars if e.logits is not None} == {2, 4}
    assert len(method.memory) == 8


def test_the_anchor_is_the_teacher_and_not_the_student(photos: Photos, tmp_path: Path) -> None:
    learner = learner_of("anchor", photos, tmp_path)
    method, teacher = learner.method, learner.context.teacher
    assert isinstance(method, Anchor)
    assert teacher is not None
    first, second = experiences(photos)
    learner.learn(first)
    learner.grow(second)
    method.before(second.train, learner.labels(second.train))
    batch = batch_of(learner, second)
    terms = method.step(batch)
    mine = learner.student.embed(batch.images)
    theirs = torch.nn.functional.normalize(teacher.features(batch.images, None), dim=1)
    wanted = 10 * (1 - (mine * theirs).sum(dim=1)).mean()
    assert float(terms["anchor"].detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    # Among the two who are new, not all four.
    logits = learner.student(batch.images).logits[:, 2:]
    wanted = torch.nn.functional.cross_entropy(logits, batch.labels - 2)
    assert float(terms["labels"].detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)


@pytest.mark.parametrize("method", METHODS.built_in)
def test_two_experiences_of_every_method(
    photos: Photos, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_of(method, photos, tmp_path)
    seen: list[int] = []
    forward = Method.forward

    def watched(self: Method, images: torch.Tensor) -> Any:
        seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Method, "forward", watched)
    statistics = learner.student.last_bn.running_mean.clone()  # type: ignore[union-attr]
    for experience in experiences(photos):
        learner.learn(experience)
    # As many photos a step whatever the method, also while a memory is empty.
    assert seen == ([8, 8, 8, 8] if learner.method.trains else [])
    labels = learner.predict(np.arange(12))
    assert set(labels.tolist()) <= {0, 1, 2, 3}
    assert len(learner.right(np.arange(0))) == 0
    assert torch.equal(learner.student.last_bn.running_mean, statistics)  # type: ignore[arg-type]
    again = learner_of(method, photos, tmp_path)
    if again.method.trains:
        again.student.resize_head(4)
    again.student.load_state_dict(learner.student.state_dict())
    again.classes = list(learner.classes)
    again.method.load(learner.method.state())
    assert torch.equal(again.predict(np.arange(12)), labels)
    assert again.method.kept_bytes() == learner.method.kept_bytes()
