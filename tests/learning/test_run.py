"""`persona learn` as a user meets it: every method, killed and taken up, one run after another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import NO_ALIGN, write_vggface2
from helpers import _here, distill_here, persona_here

from persona.config import METHODS
from persona.data.pack import pack_photos
from persona.data.raw import open_dataset
from persona.models.cards import find_model, read_classes
from persona.training.checkpoint import load_checkpoint

OLD, NEW = "vggface2-train", "vggface2-test"
LEARN = ("learn", "--on", NEW, "--steps", "4", "-b", "8", "--tracker", "none")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two packed sets of six identities each."""
    folder = tmp_path_factory.mktemp("home")
    write_vggface2(folder / "raw")
    for split in ("train", "test"):
        dataset = open_dataset("vggface2", folder / "raw", split)
        pack_photos(dataset, folder / "shards" / dataset.set_name, NO_ALIGN)
    return folder


@pytest.fixture(scope="module")
def student(home: Path) -> str:
    """A student that knows the first six."""
    return distill_here("--teacher", "none", "-e", "1", home=home)


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


@pytest.mark.parametrize("method", [m for m in METHODS if m != "anchor"])
def test_a_method_makes_a_model_that_names_its_parent(
    home: Path, student: str, method: str
) -> None:
    options = ("--student", student, "--old", OLD, "--method", method, "--memory", "24")
    card = persona_here(*LEARN, *options, home=home)
    assert card["learned"]["parent"] == student
    assert (card["learned"]["method"], card["learned"]["set"]) == (method, NEW)
    assert (card["num_classes"], card["train_set"]) == (12, NEW)
    assert card["head"] == ("cosine" if method in {"ncm", "icarl"} else "linear")
    assert set(card["scores"]) == {"accuracy", "new", "old"}
    assert persona_here("models", "show", card["id"], home=home) == card
    shown = find_model(card["id"], home / "models")
    classes = read_classes(shown, home / "models")
    assert classes[:6] == read_classes(find_model(student, home / "models"), home / "models")
    before, after = weights(home, student), weights(home, card["id"])
    moved = not torch.equal(before["last_linear.weight"], after["last_linear.weight"])
    assert moved == (method != "ncm")
    # Batch norm keeps its statistics.
    assert torch.equal(before["last_bn.running_mean"], after["last_bn.running_mean"])


def test_the_anchor_asks_the_original_teacher(home: Path, student: str) -> None:
    options = ("--student", student, "--method", "anchor")
    error = learn_error(*LEARN, *options, home=home)
    assert error == (
        "method anchor wants the teacher that the student was distilled from, and none is at hand: "
        "name it with --teacher, or choose lwf, which keeps the student's own answers"
    )
    card = persona_here(*LEARN, *options, "--teacher", student, home=home)
    # Nobody kept a mean of the first six: the new model names the new ones.
    assert (card["num_classes"], card["head"]) == (6, "cosine")
    again = ("--student", card["id"], "--method", "anchor", "--teacher", student)
    second = persona_here(*LEARN, "--on", OLD, *again, home=home)
    assert (second["num_classes"], second["learned"]["experience"]) == (12, 2)


def test_a_run_goes_on_from_what_its_parent_kept(home: Path, student: str) -> None:
    replay = ("--method", "replay", "--memory", "10")
    first = persona_here(*LEARN, "--student", student, *replay, home=home)
    second = persona_here(*LEARN, "--on", OLD, "--student", first["id"], *replay, home=home)
    assert first["learned"]["kept_bytes"]["memory"] > 0
    found = load_checkpoint(home / "runs" / second["id"])
    assert found is not None
    memory = found[2]["method"]["memory"]
    assert len(memory["labels"]) == 10
    assert {label // 6 for label in memory["labels"].tolist()} == {0, 1}


def test_identities_of_one_name_are_one(home: Path, student: str) -> None:
    options = ("--student", student, "--on", OLD, "--method", "finetune")
    assert persona_here(*LEARN, *options, home=home)["num_classes"] == 6


def test_experiences_come_one_after_another(home: Path, student: str) -> None:
    options = ("--student", student, "--method", "ewc", "--experiences", "3")
    card = persona_here(*LEARN, *options, home=home)
    assert (card["epochs"], card["learned"]["steps"], card["num_classes"]) == (3, 12, 12)
    lines = (home / "runs" / card["id"] / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["step"] for r in records if "test/new" in r] == [4, 8, 12]
    assert [r["step"] for r in records if "loss/penalty" in r] == [8, 12]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "der"), "unknown method 'der'; did you mean 'der++'?"),
        (("--method", "replay", "--memory", "0"), "and the memory budget is 0: give --memory"),
        (("--method", "der++", "--memory-mb", "0"), "and the memory budget is 0"),
        (("--method", "replay", "--memory-mb", "0.0001"), "a memory of 100 bytes holds no photo"),
        (("--method", "icarl", "--memory", "3"), "does not hold one photo of each of 6 identities"),
        (("--method", "joint"), "those of the 6 identities that"),
        (("--method", "lwf", "--old", NEW), "6 of 6 identities of --old"),
        (("--method", "lwf", "--experiences", "9"), "6 identities do not make 9 experiences"),
        (("--method", "lwf", "--teacher", "none"), "--teacher goes with --method anchor"),
        (("--method", "lwf", "-o", "lwf.temprature=1"), "did you mean 'lwf.temperature'?"),
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
    assert message in learn_error(*LEARN, "--student", student, *options, home=home)


@pytest.mark.parametrize("method", ["finetune", "ncm", "lwf", "ewc"])
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
    for method in ("finetune", "replay", "icarl", "der++", "ewc"):
        options = ("--student", student, "--method", method)
        card = persona_here(*LEARN, *options, *small, home=home)
        assert (card["learned"]["identities"], card["score"]) == (1, None)
        assert all(bool(v.isfinite().all()) for v in weights(home, card["id"]).values())
    # Of a student of embeddings alone it would be the only identity.
    alone = distill_here(
        *("--teacher", student, "-e", "1", "-o", "losses={embedding_cosine: {}}"), home=home
    )
    error = learn_error(*LEARN, "--student", alone, "--method", "lwf", *small, home=home)
    assert error.startswith("the set has one identity, and the student would know no other")
    card = persona_here(*LEARN, "--student", alone, "--method", "ncm", *small, home=home)
    assert card["num_classes"] == 1
