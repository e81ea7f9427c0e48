"""A teacher whose settings are wrong is noticed, and the right ones are named."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from conftest import NO_ALIGN, SIZE_PX
from onnx_files import write_model
from PIL import Image

from persona.data.pack import Packed, pack_photos
from persona.data.raw import open_dataset
from persona.errors import PersonaError
from persona.evaluation.sanity import check_teacher
from persona.models.sources import load_network

SETTINGS = "input_size: 32\nalignment: margin\nmean: [{0}, {0}, {0}]\nstd: [{1}, {1}, {1}]\n"


@pytest.fixture
def packed(tmp_path: Path) -> Packed:
    """Six people who are colours about mid-grey, in photos more or less vivid."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(6, 3))
    directions -= directions.mean(axis=0)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for number, direction in enumerate(directions):
        folder = tmp_path / "raw" / "CASIA-WebFace" / f"{number:07d}"
        folder.mkdir(parents=True)
        for photo in range(5):
            colour = 127.5 + rng.uniform(15, 110) * direction
            image = Image.new("RGB", (SIZE_PX, SIZE_PX), tuple(colour.round().astype(int)))
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=100, subsampling=0)
            (folder / f"{photo}.jpg").write_bytes(buffer.getvalue())
    dataset = open_dataset("casia-webface", tmp_path / "raw")
    return pack_photos(dataset, tmp_path / "shards" / "colours", NO_ALIGN)


def check(packed: Packed, folder: Path, mean: float, std: float, more: str = "") -> float | None:
    path = write_model(folder / "net.onnx", side=32)
    (folder / "net.yaml").write_text(SETTINGS.format(mean, std) + more)
    named = load_network(f"onnx:{path}", folder)
    return check_teacher(named, packed.faces, Accelerator(cpu=True))


def test_right_settings_pass_and_wrong_ones_are_told_the_better(
    packed: Packed, tmp_path: Path
) -> None:
    auc = check(packed, tmp_path, 127.5, 128.0)
    assert auc is not None and auc > 0.97
    with pytest.raises(
        PersonaError, match=r"apart with AUC 0\.\d+, and with mean 127\.5, std 12.*: check channels"
    ):
        check(packed, tmp_path, 0.0, 1.0)


def test_settings_that_are_a_little_better_are_only_spoken_of(
    packed: Packed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("persona.evaluation.sanity.STRONG", 2.0)
    auc = check(packed, tmp_path, 0.0, 1.0)
    assert auc is not None and auc < 0.97
    assert "with mean 127.5, std 12" in caplog.text and "poor photos" in caplog.text


def test_settings_that_were_checked_are_not_looked_at(packed: Packed, tmp_path: Path) -> None:
    assert check(packed, tmp_path, 0.0, 1.0, "checked: true\n") is None


def test_a_network_that_cannot_tell_is_refused(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persona.evaluation.sanity.CHANCE", 1.01)
    with pytest.raises(PersonaError, match="does not tell the people of colours apart"):
        check(packed, tmp_path, 127.5, 128.0)
