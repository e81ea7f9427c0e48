"""`persona learn` as a user meets it: every method, killed and taken up, one run after another."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import NO_ALIGN, write_lfw, write_vggface2
from helpers import TWO_PROCESSES, _here, left_by_a_kill, persona_here, run
from little import LITTLE

from persona.config import StudentConfig
from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.data.sets import open_set
from persona.data.shards import read_manifest
from persona.learning import metrics
from persona.learning.configure import build_benchmark_config
from persona.learning.memory import Budget, Memory, reservoir
from persona.learning.photos import Photos
from persona.learning.stream import build_experience
from persona.models.cards import find_model, read_classes
from persona.models.store import save_model
from persona.models.student import Student
from persona.registry import METHODS
from persona.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from persona.workspace import Workspace

OLD, NEW = "vggface2-train", "vggface2-test"
LEARN = ("learn", "--on", NEW, "--steps", "4", "-b", "8", "--lr", "1e-3", "--tracker", "none")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two packed sets of six identities each, and a small LFW."""
    folder = tmp_path_factory.mktemp("home")
    write_vggface2(folder / "raw")
    for split in ("train", "test"):
        dataset = open_dataset("vggface2", folder / "raw", split)
        pack_photos(dataset, folder / "shards" / dataset.set_name, NO_ALIGN)
    write_lfw(folder / "raw")
    pack_photos(open_dataset("lfw", folder / "raw"), folder / "shards" / "lfw", NO_ALIGN)
    return folder


@pytest.fixture(scope="module")
def student(home: Path) -> str:
    """A student that knows the first six."""
    manifest = read_manifest(home / "shards" / OLD)
    return save_student(home, "student", manifest.classes)


@pytest.fixture(scope="module")
def known(home: Path) -> str:
    """A student like `student`, of the backbone that started processes know too."""
    manifest = read_manifest(home / "shards" / OLD)
    return save_student(home, "known", manifest.classes, architecture="mobilenet_v3_small")


def save_student(
    home: Path,
    name: str,
    classes: tuple[str, ...],
    seed: int = 0,
    batches: int = 0,
    architecture: str = LITTLE,
) -> str:
    """An untrained student of these identities, in the store; of embeddings alone without any.

    `batches` of noise give its batch norms statistics: without them its vectors are of 1e-6.
    """
    torch.manual_seed(seed)
    head = "linear" if classes else "none"
    options: dict[str, Any] = {} if architecture == LITTLE else {"width": 0.5}
    config = StudentConfig(architecture, embedding_size=32, **options)
    student = Student(config, len(classes), head=head, image_size=32)
    with torch.no_grad():
        for _ in range(batches):
            student.train()(torch.randn(16, 3, 32, 32))
    facts: dict[str, Any] = {
        "teacher": "none",
        "temperature": None,
        "epochs": 1,
        "score": None,
        "scores": {},
    }
    facts |= {"train_set": OLD, "test_set": "none", "config": {}}
    return save_model(home / "models", student, model_id=name, classes=classes, **facts).id


def learn_error(*arguments: str, home: Path) -> str:
    """A command in this process must fail as a user may see it; the line it would print."""
    from persona.cli.app import app
    from persona.cli.errors import explain

    result = _here(app, arguments, home)
    assert result.exception is not None, result.output
    explained = explain(result.exception)
    assert explained is not None, result.exception
    return explained[0]


def weights(home: Path, model_id: str) -> dict[str, torch.Tensor]:
    card = find_model(model_id, home / "models")
    return safetensors.torch.load_file(home / "models" / model_id / card.weights)


QUICK = {"replay", "ncm", "icarl"}
"""Methods that are run here; all of them go through a learner in test_learn_methods.py."""


def records(home: Path, run_id: str) -> list[dict[str, float]]:
    lines = (home / "runs" / run_id / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_student_that_collapses_is_called_so(
    home: Path, student: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "persona.learning.learner.Learner.spread", lambda _self, photos: 1e-6 * bool(len(photos))
    )
    card = persona_here(*LEARN, "--student", student, "--method", "ncm", home=home)
    assert (card["scores"]["collapsed"], card["scores"]["spread"]) == (True, 1e-6)
    assert records(home, card["id"])[-1]["test/spread"] == 1e-6
    assert f"warning: experience 1: {card['id']} has collapsed: it gives the people" in caplog.text


@pytest.mark.parametrize(
    "method",
    [
        m if m in QUICK else pytest.param(m, marks=pytest.mark.heavy)
        for m in METHODS.built_in
        if m != "anchor"
    ],
)
def test_a_method_makes_a_model_that_names_its_parent(
    home: Path, student: str, method: str
) -> None:
    options = ("--student", student, "--old", OLD, "--method", method, "--memory", "24")
    card = persona_here(*LEARN, *options, home=home)
    assert card["learned"]["parent"] == student
    assert (card["learned"]["method"], card["learned"]["set"]) == (method, NEW)
    assert (card["num_classes"], card["train_set"]) == (12, NEW)
    assert card["head"] == ("cosine" if method in {"ncm", "icarl"} else "linear")
    assert set(card["scores"]) - {"collapsed", "spread"} == {"accuracy", "new", "old"}
    assert persona_here("models", "show", card["id"], home=home) == card
    for kept in (f"runs/{card['id']}/checkpoint.pt", f"models/{card['id']}/classes.txt"):
        assert stat.S_IMODE((home / kept).stat().st_mode) == 0o600
    shown = find_model(card["id"], home / "models")
    classes = read_classes(shown, home / "models")
    assert classes[:6] == read_classes(find_model(student, home / "models"), home / "models")
    before, after = weights(home, student), weights(home, card["id"])
    moved = not torch.equal(before["last_linear.weight"], after["last_linear.weight"])
    assert moved == (method != "ncm")
    # Batch norm keeps its statistics.
    assert torch.equal(before["last_bn.running_mean"], after["last_bn.running_mean"])


def test_the_anchor_asks_the_original_teacher(home: Path) -> None:
    # The vectors of a bare one are too small for kept vectors, which are float16.
    classes = read_manifest(home / "shards" / OLD).classes
    student = save_student(home, "warm", classes, batches=20)
    options = ("--student", student, "--method", "anchor")
    error = learn_error(*LEARN, *options, home=home)
    assert error == (
        "method anchor wants the teacher that the student was distilled from, and none is at hand: "
        "name it with --teacher, or choose lwf, which keeps the student's own answers"
    )
    card = persona_here(*LEARN, *options, "--teacher", student, home=home)
    # Nobody kept a mean of the first six: the new model names the new ones.
    assert (card["num_classes"], card["head"]) == (6, "cosine")
    # Kept vectors, which are float16, are those that it gives.
    persona_here("targets", NEW, "--teacher", student, home=home)
    kept = persona_here(*LEARN, *options, "--teacher", student, home=home)
    losses = [records(home, c["id"])[0]["loss/anchor"] for c in (card, kept)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    assert losses[0] != losses[1]
    again = ("--student", card["id"], "--method", "anchor", "--teacher", student)
    second = persona_here(*LEARN, "--on", OLD, *again, home=home)
    assert (second["num_classes"], second["learned"]["experience"]) == (12, 2)


def rename(home: Path, model: str, name: str) -> None:
    from persona.cli.app import app

    assert _here(app, ("models", "rename", model, name), home).exception is None


def test_a_run_goes_on_from_what_its_parent_kept(home: Path, student: str) -> None:
    replay = ("--method", "replay", "--memory", "10")
    first = persona_here(*LEARN, "--student", student, *replay, home=home)
    rename(home, first["id"], "first")
    first["id"] = "first"  # what its run kept is found all the same
    second = persona_here(*LEARN, "--on", OLD, "--student", first["id"], *replay, home=home)
    assert first["learned"]["kept_bytes"]["memory"] > 0
    found = load_checkpoint(home / "runs" / second["id"])
    assert found is not None
    memory = found[2]["method"]["memory"]
    assert len(memory["labels"]) == 10
    assert {label // 6 for label in memory["labels"].tolist()} == {0, 1}


def test_what_is_held_out_leaves_the_memory(home: Path, student: str) -> None:
    replay = ("--method", "replay", "--memory", "30")
    first = persona_here(*LEARN, "--student", student, *replay, home=home)
    second = persona_here(*LEARN, "--student", first["id"], *replay, "--seed", "1", home=home)
    photos = Photos([open_set(NEW, home / "shards")])
    run = build_experience(photos, 0, photos.names, photos.of_set(0), 0.2, 1)
    found = load_checkpoint(home / "runs" / second["id"])
    assert found is not None
    memory = Memory(Budget(30), reservoir)
    memory.load(found[2]["method"]["memory"])
    assert {e.jpeg for e in memory.exemplars} == set(map(photos.jpeg, run.train.tolist()))


def test_a_parent_whose_run_has_not_ended_is_refused(home: Path, student: str) -> None:
    options = ("--method", "replay", "--memory", "10")
    first = persona_here(*LEARN, "--student", student, *options, home=home)
    found = load_checkpoint(home / "runs" / first["id"])
    assert found is not None
    progress, _, state = found
    progress.epoch = 0  # as if it was killed between saving the model and noting so
    save_checkpoint(home / "runs" / first["id"], progress, 1, state)
    error = learn_error(*LEARN, "--student", first["id"], *options, home=home)
    assert error == (
        f"run {first['id']}, which made {first['id']}, has gone on or stopped inside an "
        f"experience: end it first with `persona learn --resume {first['id']}`"
    )


def test_a_student_s_own_training_says_nothing_here(home: Path, student: str) -> None:
    checkpoint = home / "runs" / student / "checkpoint.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"of another version")
    assert persona_here(*LEARN, "--student", student, "--method", "ncm", home=home)
    shutil.rmtree(checkpoint.parent)


@pytest.mark.parametrize(("method", "said"), [("lwf", ""), ("ncm", "names those of the set alone")])
def test_who_begins_with_nothing_is_told(
    home: Path, student: str, method: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    persona_here(*LEARN, "--student", student, "--method", method, home=home)
    assert ("nothing is at hand of the 6 identities" in caplog.text) == bool(said)
    assert said in caplog.text


def test_identities_of_one_name_are_one(home: Path, student: str) -> None:
    options = ("--student", student, "--on", OLD, "--method", "finetune")
    assert persona_here(*LEARN, *options, home=home)["num_classes"] == 6


def test_what_was_learned_is_measured_by_name(home: Path, known: str) -> None:
    """The new model knows both sets' people: its logits are in neither set's order."""
    options = ("--student", known, "--old", OLD, "--method", "ncm", "--hold-out", "0")
    card = persona_here(*LEARN, *options, home=home)
    measure = ("--measure", "class", "--student", card["id"])
    for name in (OLD, NEW):
        found = persona_here("evaluate", "--set", name, *measure, home=home)
        assert (found["measure"], found["photos"]) == ("class", 30)
        assert found["accuracy"] > 0.3  # of 12 people by chance 0.08
    asked = ("evaluate", "--set", "lfw", *measure)
    assert "of set lfw are not, or not all, among those" in learn_error(*asked, home=home)


def test_experiences_come_one_after_another(home: Path, student: str) -> None:
    options = ("--student", student, "--method", "ewc", "--experiences", "3")
    card = persona_here(*LEARN, *options, home=home)
    assert (card["epochs"], card["learned"]["steps"], card["num_classes"]) == (3, 12, 12)
    noted = records(home, card["id"])
    assert [r["step"] for r in noted if "test/new" in r] == [4, 8, 12]
    assert [r["step"] for r in noted if "loss/penalty" in r] == [8, 12]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "der"), "unknown method 'der'; did you mean 'der++'?"),
        (("--method", "replay", "--memory", "0"), "and the memory budget is 0: give --memory"),
        (("--method", "der++", "--memory-mb", "0"), "and the memory budget is 0"),
        (("--method", "replay", "--memory-mb", "0.0001"), "a memory of 100 bytes holds no photo"),
        (("--method", "icarl", "--memory-mb", "0.0035"), "does not hold one photo of each of 6"),
        (("--method", "icarl", "--memory", "3"), "does not hold one photo of each of 6 identities"),
        (("--method", "joint"), "those of the 6 identities that"),
        (("--method", "lwf", "--old", NEW, "--on", OLD), "6 of 6 identities of --old"),
        (("--method", "lwf", "--old", NEW, "--on", NEW), "are the same photos: --old is a set of"),
        (("--method", "lwf", "--mixed-precision", "half"), "unknown mixed_precision 'half'"),
        (
            ("--method", "lwf", "--mixed-precision", "fp16"),
            "mixed_precision fp16 works on GPUs alone: choose bf16 or no here",
        ),
        (("--method", "lwf", "--experiences", "9"), "6 identities do not make 9 experiences"),
        (("--method", "lwf", "--teacher", "none"), "--teacher goes with --method anchor"),
        (("--method", "lwf", "-o", "lwf.temprature=1"), "did you mean 'lwf.temperature'?"),
        (("--method", "der++", "-o", "der.weight=2"), "unknown key 'der.weight'"),
        (("--method", "lwf", "-o", "steps.x=1"), "steps.x: steps has no such option"),
        (("--method", "lwf", "--lr", "1e9"), "lr 1000000000.0: choose 1e-09 to 10"),
        (("--method", "lwf", "--on", "nobody"), "unknown set 'nobody'"),
        (("--method", "lwf", "--student", "nobody"), "unknown model 'nobody'"),
        ((), "give --method"),
    ],
)
def test_what_a_user_can_get_wrong(
    home: Path, student: str, options: tuple[str, ...], message: str
) -> None:
    before = set((home / "runs").glob("*"))
    assert message in learn_error(*LEARN, "--student", student, *options, home=home)
    assert set((home / "runs").glob("*")) == before  # found before the first step


@pytest.mark.parametrize("method", ["ncm", "ewc"])
def test_a_budget_of_nothing_is_enough_for_who_keeps_no_photo(
    home: Path, student: str, method: str
) -> None:
    options = ("--student", student, "--method", method, "--memory", "0")
    assert "memory" not in persona_here(*LEARN, *options, home=home)["learned"]["kept_bytes"]


def one_photo_set(home: Path, identities: int, photos: int) -> str:
    """A packed set of so little."""
    name = f"small-{identities}-{photos}"
    raw = home / name
    write_vggface2(raw, identities=identities, photos=photos)
    dataset = open_dataset(f"folders:{raw / 'VGGFace2' / 'test'}", raw)
    pack_photos(dataset, home / "shards" / name, NO_ALIGN)
    return name


def test_one_identity_and_one_photo(home: Path, student: str) -> None:
    small = ("--on", one_photo_set(home, 1, 1), "--memory", "8")
    for method in ("finetune", "icarl", "der++"):
        options = ("--student", student, "--method", method)
        card = persona_here(*LEARN, *options, *small, home=home)
        assert (card["learned"]["identities"], card["score"]) == (1, None)
        assert all(bool(v.isfinite().all()) for v in weights(home, card["id"]).values())
    # Of a student of embeddings alone it would be the only identity.
    alone = save_student(home, "alone", ())
    error = learn_error(*LEARN, "--student", alone, "--method", "lwf", *small, home=home)
    assert error.startswith("the set has one identity, and the student would know no other")
    card = persona_here(*LEARN, "--student", alone, "--method", "ncm", *small, home=home)
    assert card["num_classes"] == 1


# --- killed and taken up --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "checkpoints", "place"),
    [
        ("der++", 2, (0, 4)),
        ("icarl", 4, (1, 2)),
        ("ewc", 3, (1, 0)),  # between experiences
        ("lwf", 4, (1, 2)),
        ("anchor", 5, (1, 4)),
    ],
)
def test_killed_it_goes_on_to_the_same_weights(
    home: Path,
    student: str,
    method: str,
    checkpoints: int,
    place: tuple[int, int],
    tmp_path: Path,
) -> None:
    options = ["--student", student, "--method", method, "--experiences", "2", "--memory", "12"]
    options += ["--teacher", student] if method == "anchor" else []
    options += ["--steps", "6", "--checkpoint-steps", "2"]
    with left_by_a_kill(checkpoints, home, tmp_path):
        run_id = persona_here(*LEARN, *options, home=home)["id"]
    stopped = load_checkpoint(tmp_path / "runs" / run_id)
    assert stopped is not None
    assert (stopped[0].epoch, stopped[0].batch) == place
    resumed = persona_here("learn", "--resume", run_id, home=tmp_path)
    assert resumed["id"] == run_id
    before, after = weights(home, run_id), weights(tmp_path, run_id)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [r["step"] for r in records(tmp_path, run_id) if "loss" in r] == [6, 12]
    done = persona_here("learn", "--resume", run_id, home=tmp_path)  # nothing is left
    assert done["weights_sha256"] == resumed["weights_sha256"]


@pytest.mark.parametrize(("checkpoints", "place"), [(2, (0, 4)), (3, (1, 0))])
def test_as_many_processes_go_on_inside_an_experience(
    home: Path, student: str, checkpoints: int, place: tuple[int, int], tmp_path: Path
) -> None:
    """An experience is not cut anew among others; between experiences any number may go on."""
    options = ["--student", student, "--method", "finetune", "--experiences", "2"]
    options += ["--steps", "6", "--checkpoint-steps", "2"]
    with left_by_a_kill(checkpoints, home, tmp_path):
        whole = persona_here(*LEARN, *options, home=home)
    folder = tmp_path / "runs" / whole["id"]
    stopped = load_checkpoint(folder)
    assert stopped is not None and (stopped[0].epoch, stopped[0].batch) == place
    save_checkpoint(folder, stopped[0], 2, stopped[2])
    if place[1]:
        assert learn_error("learn", "--resume", whole["id"], home=tmp_path) == (
            f"run {whole['id']} stopped inside an experience on 2 process(es): resume it on as "
            "many, not 1"
        )
        save_checkpoint(folder, stopped[0], 1, stopped[2])
    resumed = persona_here("learn", "--resume", whole["id"], home=tmp_path)
    assert resumed["weights_sha256"] == whole["weights_sha256"]


@pytest.mark.parametrize(("step", "place"), [(3, (0, 3)), (6, (1, 0))])
def test_told_to_end_it_writes_a_checkpoint_first(
    home: Path, student: str, step: int, place: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Progress.__setattr__

    def told(progress: Progress, name: str, value: Any) -> None:
        record(progress, name, value)
        if (name, value) == ("step", step):
            os.kill(os.getpid(), signal.SIGUSR1)

    options = ["--model", student, "--method", "replay", "--experiences", "2"]
    options += ["--steps", "6", "--checkpoint-steps", "100"]
    with monkeypatch.context() as patched:
        patched.setattr(Progress, "__setattr__", told)
        line = learn_error(*LEARN, *options, home=home)
    found = re.fullmatch(
        r"told to end \(SIGUSR1\): a checkpoint is written at step (\d+); run the command with "
        r"--resume (\S+) to go on",
        line,
    )
    assert found is not None and int(found[1]) == step
    stopped = load_checkpoint(home / "runs" / found[2])
    assert stopped is not None and (stopped[0].epoch, stopped[0].batch) == place
    resumed = persona_here("learn", "--resume", found[2], home=home)
    whole = persona_here(*LEARN, *options, home=home)
    assert resumed["weights_sha256"] == whole["weights_sha256"]


def test_a_run_is_taken_up_whatever_its_student_is_called(home: Path) -> None:
    before = save_student(home, "before", ("Ann", "Ben"))
    run_id = persona_here(*LEARN, "--student", before, "--method", "ncm", home=home)["id"]
    rename(home, before, "afterwards")
    card = persona_here("learn", "--resume", run_id, home=home)
    assert card["learned"]["parent"] in {"before", "afterwards"}
    shutil.rmtree(home / "models" / "afterwards")
    assert "unknown model 'before'" in learn_error("learn", "--resume", run_id, home=home)


def test_one_process_at_a_time_takes_a_run_up(home: Path, student: str, tmp_path: Path) -> None:
    from persona.files import folder_lock

    options = ("--student", student, "--method", "finetune", "--cache", str(tmp_path / "a"))
    run_id = persona_here(*LEARN, *options, home=home)["id"]
    with folder_lock(home / "runs" / run_id, doing="learning in"):
        error = learn_error("learn", "--resume", run_id, home=home)
    assert error.startswith(f"another process is learning in {home / 'runs' / run_id}: wait")
    persona_here("learn", "--resume", run_id, "--cache", str(tmp_path / "b"), home=home)
    assert str(tmp_path / "b") in (home / "runs" / run_id / "learn.yaml").read_text()


def test_precision_is_asked_for_or_the_launcher_s(
    home: Path, student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--student", student, "--method", "finetune")
    card = persona_here(*LEARN, *options, "--mixed-precision", "bf16", home=home)
    assert card["config"]["mixed_precision"] == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    again = persona_here(*LEARN, *options, home=home)
    assert again["weights_sha256"] == card["weights_sha256"]


def test_a_resumed_run_is_the_same_run(home: Path, student: str) -> None:
    options = ("--student", student, "--method", "finetune")
    run_id = persona_here(*LEARN, *options, home=home)["id"]
    error = learn_error("learn", "--resume", run_id, "--steps", "9", home=home)
    assert error == (
        f"run {run_id} has another config (steps: 4 is now 9): resume it without these options, or "
        "start a new run"
    )
    assert "unknown run of learning 'nobody'" in learn_error(
        "learn", "--resume", "nobody", home=home
    )
    found = load_checkpoint(home / "runs" / run_id)
    assert found is not None
    state = found[2]
    state["origin"]["sets"] = ["another"]
    save_checkpoint(home / "runs" / run_id, found[0], 1, state)
    error = learn_error("learn", "--resume", run_id, home=home)
    assert "was made with another config, student, set or teacher (sets: " in error
    path = home / "runs" / run_id / "learn.yaml"
    path.write_text("- 1\n")
    error = learn_error("learn", "--resume", run_id, home=home)
    assert error == f"{path} is damaged: start a new run"


WATCHED = """
import hashlib, json, sys
from pathlib import Path

import torch

from persona.cli import main
from persona.learning.learner import Learner

folder = Path(sys.argv.pop(1))
batch, learn = Learner._batch, Learner.learn


def digest(value):
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy().tobytes()
    elif isinstance(value, dict):
        value = [(name, digest(value[name])) for name in sorted(value)]
    elif isinstance(value, list | tuple):
        value = [digest(one) for one in value]
    return hashlib.sha256(value if isinstance(value, bytes) else repr(value).encode()).hexdigest()


def tell(learner, **said):
    with (folder / f"{learner.accelerator.process_index}.jsonl").open("a") as file:
        print(json.dumps(said), file=file)


def drawing(self, source, step):
    drawn = batch(self, source, step)
    tell(self, experience=source.number, step=step, photos=drawn.photos.tolist())
    return drawn


def learning(self, experience, **options):
    learn(self, experience, **options)
    kept = digest(self.method.state())
    tell(self, learned=experience.number, kept=kept, weights=digest(self.student.state_dict()))


Learner._batch, Learner.learn = drawing, learning
main()
"""
Row = dict[str, Any]


def learn_on_two(
    *options: str, home: Path, folder: Path
) -> tuple[Any, str, list[list[Row]], list[list[Row]]]:
    """Runs `persona learn` on two processes.

    Returns:
        What it printed as JSON and on stderr, and for each process its batches, and digests of what
        it has after each experience.
    """
    script, told = folder / "watched.py", folder / "told"
    script.write_text(WATCHED)
    told.mkdir()
    launch = ("accelerate.commands.launch", "--config_file", str(TWO_PROCESSES), str(script))
    done = run(*launch, str(told), *options, "--json", home=home)
    rows = [
        [json.loads(line) for line in (told / f"{rank}.jsonl").read_text().splitlines()]
        for rank in range(2)
    ]
    batches = [[row for row in own if "photos" in row] for own in rows]
    learned = [[row for row in own if "learned" in row] for own in rows]
    return json.loads(done.stdout), done.stderr, batches, learned


def assert_disjoint(batches: list[list[Row]]) -> None:
    """Both processes together go round after round through an experience, each photo once."""
    for experience in {row["experience"] for row in batches[0]}:
        rows = [
            (rank, row["step"], row["photos"])
            for rank, own in enumerate(batches)
            for row in own
            if row["experience"] == experience
        ]
        count = len({photo for _, _, photos in rows for photo in photos})
        rounds: dict[tuple[int, int], list[int]] = {}
        for rank, step, photos in rows:
            size = len(photos)  # smaller as soon as there is a memory, from which the rest is drawn
            for place, photo in enumerate(photos, (step * len(batches) + rank) * size):
                rounds.setdefault((size, place // count), []).append(photo)
        assert all(len(set(photos)) == len(photos) for photos in rounds.values())


@pytest.mark.heavy
@pytest.mark.parametrize("method", ["der++", "ewc"])
def test_two_processes_learn_as_one_run(
    home: Path, known: str, method: str, tmp_path: Path
) -> None:
    """Each sees its own photos; all keep the same memory and weights."""
    options = [*LEARN, "--student", known, "--method", method, "--memory", "12"]
    options += ["--experiences", "2"]
    card, told, batches, learned = learn_on_two(*options, home=home, folder=tmp_path)
    first, second = ([(row["experience"], row["step"]) for row in own] for own in batches)
    assert first == second and len(first) == 2 * 4
    assert_disjoint(batches)
    assert learned[0] == learned[1] and len(learned[0]) == 2
    assert len({row["weights"] for row in learned[0]}) == 2
    assert card["num_classes"] == 12
    assert "strides" not in told  # of gradients: they would be copied
    found = load_checkpoint(home / "runs" / card["id"])
    assert found is not None
    assert found[1] == 2
    if method == "der++":
        assert len(found[2]["method"]["memory"]["labels"]) == 12


# --- the benchmark --------------------------------------------------------------------------------


BENCHMARK = ("learn", "benchmark", "--on", NEW, "--steps", "2", "-b", "8", "--memory", "8")


def test_the_benchmark(
    home: Path, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("persona.report.plots.check_plot", drawn.append)
    monkeypatch.setattr("persona.learning.benchmark.write_plot", lambda *plot: drawn.append(plot))
    plot = tmp_path / "plot.svg"
    options = ["--student", student, "--methods", "finetune,ncm", "--seeds", "2"]
    options += ["--experiences", "2", "--hold-out", "0.4", "--test-set", "lfw", "--plot", str(plot)]
    found = persona_here(*BENCHMARK, *options, home=home)
    checked, (figure, path) = drawn  # checked before the first step
    assert checked == path == plot
    chance, *lines = figure.traces
    assert [line["name"] for line in lines] == ["finetune", "ncm"]
    assert chance["y"] == pytest.approx([1 / 3, 1 / 4, 1 / 6])
    for line in lines:
        seen = [run_["seen"] for run_ in found["runs"] if run_["method"] == line["name"]]
        assert line["y"] == pytest.approx([sum(column) / 2 for column in zip(*seen, strict=True)])
    final = found["methods"]["ncm"]
    label = f"<b>ncm</b> {final['final']:.3f} ± {final['final_std']:.3f}"
    assert figure.layout["annotations"][1]["text"] == label
    assert found["identities"] == [3, 1, 2]
    assert found["photos"] == {"train": [9, 3, 6], "test": [6, 2, 4]}
    assert found["steps"] == [4, 2, 2]  # as many an identity
    assert set(found["methods"]) == {"finetune", "ncm"}
    for run_ in found["runs"]:
        matrix = run_["accuracy"]
        assert [len(row) for row in matrix] == [3, 3, 3]
        assert all(0 <= value <= 1 for row in matrix for value in row)
        tests = [6, 2, 4]
        for number, seen in enumerate(run_["seen"]):
            done = range(number + 1)
            right = sum(matrix[number][j] * tests[j] for j in done)
            assert seen == pytest.approx(right / sum(tests[: number + 1]))
        assert run_["forgetting"] == pytest.approx(metrics.forgetting(matrix))
        assert run_["backward"] == pytest.approx(metrics.backward_transfer(matrix))
        assert len(run_["outside"]) == 3
    by_method = {name: [r for r in found["runs"] if r["method"] == name] for name in ("ncm",)}
    for run_ in by_method["ncm"]:
        # Frozen: what is outside the stream stays as it was after the base.
        assert run_["outside"][0] == run_["outside"][-1]
        assert run_["kept"] == {"means": 6 * 32 * 4}
    first = found["methods"]["finetune"]
    assert first["final"] == pytest.approx(
        sum(r["final"] for r in found["runs"] if r["method"] == "finetune") / 2
    )
    assert [r["seed"] for r in by_method["ncm"]] == [0, 1]


def test_a_benchmark_goes_on_where_it_stopped(
    home: Path, student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from persona.learning import benchmark

    options = ["--student", student, "--experiences", "2", "--hold-out", "0.4", "--base", "0.6"]
    options += ["--test-set", "lfw", "--methods", "finetune,ncm"]
    before = set((home / "runs").glob("benchmark-*"))
    whole = persona_here(*BENCHMARK, *options, "--seeds", "2", home=home)
    (folder,) = set((home / "runs").glob("benchmark-*")) - before
    kept = {path.name: path.read_bytes() for path in folder.glob("order-*.json")}
    assert len(kept) == 4
    (folder / "order-1-finetune.json").unlink()
    ran: list[tuple[str, int]] = []
    run_one = benchmark.Bench.run

    def watched(self: benchmark.Bench, method: str, order: benchmark.Order) -> dict[str, Any]:
        ran.append((method, order.seed))
        return run_one(self, method, order)

    monkeypatch.setattr(benchmark.Bench, "run", watched)
    again = persona_here(*BENCHMARK, *options, "--seeds", "3", home=home)
    assert ran == [("finetune", 1), ("finetune", 2), ("ncm", 2)]
    timed = {"seconds"}
    for one, other in zip(whole["runs"], again["runs"][:4], strict=True):
        assert all(other[name] == one[name] for name in one.keys() - timed)
    ran.clear()
    persona_here(*BENCHMARK, *options, "--seeds", "1", "--lr", "1e-2", home=home)
    assert ran == [("finetune", 0), ("ncm", 0)]  # another benchmark
    path = folder / "order-0-ncm.json"
    path.write_text('{"seed": 0, "method": "ncm"}')
    error = learn_error(*BENCHMARK, *options, "--seeds", "2", home=home)
    assert error == f"{path} is no run of ncm over order 0: remove it"


def test_a_method_that_fails_leaves_the_others(
    home: Path, student: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from persona.cli.app import app
    from persona.learning.methods.lwf import Lwf

    loss = Lwf.step

    def broken(self: Lwf, batch: Any) -> dict[str, torch.Tensor]:
        return {name: value * float("nan") for name, value in loss(self, batch).items()}

    monkeypatch.setattr(Lwf, "step", broken)
    options = ["--student", student, "--experiences", "2", "--hold-out", "0.4", "--seeds", "1"]
    options += ["--test-set", "lfw", "--methods", "lwf,ncm", "--lr", "2e-3"]
    drawn: list[Any] = []
    options += ["--plot", str(tmp_path / "plot.png")]
    monkeypatch.setattr("persona.report.plots.check_plot", lambda _path: None)
    monkeypatch.setattr("persona.learning.benchmark.write_plot", lambda *plot: drawn.append(plot))
    error = learn_error(*BENCHMARK, *options, home=home)
    assert [trace["name"] for trace in drawn[0][0].traces] == ["chance", "ncm"]
    assert error == "1 of 2 runs failed (lwf over order 0): see why above"
    done = _here(app, (*BENCHMARK, *options), home)
    rows = dict(re.findall(r"^ +(lwf|ncm) +(\S+)", done.stdout, re.M))
    assert rows["lwf"] == "failed"
    assert 0 <= float(rows["ncm"]) <= 1
    assert "order 0, lwf: failed: experience 2: the loss is nan at step 0" in done.stderr
    found = json.loads(_here(app, (*BENCHMARK, *options, "--json"), home).stdout)
    assert [(one["method"], one["seed"]) for one in found["failed"]] == [("lwf", 0)]
    assert found["methods"]["lwf"]["failed"] == [0]
    assert found["methods"]["lwf"]["final"] is None
    assert found["methods"]["ncm"]["failed"] == []
    monkeypatch.setattr(Lwf, "step", loss)
    assert persona_here(*BENCHMARK, *options, home=home)["failed"] == []  # it is run again


def test_weights_that_are_not_finite_are_not_kept(
    home: Path, student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from persona.learning.methods.finetune import Finetune

    def steep(*_: Any) -> dict[str, torch.Tensor]:
        (loss,) = step(*_).values()
        return {"loss": (loss - loss.detach()).sqrt()}  # 0, and its gradient is infinite

    step = Finetune.step
    monkeypatch.setattr(Finetune, "step", steep)
    models = set((home / "models").iterdir())
    options = ("--student", student, "--method", "finetune", "--steps", "1")
    error = learn_error(*LEARN, *options, home=home)
    assert error.startswith("experience 1: the weights are not finite after step 0: start a new")
    assert set((home / "models").iterdir()) == models


def test_a_benchmark_of_another_teacher_is_not_taken_up(home: Path, student: str) -> None:
    teacher = save_student(home, "anchor-teacher", ())
    options = ["--student", student, "--experiences", "2", "--hold-out", "0.4", "--seeds", "1"]
    options += ["--test-set", "lfw", "--methods", "anchor", "--teacher", teacher]
    before = set((home / "runs").glob("benchmark-*"))
    persona_here(*BENCHMARK, *options, home=home)
    (folder,) = set((home / "runs").glob("benchmark-*")) - before
    save_student(home, teacher, (), seed=1)
    error = learn_error(*BENCHMARK, *options, home=home)
    path = folder / "order-0-anchor.json"
    assert error == (f"{path} is of a teacher with other weights: restore them, or remove the file")
    path.unlink()
    persona_here(*BENCHMARK, *options, home=home)


@pytest.mark.heavy
def test_a_benchmark_on_two_processes(home: Path, known: str, tmp_path: Path) -> None:
    options = ["--student", known, "--experiences", "2", "--hold-out", "0.4", "--test-set", "lfw"]
    options += ["--methods", "finetune,replay,ncm", "--seeds", "1"]
    found, _, _, learned = learn_on_two(*BENCHMARK, *options, home=home, folder=tmp_path)
    assert learned[0] == learned[1] and len(learned[0]) >= 3 * 2
    assert set(found["methods"]) == {"finetune", "replay", "ncm"}
    alone = persona_here(*BENCHMARK, *options, home=home)
    assert found["steps"] == alone["steps"] and found["identities"] == alone["identities"]
    # Before the base is learned, the figures are the same on any number of processes.
    for two, one in zip(found["runs"], alone["runs"], strict=True):
        assert two["method"] == one["method"] and two["start"] == one["start"]
        for figure in ("auc", "eer"):
            before, same = (run["outside_before"][figure] for run in (two, one))
            assert before == pytest.approx(same)


def test_the_benchmark_prints_a_table(home: Path, student: str) -> None:
    options = ["--student", student, "--methods", "ncm", "--seeds", "1", "--experiences", "2"]
    options += ["--hold-out", "0.4", "--on", "both"]
    raw = home / "both"
    for split in ("train", "test"):
        shutil.copytree(home / "raw" / "VGGFace2" / split, raw, dirs_exist_ok=True)
    pack_photos(open_dataset(f"folders:{raw}", home), home / "shards" / "both", NO_ALIGN)
    from persona.cli.app import app

    done = _here(app, (*BENCHMARK, *options), home)
    assert done.exception is None
    assert "forgetting" in done.stdout
    assert "Outside (a fifth of both) before the stream: AUC" in done.stdout
    assert "order 0, ncm: incremental" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--methods", "finetune,ewk"), "unknown method 'ewk'; did you mean 'ewc'?"),
        (("--methods", "anchor"), "method anchor wants the teacher"),
        (("--methods", "replay", "--memory", "0"), "and the memory budget is 0"),
        (("--methods", "ncm", "--base", "1"), "base 1.0: choose a share between 0 and 1"),
        (("--methods", "ncm", "--experiences", "9"), "do not make a base of 0.5 and 9 experiences"),
        (("--methods", "ncm", "--hold-out", "0"), "has no photo to measure on"),
    ],
)
def test_a_benchmark_that_cannot_be(
    home: Path, student: str, options: tuple[str, ...], message: str
) -> None:
    fixed = ("--student", student, "--experiences", "2", "--test-set", "lfw")
    assert message in learn_error(*BENCHMARK, *fixed, *options, home=home)


def test_a_method_that_is_named_twice_is_run_once(home: Path, student: str) -> None:
    """Its runs counted twice, with a deviation between equal ones."""
    place, given = Workspace.locate(home=home), {"on": "both", "student": student}
    config, chosen, _ = build_benchmark_config(place, given, {}, "ncm, finetune,ncm")
    assert (config.method, chosen) == ("ncm", ["ncm", "finetune"])
