"""The training command: on one process and on two, killed and taken up again."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import math
import os
import re
import runpy
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import yaml
from conftest import NO_ALIGN, write_lfw, write_vggface2
from helpers import (
    DISTILL,
    distill_error,
    distill_here,
    killed,
    left_by_a_kill,
    persona_here,
    reset_accelerate,
)
from little import LITTLE
from onnx_files import SETTINGS, write_model
from pair import Pair

from persona.config import load_config
from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.data.shards import read_manifest
from persona.distill import recipe
from persona.distill.recipe import Distillation
from persona.distill.selection import check_test_set
from persona.errors import PersonaError
from persona.evaluation.protocols import Evaluation
from persona.evaluation.protocols.verification import VerificationFigures
from persona.files import write_json
from persona.models import hub
from persona.models.cards import CARD, Card, find_model
from persona.models.sources import NamedNetwork, load_network
from persona.training.callbacks import Callback, Moment
from persona.training.checkpoint import load_checkpoint, save_checkpoint
from persona.training.devices import build_accelerator
from persona.training.run import Run
from persona.training.tracking import METRICS, Tracker
from persona.workspace import Workspace

TEACHER_NONE = ("--teacher", "none")
RECIPES = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a packed train set (30 photos) and a packed LFW, shared by this file."""
    folder = tmp_path_factory.mktemp("home")
    write_vggface2(folder / "raw")
    write_lfw(folder / "raw")
    for name in ("vggface2", "lfw"):
        dataset = open_dataset(name, folder / "raw")
        pack_photos(dataset, folder / "shards" / dataset.set_name, NO_ALIGN)
    return folder


@pytest.fixture(scope="module")
def teacher(home: Path) -> str:
    """A model trained with hard labels alone."""
    return distill_here(LITTLE, *TEACHER_NONE, "-e", "2", "--test-set", "lfw", home=home)


def test_a_test_set_that_tells_nothing(home: Path) -> None:
    manifest = read_manifest(home / "shards" / "vggface2-train")
    student = load_network("mobilenet_v3_small", home)
    assert check_test_set(student, manifest) == "verification"  # of pairs that are drawn
    line = (
        "--test-set: mobilenet_v3_small gives embeddings alone, no classes: class accuracy is not "
        "for it; choose a set with pairs such as lfw, or in `persona evaluate` another --measure; "
        "`none` goes without"
    )
    with pytest.raises(PersonaError, match=re.escape(line)):
        check_test_set(student, dataclasses.replace(manifest, identities=3))


def test_a_run_of_two_steps_has_not_collapsed(home: Path) -> None:
    """Its batch norm has the statistics of photos, and not nearly those of before training."""
    options = ("mobilenet_v3_small", *TEACHER_NONE, "--steps", "2", "--test-set", "lfw")
    student = distill_here(*options, "-o", "optim.ema_decay=0.999", home=home)
    for name in (student, f"{student}-ema"):
        card = find_model(name, home / "models")
        assert not card.collapsed and card.scores["spread"] > 0.01


def weights(home: Path, model_id: str) -> dict[str, torch.Tensor]:
    card = find_model(model_id, home / "models")
    return safetensors.torch.load_file(home / "models" / model_id / card.weights)


def test_a_run_leaves_config_metrics_checkpoint_and_model(home: Path, teacher: str) -> None:
    run_folder = home / "runs" / teacher
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    assert (config["teacher"], config["epochs"], config["batch_size"]) == ("none", 2, 5)
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert {"step", "epoch", "loss", "loss/hard_labels", "images_per_s", "lr"} <= set(records[0])
    assert [r["test/accuracy"] for r in records if "test/accuracy" in r]
    assert (run_folder / "checkpoint.pt").exists()
    card = find_model(teacher, home / "models")
    assert (card.teacher, card.temperature, card.num_classes) == ("none", None, 6)
    assert (card.score, card.chosen_by, card.run) == (card.scores["auc"], "auc", teacher)
    listed = persona_here("models", "list", home=home)
    keys = [
        "id",
        "architecture",
        "parameters",
        "bytes",
        "teacher",
        "temperature",
        "epochs",
        "score",
        "scored_on",
        "created",
    ]
    (own,) = (row for row in listed if row["id"] == teacher)
    assert list(own) == keys
    assert {row["id"]: row["scored_on"] for row in listed}[teacher] == "lfw"


@pytest.mark.parametrize(
    ("epochs", "kept"),
    [
        # (AUC, spread): the same accuracy each time, which cannot choose
        (((0.7, 0.5), (0.8, 0.5), (0.8, 0.5), (0.75, 0.5)), 3),
        (((0.9, 1e-7), (0.6, 0.5), (0.9, 1e-7)), 2),
        (((0.9, 1e-7), (0.6, 1e-7)), 2),
    ],
)
def test_the_best_epoch_is_the_later_of_equals_and_none_that_collapsed(
    epochs: tuple[tuple[float, float], ...],
    kept: int,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scripted = iter(epochs)

    def evaluate(named: NamedNetwork, *_: object, **__: object) -> Evaluation:
        auc, spread = next(scripted)
        return VerificationFigures(named.name, "lfw", "verification", 0.5, auc=auc, spread=spread)

    monkeypatch.setattr("persona.distill.selection.evaluate", evaluate)
    options = (LITTLE, *TEACHER_NONE, "--test-set", "lfw", "-b", "30", "-e", str(len(epochs)))
    with caplog.at_level("INFO", "persona"):
        student = distill_here(*options, home=home)
    card = find_model(student, home / "models")
    assert (card.epochs, card.score, card.chosen_by) == (kept, epochs[kept - 1][0], "auc")
    assert card.collapsed is (epochs[kept - 1][1] < 0.01)
    assert f"epoch {kept}/{len(epochs)}: verification accuracy 0.5000, AUC 0." in caplog.text
    assert ("the student has collapsed" in caplog.text) is (epochs[0][1] < 0.01)
    assert (f"{student} had collapsed after every epoch" in caplog.text) is card.collapsed
    lines = (home / "runs" / student / "metrics.jsonl").read_text().splitlines()
    noted = [json.loads(line).get("test/kept_by_auc") for line in lines]
    best = [place for place, value in enumerate(filter(lambda v: v is not None, noted)) if value]
    assert best[-1] == kept - 1


@pytest.mark.parametrize("before", ["accuracy", "margin"])
def test_a_run_that_chose_by_another_figure_goes_on_by_auc(
    home: Path, teacher: str, tmp_path: Path, before: str
) -> None:
    """Its checkpoint holds the best of a figure that no AUC can be compared with."""
    for place in ("runs", "models"):
        shutil.copytree(home / place / teacher, tmp_path / place / teacher)
    for name in ("shards", "raw"):
        (tmp_path / name).symlink_to(home / name)
    folder = tmp_path / "runs" / teacher
    found = load_checkpoint(folder)
    assert found is not None and found[2]["chosen_by"] == "auc"
    progress, world_size, state = found
    auc = progress.best[""]
    state |= {"chosen_by": before}
    if before == "accuracy":
        del state["chosen_by"]  # as it was then
    save_checkpoint(folder, replace(progress, best={"": 2.0, "gone": 2.0}), world_size, state)
    run = resumed(tmp_path, teacher)
    assert run.progress.best == {"": pytest.approx(auc), "gone": -math.inf}
    # The same figure, but of a test set that was packed anew.
    other = state | {"chosen_by": "auc", "tested_on": ["another", None]}
    save_checkpoint(folder, replace(progress, best={"": 2.0}), world_size, other)
    assert resumed(tmp_path, teacher).progress.best == {"": pytest.approx(auc)}
    card = find_model(teacher, tmp_path / "models")
    old = replace(card, score=0.25, scores={"accuracy": 0.25}, chosen_by="accuracy")
    write_json(tmp_path / "models" / teacher / CARD, asdict(old))
    distill_here("--resume", teacher, "--test-set", "lfw", home=tmp_path)
    told = find_model(teacher, tmp_path / "models")
    assert replace(told, score=card.score, scores=card.scores) == card
    assert told.score == pytest.approx(auc) and told.scores.keys() == card.scores.keys()
    save_checkpoint(folder, progress, world_size, state)
    next((tmp_path / "models" / teacher).glob("*.safetensors")).write_bytes(b"damaged")
    assert resumed(tmp_path, teacher).progress.best == {"": -math.inf}


def resumed(home: Path, run: str) -> Run:
    """A run as `--resume` takes it up."""
    workspace = Workspace.locate(home=home)
    config = load_config(workspace.runs / run / "config.yaml", {})
    reset_accelerate()
    return Distillation(config, workspace, build_accelerator("no"), run).run


@pytest.mark.parametrize("what", ["checkpoint.pt", "metrics.jsonl"])
def test_a_full_disk_loses_nothing(
    home: Path, what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("shards", "raw"):
        (tmp_path / name).symlink_to(home / name)
    recipe = ("-b", "30", "--test-set", "lfw")
    arguments = (LITTLE, *TEACHER_NONE, "-e", "3", *recipe)
    written = itertools.count()
    fsync, log_figures = os.fsync, Tracker.log

    def full(number: int) -> None:
        if (
            what != METRICS
            and what in str(Path(f"/proc/self/fd/{number}").readlink())
            and next(written) == 1
        ):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    def log_on_a_full_disk(self: Tracker, step: int, **figures: float) -> None:
        if what == METRICS and next(written) == 1:
            self._file.close()
            self._file = Path("/dev/full").open("a")  # noqa: SIM115 - the tracker closes it
        log_figures(self, step, **figures)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        patched.setattr(Tracker, "log", log_on_a_full_disk)
        line = distill_error(*arguments, home=tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    told = "the disk is full: make room and run again; it goes on where it was"
    assert line == f"{folder / what}: {told}"
    assert not list(folder.glob(".*.partial"))
    student = distill_here("--resume", folder.name, *recipe, home=tmp_path)
    whole = distill_here(*arguments, home=tmp_path)
    torch.testing.assert_close(weights(tmp_path, student), weights(tmp_path, whole), rtol=0, atol=0)
    metrics = [
        (tmp_path / "runs" / run / "metrics.jsonl").read_text().splitlines()
        for run in (student, whole)
    ]
    steps = [[json.loads(line)["step"] for line in lines] for lines in metrics]
    assert steps[0] == steps[1]


def test_distilling_from_a_model_and_evaluating_it(home: Path, teacher: str) -> None:
    student = distill_here("--teacher", teacher, "-e", "1", "-t", "3", home=home)
    card = find_model(student, home / "models")
    assert (card.teacher, card.temperature) == (teacher, 3.0)
    assert card.architecture == "mobilenet_v3_small"
    records = (home / "runs" / student / "metrics.jsonl").read_text()
    assert "loss/soft_targets" in records and "loss/hard_labels" in records
    scores = home / "scores.csv"
    figures = persona_here(
        "evaluate", "--set", "lfw", "--student", student, "--scores", str(scores), home=home
    )
    assert list(figures)[:10] == (
        [
            "model",
            "set",
            "measure",
            "accuracy",
            "accuracy_std",
            "auc",
            "eer",
            "tar_at_far",
            "pairs",
            "no_face",
        ]
    )
    assert (figures["model"], figures["pairs"], figures["no_face"]) == (student, 12, 0)
    rows = scores.read_text().splitlines()
    assert rows[0] == "fold,same,score" and len(rows) == 13
    newest = persona_here("evaluate", "--set", "lfw", home=home)
    assert newest["accuracy"] == figures["accuracy"]
    classes = persona_here("evaluate", "--set", "vggface2", "--measure", "class", home=home)
    assert (classes["measure"], classes["photos"]) == ("class", 30)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")  # starting workers
def test_killed_and_resumed_it_ends_in_the_same_weights(home: Path, teacher: str) -> None:
    """A real SIGKILL inside an epoch; momentum, rate and position must come back."""
    options = ("--teacher", teacher, "-e", "3", "--checkpoint-steps", "4", "--seed", "7")
    run_folder = home / "runs" / killed(3, *options, home=home)  # after steps 4, 6 (an epoch) and 8
    progress = torch.load(run_folder / "checkpoint.pt", weights_only=True)["progress"]
    assert (progress["epoch"], progress["batch"], progress["step"]) == (1, 2, 8)
    # With another number of loader processes, which says nothing of the batches.
    resumed = weights(home, distill_here("--resume", run_folder.name, "-w", "2", home=home))
    whole = weights(home, distill_here(*options, home=home))
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    steps = [json.loads(x)["step"] for x in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_resume_refuses_another_recipe_and_unknown_runs(home: Path, teacher: str) -> None:
    line = distill_error("--resume", teacher, "--lr", "0.5", "--test-set", "lfw", home=home)
    assert "has another recipe (optim.lr: 0.001 is now 0.5)" in line
    line = distill_error("--resume", "nope", home=home)
    assert "unknown run 'nope'" in line and teacher in line


def test_resume_notices_a_recipe_or_a_set_that_was_changed_behind_its_back(
    home: Path, teacher: str, tmp_path: Path
) -> None:
    run_id = distill_here(LITTLE, *TEACHER_NONE, "-e", "1", home=home)
    path = home / "runs" / run_id / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("epochs: 1", "epochs: 2").replace("lr: 0.001", "lr: 0.5"))
    line = distill_error("--resume", run_id, home=home)
    assert "recipe.epochs: 1 is now 2; recipe.optim.lr: 0.001 is now 0.5" in line
    path.write_text(text)
    manifest = home / "shards" / "vggface2-train" / "manifest.json"
    before = manifest.read_text()
    manifest.write_text(re.sub('"sha256": "[^"]*', '"sha256": "' + "0" * 64, before, count=1))
    try:
        assert "train set: " in distill_error("--resume", run_id, home=home)
    finally:
        manifest.write_text(before)


def test_two_processes_train_evaluate_and_save_once(home: Path, teacher: str, pair: Pair) -> None:
    options = ("--teacher", teacher, "-e", "1", "--test-set", "lfw", "--tracker", "wandb")
    student = pair.distill(*DISTILL, *options, home=home)
    (tracked,) = (home / "runs" / student / "wandb").glob("offline-run-*")
    # Figures and curves of the main process alone: one run, one record of each.
    assert len(list(tracked.glob("*.wandb"))) == 1
    images = sorted(path.name for path in tracked.glob("files/media/images/test/*/image_*"))
    assert len(images) == 2
    card = find_model(student, home / "models")
    alone = persona_here("evaluate", "--set", "lfw", "--student", student, "-b", "5", home=home)
    assert card.scores["pairs"] == 12
    assert card.scores["accuracy"] == alone["accuracy"]
    assert card.scores["auc"] == alone["auc"]


def test_evaluation_on_two_processes_gives_the_same_figures(
    home: Path, teacher: str, pair: Pair
) -> None:
    arguments = ("evaluate", "--set", "lfw", "--student", teacher)
    assert pair.persona(*arguments, home=home) == persona_here(*arguments, home=home)


GRADIENTS = """
import sys, torch
from accelerate import Accelerator
from persona.config import DistillConfig, StudentConfig
from persona.models.student import Student
from persona.training.task import DistillationTask
from persona.training.teacher import Teacher

accelerator = Accelerator()
torch.manual_seed(0)
student, teacher = Student(StudentConfig(), 6), Student(StudentConfig(), 6)
task = DistillationTask(
    accelerator.prepare(student), student, Teacher(teacher, teacher.head()),
    DistillConfig().losses, 6
)
task.train()
for module in student.modules():
    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
        module.eval()  # batch norm aside: its statistics are of the local batch
images, labels = torch.randn(8, 3, 64, 64), torch.arange(8) % 6
share = 8 // accelerator.num_processes
mine = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
total, _ = task(images[mine], labels[mine])
accelerator.backward(total)
if accelerator.is_main_process:
    torch.save({n: p.grad for n, p in student.named_parameters()}, sys.argv[1])
accelerator.wait_for_everyone()
accelerator.end_training()
"""


def test_two_processes_give_the_gradients_of_one(
    tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two real processes (gloo), the same global batch of 8."""
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    outs = [tmp_path / "1.pt", tmp_path / "2.pt"]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("sys.argv", [str(script), str(outs[0])])
    reset_accelerate()
    runpy.run_path(str(script))
    reset_accelerate()
    pair.script(script, str(outs[1]), home=tmp_path)
    grads = [torch.load(out, weights_only=True) for out in outs]
    one, two = grads
    assert one.keys() == two.keys()
    assert max(float(g.abs().max()) for g in one.values()) > 1e-2
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-5, msg=name)


def test_kept_targets_train_without_the_teacher(home: Path, teacher: str) -> None:
    """Kept is chosen where it is there, and gives what online gives but for float16's rounding."""
    row = persona_here("targets", "vggface2", "--teacher", teacher, home=home)
    assert (row["photos"], row["views"], row["logits"]) == (30, 2, 6)
    options: tuple[str, ...] = (LITTLE, "--teacher", teacher, "-e", "2", "--seed", "3")
    options += ("-o", "teacher_precision='no'")
    still = ("--lr", "1e-9")  # steps of Adam would blow the rounding up
    try:
        first = {}
        for targets in ("auto", "online"):
            student = distill_here(*options, *still, "--targets", targets, home=home)
            lines = (home / "runs" / student / "metrics.jsonl").read_text().splitlines()
            first[targets] = json.loads(lines[0])["loss"]
        assert first["auto"] == pytest.approx(first["online"], rel=1e-3)
        assert first["auto"] != first["online"]  # float16 shows that they were not computed anew
        model = home / "models" / teacher
        moved = model.rename(home / "models" / "elsewhere")
        try:
            distill_here(*options, "--targets", "kept", home=home)
        finally:
            moved.rename(model)
        cropped = ("-o", "augment.crop=0.2")
        refusal = "asks for an augmentation that the 2 views kept"
        assert refusal in distill_error(*options, *cropped, home=home)
        distill_here(
            *options, "-e", "1", "-o", "augment.crop=0.2", "--targets", "online", home=home
        )
    finally:
        shutil.rmtree(home / "shards" / "vggface2-train" / "targets")


def test_targets_of_another_teacher_are_refused(home: Path, teacher: str) -> None:
    persona_here("targets", "vggface2", "--teacher", teacher, home=home)
    place = home / "shards" / "vggface2-train" / "targets" / teacher
    try:
        card = json.loads((place / "targets.json").read_text())
        (place / "targets.json").write_text(json.dumps(card | {"weights_sha256": "0" * 64}))
        assert f"are of another {teacher}" in distill_error("--teacher", teacher, home=home)
    finally:
        shutil.rmtree(place.parent)


def test_targets_of_a_teacher_on_the_hub_are_compared_with_what_the_hub_has(
    home: Path, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def pull_once(repository: str, models: Path) -> Card:
        asked.append(repository)
        return find_model(teacher, models)

    monkeypatch.setattr(hub, "pull_once", pull_once)
    named = f"hf://bob/{teacher}"
    persona_here("targets", "vggface2", "--teacher", teacher, home=home)
    place = home / "shards" / "vggface2-train" / "targets" / teacher
    options = (LITTLE, "--teacher", named, "--config", RECIPES / "embedding.yaml")
    try:
        distill_here(*map(str, options), "--test-set", "none", "-e", "1", home=home)
        card = json.loads((place / "targets.json").read_text())
        (place / "targets.json").write_text(json.dumps(card | {"weights_sha256": "0" * 64}))
        asked.clear()
        for more, told in (
            ((), f"are of another {named}"),
            (("--exclude-duplicates", "0.9"), f"keeps embeddings of another {named}"),
        ):
            assert told in distill_error("--teacher", named, *more, home=home)
        assert asked == [f"bob/{teacher}"] * 2
    finally:
        shutil.rmtree(place.parent)


def test_packing_can_keep_targets_and_verifying_reads_them(home: Path, teacher: str) -> None:
    options = ("--align", "none", "--image-size", "32", "--margin", "0", "--raw", str(home / "raw"))
    out = ("--out", str(home / "shards" / "again"))
    persona_here("shard", "vggface2", *options, *out, "--teacher", teacher, home=home)
    place = home / "shards" / "again" / "targets" / teacher
    assert persona_here("shards", "verify", "again", home=home)["targets"] == 1
    data = bytearray((place / "000000.features.npy").read_bytes())
    data[-1] ^= 1
    (place / "000000.features.npy").write_bytes(data)
    with pytest.raises(PersonaError, match="does not match its checksum"):
        persona_here("shards", "verify", "again", home=home)


def test_every_part_of_the_loop_at_once(home: Path, teacher: str) -> None:
    """Relational losses, a margin head, AdamW, cosine, clipping, EMA, views; killed at an epoch."""
    recipe = home / "everything.yaml"
    recipe.write_text(
        """
student: {first_stride: 1, pooling: depthwise, activation: prelu, width: 0.5}
losses:
  embedding_cosine:
  rkd_angle: {weight: 2, photos: 4}
  arcface: {weight: 0.1}
  adadistill: {weight: 0.1}
augment: {crop: 0.2, low_resolution: 0.3, grey: 0.2, jitter: 0.3, erase: 0.3}
optim: {optimizer: adamw, schedule: cosine, warmup_epochs: 1, weight_decay: 0.05, clip_norm: 1,
  ema_decay: 0.9}
"""
    )
    options = ("--config", str(recipe), "--teacher", teacher, "--test-set", "lfw", "-e", "4")
    student = distill_here(*options, home=home)
    mean = find_model(f"{student}-ema", home / "models")
    card = find_model(student, home / "models")
    assert card.head == "cosine" and card.student["embedding_size"] == 512
    assert card.config["losses"]["rkd_angle"] == {"weight": 2.0, "photos": 4}
    assert (card.temperature, mean.student) == (None, card.student)
    records = [
        json.loads(line)
        for line in (home / "runs" / student / "metrics.jsonl").read_text().splitlines()
    ]
    trained = {key for record in records for key in record}
    assert {"loss/embedding_cosine", "loss/adadistill", "gradient_norm", "data_wait"} <= trained
    assert {"test/accuracy", "test-ema/accuracy"} <= trained
    assert (
        persona_here("evaluate", "--set", "lfw", "--student", f"{student}-ema", home=home)["pairs"]
        == 12
    )


def test_resumed_with_ema_and_learned_centres_it_ends_in_the_same_weights(
    home: Path, teacher: str, tmp_path: Path
) -> None:
    options: tuple[str, ...] = (LITTLE, "--teacher", teacher, "-e", "3")
    options += ("--checkpoint-steps", "4")
    options += ("-o", "losses={adadistill: {}, embedding_cosine: {}}", "-o", "optim.ema_decay=0.9")
    with left_by_a_kill(3, home, tmp_path):
        run_id = distill_here(*options, home=home)
    progress = torch.load(tmp_path / "runs" / run_id / "checkpoint.pt", weights_only=True)[
        "progress"
    ]
    assert (progress["epoch"], progress["batch"], progress["step"]) == (1, 2, 8)
    assert distill_here("--resume", run_id, home=tmp_path) == run_id
    for suffix in ("", "-ema"):
        one, two = weights(home, run_id + suffix), weights(tmp_path, run_id + suffix)
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert torch.equal(value, two[name]), name


class Cut(Callback):
    """Ends a training in the middle of an epoch, as a fault does."""

    def on_step(self, moment: Moment) -> None:
        if moment.step == 5:
            raise RuntimeError("cut")


def test_mixed_photos_are_the_same_after_a_resume(home: Path, teacher: str) -> None:
    """The teacher looks at the mixed image, so it runs online where targets are kept, too."""
    options: tuple[str, ...] = ("--teacher", teacher, "-e", "1", "--checkpoint-steps", "4")
    options += ("-o", "mix.mixup=1", "-o", "mix.cutmix=0.5")
    cosine = ("-o", "losses={embedding_cosine: {}}")
    refusal = distill_error(*options, "-o", "losses={arcface: {}}", home=home)
    assert "loss arcface compares with the label of one photo" in refusal
    persona_here("targets", "vggface2", "--teacher", teacher, home=home)
    try:
        refusal = distill_error(*options, *cosine, "--targets", "kept", home=home)
        assert "the teacher must look at the mixed image: choose --targets online" in refusal
        whole = distill_here(*options, *cosine, home=home)
        known = set((home / "runs").iterdir())
        workspace = Workspace.locate(home=home)
        config = load_config(home / "runs" / whole / "config.yaml", {})
        with pytest.raises(RuntimeError, match="cut"):
            recipe.distill(config, workspace, callbacks=[Cut()])
        reset_accelerate()
        (cut,) = set((home / "runs").iterdir()) - known
        found = load_checkpoint(cut)
        assert found is not None and found[0].batch == 4
        assert distill_here("--resume", cut.name, home=home) == cut.name
    finally:
        shutil.rmtree(home / "shards" / "vggface2-train" / "targets")
    one, two = weights(home, whole), weights(home, cut.name)
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_resuming_another_student_is_refused(home: Path, teacher: str) -> None:
    config = home / "runs" / teacher / "config.yaml"
    before = config.read_text()
    try:
        config.write_text(
            before.replace("channels: 8", "channels: 16").replace("epochs: 2", "epochs: 3")
        )
        line = distill_error("--resume", teacher, "--test-set", "lfw", home=home)
        assert "recipe.student.channels: 8 is now 16" in line
    finally:
        config.write_text(before)


def test_triplet_loss_on_a_triplet_set(home: Path) -> None:
    made = persona_here(
        "triplets", "make", "20", "vggface2", "--split", "train", "--raw", str(home / "raw"),
        home=home,
    )["id"]  # fmt: skip
    persona_here(
        "shard", "vggface2", "--triplets", made, "--align", "none", "--image-size", "32",
        "--margin", "0", "--raw", str(home / "raw"), home=home,
    )  # fmt: skip
    student = distill_here(
        LITTLE,
        *TEACHER_NONE,
        "--train-set",
        made,
        "-e",
        "1",
        "-o",
        "losses={triplet: {}}",
        home=home,
    )
    card = find_model(student, home / "models")
    assert (card.head, card.num_classes) == ("none", 0)
    assert "loss/triplet" in (home / "runs" / student / "metrics.jsonl").read_text()


def test_two_processes_share_learned_centres(home: Path, teacher: str, pair: Pair) -> None:
    """AdaDistill's centres and a margin head over two processes: every parameter gets its part."""
    losses = "losses={adadistill: {}, arcface: {}, embedding_cosine: {}, relation_bank: {}, "
    losses += "compatible: {}}"
    student = pair.distill(
        LITTLE, *DISTILL, "--teacher", teacher, "-o", losses, "-e", "2", home=home
    )
    assert find_model(student, home / "models").head == "cosine"
    stored = load_checkpoint(home / "runs" / student)
    assert stored is not None
    progress, _, state = stored
    # Somebody has photos that the old model does not embed alike.
    assert (state["losses"]["compatible.least"] < 1).any()
    bank = state["losses"]["relation_bank.bank"]  # of the batches of both
    assert int(state["losses"]["relation_bank.filled"]) == progress.photos == 10 * progress.step
    assert len(bank[: progress.photos].unique(dim=0)) > 5 * progress.step


def test_an_onnx_teacher(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings of another width, no logits; refused where a recipe wants them."""
    name = f"onnx:{write_model(home / 'net.onnx', width=24)}"
    (home / "net.yaml").write_text(SETTINGS)
    options = (LITTLE, "--teacher", name, "-e", "1")
    cosine = ("-o", "losses={embedding_cosine: {}}")
    # These photos are noise: no network can tell their people apart.
    refusal = "does not tell the people of vggface2-train apart"
    assert refusal in distill_error(*options, *cosine, home=home)
    monkeypatch.setattr("persona.evaluation.sanity.CHANCE", 0.0)
    card = find_model(distill_here(*options, *cosine, home=home), home / "models")
    assert (card.student["embedding_size"], card.num_classes) == (24, 0)
    row = persona_here("targets", "vggface2", "--teacher", name, home=home)
    assert row["embedding_size"] == 24 and str(home) not in Path(row["path"]).name
    relations = ("-o", "losses={rkd_distance: {}, similarity: {}}")
    narrow = ("-o", "student.embedding_size=64")
    bare = ("--teacher", name.removeprefix("onnx:"), "-e", "1")  # as other commands take it
    assert persona_here("targets", "vggface2", *bare[:2], home=home)["fresh"] is False
    distill_here(*bare, "--targets", "kept", *relations, *narrow, home=home)
    assert persona_here("evaluate", "--set", "lfw", "--teacher", name, home=home)["pairs"] == 12
    # Kept vectors are found by the file's base name: the file must be there to compare.
    for file, refusal in (
        ("onnx:/nowhere/net.onnx", "no ONNX file at /nowhere/net.onnx"),
        (f"onnx:/nowhere/a.onnx,{name}", "no ONNX file at /nowhere/a.onnx"),
    ):
        assert refusal in distill_error("--teacher", file, "-e", "1", *cosine, home=home)
        arcface = ("-o", "losses={arcface: {}}")
        assert refusal in distill_error("--teacher", file, "-e", "1", *arcface, home=home)
    recipe = ("--config", str(RECIPES / "embedding.yaml"))
    lacking = "--temperature is of the loss soft_targets, which "
    assert lacking in distill_error(*options, *recipe, "--temperature", "2", home=home)
    instead = "leave it out, the recipe has embedding_cosine too"
    assert instead in distill_error(*options, *recipe, "--soft-weight", "1", home=home)
    wanted = "loss soft_targets wants the teacher's logits, and onnx:"
    assert wanted in distill_error(*options, "--targets", "online", home=home)
    (home / "net.yaml").write_text(SETTINGS.replace("margin", "five-point"))
    points = "wants five points of each face and set vggface2-train has none"
    assert points in distill_error(*options, *cosine, "--targets", "online", home=home)
    assert "are of another onnx:" in distill_error(*options, *cosine, home=home)
    shutil.rmtree(home / "shards" / "vggface2-train" / "targets")


def test_the_compiled_step_trains(home: Path, teacher: str) -> None:
    """Through Accelerate's plugin; `eager` runs the tracer without a compiler."""
    options = (LITTLE, "--teacher", teacher, "-e", "1", "-o", "compile=eager")
    student = distill_here(*options, home=home)
    assert find_model(student, home / "models").config["compile"] == "eager"


def test_accumulation_takes_fewer_steps_and_drops_no_gradient(home: Path) -> None:
    student = distill_here(
        LITTLE, *TEACHER_NONE, "-e", "1", "--gradient-accumulation-steps", "2", "-b", "4", home=home
    )
    last = (home / "runs" / student / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["step"] == 3  # 7 batches of 4 fit, 6 are used, two a step


def test_the_recipe_alone_says_how_many_batches_a_step_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The counts of steps and photos are those of the recipe."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setattr("persona.training.devices.keep_freed_memory", lambda: None)
    try:
        found = build_accelerator("no", gradient_accumulation_steps=2)
        assert found.gradient_accumulation_steps == 2
        reset_accelerate()
        assert build_accelerator("no").gradient_accumulation_steps == 1
    finally:
        reset_accelerate()


def test_bf16_trains(home: Path, teacher: str) -> None:
    student = distill_here("--teacher", teacher, "-e", "1", "--mixed-precision", "bf16", home=home)
    assert {value.dtype for value in weights(home, student).values()} <= {
        torch.float32,
        torch.int64,
    }


def test_wandb_without_a_login_is_offline_and_says_how_to_sync(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    options = (LITTLE, *TEACHER_NONE, "-e", "1", "--tracker", "wandb")
    with caplog.at_level("INFO", "persona"):
        run_id = distill_here(*options, home=home)
    assert caplog.text.count("wandb sync") == 1
    assert list((home / "runs" / run_id / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mobilenet_v3_smal",), "did you mean 'mobilenet_v3_small'"),
        (("-e", "0"), "epochs 0: choose 1 to"),
        (("-o", "losses={}", *TEACHER_NONE), "names no loss"),
        (("-o", "losses.soft_target.weight=1"), "'losses.soft_targets'"),
        (("-o", "losses={arcface: {weight: 0}}"), "the weights of arcface sum to 0"),
        (("-o", "optim.schedule=cosin"), "did you mean 'cosine'"),
        (("-o", "optim.lr=[1"), "is no YAML value"),
        (("-o", "optim.lr="), "--option optim.lr=: give a value"),
        (("-o", "optim.lr"), "--option optim.lr: give a value"),
        (("-o", "train_set=2024-13-01"), "is no YAML value"),
        (("-o", "optim.lr=1" + "0" * 400), "is no YAML value"),
        (("-o", "compile=tensorrt", *TEACHER_NONE), "unknown compile 'tensorrt'"),
        (("-o", "sync_batch_norm=true", *TEACHER_NONE), "works on GPUs alone"),
        (("--mixed-precision", "fp16", *TEACHER_NONE), "mixed_precision fp16 works on GPUs alone"),
        (("--teacher", "onnx:nope.onnx"), "no ONNX file at nope.onnx"),
        (("--targets", "kept", "--teacher", "mobilenet_v3_small"), "keeps no targets of"),
        (("--targets", "maybe"), "unknown targets 'maybe'"),
        (
            ("-o", "losses={embedding_l2: {}}", *TEACHER_NONE),
            "embedding_l2 compares with a teacher",
        ),
        (("-t", "0"), "temperature 0.0: choose"),
        (("-t", "nan"), "temperature nan: choose"),
        (("-b", "1"), "batch_size 1: choose 2 to"),
        (("-b", "64", *TEACHER_NONE), "choose a smaller --batch-size"),
        (("-w", "-1"), "workers -1: choose 0 to"),
        (("--lr", "-1"), "lr -1.0: choose"),
        (("--train-set", "nope"), "unknown set 'nope'"),
        (
            ("--test-set", "agedb"),
            "run `persona shard agedb --align none --image-size 32`; --test-set none trains "
            "without a test set",
        ),
        (("--test-set", "nope"), "--test-set none trains without a test set"),
        (("--teacher", "nope"), "unknown model 'nope'"),
        (("-o", "from_model=3"), "from_model in the command line: expected str, found 3"),
        (("--config", "nope.yaml"), "cannot read config nope.yaml"),
        (("--hard-weight", "0", "--soft-weight", "0"), "sum to 0: there is nothing to learn"),
    ],
)
def test_bad_input_is_one_line(home: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in distill_error(*arguments, home=home)


def test_facenet_without_weights_offline(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert "models/teachers/20180402-114759-vggface2.pt" in distill_error(home=home)


def test_processes_that_no_gpu_is_there_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    alone = SimpleNamespace(device=torch.device("cpu"), num_processes=1)
    monkeypatch.setattr("persona.training.devices.Accelerator", lambda **_: alone)
    monkeypatch.setattr("persona.training.devices.keep_freed_memory", lambda: None)
    with pytest.raises(PersonaError, match="2 processes were launched and there is no GPU"):
        build_accelerator("no")
