"""A model that is shipped with Persona is taken wherever a model is."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import write_lfw
from helpers import _here, distill_here, persona_error_here, persona_here

from persona.cli.app import app
from persona.config import StudentConfig
from persona.data.synthetic import draw_identity, draw_photo
from persona.deploy import graph
from persona.deploy.exports import ExportOptions
from persona.models import cards
from persona.models.store import save_model
from persona.models.student import Student

NAME = "persona-s"
FLAT = ("--align", "none", "--image-size", "32", "-w", "1")
LICENCE = "research alone"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home without models, a set called lfw, and a zoo that `scripts/zoo.py` made."""
    import torch

    folder = tmp_path_factory.mktemp("home")
    write_lfw(folder / "data" / "raw")
    with pytest.MonkeyPatch.context() as patch:
        trace_once(patch)
        patch.setattr(cards, "ZOO", folder / "zoo")
        patch.setenv("PERSONA_HOME", str(folder / "run"))
        persona_here("shard", "lfw", *FLAT, home=folder)
        (folder / "run").mkdir()
        (folder / "run" / "shards").symlink_to(folder / "shards")
        torch.manual_seed(0)
        student = Student(
            StudentConfig(width=0.35, embedding_size=16), 0, head="none", image_size=32
        )
        facts: dict[str, Any] = {"teacher": "none", "temperature": None, "epochs": 1, "score": None}
        facts |= {"scores": {}, "train_set": "faces", "test_set": "none", "config": {}}
        save_model(folder / "run" / "models", student, model_id="small", classes=(), **facts)
        ship = _script()
        patch.setattr(ship, "FARS", (1e-1, 1e-2))
        common = ("--data", "drawn faces", "--licence", LICENCE, "--set", "lfw")
        ship.main(["small", NAME, *common, "--calibrate", "lfw", "lfw", "--resamples", "20"])
        yield folder


def trace_once(patch: pytest.MonkeyPatch) -> None:
    """Exports of the one student take the graph that was traced before, which takes seconds."""
    import onnx

    trace, traced = graph._trace, dict[tuple[ExportOptions, bool], bytes]()

    def once(student: Student, options: ExportOptions, *, optimise: bool = True) -> Any:
        known = (options, optimise)
        if known not in traced:
            traced[known] = trace(student, options, optimise=optimise).SerializeToString()
        return onnx.load_from_string(traced[known])

    patch.setattr(graph, "_trace", once)


def _script() -> Any:
    path = Path(__file__).parents[2] / "scripts" / "zoo.py"
    spec = importlib.util.spec_from_file_location("zoo_script", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_listed_and_shown_as_shipped(home: Path) -> None:
    (row,) = persona_here("models", "list", home=home)
    assert (row["id"], row["shipped"], row["scored_on"]) == (NAME, True, "lfw")
    card = persona_here("models", "show", home=home)  # none is named: this one is taken
    assert (card["id"], card["shipped"], card["licence"]) == (NAME, True, LICENCE)
    assert set(card["scores"]["threshold_at_far"]) == {"0.1", "0.01"}
    assert "threshold@0.1" in card["scores"]["intervals"]
    assert "is shipped with Persona" in persona_error_here("models", "remove", NAME, home=home)


def test_its_page_and_those_of_a_store_and_of_a_folder(home: Path) -> None:
    card = cards.shipped_card(NAME)
    page = _here(app, ("models", "show", NAME), home).stdout
    assert page.startswith(f"{NAME} (shipped with Persona)\nA face network (")
    for wanted in (
        *("FAR=1e-1", "FAR=1e-2", f"Files in {home / 'zoo'}", LICENCE, card.weights_sha256),
        *(f"{card.bytes:,} bytes", f"{NAME}.onnx", f"{NAME}.md", "  AUC ", "95 % intervals"),
    ):
        assert wanted in page
    folder = home / "run" / "models" / "small"
    stored = _here(app, ("models", "show", "small"), home / "run").stdout
    assert stored.startswith("small\nA face network (") and f"Files in {folder}\n" in stored
    assert _here(app, ("models", "show", str(folder)), home).stdout == stored
    assert persona_here("models", "show", str(folder), home=home) == persona_here(
        "models", "show", "small", home=home / "run"
    )
    told = persona_error_here("models", "show", str(home), home=home)
    assert "card.json" in told and "\n" not in told


def test_it_is_measured(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persona.deploy.bench._peak_memory", lambda *_: 0)  # other processes'
    monkeypatch.setattr("persona.deploy.bench._cores", lambda: 1)  # the report would keep them all
    card = cards.shipped_card(NAME)
    found = persona_here("evaluate", "--set", "lfw", "--model", NAME, home=home)
    assert (found["auc"], found["model"]) == (card.scores["auc"], NAME)  # the table's digits
    assert persona_here("evaluate", "--set", "lfw", home=home)["auc"] == found["auc"]
    costs = persona_here("bench", NAME, "--rounds", "1", "--runs", "1", home=home)["models"]
    assert [cost["runtime"] for cost in costs] == ["torch", "onnxruntime"]
    assert costs[0]["bytes"] == card.bytes
    out = home / "report.html"
    persona_here("report", NAME, "--set", "lfw", "--out", str(out), home=home)
    assert NAME in out.read_text()


def test_it_is_exported_with_its_condition(home: Path) -> None:
    import onnx

    out = home / "net.onnx"
    assert persona_here("export", "--out", str(out), home=home)["model"] == NAME
    facts = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert facts["persona.licence"] == LICENCE
    given = persona_here("evaluate", "--set", "lfw", "--model", f"onnx:{out}", home=home)
    assert given["auc"] == pytest.approx(cards.shipped_card(NAME).scores["auc"], abs=0.02)


def test_it_teaches_and_learns(home: Path) -> None:
    kept = persona_here("targets", "lfw", "--teacher", NAME, home=home)
    assert kept["embedding_size"] == 16
    common = ("--train-set", "lfw", "-e", "1", "-o", "losses={embedding_cosine: {}}")
    student = distill_here("mobilenet_v3_small", "--teacher", NAME, *common, home=home)
    card = persona_here("models", "show", student, home=home)
    assert card["student"]["embedding_size"] == 16 and card["licence"] == LICENCE
    learned = persona_here(
        *("learn", "--model", NAME, "--on", "lfw", "--method", "finetune", "--steps", "2"),
        *("-b", "4", "--tracker", "none"),
        home=home,
    )
    assert learned["learned"]["parent"] == NAME and learned["licence"] == LICENCE
    shutil.rmtree(home / "models")  # else the next test would take what was trained here


def test_it_knows_faces(home: Path) -> None:
    photos = []
    for number in range(2):
        photos.append(home / f"{number}.png")
        draw_photo(draw_identity(0, 1), number + 1, 160).save(photos[-1])
    verdict = persona_here("verify", *map(str, photos), home=home)
    card = cards.shipped_card(NAME)
    assert verdict["model"] == NAME and verdict["threshold"] == card.threshold[0]  # type: ignore[index]
    out = home / "faces.npz"
    assert persona_here("embed", str(photos[0]), "--out", str(out), home=home)["model"] == NAME
    found = persona_here("enroll", "Ada", str(photos[0]), home=home)
    assert (found["model"], found["threshold"]) == (NAME, verdict["threshold"])
    assert found["threshold_source"].startswith("FAR 1e-2 on all ")
    seen = persona_here("recognise", str(photos[0]), home=home)["photos"][0]["faces"]
    assert seen[0]["name"] == "Ada"
    listed = persona_here("gallery", "list", home=home)["threshold"]
    assert (listed["value"], listed["source"]) == (found["threshold"], found["threshold_source"])
    persona_here("enroll", "Ada again", str(photos[0]), "--force", home=home)
    merged = persona_here("gallery", "merge", "Ada again", "Ada", home=home)  # by the card's, too
    assert merged == {"name": "Ada", "photos": 1}
    chosen = persona_here("gallery", "calibrate", "--threshold", "0.9", home=home)
    assert chosen["threshold"] == 0.9
    by_card = persona_here("gallery", "calibrate", "--far", "1e-1", home=home)
    assert by_card["threshold"] == card.thresholds[0.1] != card.thresholds[0.01]
    assert by_card["threshold_source"].startswith("FAR 1e-1 on all ")
    looser = persona_here("verify", *map(str, photos), "--far", "0.1", home=home)
    assert (looser["threshold"], looser["far"]) == (card.thresholds[0.1], 0.1)
    assert looser["threshold"] < verdict["threshold"]
    assert "its card has 1e-1, 1e-2: choose one" in persona_error_here(
        "verify", *map(str, photos), "--far", "1e-6", home=home
    )
