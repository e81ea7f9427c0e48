"""Exported files: the same embeddings as the model, from a file that says what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import persona_error, persona_here
from PIL import Image

from persona.config import StudentConfig
from persona.data.transforms import normalise
from persona.deploy import export
from persona.deploy.export import ExportOptions, export_onnx
from persona.deploy.faces import drawn_faces
from persona.errors import PersonaError
from persona.models.cards import read_card
from persona.models.onnx import open_network
from persona.models.store import load_model, save_model
from persona.models.student import Student

SIDE = 32
ID = "small"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one student of five identities whose batch norms have seen faces."""
    folder = tmp_path_factory.mktemp("home") / "models"
    torch.manual_seed(0)
    student = Student(StudentConfig(embedding_size=16), 5, image_size=SIDE).train()
    with torch.no_grad():
        for seed in range(3):
            student(torch.randn(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)))
    facts: dict[str, Any] = {"teacher": "none", "temperature": None, "epochs": 1, "score": None}
    facts |= {"scores": {}, "train_set": "drawn", "test_set": "none", "config": {}}
    save_model(folder, student, model_id=ID, classes=tuple("abcde"), **facts)
    return folder


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    return drawn_faces(SIDE, 12)


def load(models: Path) -> tuple[Student, Any]:
    card = read_card(models / ID)
    return load_model(card, models).eval(), card


@torch.inference_mode()
def embeddings(models: Path, faces: np.ndarray) -> np.ndarray:
    return load(models)[0].embed(normalise(torch.from_numpy(faces).permute(0, 3, 1, 2))).numpy()


def test_the_file_gives_the_models_embeddings_and_logits(
    models: Path, faces: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "a.onnx"
    done = export_onnx(*load(models), faces, path, ExportOptions(classifier=True))
    assert (done.faces, done.bytes) == (12, path.stat().st_size)
    session = onnxruntime.InferenceSession(path.read_bytes())
    for count in (1, 5):  # the batch is free
        images = normalise(torch.from_numpy(faces[:count]).permute(0, 3, 1, 2))
        embedding, logits = session.run(["embedding", "logits"], {"images": images.numpy()})
        np.testing.assert_allclose(embedding, embeddings(models, faces[:count]), atol=1e-5)
        with torch.inference_mode():
            wanted = load(models)[0](images).logits
        np.testing.assert_allclose(logits, wanted, rtol=1e-3, atol=1e-4)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["persona.card"])["id"] == facts["persona.model"] == ID
    text = path.read_bytes()
    assert b"/work/" not in text and str(Path.home()).encode() not in text  # no traces of sources


@pytest.mark.heavy
def test_with_preprocessing_it_takes_photos_of_any_size(
    models: Path, faces: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "photos.onnx"
    options = ExportOptions("fp16", preprocessing=True)
    assert export_onnx(*load(models), faces, path, options).worst_cosine > 0.999
    wanted = embeddings(models, faces)
    large = np.stack([np.asarray(Image.fromarray(f).resize((96, 80))) for f in faces])
    found = onnxruntime.InferenceSession(path.read_bytes()).run(None, {"images": large})[0]
    assert (found * wanted).sum(axis=1).min() > 0.98
    # The same file is a network like any other, by the settings inside it.
    network = open_network(path)
    images = normalise(torch.from_numpy(faces).permute(0, 3, 1, 2))
    np.testing.assert_allclose(network.embed(images).numpy(), wanted, atol=0.02)


def test_a_file_that_differs_is_not_written(
    models: Path, faces: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(data: bytes, faces: np.ndarray, *, preprocessing: bool) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(len(faces), 16)).astype(np.float32)

    monkeypatch.setattr(export, "run_onnx", other)
    monkeypatch.setattr(export, "build_graph", lambda *_: b"")
    path = tmp_path / "a.onnx"
    with pytest.raises(PersonaError, match=r"would differ from the model: worst cosine .* 0\.9999"):
        export_onnx(*load(models), faces, path)
    assert not path.exists()


def test_what_cannot_be_exported_is_refused(
    models: Path, faces: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(PersonaError, match=r"something\.onnx"):
        export_onnx(*load(models), faces, tmp_path / "a.tflite")
    with pytest.raises(PersonaError, match="there is none"):
        export_onnx(*load(models), faces[:0], tmp_path / "a.onnx")
    with pytest.raises(PersonaError, match="unknown precision 'int4'"):
        ExportOptions("int4")
    bare = Student(StudentConfig(embedding_size=16), 0, head="none", image_size=SIDE)
    with pytest.raises(PersonaError, match="no classifier"):
        export_onnx(
            bare, load(models)[1], faces, tmp_path / "a.onnx", ExportOptions(classifier=True)
        )


@pytest.mark.heavy
def test_the_command(models: Path, tmp_path: Path) -> None:
    row = persona_here("export", ID, "--out", str(tmp_path / "a.onnx"), home=models.parent)
    assert row["precision"] == "fp32" and row["bytes"] == (tmp_path / "a.onnx").stat().st_size
    onnx.checker.check_model(onnx.load(tmp_path / "a.onnx"))
    assert "unknown model 'larg'" in persona_error("export", "larg", home=models.parent)
    assert "is a folder" in persona_error("export", ID, "--out", str(tmp_path), home=models.parent)
