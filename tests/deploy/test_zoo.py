"""Models that are shipped with Persona: made from a model of the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from students import SECRET, write_student

from persona.deploy.zoo import Shipped, check_shipped, write_shipped
from persona.errors import PersonaError
from persona.models import cards
from persona.models.cards import Card, find_model, shipped_card, shipped_ids
from persona.models.embedder import Embedder
from persona.models.sources import (
    known_names,
    load_embedder,
    load_network,
    network_digest,
    source_of,
)

LICENCE = "for research alone, as the photos that it was trained on"


def ship(home: Path, name: str = "persona-s") -> Card:
    """Ships a tiny student in the place that `ZOO` names."""
    card = write_student(home / "store")
    scores: dict[str, Any] = {
        "measure": "verification",
        "auc": 0.9,
        "accuracy": 0.8,
        "tar_at_far": {"0.001": 0.5, "0.0001": None},
        "intervals": {"accuracy": [0.75, 0.85], "threshold@0.001": [0.4, 0.5]},
    }
    thresholds = {"0.01": 0.3, "0.001": 0.4567, "0.0001": 0.6}
    shipped = Shipped(
        *(name, "51,727 real faces without labels", LICENCE, "lfw", scores, "auc"),
        thresholds=thresholds,
        threshold_from="all 57,000,000 pairs of two people of selection and lfw",
    )
    return write_shipped(card, home / "store", shipped)


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(cards, "ZOO", tmp_path / "zoo")
    yield tmp_path / "zoo"


def test_an_entry_is_its_weights_in_float16_and_a_card(zoo: Path, tmp_path: Path) -> None:
    made = ship(tmp_path)
    endings = sorted(path.name.removeprefix("persona-s") for path in zoo.iterdir())
    assert endings == [".md", ".onnx", ".safetensors"]
    state = safetensors.torch.load_file(zoo / "persona-s.safetensors")
    assert state["last_linear.weight"].dtype == torch.float16
    assert state["last_bn.running_var"].dtype == torch.float32
    assert not any(name.startswith("logits") for name in state)
    assert shipped_card("persona-s") == made and shipped_ids() == ["persona-s"]
    assert (made.num_classes, made.teacher, made.score) == (0, "onnx:teacher.onnx", 0.9)
    assert made.threshold == (0.4567, 0.001)
    text = (zoo / "persona-s.md").read_text()
    assert SECRET not in text and "Ada Lovelace" not in text
    for wanted in (
        *("51,727 real faces", LICENCE, "0.8000 (0.7500 to 0.8500)", "| FAR=1e-4 | 0.6000 |"),
        *("all 57,000,000 pairs of two people of selection and lfw", "not made for surveillance"),
    ):
        assert wanted in text


def test_embeddings_are_those_of_the_run(zoo: Path, tmp_path: Path) -> None:
    from persona.deploy.faces import drawn_faces
    from persona.deploy.zoo import embed_faces
    from persona.models.store import load_model

    ship(tmp_path)
    assert check_shipped("persona-s") > 0.99999
    faces = drawn_faces(32, 8)
    old = embed_faces(
        load_model(find_model("small", tmp_path / "store"), tmp_path / "store"), faces
    )
    new = embed_faces(load_network("persona-s", tmp_path / "none").network, faces)  # type: ignore[arg-type]
    assert np.abs((old * new).sum(axis=1) - 1).max() < 1e-3


def test_it_embeds_without_torch_from_the_same_weights(zoo: Path, tmp_path: Path) -> None:
    from persona.deploy.faces import drawn_faces
    from persona.deploy.zoo import embed_faces
    from persona.landmarks import template

    card = ship(tmp_path)
    weights, graph = zoo / card.weights, zoo / "persona-s.onnx"
    assert graph.stat().st_size < 150_000  # it holds no weights
    opened = load_embedder("persona-s", tmp_path)
    assert isinstance(opened.network, Embedder) and opened.digest == card.weights_sha256
    assert (opened.image_size, opened.alignment) == (32, card.alignment)
    faces = drawn_faces(32, 8)
    points = np.tile(np.vstack([template(32), (1.0, 1.0)]), (8, 1, 1))
    wanted = embed_faces(load_network("persona-s", tmp_path).network, faces)  # type: ignore[arg-type]
    found = opened.network.embed(faces, points)
    assert np.abs((found * wanted).sum(axis=1) - 1).max() < 1e-5
    for path in (graph, weights):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(PersonaError, match="does not match the checksum in its card: install"):
            load_embedder("persona-s", tmp_path)
        path.write_bytes(whole)


@pytest.mark.parametrize("name", shipped_ids())
def test_what_is_shipped_embeds_as_it_did(name: str) -> None:
    check_shipped(name)
    assert shipped_card(name).licence and shipped_card(name).threshold is not None


def test_weights_changed_by_a_byte_are_refused(zoo: Path, tmp_path: Path) -> None:
    ship(tmp_path)
    path = zoo / "persona-s.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(PersonaError, match="does not match the checksum in its card"):
        load_network("persona-s", tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 1}, "is no model card of version"),
        ({"id": "other"}, "is not the card of persona-s"),
        ({"weights": "../x.safetensors"}, "is not the card of persona-s"),
        ({"image_size": 3}, "cannot be: its image_size is 3"),
        (None, "is no model card: install Persona again"),
    ],
)
def test_other_cards_are_refused(
    zoo: Path, tmp_path: Path, change: dict[str, Any] | None, told: str
) -> None:
    ship(tmp_path)
    path = zoo / "persona-s.md"
    front = yaml.safe_load(path.read_text().split("---\n")[1])
    front = {} if change is None else front | {"persona": front["persona"] | change}
    path.write_text(f"---\n{yaml.safe_dump(front)}---\ntext\n")
    with pytest.raises(PersonaError, match=told):
        find_model("persona-s", tmp_path)


def test_a_model_of_ones_own_is_taken_first(
    zoo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = ship(tmp_path)
    with caplog.at_level("INFO", "persona"):
        assert find_model(None, tmp_path / "none") == made
    assert "taking persona-s, which is shipped with Persona" in caplog.text
    assert find_model(None, tmp_path / "store").id == "small"
    own = write_student(tmp_path / "store", "persona-s")  # as an older Persona allowed
    assert find_model("persona-s", tmp_path / "store") == own
    assert network_digest("persona-s", tmp_path / "store") == own.weights_sha256


def test_every_source_of_names_knows_it(zoo: Path, tmp_path: Path) -> None:
    assert not any(name.startswith("persona") for name in known_names(tmp_path))  # none yet
    made = ship(tmp_path)
    models = tmp_path / "models"
    assert "persona-s" in known_names(models)
    source = source_of("persona-s", models)
    assert source.card("persona-s", models) == made
    assert network_digest("persona-s", models) == made.weights_sha256
    assert source.file("persona-s", models) == zoo / "persona-s.safetensors"
    named = load_network("persona-s", models)
    assert (named.digest, named.image_size, named.classes) == (made.weights_sha256, 32, ())
    with pytest.raises(PersonaError, match="does not name the people it was trained on"):
        source.identities("persona-s", models)
    for name in ("persona-z", "../zoo/persona-s"):
        with pytest.raises(PersonaError, match="unknown model"):
            load_network(name, models)


def test_a_shipped_model_is_not_changed(zoo: Path, tmp_path: Path) -> None:
    from persona.models.manage import check_name, remove_model, rename_model

    ship(tmp_path)
    stays = "is shipped with Persona and stays as it is"
    with pytest.raises(PersonaError, match=stays):
        remove_model("persona-s", tmp_path)
    with pytest.raises(PersonaError, match=stays):
        rename_model("persona-s", "mine", tmp_path)
    with pytest.raises(PersonaError, match="is no name for a model"):
        check_name("persona-s", tmp_path)


def test_what_cannot_be_shipped(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(PersonaError, match="name the model like a file"):
        ship(tmp_path, "../x")
    assert not zoo.exists()
