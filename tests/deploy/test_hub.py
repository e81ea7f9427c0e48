"""Models to and from a hub, a local one of the same protocol."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fake_hub import Hub, run_hub
from little import LITTLE
from typer.testing import CliRunner

from persona.cli.app import app
from persona.config import StudentConfig
from persona.deploy.hub import push
from persona.deploy.model_card import model_card
from persona.errors import PersonaError
from persona.models import hub as hub_module
from persona.models.cards import CARD_KEY, list_models, read_card
from persona.models.graphs import read_onnx
from persona.models.hub import parse_repository, pull, pull_once
from persona.models.sources import load_network
from persona.models.store import save_model
from persona.models.student import Student

TOKEN = "hf_" + "secret" * 5
NAMES = ("Ada Lovelace", "Alan Turing")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    scores = {"model": "small", "set": "lfw", "measure": "verification", "accuracy": 0.75}
    save_model(
        folder,
        Student(StudentConfig(LITTLE, embedding_size=8), 2, image_size=32),
        model_id="small",
        classes=NAMES,
        teacher="onnx:/home/ada/secret-place/teacher.onnx",
        temperature=4.0,
        epochs=3,
        score=0.75,
        scores=scores,
        train_set="office",
        test_set="lfw",
        config={"teacher": "onnx:/home/ada/secret-place/teacher.onnx"},
    )
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import HfApi

    with run_hub() as server:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub_module, "open_hub", lambda: HfApi(server.url, token=TOKEN))
        yield server


def put(models: Path, repository: str = "me/small", licence: str = "mit", **options: Any) -> str:
    card = read_card(models / "small")
    return push(card, models, repository, licence=licence, onnx=False, **options)


def test_what_is_pushed_comes_back(models: Path, tmp_path: Path, hub: Hub) -> None:
    assert put(models).startswith(hub.url)
    assert hub.created[0]["visibility"] == "private"
    card = pull("me/small", "copy", tmp_path / "there")
    assert (card.id, card.score, card.teacher) == ("copy", 0.75, "onnx:teacher.onnx")
    images = torch.randn(2, 3, 32, 32)
    networks = [
        load_network(*place).network.eval()
        for place in (("small", models), ("copy", tmp_path / "there"))
    ]
    with torch.inference_mode():
        found = [network.embed(images) for network in networks]
    torch.testing.assert_close(*found)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["copy"]
    with pytest.raises(PersonaError, match="there is a copy"):
        pull("me/small", "copy", tmp_path / "there")


def test_the_licence_is_that_of_card_and_readme(models: Path, tmp_path: Path, hub: Hub) -> None:
    put(models)
    assert pull("me/small", None, tmp_path / "there").licence == "mit"
    path = models / "small" / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"licence": "research only"}))
    with pytest.raises(PersonaError, match="small may be used under 'research only', by its card"):
        put(models)
    put(models, licence="other")
    files = hub.repositories["me/small"]
    assert json.loads(files["card.json"])["licence"] == "research only"
    readme = files["README.md"].decode()
    assert "license: other" in readme and "| conditions of use | research only |" in readme


def test_no_name_path_or_class_centre_leaves_the_house(models: Path, hub: Hub) -> None:
    put(models)
    files = hub.repositories["me/small"]
    everything = b"".join(files.values())
    for secret in (*NAMES, "secret-place", "/home/ada"):
        assert secret.encode() not in everything
    card = json.loads(files["card.json"])
    assert (card["num_classes"], card["head"]) == (0, "none")
    put(models, with_classes=True)
    assert hub.repositories["me/small"]["classes.txt"].decode().split("\n")[:2] == list(NAMES)


def test_a_push_removes_what_the_one_before_left(
    models: Path, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    put(models, with_classes=True)
    files = hub.repositories["me/small"]
    files["model.onnx"], files["notes.txt"] = b"old", b"the user's own"
    (first,) = (name for name in files if name.startswith("weights-"))
    assert b"logits.weight" in files[first] and not caplog.records
    for _ in range(2):
        put(models)
        (second,) = (name for name in files if name.startswith("weights-"))
        assert second != first and second == json.loads(files["card.json"])["weights"]
        assert sorted(files) == ["README.md", "card.json", "classes.txt", "notes.txt", second]
        everything = b"".join(files.values())
        assert not [secret for secret in ("logits.weight", *NAMES) if secret.encode() in everything]
        (record,) = caplog.records  # of the first push alone: the second replaced nothing
        assert "removed from me/small, but its history still holds them" in record.getMessage()


def test_the_readme_is_a_model_card(models: Path, hub: Hub) -> None:
    put(models)
    text = hub.repositories["me/small"]["README.md"].decode()
    _, front, body = text.split("---\n", 2)
    values = yaml.safe_load(front)
    assert (values["license"], values["datasets"]) == ("mit", ["office"])
    result = values["model-index"][0]["results"][0]
    assert result["metrics"] == [{"type": "accuracy", "name": "accuracy", "value": 0.75}]
    assert "biometric" in body and "| teacher | onnx:teacher.onnx |" in body


def readme_of(models: Path, **changes: Any) -> tuple[dict[str, Any], str]:
    """Front matter and text of the README of the model with changes to its card."""
    text = model_card(replace(read_card(models / "small"), **changes), "mit", "me/small")
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_only_verification_is_told_as_face_verification(models: Path) -> None:
    learned = {"learned": {"parent": "a"}, "test_set": "none", "train_set": "new"}
    front, body = readme_of(models, **learned, scores={"accuracy": 0.9, "new": 0.8})
    assert "model-index" not in front and "none" not in body
    assert "| measured on | held-out photos of its own people (new) |" in body
    front, body = readme_of(models, scores={"measure": "class", "accuracy": 0.9})
    assert "model-index" not in front and "| measured on | lfw, measure class |" in body
    front, body = readme_of(models, scores={"accuracy": 0.9, "auc": None})  # imported
    assert front["metrics"] == ["accuracy"] and "model-index" in front
    assert "| accuracy | 0.9000 |" in body and "AUC" not in body


def test_the_commands_of_the_readme_are_of_its_repository(
    models: Path, tmp_path: Path, hub: Hub
) -> None:
    put(models, "me/faces-1.0")
    _, _, use = hub.repositories["me/faces-1.0"]["README.md"].decode().partition("## Use\n\n")
    pulling, *others = [line.split() for line in use.partition("\n\n")[0].splitlines()]
    assert pulling[:3] == ["persona", "models", "pull"]
    pulled = pull(parse_repository(pulling[3]), None, tmp_path / "there")
    assert pulled.id == "faces-1.0"
    assert [line[1] for line in others] == ["evaluate", "export"]
    assert {line[-1] for line in others} == {pulled.id}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "asks for a login: run `hf auth login`"),
        (403, "your login may not do that"),
        (404, "there is no such repository"),
    ],
)
def test_a_hub_that_refuses(
    models: Path, tmp_path: Path, hub: Hub, status: int, words: str
) -> None:
    hub.status = status
    for act in (lambda: put(models), lambda: pull("me/small", None, tmp_path / "there")):
        with pytest.raises(PersonaError, match=words) as raised:
            act()
        assert TOKEN not in str(raised.value)
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert list_models(tmp_path / "there") == []


def test_a_hub_that_is_not_there_or_breaks_off(
    models: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(models)
    hub.cut = True
    there = tmp_path / "there"
    with pytest.raises(PersonaError, match=r"hf://me/small: the transfer failed \(\w+\)"):
        pull("me/small", None, there)
    assert list(there.iterdir()) == []  # no half file
    hub.cut = False
    weights = next(name for name in hub.repositories["me/small"] if name.startswith("weights-"))
    data = hub.repositories["me/small"][weights]
    hub.repositories["me/small"][weights] = data[:-7] + b"changed"
    # It names the repository, not the folder that it came into.
    with pytest.raises(PersonaError, match=r"^hf://me/small/weights-.* not match the checksum"):
        pull("me/small", None, there)
    hub.repositories["me/other"] = {"README.md": b"hello"}
    with pytest.raises(PersonaError, match=r"hf://me/other holds no model .*: no card\.json"):
        pull("me/other", None, there)
    monkeypatch.setattr(hub_module, "MAX_BYTES", 100)
    with pytest.raises(PersonaError, match="no student is"):
        pull("me/small", None, there)
    assert list(there.iterdir()) == []


def test_a_hub_that_sends_without_end(models: Path, tmp_path: Path, hub: Hub) -> None:
    put(models)
    hub.endless = True
    there = tmp_path / "there"
    with pytest.raises(PersonaError, match=r"card\.json is over 4,194,304 bytes: no student is"):
        pull("me/small", None, there)
    assert hub.sent < 20_000_000
    assert list(there.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"bytes": 600_000_000}, "is over 500,000,000 bytes: no student is"),
        ({"bytes": 100}, r"weights-.* is over 100 bytes: no student is"),
        ({"weights": "../../evil"}, "names weights outside its folder: '../../evil'"),
        ({"id": "../evil"}, "its id '../evil' is no name"),
        ({"num_classes": 10**12}, "num_classes 1,000,000,000,000 are too many"),
        ({"score": "high"}, "score in hf://me/small/card.json: expected float, found 'high'"),
        ({"scores": {"accuracy": "x"}}, "its scores hold figures that are no numbers"),
    ],
)
def test_a_card_that_lies(
    models: Path, tmp_path: Path, hub: Hub, changed: dict[str, Any], words: str
) -> None:
    put(models)
    files = hub.repositories["me/small"]
    files["card.json"] = json.dumps(json.loads(files["card.json"]) | changed).encode()
    with pytest.raises(PersonaError, match=words):
        pull("me/small", "mine", tmp_path / "there")
    assert list((tmp_path / "there").iterdir()) == []


def test_only_what_a_model_is_made_of_is_asked_for(models: Path, tmp_path: Path, hub: Hub) -> None:
    put(models)
    for name in ("weights-/../../../evil.safetensors", "../evil", "weights-[!].safetensors"):
        hub.repositories["me/small"][name] = b"evil"
    there = tmp_path / "deep" / "there"
    card = pull("me/small", None, there)
    assert [model.id for model in list_models(there)] == [card.id]
    assert not [path for path in tmp_path.rglob("*") if b"evil" in path.name.encode()]
    assert all(b"evil" not in p.read_bytes() for p in there.rglob("*") if p.is_file())
    assert hub.asked == ["card.json", "classes.txt", card.weights]


def test_processes_that_need_the_same_model_pull_it_once(
    models: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(models)
    fetch, there = hub_module._fetch, tmp_path / "there"

    def slow(*arguments: Any) -> None:
        time.sleep(0.1)
        fetch(*arguments)

    monkeypatch.setattr(hub_module, "_fetch", slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: pull_once("me/small", there), range(2))
    assert first == second
    assert hub.asked == ["card.json", "classes.txt", first.weights, "card.json"]
    assert [path.name for path in there.iterdir()] == ["small"]


@pytest.mark.parametrize("url", ["me/small", "hf://me", "hf://me/../x", "hf://a/b/c", "hf://a b/c"])
def test_what_is_no_repository(url: str) -> None:
    with pytest.raises(PersonaError, match="expected hf://OWNER/NAME"):
        parse_repository(url)
    assert parse_repository("hf://me/small-1.0") == "me/small-1.0"


def test_the_commands(
    models: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persona.deploy.faces.FACES", 8)
    for arguments, words in (
        (["push", "small", "hf://me/small", "--licence", "mit"], "small is at http"),
        (["pull", "hf://me/small", "--name", "again"], "again: little"),
    ):
        result = CliRunner().invoke(
            app, ["models", *arguments], env={"PERSONA_HOME": str(tmp_path)}
        )
        assert result.exit_code == 0 and words in result.output, result.output
    path = tmp_path / "model.onnx"
    path.write_bytes(hub.repositories["me/small"]["model.onnx"])
    metadata = read_onnx(path).metadata
    assert metadata["persona.licence"] == json.loads(metadata[CARD_KEY])["licence"] == "mit"


def test_without_the_extra_a_stored_model_is_told_in_one_line(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    with pytest.raises(PersonaError, match=r"the hub needs huggingface_hub: .*hub\]"):
        load_network("hf://me/small", models)


def test_the_hub_is_a_source_of_networks(models: Path, tmp_path: Path, hub: Hub) -> None:
    put(models)
    there = tmp_path / "there"
    named = load_network("hf://me/small", there)
    assert (named.name, named.digest) == ("small", read_card(there / "small").weights_sha256)
    hub.asked.clear()
    assert load_network("hf://me/small", there).digest == named.digest
    assert hub.asked == ["card.json"]  # what is here is not downloaded again
    with pytest.raises(PersonaError, match="there is a small"):
        load_network("hf://me/small", models)  # another of this name, with a last layer
    with pytest.raises(PersonaError, match="expected hf://OWNER/NAME"):
        load_network("hf://me", there)
