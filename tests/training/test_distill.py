"""The real training command: one process and two, killed and taken up again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from conftest import NO_ALIGN, write_lfw, write_vggface2
from helpers import DISTILL, distill, environment, persona, run

from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.models.cards import find_model

TEACHER_NONE = ("--teacher", "none")


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
    return distill(*TEACHER_NONE, "-e", "2", "--test-set", "lfw", home=home)


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
    assert card.score == card.scores["accuracy"]
    listed = persona("models", "list", home=home)
    keys = [
        "id",
        "architecture",
        "parameters",
        "bytes",
        "teacher",
        "temperature",
        "epochs",
        "score",
        "created",
    ]
    assert list(listed[0]) == keys
    assert teacher in [row["id"] for row in listed]


def test_distilling_from_a_model_and_evaluating_it(home: Path, teacher: str) -> None:
    student = distill("--teacher", teacher, "-e", "1", "-t", "3", home=home)
    card = find_model(student, home / "models")
    assert (card.teacher, card.temperature) == (teacher, 3.0)
    assert card.architecture == "mobilenet_v3_small"
    records = (home / "runs" / student / "metrics.jsonl").read_text()
    assert "loss/soft_targets" in records and "loss/hard_labels" in records
    scores = home / "scores.csv"
    figures = persona(
        "evaluate", "--set", "lfw", "--student", student, "--scores", str(scores), home=home
    )
    assert list(figures) == (
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
    newest = persona("evaluate", "--set", "lfw", home=home)
    assert newest["accuracy"] == figures["accuracy"]
    classes = persona("evaluate", "--set", "vggface2", "--measure", "class", home=home)
    assert (classes["measure"], classes["photos"]) == ("class", 30)


def test_killed_and_resumed_it_ends_in_the_same_weights(home: Path, teacher: str) -> None:
    """SIGKILL inside an epoch; momentum, rate and position must come back."""
    options = ("--teacher", teacher, "-e", "3", "--checkpoint-steps", "1", "--seed", "7")
    whole = weights(home, distill(*options, home=home))
    known = set((home / "runs").iterdir())
    process = subprocess.Popen(
        [sys.executable, "-m", "persona.distill", *DISTILL, *options],
        env=environment(home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while True:
        fresh = set((home / "runs").iterdir()) - known
        if fresh:
            run_folder = fresh.pop()
            checkpoint = run_folder / "checkpoint.pt"
            if checkpoint.exists():
                step = torch.load(checkpoint, weights_only=True)["progress"]["step"]
                if step >= 8:  # 6 steps an epoch: in the second
                    break
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    progress = torch.load(checkpoint, weights_only=True)["progress"]
    assert progress["epoch"] == 1 and 0 < progress["batch"] < 6, progress
    resumed = weights(home, distill("--resume", run_folder.name, home=home))
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    steps = [json.loads(x)["step"] for x in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_resume_refuses_another_recipe_and_unknown_runs(home: Path, teacher: str) -> None:
    done = run(
        "persona.distill", "--resume", teacher, "--lr", "0.5", *TEACHER_NONE, home=home, fails=True
    )
    assert "has another recipe (optim.lr: 0.001 is now 0.5)" in done.stderr
    done = run("persona.distill", "--resume", "nope", home=home, fails=True)
    assert "unknown run 'nope'" in done.stderr and teacher in done.stderr


def test_two_processes_train_evaluate_and_save_once(home: Path, teacher: str) -> None:
    student = distill("--teacher", teacher, "-e", "1", "--test-set", "lfw", home=home, processes=2)
    card = find_model(student, home / "models")
    alone = persona("evaluate", "--set", "lfw", "--student", student, "-b", "5", home=home)
    assert card.scores["pairs"] == 12
    assert card.scores["accuracy"] == alone["accuracy"]
    assert card.scores["auc"] == alone["auc"]


def test_evaluation_on_two_processes_gives_the_same_figures(home: Path, teacher: str) -> None:
    launch = ("torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m", "persona")
    arguments = ("evaluate", "--set", "lfw", "--student", teacher, "--json")
    two = json.loads(run(*launch, *arguments, home=home).stdout)
    one = json.loads(run("persona", *arguments, home=home).stdout)
    assert two == one


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
    accelerator.prepare(student), student, Teacher(teacher, teacher.head()), DistillConfig().losses
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
accelerator.end_training()
"""


def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    """Really started processes (gloo), the same global batch of 8."""
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    grads = []
    for number, launcher in enumerate(
        ([], ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"])
    ):
        out = tmp_path / f"{number}.pt"
        done = subprocess.run(
            [sys.executable, *launcher, str(script), str(out)],
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        grads.append(torch.load(out, weights_only=True))
    one, two = grads
    assert one.keys() == two.keys()
    assert max(float(g.abs().max()) for g in one.values()) > 1e-2
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-5, msg=name)


def test_accumulation_takes_fewer_steps_and_drops_no_gradient(home: Path) -> None:
    student = distill(
        *TEACHER_NONE, "-e", "1", "--gradient-accumulation-steps", "2", "-b", "4", home=home
    )
    last = (home / "runs" / student / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["step"] == 3  # 7 batches of 4 fit, 6 are used, two a step


def test_bf16_trains(home: Path, teacher: str) -> None:
    student = distill("--teacher", teacher, "-e", "1", "--mixed-precision", "bf16", home=home)
    assert {value.dtype for value in weights(home, student).values()} <= {
        torch.float32,
        torch.int64,
    }


def test_wandb_without_a_login_is_offline_and_says_how_to_sync(home: Path, tmp_path: Path) -> None:
    done = run(
        "persona.distill",
        *DISTILL,
        *TEACHER_NONE,
        "-e",
        "1",
        "--tracker",
        "wandb",
        "--json",
        home=home,
        WANDB_MODE=None,
        HOME=str(tmp_path),
        NETRC=str(tmp_path / "none"),
    )
    assert done.stderr.count("wandb sync") == 1
    run_folder = home / "runs" / json.loads(done.stdout)["id"]
    assert list((run_folder / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mobilenet_v3_smal",), "did you mean 'mobilenet_v3_small'"),
        (("-e", "0"), "epochs 0: choose 1 to"),
        (("-t", "0"), "temperature 0.0: choose"),
        (("-t", "nan"), "temperature nan: choose"),
        (("-b", "1"), "batch_size 1: choose 2 to"),
        (("-b", "64", *TEACHER_NONE), "choose a smaller --batch-size"),
        (("-w", "-1"), "workers -1: choose 0 to"),
        (("--lr", "-1"), "lr -1.0: choose"),
        (("--train-set", "nope"), "unknown set 'nope'"),
        (("--teacher", "nope"), "unknown model 'nope'"),
        (("--config", "nope.yaml"), "cannot read config nope.yaml"),
        (("--hard-weight", "0", "--soft-weight", "0"), "nothing to learn"),
    ],
)
def test_bad_input_is_one_line(home: Path, arguments: tuple[str, ...], message: str) -> None:
    # In this process: the command line is the same, and torch is imported once.
    from typer.testing import CliRunner

    from persona.cli.distill import app
    from persona.cli.errors import explain

    result = CliRunner().invoke(app, [*DISTILL, *arguments], env={"PERSONA_HOME": str(home)})
    assert result.exception is not None
    explained = explain(result.exception)
    assert explained is not None, result.exception
    assert message in explained[0]


def test_facenet_without_weights_offline(home: Path, tmp_path: Path) -> None:
    done = run(
        "persona.distill",
        *DISTILL,
        home=home,
        fails=True,
        TORCH_HOME=str(tmp_path),
        https_proxy="http://127.0.0.1:9",
    )
    assert "Traceback" not in done.stderr
    assert "models/teachers/20180402-114759-vggface2.pt" in done.stderr
