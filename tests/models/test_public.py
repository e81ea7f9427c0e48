"""What leaves the house: every byte of it is searched for paths, names and the machine."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from accelerate import Accelerator
from little import LITTLE

import persona
from persona.config import DistillConfig, LearnConfig, StudentConfig, save_config, to_dict
from persona.data.align.spec import AlignSpec
from persona.data.pack import Packed
from persona.data.sets import open_set
from persona.deploy.graph import EMBEDDING, build_graph
from persona.deploy.litert import to_litert
from persona.deploy.model_card import model_card
from persona.files import write_json
from persona.gallery.store import Facts, StoredPhoto, open_store
from persona.gallery.transfer import export_people
from persona.models.cards import CARD, Card, read_card
from persona.models.public import public, public_card, publish_copy
from persona.models.store import load_model, save_model
from persona.models.student import Student
from persona.names import public_name
from persona.report.build import build_page, find_entries
from persona.report.page import render
from persona.training.tracking import Tracker
from persona.workspace import Workspace

SECRET = "secret-place"
PATHS = (f"/home/ada/{SECRET}/x", f"s3://{SECRET}/x", f"C:\\{SECRET}\\x", f"onnx:~/{SECRET}/x/")
PRIVATE = (SECRET, "/home/ada", "Ada Lovelace", "unknown_photos")
SIDE = 32


def secretive(value: Any, path: str = PATHS[0]) -> Any:
    """The same with a path in each string, and a field of its own beside it."""
    if isinstance(value, dict):
        more = {"cache": path, path: [path, {"deep": (path,)}], "unknown_photos": ["Ada Lovelace"]}
        return {name: secretive(item, path) for name, item in value.items()} | more
    return path if isinstance(value, str) else value


@pytest.fixture
def place(tmp_path: Path, lfw_set: Packed) -> Workspace:
    """A workspace whose one model has a path wherever a card can hold one."""
    place = Workspace.locate(home=tmp_path)
    torch.manual_seed(0)
    student = Student(StudentConfig(LITTLE, embedding_size=16), 2, image_size=SIDE)
    with torch.no_grad():
        student.train()(torch.randn(16, 3, SIDE, SIDE))
    facts = {
        "teacher": "x",
        "train_set": "x",
        "test_set": "x",
        "scores": {"model": "x", "set": "x", "threshold_at_far": {"0.001": 0.5}},
        "config": to_dict(DistillConfig(cache="x")) | vars(LearnConfig("x", "x", "joint", old="x")),
        "learned": {"run": "x", "parent": "x", "set": "x", "memory": {"mb": "x"}},
        "alignment": vars(AlignSpec("none", SIDE, 0)),
    }
    hidden = {name: secretive(value, PATHS[2]) for name, value in facts.items()}
    hidden["scores"]["threshold_at_far"] = {"0.001": 0.5}  # a card of other figures is refused
    # So is one of other fields.
    hidden["alignment"] = {**vars(AlignSpec("none", SIDE, 0)), "method": PATHS[2]}
    numbers: dict[str, Any] = {"temperature": 4.0, "epochs": 1, "score": 0.5}
    save_model(
        place.models, student, model_id="small", classes=("Ada Lovelace", "b"), **hidden, **numbers
    )
    return place


def clean(data: bytes, *more: str) -> None:
    assert data
    for secret in (*PRIVATE, *more):
        assert secret.encode() not in data, secret


@pytest.mark.parametrize("path", PATHS)
def test_of_a_path_the_last_part_stays(path: str) -> None:
    assert public_name(path) == ("onnx:x" if path.startswith("onnx") else "x")
    found = public({"cache": path, "a": [path, Path(path), {path: (path, 1.5, None, True)}]})
    assert SECRET not in json.dumps(found)
    assert public({"lr": 0.1, "on": "lfw", "s": ["mobilenet_v3_small"]}) == {
        "lr": 0.1,
        "on": "lfw",
        "s": ["mobilenet_v3_small"],
    }


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        ("persona-s,/home/ada/models/x", "persona-s,x"),
        ("onnx:/home/ada/a.onnx, onnx:/home/bob/b.onnx", "onnx:a.onnx, onnx:b.onnx"),
        ("onnx:/home/ada/a.onnx,/home/ada/models/x", "onnx:a.onnx,x"),
        ("lfw,/data/sets/utk*2,~/faces/,../more", "lfw,utk*2,faces,more"),
        ("lfw,s3://bucket/utk,D:\\faces", "lfw,utk,faces"),
        ("Ada,Bob/faces", "faces"),  # perhaps one folder of two people
        ("/home/ada,bob/a.onnx", "a.onnx"),
    ],
)
def test_of_a_list_each_name_stays(names: str, shown: str) -> None:
    assert public({"teacher": names}) == {"teacher": shown}


def test_what_is_pushed(place: Workspace, tmp_path: Path) -> None:
    target = tmp_path / "public"
    card = publish_copy(read_card(place.models / "small"), place.models, target, with_classes=False)
    for path in (target / "small").iterdir():
        clean(path.read_bytes() or b"-")
    clean(model_card(read_card(place.models / "small"), "mit", "me/small").encode())
    assert card.train_set == "x" and card.config["batch_size"] == 32
    for name, value in vars(card).items():
        assert value == public(value), name


def test_what_is_exported(place: Workspace, tmp_path: Path) -> None:
    card = read_card(place.models / "small")
    homes = (str(Path(persona.__file__).parent), sys.prefix, str(tmp_path), tempfile.gettempdir())
    graph = build_graph(load_model(card, place.models), card)
    clean(graph, *homes)
    model = onnx.load_from_string(graph)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["persona.card"])["train_set"] == "x"
    clean(to_litert(model, EMBEDDING, metadata), *homes)


def test_what_is_reported(place: Workspace, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("persona.report.measure.TIMED_TURNS", 1)
    config = DistillConfig(teacher=PATHS[3], train_set=PATHS[1], test_set=PATHS[0], cache=PATHS[0])
    for run in ("small", "begun"):
        (place.runs / run).mkdir(parents=True)
        save_config(place.runs / run / "config.yaml", to_dict(config))
    faces = open_set("lfw", place.shards)
    faces.manifest = replace(faces.manifest, dataset=f"folders:/home/ada/{SECRET}/x")
    card = read_card(place.models / "small")  # its sets' names are paths, its crops the set's
    write_json(place.models / "small" / CARD, vars(replace(card, image_size=SIDE)))
    entries = find_entries(["small", "begun"], None, place)
    page = build_page(entries, place, faces, Accelerator(cpu=True), workers=0)
    clean(render(page).encode(), str(tmp_path))
    assert "onnx:x" in render(page)


def test_what_is_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / SECRET
    folder.mkdir()
    monkeypatch.setattr(sys, "argv", [f"/home/ada/{SECRET}/run.py", f"--cache={PATHS[0]}"])
    monkeypatch.setattr("socket.gethostname", lambda: f"{SECRET}-host")
    config = secretive(to_dict(DistillConfig()))
    with Tracker(folder, run_id="one", config=config, trackers="wandb", step=0) as tracker:
        tracker.log(1, loss=0.5)
    (run,) = (folder / "wandb").glob("offline-run-*")
    sent = [path for path in run.rglob("*") if path.is_file() and "logs" not in path.parts]
    assert any(path.suffix == ".wandb" for path in sent)
    for path in sent:  # what `wandb sync` uploads; its logs stay
        clean(path.read_bytes(), sys.executable, str(tmp_path))


def test_what_a_gallery_exports(tmp_path: Path) -> None:
    facts = Facts(f"onnx:/home/ada/{SECRET}/net.onnx", "d" * 64, 8, AlignSpec())
    with open_store(tmp_path / "g.sqlite", create=True) as store:
        store.adopt(facts)
        store.add({"b": [StoredPhoto(np.eye(8, dtype=np.float32)[0])]}, facts.digest)
        export_people(store, tmp_path / "out.safetensors")
    clean((tmp_path / "out.safetensors").read_bytes())


def test_a_public_card_is_a_card(place: Workspace, tmp_path: Path) -> None:
    licence = "research/non-commercial use, https://creativecommons.org/licenses/by-nc/4.0/"
    card = public_card(replace(read_card(place.models / "small"), licence=licence))
    assert card.licence == licence
    write_json(tmp_path / CARD, vars(card))
    assert isinstance(read_card(tmp_path), Card)
    assert yaml.safe_dump(vars(card))
