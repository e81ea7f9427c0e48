"""`--resume auto`: what a job runs that may be cut off and started again."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from conftest import NO_ALIGN, write_vggface2
from helpers import distill_here, reset_accelerate
from little import LITTLE

from persona.config import load_config, save_config, to_dict
from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.distill import recipe
from persona.distill.selection import Selection
from persona.distill.start import find_unfinished, resolve_config
from persona.errors import PersonaError
from persona.files import folder_lock
from persona.report.history import read_history
from persona.training.callbacks import Callback, Moment
from persona.training.checkpoint import Progress, load_progress, save_checkpoint
from persona.training.meter import NOT_FINITE
from persona.training.run import DISTILLING, Run, Stored
from persona.workspace import Workspace

COMMAND = (LITTLE, "--teacher", "none", "-e", "2", "--checkpoint-steps", "2", "--resume", "auto")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_vggface2(folder / "raw")
    dataset = open_dataset("vggface2", folder / "raw")
    pack_photos(dataset, folder / "shards" / dataset.set_name, NO_ALIGN)
    return folder


class Cut(Callback):
    """Ends a training in the middle of an epoch, as a preemption does."""

    def on_step(self, moment: Moment) -> None:
        if moment.step == 3:
            raise RuntimeError("cut")


def weights(home: Path, model: str) -> dict[str, torch.Tensor]:
    (file,) = (home / "models" / model).glob("*.safetensors")
    return safetensors.torch.load_file(file)


def test_the_same_command_goes_on_until_its_run_is_done(home: Path) -> None:
    whole = distill_here(*COMMAND, home=home)  # nothing to take up: a new run
    place = Workspace.locate(home=home)
    config = load_config(home / "runs" / whole / "config.yaml", {})
    assert find_unfinished(config, place.runs) is None
    with pytest.raises(RuntimeError, match="cut"):
        recipe.distill(config, place, resume="auto", callbacks=[Cut()])
    reset_accelerate()
    (cut,) = {path.name for path in (home / "runs").iterdir()} - {whole}
    assert find_unfinished(config, place.runs) == cut

    other = distill_here(*COMMAND, "--lr", "0.5", home=home)
    assert other not in {whole, cut}
    assert distill_here(*COMMAND, "-w", "1", home=home) == cut
    for name, value in weights(home, whole).items():
        assert torch.equal(value, weights(home, cut)[name]), name
    assert distill_here(*COMMAND, home=home) not in {whole, cut, other}


def test_a_run_that_was_cut_off_at_its_end_is_not_trained_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(selection: Selection) -> None:
        raise RuntimeError("cut")

    place = Workspace.locate(home=home)
    first = distill_here(*COMMAND, home=home)
    config = replace(load_config(home / "runs" / first / "config.yaml", {}), seed=7)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="cut"):
        patch.setattr(Selection, "tell_collapse", cut_off)  # after the last checkpoint
        recipe.distill(config, place, resume="auto")
    reset_accelerate()
    cut = find_unfinished(config, place.runs)
    assert cut is not None
    before = weights(home, cut)
    assert distill_here(*COMMAND, "--seed", "7", home=home) == cut
    for name, value in weights(home, cut).items():
        assert torch.equal(value, before[name]), name
    assert find_unfinished(config, place.runs) is None


class Stop(Callback):
    """Ends a training in the middle of an epoch, because it is good enough."""

    def on_step(self, moment: Moment) -> None:
        if moment.step == 3:
            moment.stop()


def test_a_run_that_a_callback_ended_has_ended(home: Path) -> None:
    place = Workspace.locate(home=home)
    whole = distill_here(*COMMAND, "--seed", "8", home=home)
    config = load_config(home / "runs" / whole / "config.yaml", {})
    stopped = recipe.distill(config, place, callbacks=[Stop()])
    reset_accelerate()
    progress = load_progress(home / "runs" / stopped)
    assert (progress.epoch, progress.step) == (0, 3)
    assert find_unfinished(config, place.runs) is None
    # Resumed by name, it goes on with the photos of the epoch that it has not seen.
    (home / "runs" / stopped / NOT_FINITE).write_text("{}")  # as if its loss had stopped it
    assert distill_here("--resume", stopped, home=home) == stopped
    for name, value in weights(home, whole).items():
        assert torch.equal(value, weights(home, stopped)[name]), name
    assert read_history(home / "runs" / stopped, has_model=True).state == "finished"


def test_a_run_that_went_on_elsewhere_is_left_alone(home: Path) -> None:
    place = Workspace.locate(home=home)
    config = load_config(next((home / "runs").glob("*/config.yaml")), {})
    config = replace(config, seed=9)
    with pytest.raises(RuntimeError, match="cut"):
        recipe.distill(config, place, callbacks=[Cut()])
    reset_accelerate()
    cut = find_unfinished(config, place.runs)
    assert cut is not None
    late = recipe.Distillation(config, place, Accelerator(cpu=True), cut)
    reset_accelerate()
    assert distill_here("--resume", cut, home=home) == cut
    before, handler = weights(home, cut), signal.getsignal(signal.SIGTERM)
    with pytest.raises(PersonaError, match="went on in another process"), late.run:
        raise AssertionError("it must not begin")
    assert (home / "runs" / cut / "ended").is_file()
    # Nothing stays held: neither signals nor the lock.
    assert signal.getsignal(signal.SIGTERM) == handler
    with folder_lock(home / "runs" / cut, doing="testing in"):
        assert all(torch.equal(v, weights(home, cut)[n]) for n, v in before.items())


def test_the_command_that_began_a_run_resumes_it_by_its_id(tmp_path: Path) -> None:
    """With its recipe, which `persona.distill(…, processes=2)` gives too, and without."""
    place = Workspace.locate(home=tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_text("teacher: net.onnx\noptim: {lr: 0.5}\nlosses: {embedding_cosine: {}}\n")
    given = {"teacher": "net.onnx", "seed": 3}
    begun = resolve_config(file, given, {"mixed_precision": "bf16"}, place, None)
    assert begun.teacher == "onnx:net.onnx"
    save_config(place.runs / "run-1" / "config.yaml", to_dict(begun))
    for recipe_file, options in ((file, given), (None, given), (file, {"seed": 3}), (None, {})):
        launched = {"mixed_precision": "bf16"}
        changed = {"workers": 2, "tracker": "none", "checkpoint_steps": 7}
        found = resolve_config(recipe_file, {**options, **changed}, launched, place, "run-1")
        assert found == replace(begun, workers=2, tracker="none", checkpoint_steps=7)
    save_checkpoint(place.runs / "run-1", Progress(step=1), 1, {})
    assert find_unfinished(found, place.runs) == "run-1"
    file.write_text(file.read_text().replace("0.5", "0.25"))
    told = r"another recipe \(optim.lr: 0.5 is now 0.25\): resume it with the same values"
    with pytest.raises(PersonaError, match=told):
        resolve_config(file, given, {"mixed_precision": "bf16"}, place, "run-1")
    with pytest.raises(PersonaError, match=r"unknown run 'run-2' in .*; did you mean 'run-1'"):
        resolve_config(file, given, {}, place, "run-2")


def test_an_older_checkpoint_tells_more_than_what_is_learned(tmp_path: Path) -> None:
    """The tracker and the steps between checkpoints stood in its recipe."""
    recipe = {"seed": 1, "tracker": "wandb", "checkpoint_steps": 9}
    stored = Stored(Progress(step=4), 1, {"origin": {"recipe": recipe, "train set": "x"}})
    place = Workspace.locate(home=tmp_path)

    def take_up(seed: int) -> Run:
        origin = {"recipe": {"seed": seed}, "train set": "x"}
        settings: dict[str, Any] = {
            "architecture": "x",
            "config": {},
            "trackers": "none",
            "origin": origin,
        }
        accelerator = Accelerator(cpu=True)
        return Run(DISTILLING, place, accelerator, resume="r", stored=stored, **settings)

    try:
        assert take_up(seed=1).progress.step == 4
        with pytest.raises(PersonaError, match=r"\(recipe.seed: 1 is now 2\)"):
            take_up(seed=2)
    finally:
        reset_accelerate()


def test_a_damaged_run_is_not_taken_up(home: Path) -> None:
    folder = home / "runs" / "small-cut"
    folder.mkdir(parents=True)
    place = Workspace.locate(home=home)
    config = load_config(next((home / "runs").glob("*/config.yaml")), {})
    (folder / "config.yaml").write_text("epochs: [")
    (folder / "checkpoint.pt").write_bytes(b"no checkpoint")
    assert find_unfinished(config, place.runs) is None
