"""Verification across two networks: the first photo by one, the second by the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_files
import pytest
from conftest import NO_ALIGN
from helpers import persona_error_here, persona_here
from PIL import Image
from typer.testing import CliRunner

from persona.cli.app import app
from persona.data.pack import Packed, pack_photos
from persona.data.raw import open_dataset
from persona.data.sets import FaceSet, open_set
from persona.errors import PersonaError
from persona.evaluation.across import evaluate_across
from persona.evaluation.metrics import cosine_scores, listed_scores
from persona.evaluation.processes import Alone
from persona.evaluation.protocols.verification import VerificationOptions
from persona.landmarks import unit
from persona.models.embedder import Embedder
from persona.models.sources import Named

TURN = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]


class Colours(Embedder):
    """The mean colour of a photo, in a space of its own, with an error of its own."""

    embedding_size = 3

    def __init__(self, turn_33: Any = None, error: float = 0.0, width: int = 3) -> None:
        self.turn_33 = np.eye(3) if turn_33 is None else turn_33
        self.error, self.embedding_size = error, width
        self.runs = 0

    def embed(self, crops_BHW3: Any, landmarks_B62: Any = None) -> Any:
        self.runs += 1
        colour_B3 = (crops_BHW3.astype(np.float64).mean(axis=(1, 2)) - 128) / 128
        noise_B3 = np.sin(crops_BHW3[:, :1, 0].reshape(-1, 3).astype(np.float64) * 99)
        mixed_B3 = (colour_B3 + self.error * noise_B3) @ self.turn_33
        return np.asarray(
            unit(np.pad(mixed_B3, ((0, 0), (0, self.embedding_size - 3)))), np.float32
        )


def named(name: str, *arguments: Any, **options: Any) -> Named:
    return Named(name, Colours(*arguments, **options), "nothing", (), None, name)


@pytest.fixture
def coloured(tmp_path: Path) -> FaceSet:
    """An LFW of 8 people, each of one colour, with two folds."""
    root = tmp_path / "raw" / "LFW"
    rng = np.random.default_rng(0)
    for person in range(8):
        colour = np.array([(person >> bit & 1) * 150 + 50 for bit in range(3)])
        for photo in range(1, 5):
            noise = rng.integers(-50, 50, (16, 16, 3)) + rng.integers(-25, 25, 3)
            path = root / f"P_{person}" / f"P_{person}_{photo:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)).save(path)
    lines = ["2\t24"]
    for fold in range(2):
        people = range(4 * fold, 4 * fold + 4)
        several = [(a, b) for a in range(1, 5) for b in range(a + 1, 5)]
        lines += [f"P_{p}\t{a}\t{b}" for p in people for a, b in several]
        two = [(p, q) for p in people for q in people if p < q]
        lines += [f"P_{p}\t{n}\tP_{q}\t{n}" for p, q in two for n in range(1, 5)]
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")
    pack_photos(open_dataset("lfw", tmp_path / "raw"), tmp_path / "shards" / "lfw", NO_ALIGN)
    return open_set("lfw", tmp_path / "shards")


def across(packed: FaceSet, a: Named, b: Named, **options: Any) -> Any:
    return evaluate_across(a, b, packed, Alone(), VerificationOptions(**options), quiet=True)


def test_pairs_across_two_matrices() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40, 8)).astype(np.float32)
    first, second = rng.integers(0, 40, (2, 5000))
    assert listed_scores(a, first, second, b) == pytest.approx(
        cosine_scores(a[first], b[second]), abs=1e-6
    )


def test_a_network_with_itself_is_that_network(coloured: FaceSet) -> None:
    found = across(coloured, named("a", error=0.3), named("b", error=0.3), resamples=50)
    assert found.across == found.gallery == found.probe
    assert found.agreement == pytest.approx(1, abs=1e-6)
    assert all(one.difference == 0 for one in found.differences)
    assert found.across.pairs == 96


def test_a_student_in_its_teachers_space(coloured: FaceSet, tmp_path: Path) -> None:
    teacher, student = named("teacher"), named("student", error=0.5)
    path = tmp_path / "scores.csv"
    found = across(coloured, teacher, student, scores=path, resamples=50)
    assert found.gallery.auc > found.across.auc > found.probe.auc
    assert 0.5 < found.agreement < 0.99
    difference = next(one for one in found.differences if one.figure == "auc")
    assert difference.difference == pytest.approx(found.across.auc - found.gallery.auc)
    # Each network sees each photo once.
    assert teacher.network.runs == student.network.runs == 1  # type: ignore[union-attr]
    # The scores are those of the first photo by one and the second by the other.
    rows = np.array([line.split(",")[2] for line in path.read_text().split()[1:]], float)
    turned = across(coloured, student, teacher, scores=path, resamples=0)
    other = np.array([line.split(",")[2] for line in path.read_text().split()[1:]], float)
    assert np.abs(rows - other).max() > 0.01
    assert turned.differences == ()
    shown = found.to_json()
    assert (shown["gallery_model"], shown["probe_model"]) == ("teacher", "student")
    assert shown["across"]["auc"] == found.across.auc


def test_networks_of_two_spaces_are_refused(coloured: FaceSet) -> None:
    line = (
        r"^a and b do not share a space, .* on lfw the AUC is 0\.\d{4} across both, and "
        r"[01]\.\d{4} and [01]\.\d{4} alone; .* a mean similarity of -?0\.\d{3}; distil the student"
    )
    with pytest.raises(PersonaError, match=line):
        across(coloured, named("a"), named("b", TURN))


def test_other_sizes_are_refused_before_anything_is_embedded(coloured: FaceSet) -> None:
    a, b = named("a"), named("b", width=4)
    with pytest.raises(PersonaError, match="of a have 3 numbers, those of b 4: they cannot be"):
        across(coloured, a, b)
    assert a.network.runs == 0  # type: ignore[union-attr]


def test_the_command(lfw_set: Packed, tmp_path: Path) -> None:
    side = lfw_set.manifest.align.image_size
    for name, width in (("a", 9), ("b", 9), ("c", 12)):
        path = onnx_files.write_model(tmp_path / f"{name}.onnx", side=side, width=width)
        text = onnx_files.SETTINGS.replace(str(onnx_files.SIDE), str(side))
        path.with_suffix(".yaml").write_text(text)
    a, b, c = (f"onnx:{tmp_path}/{name}.onnx" for name in "abc")
    command = ("evaluate", "--set", "lfw", "--gallery-model", a)
    found = persona_here(*command, "--probe-model", b, "--resamples", "0", home=tmp_path)
    assert found["across"] == found["gallery"] == found["probe"]
    assert (found["measure"], found["across"]["pairs"]) == ("verification", 12)
    result = CliRunner().invoke(
        app, [*command, "--probe-model", b], env={"PERSONA_HOME": str(tmp_path)}
    )
    assert "across - gallery" in result.stdout
    assert "AUC" in result.stdout and "auc" not in result.stdout
    assert "TAR@FAR=1e-1" in result.stdout and "tar@" not in result.stdout
    assert "mean similarity of both networks' embeddings of one photo: 1.0000" in result.stderr
    for more, line in (
        (("--probe-model", c), "cannot be compared"),
        ((), "go together: give both"),
        (("--probe-model", b, "--model", a), "choose one of --model and --gallery-model"),
        (("--probe-model", b, "--measure", "class"), "goes with verification, not with --measure"),
        (("--probe-model", b, "--by", "gender"), "--by is about one network"),
    ):
        assert line in persona_error_here(*command, *more, home=tmp_path)
