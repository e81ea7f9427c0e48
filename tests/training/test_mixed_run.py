"""A distillation on several packed sets: the same losses, checkpoints and checks as on one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import NO_ALIGN, SIZE_PX, jpeg, write_lfw, write_vggface2
from helpers import distill_error, distill_here
from torch import nn

import persona
from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.models.cards import find_model
from persona.training.checkpoint import load_checkpoint
from persona.training.losses.embedding_cosine import EmbeddingCosine
from persona.workspace import Workspace

MIX = "vggface2-train,lfw*0.5"
OPTIONS: dict[str, Any] = {"workers": 0, "student.width": 0.35, "checkpoint_steps": 1}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two labelled sets (30 and 24 photos of 6 people each) and an unlabelled one."""
    folder = tmp_path_factory.mktemp("home")
    write_vggface2(folder / "raw")
    write_lfw(folder / "raw")
    (folder / "raw" / "holiday").mkdir()
    for number in range(9):
        (folder / "raw" / "holiday" / f"{number}.jpg").write_bytes(jpeg(5000 + number))
    for name in ("vggface2", "lfw", f"folders:{folder / 'raw' / 'holiday'}"):
        dataset = open_dataset(name, folder / "raw", unlabelled="holiday" in name)
        pack_photos(dataset, folder / "shards" / dataset.set_name, NO_ALIGN)
    return folder


@pytest.fixture
def place(home: Path) -> Workspace:
    return Workspace.locate(home=home)


def teacher(
    place: Workspace, seed: int = 0, asked: Callable[[], None] = lambda: None
) -> persona.Model:
    torch.manual_seed(seed)
    own = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 16))
    own.register_forward_hook(lambda *_: asked())
    return persona.wrap(own, image_size=SIZE_PX, workspace=place)


class Stop(persona.Callback):
    """Raises an error after so many steps, as a machine that fails."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.run = ""

    def on_step(self, moment: persona.Moment) -> None:
        self.run = moment.run
        if moment.step == self.steps:
            raise RuntimeError("power cut")


def weights(home: Path, model_id: str) -> dict[str, torch.Tensor]:
    card = find_model(model_id, home / "models")
    return safetensors.torch.load_file(home / "models" / model_id / card.weights)


def losses(home: Path, run: str) -> list[float]:
    lines = (home / "runs" / run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]


def test_identities_of_all_sets_become_classes(home: Path) -> None:
    run = distill_here("--teacher", "none", "--train-set", MIX, "-e", "1", home=home)
    card = find_model(run, home / "models")
    assert (card.num_classes, card.train_set, card.steps) == (12, MIX, 8)  # 42 // 5
    origin = load_checkpoint(home / "runs" / run)[2]["origin"]["train set"]  # type: ignore[index]
    assert [text.partition(" * ")[2] for text in origin.values()] == ["1.0", "0.5"]


def test_a_killed_run_ends_with_the_same_weights(home: Path, place: Workspace) -> None:
    known: dict[str, Any] = {"epochs": 2, "batch_size": 10, "options": OPTIONS, "train": MIX}
    whole = persona.distill(teacher=teacher(place), **known)
    stop = Stop(steps=3)
    with pytest.raises(RuntimeError, match="power cut"):
        persona.distill(teacher=teacher(place), callbacks=[stop], **known)
    resumed = persona.distill(teacher=teacher(place), resume=stop.run, **known)
    expected, found = weights(home, whole.name), weights(home, resumed.name)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    with pytest.raises(persona.PersonaError, match=r"train set\.0"):
        other = known | {"train": "lfw*0.5,vggface2-train"}
        persona.distill(teacher=teacher(place), resume=stop.run, **other)


def test_targets_are_read_where_all_sets_keep_them(
    home: Path, place: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    known: dict[str, Any] = {"epochs": 1, "batch_size": 10, "options": OPTIONS, "train": MIX}
    online = persona.distill(teacher=teacher(place), **known)
    one, two = (persona.open_set(name, workspace=place) for name in ("vggface2", "lfw"))
    one.keep_targets(teacher(place), batch_size=5)
    caplog.set_level("INFO")
    persona.distill(teacher=teacher(place), **known)
    assert "runs online, because not all train sets keep its targets: lfw" in caplog.text
    kept = known | {"options": OPTIONS | {"targets": "kept"}}
    with pytest.raises(persona.PersonaError, match=r"set lfw keeps no targets of .*targets lfw "):
        persona.distill(teacher=teacher(place), **kept)
    two.keep_targets(teacher(place), batch_size=5)
    asked: list[None] = []
    silent = teacher(place, asked=lambda: asked.append(None))
    asked.clear()  # `wrap` has looked how large its embeddings are
    found = persona.distill(teacher=silent, **kept)
    assert not asked
    # Targets are kept in float16, so the losses differ a little; a shuffled target, by far more.
    assert losses(home, found.name) == pytest.approx(losses(home, online.name), rel=1e-3)
    anew = known | {"options": OPTIONS | {"targets": "online"}}
    other = persona.distill(teacher=teacher(place, seed=1), **anew)
    assert losses(home, other.name) != pytest.approx(losses(home, online.name), rel=1e-2)


def test_a_list_of_sets_with_weights(home: Path, place: Workspace) -> None:
    lfw = persona.open_set("lfw", workspace=place)
    student = persona.distill(
        teacher=teacher(place),
        train=[lfw, ("holiday", 2), "vggface2*0.5"],
        epochs=1,
        batch_size=10,
        options=OPTIONS,
    )
    card = find_model(student.name, home / "models")
    assert card.train_set == "lfw,holiday*2,vggface2-train*0.5"
    assert card.steps == 5  # 24 + 18 + 15 samples
    moved = persona.FaceSet(home / "a,b", lfw.manifest)
    for train, message in (
        ([], "name at least one set"),
        ([lfw, ("holiday", 0)], r"holiday\*0: "),
        ([(lfw, "many")], r"lfw\*many: "),
        ([lfw, lfw], "lfw and lfw are the same photos"),
        ([lfw, moved], "has a comma or an asterisk"),
    ):
        with pytest.raises(persona.PersonaError, match=message):
            persona.distill(teacher=teacher(place), train=train, epochs=1)  # type: ignore[arg-type]


def test_keys_of_a_loss_that_is_not_finite_name_their_set(home: Path, place: Workspace) -> None:
    class Broken(nn.Module):
        calls = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += 1  # a look at the teacher comes before the first step
            return torch.full((len(images), 8), 1.0 if self.calls < 3 else torch.nan)

    broken = persona.wrap(Broken(), image_size=SIZE_PX, workspace=place)
    with pytest.raises(persona.PersonaError, match=r"not_finite\.json"):
        known = {"epochs": 1, "batch_size": 30, "options": OPTIONS}
        persona.distill(teacher=broken, train="lfw,holiday*4", **known)  # type: ignore[arg-type]
    (path,) = (home / "runs").glob("*/not_finite.json")
    keys = json.loads(path.read_text())["keys"]
    assert {key.partition("/")[0] for key in keys} == {"lfw", "holiday"}
    assert "holiday/00000003" in keys


def test_no_student_is_saved_that_is_not_finite(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU is asked whether a loss is finite some steps later, and by then one is evaluated."""
    saved: list[float] = []

    class Broken(nn.Module):
        calls = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return torch.full((len(images), 8), 1.0 if self.calls < 5 else torch.nan)

    class Stored(persona.Callback):
        def on_step(self, moment: persona.Moment) -> None:
            kept = weights(place.models.parent, moment.run) if moment.step == 2 else {}
            saved.extend(float(value.float().sum()) for value in kept.values())

    monkeypatch.setattr("persona.training.trainer.finite_lag", lambda _: 4)
    broken = persona.wrap(Broken(), image_size=SIZE_PX, workspace=place)
    known = {"train": "holiday*5", "batch_size": 3, "callbacks": [Stored()]}
    with pytest.raises(persona.PersonaError, match=r"not_finite\.json") as failed:
        options = OPTIONS | {"steps": 9, "evaluate_steps": 2, "checkpoint_steps": 100}
        persona.distill(teacher=broken, options=options, **known)  # type: ignore[arg-type]
    assert saved
    run = re.search(r"mobilenet[0-9a-z_-]+", str(failed.value))
    assert run is not None
    kept = weights(place.models.parent, run[0]).values()
    assert all(bool(torch.isfinite(value).all()) for value in kept)


@pytest.mark.parametrize("steps", [1, 3])
def test_weights_that_are_not_finite_are_not_kept(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """The last step before a checkpoint or the end has a loss of 0 and an infinite gradient."""
    done, forward = 0, EmbeddingCosine.forward

    def steep(self: EmbeddingCosine, *inputs: Any) -> torch.Tensor:
        nonlocal done
        done += 1
        loss = forward(self, *inputs)
        return loss if done < min(steps, 2) else (loss - loss.detach()).sqrt()

    monkeypatch.setattr(EmbeddingCosine, "forward", steep)
    models, runs = ({*folder.glob("*")} for folder in (place.models, place.runs))
    options = OPTIONS | {"steps": steps, "test_set": "none"}
    with pytest.raises(persona.PersonaError, match=f"weights .* after step {min(steps, 2) - 1}:"):
        persona.distill(teacher=teacher(place), train="holiday*5", batch_size=3, options=options)
    assert {*place.models.glob("*")} == models
    (run,) = {*place.runs.glob("*")} - runs
    stored = load_checkpoint(run)
    assert (stored is None) == (steps == 1)
    if stored is not None:
        assert all(bool(value.isfinite().all()) for value in stored[2]["student"].values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--train-set", "lfw,holiday"), "wants identities, and set holiday was packed without"),
        (("--train-set", "lfw,lfw*3"), "lfw and lfw*3 are the same photos"),
        (("--train-set", "lfw*-2"), "lfw*-2: a train set"),
        (("--train-set", "lfw,lwf"), "did you mean 'lfw'?"),
    ],
)
def test_mistakes_are_one_line_before_the_first_step(
    home: Path, options: tuple[str, ...], message: str
) -> None:
    line = distill_error("--teacher", "none", *options, home=home)
    assert message in line and "\n" not in line
