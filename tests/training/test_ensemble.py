"""`--teacher A,B`: several teachers as one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import NO_ALIGN, write_lfw, write_vggface2
from helpers import distill_error, distill_here, persona_error_here, persona_here
from torch import nn

from persona.config import Checked, DistillConfig, LossesConfig, between, from_dict, to_dict
from persona.data.ensembles import (
    EnsembleTargets,
    concatenate,
    fit_projection,
    open_reader,
    project,
    read_projection,
)
from persona.data.kept_targets import read_targets, targets_folder
from persona.data.mixed import MixedSet
from persona.data.pack import Packed, pack_photos
from persona.data.raw import open_dataset
from persona.errors import PersonaError
from persona.models.backbones import Backbone
from persona.models.cards import find_model
from persona.models.sources import load_network, teacher_names
from persona.names import public_name
from persona.training.teacher import TeacherSide, open_teacher
from persona.workspace import Workspace

COSINE = ("-o", "losses={embedding_cosine: {}}")


@dataclass(frozen=True)
class SmallConfig(Checked):
    channels: int = between(4, 64, default=8)


class Small(Backbone):
    name = "ensemble-test"
    config_class = SmallConfig

    def build(self) -> tuple[nn.Module, int]:
        channels = self.options.channels
        return nn.Sequential(nn.Conv2d(3, channels, 3, 4, 1), nn.ReLU()), channels


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def packed(home: Path) -> Packed:
    write_vggface2(home / "raw")
    write_lfw(home / "raw")
    pack_photos(open_dataset("lfw", home / "raw"), home / "shards" / "lfw", NO_ALIGN)
    dataset = open_dataset("vggface2", home / "raw")
    return pack_photos(dataset, home / "shards" / dataset.set_name, NO_ALIGN)


@pytest.fixture(scope="module")
def teachers(home: Path, packed: Packed) -> list[str]:
    """Two teachers of 12 and 20 dimensions."""
    return [
        distill_here(
            *("ensemble-test", "--teacher", "none", "--steps", "2", "--seed", str(size)),
            *("-o", f"student.embedding_size={size}"),
            home=home,
        )
        for size in (12, 20)
    ]


def opened(home: Path, packed: Packed, teacher: str, **changes: Any) -> TeacherSide:
    losses = from_dict(LossesConfig, {"embedding_cosine": {}}, where="a test")
    config = DistillConfig(teacher=teacher, losses=losses, **changes)
    place = Workspace.locate(home=home)
    return open_teacher(config, place, MixedSet.of(packed.faces))


def test_projection_keeps_the_mean_cosine_of_the_teachers() -> None:
    """Against NumPy's SVD; with all components nothing is lost, and two equal teachers are one."""
    rng = np.random.default_rng(0)
    one, two = (rng.normal(size=(40, size)).astype(np.float32) for size in (4, 6))
    joined = concatenate([one, two])
    whole = fit_projection([joined[:25], joined[25:]], 10)
    found = project([one, two], whole)
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one, two)]
    wanted = sum(x @ x.T for x in units) / 2
    np.testing.assert_allclose(found @ found.T, wanted, atol=1e-5)
    three = fit_projection([joined], 3)
    _, _, right = np.linalg.svd(joined.astype(np.float64))
    np.testing.assert_allclose(np.abs(right[:3] @ three), np.eye(3), atol=1e-5)
    assert (three.max(axis=0) >= -three.min(axis=0)).all()
    np.testing.assert_array_equal(three, fit_projection([joined], 3))
    with pytest.raises(PersonaError, match="not finite"):
        fit_projection([joined, np.full((1, 10), np.nan, np.float32)], 3)
    same = project([one, one], fit_projection([concatenate([one, one])], 4))
    np.testing.assert_allclose(same @ same.T, units[0] @ units[0].T, atol=1e-5)


def test_online_and_kept_they_give_the_same_targets(
    home: Path, packed: Packed, teachers: list[str]
) -> None:
    names = ",".join(teachers)
    online = opened(home, packed, names)
    assert online.network is not None and online.targets is None
    assert (online.embedding_size, online.teacher_size, len(online.networks)) == (20, 20, 2)
    images = torch.rand(6, 3, 32, 32) * 2 - 1
    found = online.network.network.features(images)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(6))
    one, two = (load_network(t, home / "models").network.eval().embed(images) for t in teachers)
    joined = torch.cat([one, two], dim=1) @ online.network.network.get_buffer("projection")
    torch.testing.assert_close(found, F.normalize(joined, dim=1))
    files = sorted(Path(f"{packed.folder}").glob("targets/ensemble-*.bin"))
    before = [path.read_bytes() for path in files]
    assert len(files) == 1

    persona_here("targets", "vggface2", "--teacher", teachers[0], home=home)
    assert opened(home, packed, names).targets is None  # of one alone
    line = distill_error(*COSINE, "--teacher", names, "--targets", "kept", home=home)
    assert f"keeps no targets of {teachers[1]}" in line
    persona_here("targets", "vggface2", "--teacher", teachers[1], home=home)
    kept = opened(home, packed, names)
    assert kept.targets is not None and kept.network is None
    (both,) = kept.targets
    assert isinstance(both, EnsembleTargets)
    assert kept.digest == online.digest and both.teacher == names
    assert [path.read_bytes() for path in files] == before  # fitted once
    reader = open_reader(packed.folder, both)
    where = np.array([0, 0, 0]), np.array([0, 3, 1]), np.array([0, 1, 0])
    features, _ = reader.read(*where)
    members = [read_targets(targets_folder(Path(f"{packed.folder}"), t)) for t in teachers]
    parts = [open_reader(packed.folder, m).read(*where)[0] for m in members]
    wanted = project(parts, both.projection)
    np.testing.assert_allclose(features.astype(np.float32), wanted, atol=1e-3)


@pytest.mark.parametrize("targets", ["kept", "online"])
def test_a_student_learns_from_both(
    home: Path, packed: Packed, teachers: list[str], targets: str
) -> None:
    for name in teachers:
        persona_here("targets", "vggface2", "--teacher", name, home=home)
    recipe = (*COSINE, "--teacher", ",".join(teachers), "--targets", targets, "-e", "1")
    student = distill_here("ensemble-test", *recipe, "-o", "student.embedding_size=16", home=home)
    card = find_model(student, home / "models")
    assert card.teacher == ",".join(teachers) and card.student["embedding_size"] == 16
    assert distill_here("--resume", student, home=home) == student


@pytest.mark.parametrize(
    ("teacher", "losses", "message"),
    [
        ("{0},nobody", "embedding_cosine: {}", "unknown model 'nobody'"),
        ("{0},onnx:/x/y.onnx", "embedding_cosine: {}", "no ONNX file at /x/y.onnx"),
        ("{0},{0}", "embedding_cosine: {}", "name networks, each of them once"),
        ("{0},none", "embedding_cosine: {}", "name networks, each of them once"),
        ("{0},{1}", "soft_targets: {}", "wants the teacher's logits"),
        ("{0},{1}", "feature_norm: {}", "gives all of them the length 1"),
    ],
)
def test_what_an_ensemble_cannot_be_is_refused_by_name(
    home: Path, teachers: list[str], teacher: str, losses: str, message: str
) -> None:
    named = ("--teacher", teacher.format(*teachers), "-o", f"losses={{{losses}}}", "-e", "1")
    assert message in distill_error("ensemble-test", *named, home=home)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--train-set", "vggface2,lfw"), "joined on one train set"),
        (("--exclude-duplicates", "0.9"), "compare embeddings of one teacher"),
    ],
)
def test_what_several_teachers_do_not_go_with_is_refused(
    home: Path, packed: Packed, teachers: list[str], options: tuple[str, ...], message: str
) -> None:
    line = distill_error(*COSINE, "--teacher", ",".join(teachers), *options, home=home)
    assert message in line and ",".join(teachers) in line


def test_views_that_differ_are_refused(home: Path, packed: Packed, teachers: list[str]) -> None:
    other = distill_here("ensemble-test", "--teacher", "none", "--steps", "1", home=home)
    config = home / "views.yaml"
    config.write_text("augment: {crop: 0.2}\n")
    for name, more in ((teachers[0], ()), (other, ("--views", "3", "--config", str(config)))):
        persona_here("targets", "vggface2", "--teacher", name, *more, home=home)
    with pytest.raises(
        PersonaError, match=r"hold other views \(2 and 3\): make both with the same"
    ):
        opened(home, packed, f"{teachers[0]},{other}", targets="kept")
    line = persona_error_here("targets", "vggface2", "--teacher", ",".join(teachers), home=home)
    assert "targets are kept of one teacher: run the command for each of" in line


def test_names_of_several_leave_without_their_folders(tmp_path: Path) -> None:
    assert public_name("onnx:/home/ada/a.onnx,small") == "onnx:a.onnx,small"
    assert public_name("onnx:/home/ada,bob/a.onnx") == "onnx:a.onnx"
    assert public_name("/home/ada,bob/a.onnx") == "a.onnx"
    path = tmp_path / "a,b.onnx"
    path.touch()
    assert teacher_names(f"onnx:{path}", tmp_path) == (f"onnx:{path}",)
    assert teacher_names("a, b", tmp_path) == ("a", "b")


def test_a_damaged_projection_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ensemble-a.bin"
    assert read_projection(path, 4, 2) is None
    for data in (b"", b"4 2\n", b"4 2\n" + b"\xff" * 32, b"2 4\n" + bytes(32)):
        path.write_bytes(data)
        with pytest.raises(PersonaError, match="is damaged: remove it"):
            read_projection(path, 4, 2)
    assert to_dict(DistillConfig())["from_model"] is None
