"""One table from a name to its network: every kind answers, and another is one entry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx_files import SETTINGS, write_model

from persona.config import StudentConfig
from persona.data.transforms import normalise
from persona.errors import PersonaError
from persona.landmarks import resize, template, warp
from persona.models import sources
from persona.models.embedder import Embedder
from persona.models.onnx_network import turn
from persona.models.sources import (
    NamedNetwork,
    Source,
    check_named,
    known_licence,
    load_network,
    network_digest,
    source_of,
    spell,
)
from persona.models.student import Student


class Attic(Source):
    """A kind of network of a user's own."""

    shown = "attic:NAME"

    def has(self, name: str, models: Path) -> bool:
        """Whether it begins as ours do."""
        return name.startswith("attic:")

    def digest(self, name: str, models: Path) -> str | None:
        """By its name."""
        return f"of {name}"

    def open(self, name: str, models: Path) -> NamedNetwork:
        """A student, drawn."""
        student = Student(StudentConfig(), 0, head="none")
        return NamedNetwork(name, student, "the attic", (), 112, f"of {name}")


def test_another_source_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SOURCES", list(sources.SOURCES))
    sources.register(Attic())
    monkeypatch.setattr("persona.deploy.bench._peak_memory", lambda *_: 0)  # another process's
    import persona
    from persona.deploy.bench import bench
    from persona.gallery.people import load_named
    from persona.report.build import find_entries
    from persona.workspace import Workspace

    place = Workspace.locate(home=tmp_path)
    assert load_network("attic:a", tmp_path).digest == network_digest("attic:a", tmp_path)
    check_named("attic:a", tmp_path)
    assert persona.load("attic:a", workspace=place).embedding_size == 512
    assert load_named("attic:a", place)[1].network == "attic:a"
    assert bench(["attic:a"], tmp_path, rounds=1, runs=1)[0].runtime == "torch"
    (entry,) = find_entries(["attic:a"], None, place)
    assert entry.title == "attic:a" and entry.has_network
    with pytest.raises(PersonaError, match="attic:NAME"):
        check_named("nothing", tmp_path)


def test_names_are_spelled_and_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert spell("a/net.onnx") == "onnx:a/net.onnx" and spell("NET.TFLITE") == "litert:NET.TFLITE"
    assert spell("onnx:net.onnx") == "onnx:net.onnx" and spell("m1") == "m1"
    for name in ("onnx:a/net.onnx", "litert:a/net.onnx"):
        source = source_of(name, tmp_path)
        prefix = name.partition(":")[0]
        assert source.full_name(name) == f"{prefix}:{tmp_path}/a/net.onnx"
        assert source.title(name) == "net.onnx"
        assert source.digest(name, tmp_path) is None
        with pytest.raises(PersonaError, match="file at a/net"):
            source.check(name, tmp_path)


@pytest.mark.parametrize("alignment", ["margin", "five-point"])
def test_an_onnx_file_embeds_without_torch_as_with_it(tmp_path: Path, alignment: str) -> None:
    settings = SETTINGS.replace("margin", alignment)
    path = write_model(tmp_path / "net.onnx", settings=settings)
    crops = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)
    landmarks = np.tile(np.vstack([template(40) * 0.8 + 3, (1.2, 0.9)]), (3, 1, 1))
    name = f"onnx:{path}"
    network = load_network(name, tmp_path).network
    assert network.uses_landmarks == (alignment == "five-point")
    images = normalise(torch.from_numpy(crops).permute(0, 3, 1, 2))
    with torch.inference_mode():
        wanted = network.embed(images, torch.from_numpy(landmarks).float()).numpy()
    opened = source_of(name, tmp_path).open_embedder(name, tmp_path, 1)
    assert opened is not None and isinstance(opened.network, Embedder)
    embedder = opened.network
    assert embedder.uses_landmarks == network.uses_landmarks
    found = embedder.embed(crops, landmarks)
    assert found.shape == (3, embedder.embedding_size) and found.dtype == np.float32
    assert np.allclose(found, wanted, atol=2e-5)
    if network.uses_landmarks:
        with pytest.raises(PersonaError, match="wants five points"):
            embedder.embed(crops)


def test_warping_is_torchs() -> None:
    pixels = np.random.default_rng(0).random((2, 3, 50, 50), np.float32)
    crop = np.vstack([template(50) * 0.7 + (9, 4), (1.2, 0.9)])
    landmarks = np.stack([crop, crop + 1])  # the other hangs over the edge
    wanted = turn(torch.from_numpy(pixels), landmarks, 40)
    assert np.allclose(warp(pixels, landmarks, 40), wanted.numpy(), atol=1e-4)


@pytest.mark.parametrize("size", [16, 40, 57])
def test_resizing_is_torchs(size: int) -> None:
    pixels = np.random.default_rng(0).random((2, 3, 40, 40), np.float32)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(pixels), (size, size), mode="bilinear", antialias=True
    )
    assert np.allclose(resize(pixels, size), wanted.numpy(), atol=1e-5)


def test_the_table_needs_no_torch() -> None:
    code = "import sys, persona.models.sources; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_of_a_model_is_named_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from persona.models.store import save_model

    monkeypatch.chdir(tmp_path)
    student = Student(StudentConfig(width=0.35, embedding_size=16), 2)
    facts: dict[str, Any] = {
        "teacher": "none",
        "temperature": None,
        "epochs": 1,
        "score": None,
        "scores": {},
    }
    facts |= {"train_set": "faces", "test_set": "none", "config": {}, "licence": "research only"}
    card = save_model(tmp_path / "sent", student, model_id="m1", classes=("a", "b"), **facts)
    (tmp_path / "m1").symlink_to("sent/m1")  # a bare name is one of the store, not a folder here
    store = tmp_path / "models"
    source = source_of("sent/m1", store)
    assert source.digest("sent/m1", store) == card.weights_sha256
    assert source.identities("sent/m1", store) == ("a", "b")
    assert source.title("sent/m1") == "m1"
    assert source.full_name("sent/m1") == str(tmp_path / "sent" / "m1")
    assert source.file("sent/m1", store) == tmp_path / "sent" / "m1" / card.weights
    assert known_licence("sent/m1", store) == "research only"
    assert known_licence("onnx:sent/m1", store) == ""
    named = load_network(str(tmp_path / "sent" / "m1"), store)
    assert torch.equal(named.network.state_dict()["last_bn.bias"], student.last_bn.bias)
    for name in ("m1", "sent/m2"):
        with pytest.raises(PersonaError, match=r"unknown model .* DIR/NAME"):
            source_of(name, store)
