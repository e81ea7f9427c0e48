"""A student that gives every face one embedding is called so, by every command that measures it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import SIZE_PX
from helpers import _here, persona_here

from persona.cli.app import app
from persona.config import StudentConfig
from persona.data.pack import Packed
from persona.data.sets import open_set
from persona.errors import PersonaError
from persona.gallery.calibrate import calibrate
from persona.models.sources import load_network
from persona.models.store import save_model
from persona.models.student import Student
from persona.report.build import build_page, find_entries
from persona.workspace import Workspace


@pytest.fixture
def home(lfw_set: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a student `flat`, whose similarities differ in the seventh digit alone."""
    monkeypatch.setattr("persona.report.measure.TIMED_TURNS", 1)
    torch.manual_seed(0)
    student = Student(StudentConfig(embedding_size=16), 0, head="none", image_size=SIZE_PX)
    with torch.no_grad():
        student.last_bn.weight.fill_(1e-3)
        student.last_bn.bias.fill_(1.0)
    facts: dict[str, Any] = {"teacher": "none", "temperature": None, "epochs": 1, "score": None}
    facts |= {"scores": {}, "train_set": "drawn", "test_set": "none", "config": {}}
    save_model(tmp_path / "models", student, model_id="flat", classes=(), **facts)
    return tmp_path


def test_evaluate_and_compare_say_so(home: Path) -> None:
    arguments = ("evaluate", "--set", "lfw", "--model", "flat", "-w", "0", "--resamples", "0")
    figures = persona_here(*arguments, home=home)
    assert 0 < figures["auc"] < 1  # the order of its similarities hides it
    assert figures["collapsed"] is True and figures["spread"] < 1e-4
    done = _here(app, arguments, home)
    assert "Nothing can be said about flat on lfw: it gives different people" in done.stdout
    assert "decided rightly" not in done.stdout
    said = done.stderr
    assert "warning: flat has collapsed: it gives the people of set lfw nearly one" in said
    arguments = ("evaluate", "--set", "lfw", "--model", "mobilenet_v3_small", *arguments[5:])
    figures = persona_here(*arguments, home=home)
    assert "collapsed" not in figures and figures["spread"] > 0.1
    both = ("compare", "flat", "mobilenet_v3_small", "--set", "lfw", "-w", "0")
    (warning,) = persona_here(*both, "--resamples", "100", home=home)["warnings"]
    assert "flat has collapsed" in warning
    said = _here(app, (*both, "--resamples", "100"), home).stdout
    assert "Nothing can be said: a network that has collapsed" in said and "points" not in said


def test_no_threshold_is_calibrated_on_it(home: Path) -> None:
    faces = open_set("lfw", home / "shards")
    network = load_network("flat", home / "models")
    with pytest.raises(PersonaError, match=r"flat has collapsed: .* of set lfw nearly one"):
        calibrate(network, faces, Accelerator(cpu=True), 0.1)


def test_a_report_begins_with_it(home: Path) -> None:
    place = Workspace.locate(home=home)
    entries = find_entries(["flat"], None, place)
    page = build_page(entries, place, open_set("lfw", place.shards), Accelerator(cpu=True))
    assert page.notices[0].startswith("Warning: flat has collapsed")
