"""The detector's shipped files: facenet-pytorch's weights, and the same crops as in torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from facenet_pytorch.models.mtcnn import ONet, PNet, RNet
from onnx import numpy_helper
from PIL import Image

from persona.data.align import AlignSpec, crop_face
from persona.data.align.decode import Decoded
from persona.data.align.detect import Mtcnn
from persona.data.align.detect_onnx import OnnxNetworks
from persona.data.align.detect_torch import TorchNetworks
from persona.data.synthetic import draw_identity, draw_photo
from persona.deploy.web_detector import build_detector
from persona.errors import PersonaError

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "persona" / "data" / "align" / "mtcnn"
REAL = ROOT.parent / "shared" / "faces" / "raw" / "LFW"


def script() -> Any:
    spec = importlib.util.spec_from_file_location("mtcnn_script", ROOT / "scripts" / "mtcnn.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_writes_the_shipped_files() -> None:
    built = script().build()
    assert sorted(built) == sorted(path.name for path in FOLDER.glob("*.onnx"))
    for name, data in built.items():
        assert data == (FOLDER / name).read_bytes(), f"{name}: run scripts/mtcnn.py"


@pytest.mark.parametrize(
    ("network", "files"),
    [(PNet, ["pnet_first", "pnet_rest"]), (RNet, ["rnet"]), (ONet, ["onet"])],
)
def test_the_weights_are_facenet_pytorchs(network: Any, files: list[str]) -> None:
    shipped = {
        tensor.name: numpy_helper.to_array(tensor)
        for name in files
        for tensor in onnx.load(FOLDER / f"{name}.onnx").graph.initializer
    }
    weights = {name: tensor.numpy() for name, tensor in network().state_dict().items()}
    for name in [name for name in shipped if name.startswith("signs")]:
        signs = shipped.pop(name).ravel()  # 1 or -1, of maps whose slope is over 1
        number = name.removeprefix("signs")
        np.testing.assert_array_equal(signs < 0, weights[f"prelu{number}.weight"] > 1)
        for part in (f"conv{number}.weight", f"conv{number}.bias"):
            weights[part] = (weights[part].T * signs).T
    for name, array in weights.items():
        np.testing.assert_array_equal(shipped.pop(name).ravel(), array.ravel())
    assert set(shipped) <= {"middle", "scale"}


def test_the_licence_of_the_weights_is_shipped() -> None:
    text = (FOLDER / "LICENSE.md").read_text()
    assert "Timothy Esler" in text and "shall be included in all" in text


@pytest.mark.parametrize("name", ["pnet", "rnet", "onet"])
def test_the_pages_networks_are_facenet_pytorchs(name: str) -> None:
    shape, network = {
        "pnet": ((1, 41, 53, 3), PNet),
        "rnet": ((5, 24, 24, 3), RNet),
        "onet": ((5, 48, 48, 3), ONet),
    }[name]
    pixels = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    session = onnxruntime.InferenceSession(build_detector()[f"{name}.onnx"])
    assert [given.name for given in session.get_inputs()] == ["pixels"]
    outputs = [output.name for output in session.get_outputs()]
    assert outputs == ["moves", *(["points"] if name == "onet" else []), "scores"]
    with torch.inference_mode():
        expected = network()((torch.from_numpy(pixels).permute(0, 3, 1, 2) - 127.5) * 0.0078125)
    for found, wanted in zip(session.run(None, {"pixels": pixels}), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def check_crops(photos: list[Image.Image]) -> None:
    """The same faces, boxes and points within a thousandth of a pixel, and the same bytes."""
    arrays = [np.asarray(photo) for photo in photos]
    both = [Mtcnn(networks=made)(arrays) for made in (TorchNetworks("cpu"), OnnxNetworks())]
    same = {"mtcnn": 0, "landmarks": 0}
    faces = 0
    for photo, one, other in zip(photos, *both, strict=True):
        assert (one is None) == (other is None)
        if one is None or other is None:
            continue
        faces += 1
        np.testing.assert_allclose(one.box, other.box, atol=1e-3)
        np.testing.assert_allclose(one.landmarks_52, other.landmarks_52, atol=1e-3)
        assert one.probability == pytest.approx(other.probability, abs=1e-5)
        for spec in (AlignSpec(), AlignSpec("landmarks", 112, 0)):
            crops = [crop_face(Decoded(photo), face, spec).jpeg for face in (one, other)]
            same[spec.method] += crops[0] == crops[1]
    # A box is whole pixels before it is cut. Points are not: a pixel may round the other way.
    assert same["mtcnn"] >= 0.99 * faces
    assert faces


def test_crops_are_those_of_torch() -> None:
    rng = np.random.default_rng(5)
    check_crops([draw_photo(draw_identity(1, n), n, int(rng.integers(60, 260))) for n in range(20)])


@pytest.mark.heavy
@pytest.mark.skipif(not REAL.is_dir(), reason="real faces are not shipped")
def test_crops_of_real_faces_are_those_of_torch() -> None:
    paths = sorted(REAL.rglob("*.jpg"))[:100]
    check_crops([Image.open(path).convert("RGB") for path in paths])


def test_without_torch_the_detector_runs_in_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else there(name)
    )
    assert isinstance(Mtcnn().networks, OnnxNetworks)
    with pytest.raises(PersonaError, match=r"--device cuda needs torch: .*\[train\]"):
        Mtcnn("cuda")
