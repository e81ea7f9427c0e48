"""The model store's housekeeping."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_hub import run_hub
from helpers import TESTS, persona_here, run
from little import LITTLE
from typer.testing import CliRunner

from persona.cli.app import app
from persona.config import StudentConfig
from persona.data.align.spec import AlignSpec
from persona.deploy.model_card import model_card
from persona.deploy.model_page import model_page
from persona.errors import PersonaError
from persona.files import sha256_file
from persona.models import manage
from persona.models.cards import (
    CARD,
    CLASSES,
    _Alignment,
    find_model,
    list_models,
    read_card,
    read_classes,
    stored_card,
)
from persona.models.manage import import_model, remove_model, rename_model
from persona.models.public import public_card
from persona.models.sources import load_network
from persona.models.store import load_model, save_model
from persona.models.student import Student

FACTS: dict[str, Any] = {
    "teacher": "none",
    "temperature": None,
    "epochs": 1,
    "score": 0.5,
    "scores": {},
    "train_set": "drawn",
    "test_set": "none",
    "config": {},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, of which each test has a copy."""
    folder = tmp_path_factory.mktemp("written") / "models"
    return write_models(folder, StudentConfig(width=0.35, embedding_size=8))


@pytest.fixture
def models(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "models")


def write_models(folder: Path, config: StudentConfig) -> Path:
    for name, teacher in (("large", "none"), ("small", "large")):
        facts = {**FACTS, "teacher": teacher}
        save_model(folder, Student(config, 2), model_id=name, classes=("a", "b"), **facts)
    return folder


def test_a_renamed_model_is_the_same_under_its_new_name(models: Path) -> None:
    digest = read_card(models / "large").weights_sha256
    rename_model("large", "my-teacher_1.0", models)
    assert [card.id for card in list_models(models)] == ["my-teacher_1.0", "small"]
    assert load_network("my-teacher_1.0", models).digest == digest
    assert not (models / "large").exists()


def test_names_and_last_layers_are_their_owners_alone(models: Path) -> None:
    def private(name: str) -> dict[str, bool]:
        files = (models / name).iterdir()
        return {path.name.partition("-")[0]: not path.stat().st_mode & 0o077 for path in files}

    expected = {"weights": True, CLASSES: True, CARD: False}
    assert private("large") == expected
    rename_model("large", "renamed", models)
    assert private("renamed") == expected
    student = Student(StudentConfig(width=0.35, embedding_size=8), 0, head="none")
    save_model(models, student, model_id="bare", classes=(), **FACTS)
    assert not private("bare")["weights"]  # it has nobody's template


KILLED_AT_EACH = """
import itertools, os, shutil, sys
from pathlib import Path
from persona import files
from persona.files import sha256_file
from persona.models.cards import list_models, read_card, read_classes, stored_card
from persona.models.manage import import_model, remove_model, rename_model

CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir")
CHANGES += ("os.chmod", "os.truncate", "os.link")
commands, models, hub_url = sys.argv[1].split(","), Path(sys.argv[2]), sys.argv[3]
theirs, before = models.parent / "theirs", models.parent / "before"

def pull():
    from persona.models import hub
    from huggingface_hub import HfApi
    hub.open_hub = lambda: HfApi(hub_url, token="hf_token")
    hub.pull("me/large", "other", models)

def save(name):
    sys.path.append(sys.argv[4])
    import little, torch
    from persona.models.store import load_model, save_model
    card = stored_card("small", before)
    student = load_model(card, before)
    with torch.no_grad():
        next(student.parameters()).add_(1.0)  # another file than the one that is there
    facts = {name: getattr(card, name) for name in ("teacher", "temperature", "epochs", "score")}
    facts |= {"train_set": "drawn", "test_set": "none", "config": {}, "scores": {}}
    save_model(models, student, model_id=name, classes=("a", "b"), **facts)

COMMANDS = {
    "rename": (lambda: rename_model("large", "other", models), {"other", "small"}),
    "import": (lambda: import_model(theirs, "other", models), {"large", "other", "small"}),
    "remove": (lambda: remove_model("large", models), {"small"}),
    "pull": (pull, {"large", "other", "small"}),
    "save": (lambda: save("other"), {"large", "other", "small"}),
    "save again": (lambda: save("large"), {"large", "small"}),
}

def fork(run, stop):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = itertools.count(1)
    def die(event, arguments):
        if event in CHANGES and next(count) == stop:
            os._exit(9)
    files._SWEPT.clear()  # as in a process that has just begun
    sys.addaudithook(die)
    try:
        run()
        os._exit(0)
    finally:
        os._exit(1)

for command in commands:
    run, wanted = COMMANDS[command]
    shutil.rmtree(models)
    shutil.copytree(before, models)
    run()  # so that what is imported on the way is no file operation of its own below
    for stop in itertools.count(1):
        shutil.rmtree(models)
        shutil.copytree(before, models)
        code = fork(run, stop)
        place = (command, stop)
        assert code in (0, 9), (place, code)
        found = {card.id: card for card in list_models(models)}
        assert set(found) in ({"large", "small"}, wanted), (place, set(found))
        for card in found.values():
            assert sha256_file(models / card.id / card.weights) == card.weights_sha256
            read_classes(card, models)
        half = "other" in found and read_card(models / "other").id != "other"
        if set(found) != wanted or half or (command == "save again" and code):
            assert fork(run, -1) == 0, place
        assert {card.id for card in list_models(models)} == wanted, place
        assert "other" not in wanted or read_card(models / "other").id == "other"
        assert {path.name for path in models.iterdir()} == wanted, place
        for name in wanted:
            assert len(list((models / name).iterdir())) == 3, (place, name)
        if code == 0:
            break
    assert stop > 5, place
"""


@pytest.mark.parametrize("commands", ["rename,import,remove,pull", "save,save again"])
def test_killed_at_any_moment_models_are_whole_and_it_runs_again(
    tmp_path: Path, commands: str
) -> None:
    """Commands that import torch share a process, as importing takes longer than the rest."""
    models = write_models(tmp_path / "models", StudentConfig(LITTLE, embedding_size=8))
    shutil.copytree(models / "large", tmp_path / "theirs")
    shutil.copytree(models, tmp_path / "before")
    with run_hub() as hub:
        hub.repositories["me/large"] = {
            path.name: path.read_bytes() for path in (models / "large").iterdir()
        }
        script = [sys.executable, "-c", KILLED_AT_EACH, commands, str(models), hub.url, TESTS]
        environment = os.environ | {"HF_HUB_OFFLINE": "0"}
        done = subprocess.run(script, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_what_is_hidden_is_no_model(models: Path) -> None:
    shutil.copytree(models / "large", models / ".pull-x1y2")
    shutil.copytree(models / "large", models / "copy")
    assert [card.id for card in list_models(models)] == ["copy", "large", "small"]
    with pytest.raises(PersonaError, match=r"unknown model '\.pull-x1y2'"):
        find_model(".pull-x1y2", models)


def test_the_rest_of_a_model_is_no_model_and_in_nobodys_way(models: Path) -> None:
    (models / "small" / CARD).unlink()
    assert rename_model("large", "small", models).id == "small"
    (models / "mine").mkdir()
    (models / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(PersonaError, match="there is a mine below"):
        rename_model("small", "mine", models)


def test_of_two_imports_under_one_name_the_later_is_refused(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"

    def slow(path: Path) -> str:
        """The small model is imported while the weights of the large one are compared."""
        if path.parent.name == "large":
            import_model(models / "small", "same", here)
        return sha256_file(path)

    monkeypatch.setattr(manage, "sha256_file", slow)
    with pytest.raises(PersonaError, match=r"there is a same below .*: choose another name"):
        import_model(models / "large", "same", here)
    digest = read_card(models / "small").weights_sha256
    assert stored_card("same", here).weights_sha256 == digest
    assert sha256_file(next((here / "same").glob("weights-*"))) == digest
    assert [path.name for path in here.iterdir()] == ["same"]


HOSTILE: list[Any] = [None, True, -1, 10**30, 1e308, float("nan"), "x" * 5000, "../x", [], {}]
HOSTILE += [[[]], {"a": {"b": 1}}, json.loads("[" * 500 + "]" * 500), ["x"] * 1000]


@pytest.mark.parametrize("part", ["card", "student"])
def test_a_card_of_a_stranger_is_refused_in_one_line(
    models: Path, tmp_path: Path, part: str
) -> None:
    if part == "card":  # most of these values are no mistake, and the network is built
        models = write_models(tmp_path / "little", StudentConfig(LITTLE, embedding_size=8))
    path = models / "small" / CARD
    card = json.loads(path.read_text())
    for name in card["student"] if part == "student" else card:
        for value in (*HOSTILE, ...):
            changed = copy.deepcopy(card)
            place = changed["student"] if part == "student" else changed
            if value is ...:
                del place[name]
            else:
                place[name] = value
            path.write_text(json.dumps(changed))
            try:
                found = stored_card("small", models)
                json.dumps(dataclasses.asdict(found))
                model_card(found, "mit", "me/small")
                model_page(found, [models / found.weights], is_shipped=False)
                assert public_card(found).crops and found.aligned_by
                load_model(stored_card("small", models), models)
            except PersonaError as error:
                assert "\n" not in str(error) and len(str(error)) < 600 + len(str(path))


@pytest.mark.parametrize(
    "scores",
    [
        {"intervals": ["auc"]},
        {"intervals": {"auc": 1}},
        {"intervals": {"auc": [0.1, "x"]}},
        {"intervals": {"auc": [None, 0.5]}},
        {"tar_at_far": {"0.001": "high"}},
        {"tar_at_far": [0.5]},
        {"threshold_at_far": {"0.001": []}},
        {"groups": {"a": 1}},
        {"groups": {"a": {}}},
        {"groups": "all"},
        {"auc": "x"},
    ],
)
def test_figures_of_a_stranger_that_are_no_numbers_are_refused(
    models: Path, scores: dict[str, Any]
) -> None:
    path = models / "small" / CARD
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scores": scores}))
    with pytest.raises(PersonaError, match="scores hold figures that are no numbers"):
        stored_card("small", models)


@pytest.mark.parametrize("table", ["threshold_at_far", "tar_at_far"])
@pytest.mark.parametrize("rate", ["one in a thousand", "nan", "0", "-0.1", "1.5", "9" * 5000])
def test_a_far_of_a_stranger_is_a_rate(models: Path, table: str, rate: str) -> None:
    path = models / "small" / CARD
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scores": {table: {rate: 0.5}}}))
    with pytest.raises(PersonaError, match="cannot be: its scores hold a FAR that is no rate"):
        stored_card("small", models)


HUGE = int("9" * 401)
"""An integer that is no float."""


@pytest.mark.parametrize(
    "number", [float("nan"), float("inf"), HUGE], ids=["nan", "infinity", "huge"]
)
@pytest.mark.parametrize(
    "part",
    [
        *("score", "temperature", "bytes", "threshold_at_far", "tar_at_far", "spread"),
        *("config", "learned", "started_from"),
    ],
)
def test_numbers_of_a_stranger_are_finite(models: Path, part: str, number: float) -> None:
    path = models / "small" / CARD
    card = json.loads(path.read_text())
    if part in {"threshold_at_far", "tar_at_far"}:
        card["scores"] = {part: {"0.001": number}}
    elif part == "spread":
        card["scores"] = {part: number}
    else:
        nested = part in {"config", "learned", "started_from"}
        card[part] = {"a": [{"b": number}]} if nested else number
    path.write_text(json.dumps(card))
    with pytest.raises(PersonaError, match=r"card\.json") as refused:
        stored_card("small", models)
    # A float cannot be made of the largest ones, and bytes are no fraction.
    if part not in {"score", "temperature", "bytes"}:
        assert "its values hold a number that is not finite, or over 1e308" in str(refused.value)


@pytest.mark.parametrize("threshold", [1.0011, -1.0011, 2, 1e300])
def test_a_threshold_of_a_stranger_is_a_cosine(models: Path, threshold: float) -> None:
    path = models / "small" / CARD
    card = json.loads(path.read_text())
    for value, good in ((threshold, False), (1.0000001, True), (-1, True), (None, True)):
        path.write_text(json.dumps(card | {"scores": {"threshold_at_far": {"0.001": value}}}))
        if good:
            assert stored_card("small", models).threshold == (value and (value, 0.001))
        else:
            with pytest.raises(PersonaError, match=r"cannot be: its thresholds are no cosines"):
                stored_card("small", models)


def test_an_alignment_of_a_stranger_is_one(models: Path) -> None:
    path = models / "small" / CARD
    card = json.loads(path.read_text())
    for alignment, line in (
        ({"foo": 1}, "unknown key 'alignment.foo' in "),
        ({"margin": "14"}, "alignment.margin in "),
        ({"method": 1}, "alignment.method in "),
    ):
        path.write_text(json.dumps(card | {"alignment": alignment}))
        with pytest.raises(PersonaError, match=rf"^{line}.*card\.json"):
            stored_card("small", models)
    spec = AlignSpec("landmarks", 112, min_face=40)
    path.write_text(json.dumps(card | {"alignment": vars(spec)}))
    assert stored_card("small", models).alignment == vars(spec)


@pytest.mark.parametrize("classes", [b"a\nc\n", b"a\n", b"", b"a\n\xff\n", b"a\r\nb\r\n"])
def test_other_classes_than_the_card_says_are_refused(
    models: Path, tmp_path: Path, classes: bytes
) -> None:
    (models / "small" / CLASSES).write_bytes(classes)
    for read in (
        lambda: read_classes(stored_card("small", models), models),
        lambda: import_model(models / "small", "new", tmp_path / "here"),
    ):
        with pytest.raises(PersonaError, match=r"classes\.txt does not match the checksum"):
            read()
    assert not (tmp_path / "here" / "new").exists()


@pytest.mark.parametrize(
    "name", ["small", "", "a/b", "..", ".hidden", "x" * 101, "facenet-vggface2", "runtimes", "a\nb"]
)
def test_names_that_cannot_be(models: Path, name: str) -> None:
    with pytest.raises(PersonaError, match=r"is no name for a model|there is a small below"):
        rename_model("large", name, models)
    assert (models / "large" / CARD).is_file()


def test_a_removed_model_is_gone(models: Path) -> None:
    remove_model("small", models)
    assert not (models / "small").exists()
    with pytest.raises(PersonaError, match=r"unknown model 'small'.*large"):
        remove_model("small", models)


def test_a_model_of_another_store_is_taken_in_whole_or_not(models: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    assert import_model(models / "large", "theirs", here).id == "theirs"
    assert load_network("theirs", here).digest == load_network("large", models).digest
    with pytest.raises(PersonaError, match=r"holds no model: expected card\.json"):
        import_model(tmp_path, None, here)
    weights = next((models / "small").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(PersonaError, match="does not match the checksum"):
        import_model(models / "small", None, here)
    weights.unlink()
    with pytest.raises(PersonaError, match=r"has no weights-.*\.safetensors"):
        import_model(models / "small", None, here)
    assert [card.id for card in list_models(here)] == ["theirs"]


def test_a_bad_card_is_in_nobodys_way_and_can_be_removed(models: Path) -> None:
    shutil.copytree(models / "small", models / "bad")
    (models / "bad" / CARD).write_text("{")
    shutil.copytree(models / "small", models / "other")
    (models / "other" / CARD).write_text('{"version": 99}')
    home = {"PERSONA_HOME": str(models.parent)}
    assert [card.id for card in list_models(models)] == ["large", "small"]
    assert find_model(None, models).id == "small"
    done = run("persona", "models", "list", "--json", home=models.parent)
    assert {"large", "small"} <= {row["id"] for row in json.loads(done.stdout)}
    for name in ("bad", "other"):
        (line,) = (li for li in done.stderr.splitlines() if f"warning: model {name} is " in li)
        assert line.endswith(f"or remove the model with `persona models remove {name}`")
    for arguments, words in (
        (["models", "rename", "large", "older"], "note: small learned from large"),
        (["models", "remove", "bad"], "bad is removed"),
        (["models", "remove", "other"], "other is removed"),
    ):
        result = CliRunner().invoke(app, arguments, env=home)
        assert result.exit_code == 0 and words in result.output, result.output
    assert {path.name for path in models.iterdir()} == {"older", "small"}


def test_the_commands(models: Path, tmp_path: Path) -> None:
    home = {"PERSONA_HOME": str(models.parent)}
    assert persona_here("models", "show", "large", home=models.parent)["score"] == 0.5
    theirs = shutil.copytree(models / "large", tmp_path / "copy")
    for arguments, words in (
        (["models", "show", "small"], "A face network (mobilenet_v3_small, "),
        (["models", "rename", "large", "older"], "large is now older"),
        (["models", "rename", "older", "large"], "older is now large"),
        (["models", "import", str(theirs), "--name", "copy"], "copy: mobilenet_v3_small"),
        (["models", "remove", "large"], "note: small learned from large"),
    ):
        result = CliRunner().invoke(app, arguments, env=home)
        assert result.exit_code == 0 and words in result.output, result.output
    done = run("persona", "models", "remove", "nobody", home=models.parent, fails=True)
    assert "unknown model 'nobody'" in done.stderr


def test_a_card_knows_the_fields_of_an_alignment() -> None:
    """They are written twice, because models/ may not import data/."""
    known, meant = (
        {field.name: field.type for field in dataclasses.fields(kind)}
        for kind in (_Alignment, AlignSpec)
    )
    assert known == meant
