"""The model store's housekeeping."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import persona_here, run
from typer.testing import CliRunner

from persona.cli.app import app
from persona.config import StudentConfig
from persona.errors import PersonaError
from persona.models.cards import CARD, CLASSES, list_models, read_card
from persona.models.manage import import_model, remove_model, rename_model
from persona.models.store import load_network, save_model
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


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    for name, teacher in (("large", "none"), ("small", "large")):
        student = Student(StudentConfig(width=0.35, embedding_size=8), 2)
        facts = {**FACTS, "teacher": teacher}
        save_model(folder, student, model_id=name, classes=("a", "b"), **facts)
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


def test_a_rename_that_was_killed_leaves_whole_models(models: Path) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("persona.models.manage.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            rename_model("large", "other", models)
    assert [card.id for card in list_models(models)] == ["large", "small"]


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


def test_the_commands(models: Path, tmp_path: Path) -> None:
    home = {"PERSONA_HOME": str(models.parent)}
    assert persona_here("models", "show", "large", home=models.parent)["score"] == 0.5
    copy = shutil.copytree(models / "large", tmp_path / "copy")
    for arguments, words in (
        (["models", "show", "small"], "architecture: mobilenet_v3_small"),
        (["models", "rename", "large", "older"], "large is now older"),
        (["models", "rename", "older", "large"], "older is now large"),
        (["models", "import", str(copy), "--name", "copy"], "copy: mobilenet_v3_small"),
        (["models", "remove", "large"], "note: small learned from large"),
    ):
        result = CliRunner().invoke(app, arguments, env=home)
        assert result.exit_code == 0 and words in result.output, result.output
    done = run("persona", "models", "remove", "nobody", home=models.parent, fails=True)
    assert "unknown model 'nobody'" in done.stderr
