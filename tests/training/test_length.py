"""Runs measured in steps or photos, and evaluated every so many steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from conftest import NO_ALIGN, write_lfw, write_vggface2
from helpers import distill_error, distill_here, left_by_a_kill
from little import LITTLE

from persona.config import DistillConfig, load_config
from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.errors import PersonaError
from persona.evaluation.protocols import Evaluation
from persona.evaluation.protocols.verification import VerificationFigures
from persona.models.cards import find_model
from persona.models.sources import NamedNetwork
from persona.report.history import read_history
from persona.training.checkpoint import Progress, load_checkpoint
from persona.training.length import Length

LABELS = (LITTLE, "--teacher", "none", "--test-set", "lfw")
"""The train set has 30 photos: 6 steps of 5 an epoch."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a packed train set of 30 photos, and a packed LFW."""
    folder = tmp_path_factory.mktemp("home")
    write_vggface2(folder / "raw")
    write_lfw(folder / "raw")
    for name in ("vggface2", "lfw"):
        dataset = open_dataset(name, folder / "raw")
        pack_photos(dataset, folder / "shards" / dataset.set_name, NO_ALIGN)
    return folder


def weights(home: Path, model_id: str) -> dict[str, torch.Tensor]:
    card = find_model(model_id, home / "models")
    return safetensors.torch.load_file(home / "models" / model_id / card.weights)


def evaluations(home: Path, run_id: str) -> list[tuple[int, float, float]]:
    """(step, AUC, whether it was kept) of each evaluation of the student."""
    lines = (home / "runs" / run_id / "metrics.jsonl").read_text().splitlines()
    found = [record for record in map(json.loads, lines) if "test/auc" in record]
    return [(r["step"], r["test/auc"], r["test/kept_by_auc"]) for r in found]


def progress_of(home: Path, run_id: str) -> Progress:
    stored = load_checkpoint(home / "runs" / run_id)
    assert stored is not None
    return stored[0]


@pytest.mark.parametrize(
    ("length", "total", "ended"),
    [
        (Length(epochs=3), 18, Progress(epoch=3)),
        (Length(None, steps=8), 8, Progress(step=8)),
        (Length(None, photos=41), 9, Progress(photos=45)),
    ],
)
def test_a_length(length: Length, total: int, ended: Progress) -> None:
    assert length.total_steps(epoch_steps=6, step_photos=5) == total
    assert length.reached(ended) and not length.reached(Progress(2, 3, 7, 40))


def test_exactly_one_length(tmp_path: Path) -> None:
    assert DistillConfig().epochs == 20 and DistillConfig().steps is None
    assert DistillConfig(photos=7).epochs is None
    with pytest.raises(PersonaError, match="epochs and steps are lengths of the same run"):
        DistillConfig(epochs=2, steps=3)
    with pytest.raises(PersonaError, match="photos 0: choose 1 to"):
        DistillConfig(photos=0)
    with pytest.raises(PersonaError, match="evaluate_steps 0: choose 1 to"):
        DistillConfig(evaluate_steps=0)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 7\nteacher: none\n")
    # A recipe counts in epochs; the command line may count in something else.
    assert load_config(recipe, {}).epochs == 7
    config = load_config(recipe, {"steps": 5})
    assert (config.epochs, config.steps) == (None, 5)
    with pytest.raises(PersonaError, match="steps and photos are lengths"):
        load_config(recipe, {"steps": 5, "photos": 7})


def test_steps_and_photos_of_whole_epochs_are_epochs(home: Path) -> None:
    """The same weights, whatever the length is counted in: the schedule has as many steps."""
    epochs = distill_here(*LABELS, "-e", "2", home=home)
    for option in (("--steps", "12"), ("--photos", "56")):
        other = distill_here(*LABELS, *option, home=home)
        one, two = weights(home, epochs), weights(home, other)
        assert all(torch.equal(one[name], two[name]) for name in one)
        found = progress_of(home, other)
        assert (found.epoch, found.batch, found.step, found.photos) == (2, 0, 12, 60)
        assert [step for step, *_ in evaluations(home, other)] == [6, 12]


def test_a_run_may_end_inside_an_epoch(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "persona"):
        run_id = distill_here(*LABELS, "--steps", "8", home=home)
    found = progress_of(home, run_id)
    # One epoch of 6 steps and two steps of the next, which is not counted as an epoch.
    assert (found.epoch, found.batch, found.step, found.photos) == (1, 2, 8, 40)
    assert [step for step, *_ in evaluations(home, run_id)] == [6, 8]
    assert "8 steps in epochs of 6 batches of 5" in caplog.text
    assert "step 8/8: verification accuracy" in caplog.text
    history = read_history(home / "runs" / run_id, has_model=True)
    assert (history.state, history.told) == ("finished", "It finished all 8 steps.")
    done = weights(home, run_id)
    assert distill_here("--resume", run_id, "--test-set", "lfw", home=home) == run_id
    again = weights(home, run_id)
    assert all(torch.equal(done[name], again[name]) for name in done)
    refused = distill_error("--resume", run_id, "--test-set", "lfw", "--photos", "90", home=home)
    assert "has another recipe (photos: None is now 90; steps: 8 is now None)" in refused


def test_evaluation_every_so_many_steps(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Best by figure among them all, of the EMA too, and once at the end whatever it falls on."""
    scripted = iter((0.7, 0.6, 0.9, 0.7, 0.8, 0.8))  # student and EMA in turns

    def evaluate(named: NamedNetwork, *_: object, **__: object) -> Evaluation:
        figures: dict[str, Any] = {"accuracy": 0.5, "auc": next(scripted), "spread": 0.5}
        return VerificationFigures(named.name, "lfw", "verification", **figures)

    options = (*LABELS, "-e", "2", "--evaluate-steps", "4", "-o", "optim.ema_decay=0.9")
    with monkeypatch.context() as patched:
        patched.setattr("persona.distill.selection.evaluate", evaluate)
        run_id = distill_here(*options, home=home)
    assert evaluations(home, run_id) == [(4, 0.7, 1.0), (8, 0.9, 1.0), (12, 0.8, 0.0)]
    student, ema = (find_model(name, home / "models") for name in (run_id, f"{run_id}-ema"))
    assert (student.score, ema.score) == (0.9, 0.8)
    assert (student.taken_after, ema.taken_after) == ("step 8", "step 12")
    seven = distill_here(*LABELS, "--steps", "7", "--evaluate-steps", "3", home=home)
    assert [step for step, *_ in evaluations(home, seven)] == [3, 6, 7]
    plain = find_model(distill_here(*LABELS, "-e", "1", home=home), home / "models")
    assert (plain.epochs, plain.steps, plain.taken_after) == (1, 6, "epoch 1")
    config = yaml.safe_load((home / "runs" / run_id / "config.yaml").read_text())
    assert (config["epochs"], config["steps"], config["evaluate_steps"]) == (2, None, 4)


def test_evaluating_has_no_say_in_what_is_learned(home: Path) -> None:
    often = distill_here(*LABELS, "-e", "2", "--evaluate-steps", "2", home=home)
    plain = distill_here(*LABELS, "-e", "2", home=home)
    stored = [load_checkpoint(home / "runs" / name) for name in (often, plain)]
    one, two = (found[2]["student"] for found in stored if found is not None)
    assert all(torch.equal(one[name], two[name]) for name in two)


@pytest.mark.parametrize(
    ("checkpoints", "place"),
    [
        (3, (0, 3, 3)),  # the first evaluation's
        (7, (1, 0, 6)),  # the end of an epoch's
        (8, (1, 1, 7)),
    ],
)
def test_killed_in_the_middle_it_ends_in_the_same_weights(
    home: Path, tmp_path: Path, checkpoints: int, place: tuple[int, int, int]
) -> None:
    options: tuple[str, ...] = (*LABELS, "--photos", "52", "--evaluate-steps", "3")
    options += ("--checkpoint-steps", "1", "-o", "optim.ema_decay=0.9")
    with left_by_a_kill(checkpoints, home, tmp_path):
        run_id = distill_here(*options, home=home)
    found = progress_of(tmp_path, run_id)
    assert (found.epoch, found.batch, found.step) == place
    assert distill_here("--resume", run_id, "--test-set", "lfw", home=tmp_path) == run_id
    assert progress_of(tmp_path, run_id) == progress_of(home, run_id)
    assert evaluations(tmp_path, run_id) == evaluations(home, run_id)
    assert [step for step, *_ in evaluations(home, run_id)][-1] == 11
    # The models may be of an evaluation before the kill; the last step's weights are here.
    stored = [load_checkpoint(place / "runs" / run_id) for place in (home, tmp_path)]
    ends = [found[2] for found in stored if found is not None]
    pairs = [(ends[0][name], ends[1][name]) for name in ("student", "ema")]
    pairs += [(weights(home, run_id + x), weights(tmp_path, run_id + x)) for x in ("", "-ema")]
    for one, two in pairs:
        assert all(torch.equal(one[name], two[name]) for name in one)
