"""`persona learn` as a user meets it: every method, killed and taken up, one run after another."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import NO_ALIGN, write_vggface2
from helpers import _here, distill_here, environment, persona_here
from onnx_files import SETTINGS, write_model

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
