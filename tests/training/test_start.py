"""`--from MODEL`, and students of another width than their teacher's."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import NO_ALIGN, write_vggface2
from helpers import distill_error, distill_here, persona_error_here
from torch import Tensor, nn

import persona
from persona.config import Checked, between
from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.errors import PersonaError
from persona.models.backbones import Backbone
from persona.models.cards import find_model
from persona.models.public import public_card
from persona.models.store import load_model
from persona.models.student import Student
from persona.models.widen import compute_the_same
from persona.training.checkpoint import load_checkpoint
from persona.workspace import Workspace

STILL = ("--lr", "1e-9", "--steps", "1")
COSINE = ("-o", "losses={embedding_cosine: {}}")


@dataclass(frozen=True)
class PlainConfig(Checked):
    channels: int = between(4, 64, default=8)


@dataclass(frozen=True)
class WideConfig(PlainConfig):
    width: float = between(1, 4, default=1.0)


class Plain(Backbone):
    name = "start-test"
    config_class = PlainConfig

    def build(self) -> tuple[nn.Module, int]:
        channels = self.options.channels
        return nn.Sequential(nn.Conv2d(3, channels, 3, 4, 1), nn.ReLU()), channels


class Wide(Backbone):
    name = "start-wide-test"
    config_class = WideConfig

    def build(self) -> tuple[nn.Module, int]:
        channels = int(self.options.channels * self.options.width)
        return nn.Sequential(nn.Conv2d(3, channels, 3, 4, 1), nn.ReLU()), channels


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_vggface2(folder / "raw")
    dataset = open_dataset("vggface2", folder / "raw")
    pack_photos(dataset, folder / "shards" / dataset.set_name, NO_ALIGN)
    return folder


@pytest.fixture(scope="module")
def parent(home: Path) -> str:
    """A student of options that are not the default, trained on labels."""
    options = ("-o", "student.channels=12", "-o", "student.embedding_size=16")
    return distill_here("start-test", "--teacher", "none", "--steps", "2", *options, home=home)


def weights(home: Path, model_id: str) -> dict[str, Tensor]:
    card = find_model(model_id, home / "models")
    return safetensors.torch.load_file(home / "models" / model_id / card.weights)


def differing(one: dict[str, Tensor], two: dict[str, Tensor]) -> set[str]:
    """Names of weights that moved further than a step of a tiny learning rate."""
    parameters = {name for name in one if not name.startswith("last_bn.")}
    return {n for n in parameters if not torch.allclose(one[n], two[n], atol=1e-6)}


def test_a_student_goes_on_with_its_own_options_and_last_layer(home: Path, parent: str) -> None:
    child = distill_here("--from", parent, "--teacher", "none", *STILL, home=home)
    assert child.startswith("start-test-")
    before, after = weights(home, parent), weights(home, child)
    assert before.keys() == after.keys() and not differing(before, after)
    card = find_model(child, home / "models")
    known = find_model(parent, home / "models")
    assert card.student == known.student and card.student["channels"] == 12
    wanted = {"model": parent, "weights_sha256": known.weights_sha256}
    assert card.started_from == wanted and card.config["from_model"] == parent
    assert known.started_from is None
    assert card.classes_of == known.classes_of == "vggface2"
    stored = load_checkpoint(home / "runs" / child)
    assert stored is not None and stored[2]["origin"]["from"] == known.weights_sha256


def test_a_folder_will_do_and_a_resumed_run_needs_the_model_no_more(
    home: Path, parent: str, tmp_path: Path
) -> None:
    place = tmp_path / "secret" / parent
    shutil.copytree(home / "models" / parent, place)
    recipe = ("--teacher", parent, *COSINE, *STILL)
    child = distill_here("--from", str(place), *recipe, home=home)
    before, after = weights(home, parent), weights(home, child)
    assert not any(name.startswith("logits") for name in after)  # another recipe: no last layer
    assert not differing(after, before)
    shutil.rmtree(place)
    assert distill_here("--resume", child, home=home) == child
    shown = public_card(find_model(child, home / "models"))
    assert shown.started_from is not None and shown.started_from["model"] == parent
    assert "secret" not in str(shown)
    assert "unknown model" in distill_error("--from", str(place), *recipe, home=home)


def test_a_resumed_run_needs_no_pretrained_weights(
    home: Path, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: Any) -> None:
        raise PersonaError("these weights cannot be had")

    monkeypatch.setattr(Student, "start", start)
    before = weights(home, parent)
    assert distill_here("--resume", parent, home=home) == parent
    assert not differing(before, weights(home, parent))
    fresh = ("start-test", "--teacher", "none", "--steps", "1")
    assert "cannot be had" in distill_error(*fresh, home=home)


def test_a_wider_student_begins_with_what_the_narrow_one_computes(home: Path) -> None:
    short = ("--teacher", "none", "--steps", "1")
    narrow = distill_here("start-wide-test", *short, home=home)
    options = ("-o", "student.width=1.5", "--teacher", "none", *STILL)
    wide = distill_here("--from", narrow, *options, home=home)
    before, after = weights(home, narrow), weights(home, wide)
    first = "backbone.0.weight"
    assert len(before[first]) == 8 and len(after[first]) == 12
    assert torch.allclose(after[first][8:], before[first][:4], atol=1e-6)
    one, two = (
        load_model(find_model(name, home / "models"), home / "models") for name in (narrow, wide)
    )
    for student in (one, two):
        student.last_bn.reset_running_stats()  # the one step has moved them
    assert compute_the_same(one, two)
    line = distill_error("--from", wide, "-o", "student.width=1.25", *short, home=home)
    assert "its student is of other options (width: 1.5 is now 1.25)" in line


def test_a_wider_student_of_other_connections_is_refused(home: Path) -> None:
    teacher = ("--teacher", "none")
    narrow = ("mobilenet_v3_small", *teacher, *STILL, "-o", "student.width=0.5")
    parent = distill_here(*narrow, home=home)
    line = distill_error("--from", parent, *teacher, "-o", "student.width=0.75", home=home)
    assert f"--from {parent}: a mobilenet_v3_small of width 0.75 has other connections" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mobilenet_v3_small",), "architecture: start-test is now mobilenet_v3_small"),
        (("-o", "student.channels=8"), "its student is of other options (channels: 12 is now 8)"),
        (("-o", "student.embedding_size=32"), "embedding_size: 16 is now 32"),
    ],
)
def test_another_student_is_refused(
    home: Path, parent: str, arguments: tuple[str, ...], message: str
) -> None:
    line = distill_error("--from", parent, *arguments, "--teacher", "none", home=home)
    assert line.startswith(f"--from {parent}: ") and message in line and "\n" not in line


def test_learning_has_no_head_between_sizes(home: Path, parent: str) -> None:
    size = ("-o", "student.embedding_size=8")
    teacher = distill_here("start-test", "--teacher", "none", "--steps", "1", *size, home=home)
    line = persona_error_here(
        *("learn", "--model", parent, "--on", "vggface2", "--method", "anchor", "--steps", "1"),
        *("--teacher", teacher, "-b", "4", "--tracker", "none"),
        home=home,
    )
    assert f"the student has 16 dimensions, teacher {teacher} 8: choose a teacher of the" in line


def test_what_is_no_student_is_refused(home: Path) -> None:
    short = ("--teacher", "none")
    assert "is no student that was trained" in distill_error(
        "--from", "facenet-vggface2", *short, home=home
    )
    assert "unknown model 'nobody'" in distill_error("--from", "nobody", *short, home=home)


def test_from_a_program(home: Path, parent: str) -> None:
    """Without a backbone: it is that of the student to go on from."""
    place = Workspace.locate(home=home)
    options = {"from_model": parent, "steps": 1, "batch_size": 5, "workers": 0}
    child = persona.distill(
        teacher=None,
        train=persona.open_set("vggface2", workspace=place),
        options=options,
        workspace=place,
    )
    card = find_model(child.name, home / "models")
    assert card.started_from is not None and card.student["channels"] == 12


def test_killed_and_resumed_bank_and_head_end_the_same(home: Path, parent: str) -> None:
    place = Workspace.locate(home=home)
    losses = {"embedding_cosine": {}, "relation_bank": {"size": 16}}
    options = {"losses": losses, "workers": 0, "checkpoint_steps": 1, "student.embedding_size": 8}

    class Crash(persona.Callback):
        def on_step(self, moment: persona.Moment) -> None:
            if moment.step == 4:
                raise ArithmeticError(moment.run)

    def distilled(**more: Any) -> str:
        student = persona.distill(
            "start-test",
            teacher=persona.load(parent, workspace=place),
            train=persona.open_set("vggface2", workspace=place),
            options=options,
            **{"epochs": 1, "batch_size": 5, "workspace": place, **more},
        )
        return student.name

    whole = distilled()
    with pytest.raises(ArithmeticError) as crash:
        distilled(callbacks=[Crash()])
    resumed = distilled(resume=str(crash.value))
    one, two = weights(home, whole), weights(home, resumed)
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    states = [load_checkpoint(home / "runs" / name) for name in (whole, resumed)]
    kept = [state[2] for state in states if state is not None]
    for group, name in (("projection", "weight"), ("losses", "relation_bank.bank")):
        assert torch.equal(kept[0][group][name], kept[1][group][name])


@pytest.mark.parametrize("size", [8, 64])
def test_a_student_of_another_width_learns_by_a_head_that_it_leaves_behind(
    home: Path, parent: str, size: int
) -> None:
    losses = "losses={embedding_cosine: {}, relation_bank: {size: 16}, similarity: {}}"
    recipe = ("-o", losses, "--lr", "0.01", "-o", f"student.embedding_size={size}")
    whole = distill_here("start-test", "--teacher", parent, *recipe, "-e", "2", home=home)
    names = weights(home, whole).keys()
    assert {"backbone.0.weight", "last_linear.weight"} <= names
    assert not any("projection" in name or "student." in name for name in names)
    card = find_model(whole, home / "models")
    assert card.student["embedding_size"] == size
    stored = load_checkpoint(home / "runs" / whole)
    assert stored is not None and stored[2]["projection"]["weight"].shape == (16, size)
    assert stored[2]["losses"]["relation_bank.bank"].shape == (16, 16)
    assert persona.load(whole, workspace=Workspace.locate(home=home)).embedding_size == size
