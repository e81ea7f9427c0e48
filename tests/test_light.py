"""Inference without torch: not imported where it is installed, and the same where it is not."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from onnx_files import SETTINGS, write_model

import persona
from persona.cli.errors import explain
from persona.data.pack import Packed
from persona.data.synthetic import draw_identity, draw_photo
from persona.errors import PersonaError
from persona.evaluation.embed import embed_set
from persona.evaluation.processes import Alone, join_processes
from persona.extras import IN_TRAIN, check_training, needing
from persona.models.sources import load_embedder, load_network

EVERYTHING = """
import json, sys
from pathlib import Path
folder, packed, kind = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
heavy = set(sys.argv[4:])
if kind == "absent":
    sys.modules.update(dict.fromkeys(heavy))
import persona
model = persona.load(f"onnx:{folder / 'net.onnx'}")
photos = sorted(folder.glob("*.png"))
vectors = model.embed(photos)
verdict = persona.verify(photos[0], model.find(photos[1])[0], model=model, threshold=0.5)
figures = model.evaluate(persona.open_set(packed), flip=True, resamples=20).to_json()
with persona.open_gallery(folder / f"{kind}.db", model, threshold=0.9) as people:
    people.enroll("Ada", photos[:1])
    seen = people.recognise(photos[0])[0].name
    known = [person.name for person in people.list()]
    people.forget("Ada")
from persona.data.align.detect import Mtcnn
assert kind == "present" or type(Mtcnn().networks).__name__ == "OnnxNetworks"
print(json.dumps([vectors.tolist(), verdict.to_json(), figures, seen, known]))
there = sorted(heavy & {name for name, module in sys.modules.items() if module is not None})
assert not there, there
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A network and three photos."""
    write_model(tmp_path / "net.onnx", settings=SETTINGS)
    for number in range(3):
        draw_photo(draw_identity(0, number), number, 160).save(tmp_path / f"{number}.png")
    return tmp_path


def everything(home: Path, packed: Packed, kind: str) -> Any:
    command = [sys.executable, "-c", EVERYTHING, str(home), str(packed.folder), kind, *IN_TRAIN]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_inference_imports_no_torch_and_has_the_same_digits_without(
    home: Path, lfw_set: Packed
) -> None:
    """Photos, a verdict, a packed set's figures and a gallery."""
    present, absent = (everything(home, lfw_set, kind) for kind in ("present", "absent"))
    assert present == absent
    vectors, _, figures, seen, known = present
    assert np.shape(vectors) == (3, 9)
    assert figures["pairs"] > 0
    assert (seen, known) == ("Ada", ["Ada"])


def test_a_set_has_the_embeddings_that_it_has_in_torch(home: Path, lfw_set: Packed) -> None:
    name = f"onnx:{home / 'net.onnx'}"
    light, heavy = (load(name, home).network for load in (load_embedder, load_network))
    faces = lfw_set.faces
    options: Any = {"quiet": True, "batch_size": 4}
    for flip in (False, True):
        expected = embed_set(heavy, faces, Accelerator(cpu=True), flip=flip, **options)
        for workers in (0, 1):
            found = embed_set(light, faces, Alone(), flip=flip, workers=workers, **options)
            np.testing.assert_array_equal(found.keys, expected.keys)
            np.testing.assert_array_equal(found.labels, expected.labels)
            np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=1e-5)


def test_processes_that_were_launched_work_together(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = load_embedder(f"onnx:{home / 'net.onnx'}", home).network
    assert isinstance(join_processes(network), Alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.Accelerator", lambda: "two")
    assert join_processes(network) == "two"


@pytest.fixture
def without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra `train` is not installed."""
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in IN_TRAIN else there(name)
    )


def test_what_needs_torch_says_what_to_install(without_training: None) -> None:
    absent = ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")
    told = explain(absent)
    assert told is not None
    line, code = told
    assert line.startswith("this needs torch: ") and "[train]" in line and code == 1
    with (
        pytest.raises(PersonaError, match=r"exporting needs torch: .*\[train\]"),
        needing("exporting"),
    ):
        raise absent
    with pytest.raises(PersonaError, match=r"the demo needs torch: .*\[train\]"):
        check_training("the demo")
    with pytest.raises(PersonaError, match=r"distilling needs torch: .*\[train\]"):
        persona.distill(teacher=None, train="utk")


def test_another_import_that_fails_is_a_fault_of_the_program() -> None:
    check_training("the demo")
    for name in ("torch.nothing", "colorsys.nothing"):
        assert explain(ModuleNotFoundError("none", name=name)) is None
