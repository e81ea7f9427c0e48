from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_eyes import jpeg_of
from onnx_files import write_model
from PIL import Image

from persona.data.align import AlignSpec
from persona.data.align.spec import Crop
from persona.data.synthetic import draw_identity, draw_photo
from persona.errors import PersonaError
from persona.gallery.faces import Eyes, carries
from persona.gallery.people import gallery_of, load_named
from persona.gallery.store import Threshold
from persona.models import cards
from persona.models.onnx import OnnxSession, OnnxSettings
from persona.models.sources import Named, load_embedder
from persona.workspace import Workspace

MARGIN = OnnxSettings(16, "margin", (10, 20, 30), (2, 4, 5))


def eyes(folder: Path, settings: OnnxSettings = MARGIN, size_px: int = 160) -> Eyes:
    network = OnnxSession(write_model(folder / "net.onnx"), settings, threads=1)
    named = Named("net", network, "nothing", (), None, "digest")
    return Eyes(named, AlignSpec(image_size=size_px))


def drawn(person: int, size_px: int = 160) -> Image.Image:
    return draw_photo(draw_identity(0, person), person, size_px).convert("RGB")


def test_every_face_is_found_from_the_left(tmp_path: Path) -> None:
    group = Image.new("RGB", (480, 200), "grey")
    for place in range(3):
        group.paste(drawn(place), (160 * place, 20 * place))
    found = eyes(tmp_path).find(np.asarray(group))
    middles = [(one.face.box[0] + one.face.box[2]) / 2 for one in found]
    assert [int(x // 160) for x in middles] == [0, 1, 2]
    assert all(one.crop is not None and one.flaw is None for one in found)
    small = np.asarray(group.resize((144, 60)))
    assert all(one.flaw and one.flaw.startswith("too small") for one in eyes(tmp_path).find(small))


def test_a_face_at_the_edge_keeps_its_box_inside(tmp_path: Path) -> None:
    half = drawn(1, 200).crop((70, 0, 200, 200))
    for one in eyes(tmp_path).find(np.asarray(half)):
        x0, y0, x1, y1 = one.face.box
        assert 0 <= x0 < x1 <= 130
        assert 0 <= y0 < y1 <= 200


def test_what_is_no_photo(tmp_path: Path) -> None:
    some = eyes(tmp_path)
    assert some.find(np.zeros((10, 300, 3), np.uint8)) == []
    assert some.find(np.zeros((60, 60, 3), np.uint8)) == []
    wrong: Any
    for wrong in (np.zeros((60, 60, 3)), np.zeros((60, 60), np.uint8)):
        with pytest.raises(PersonaError, match=r"a photo is \(height, width, 3\) uint8, not"):
            some.find(wrong)


def test_a_template_does_not_depend_on_its_company(tmp_path: Path) -> None:
    some = eyes(tmp_path)
    crops = [one.crop for n in range(3) for one in some.find(np.asarray(drawn(n))) if one.crop]
    together = some.embed(crops)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    for crop, template in zip(crops, together, strict=True):
        assert np.allclose(some.embed([crop])[0], template, atol=1e-6)
    assert some.embed([]).shape == (0, 9)


def test_crops_of_another_size_are_brought_to_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a rebuild for another network does it, with their points."""
    settings = OnnxSettings(16, "five-point", (10, 20, 30), (2, 4, 5))
    some = eyes(tmp_path, settings, size_px=80)
    points = np.array([[60, 60], [100, 60], [80, 85], [65, 105], [95, 105], [1.5, 1.2]])
    seen: list[Any] = []

    def embed(pixels: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        seen.append((pixels.shape, landmarks))
        return np.eye(1, 9, dtype=np.float32)

    monkeypatch.setattr(some.network, "embed", embed)
    some.embed([Crop(jpeg_of(drawn(0)), None, points)])
    ((shape, landmarks),) = seen
    assert shape == (1, 80, 80, 3)
    assert landmarks[0, 0].tolist() == [29.75, 29.75]  # (60 + 0.5) / 2 - 0.5
    assert landmarks[0, 5].tolist() == [0.75, 0.6]


def test_a_network_without_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = eyes(tmp_path)
    some.named = replace(some.named, name="onnx:/home/ada/net.onnx")
    monkeypatch.setattr(some.network, "embed", lambda *_: np.full((1, 9), np.nan, np.float32))
    with pytest.raises(PersonaError, match=r"^onnx:net.onnx gives no finite numbers for these"):
        some.embed([Crop(jpeg_of(drawn(0)), None, None)])


def test_what_a_gallery_keeps_of_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_files import SETTINGS

    write_model(tmp_path / "net.onnx", settings=SETTINGS)
    monkeypatch.chdir(tmp_path)
    workspace = Workspace.locate(home=tmp_path)
    _, facts = load_named("onnx:net.onnx", workspace)
    assert facts.network == f"onnx:{tmp_path}/net.onnx"
    assert (facts.width, facts.align.image_size, facts.align.method) == (9, 160, "mtcnn")
    named = load_embedder("onnx:net.onnx", tmp_path / "models")
    threshold = Threshold(0.5, "given by the caller")
    with gallery_of(tmp_path / "g.db", Eyes(named, AlignSpec()), threshold, workspace) as gallery:
        kept = gallery.store.facts()
        assert kept is not None and kept.network == facts.network
    with pytest.raises(PersonaError, match="mobilenet_v3_small is untrained"):
        load_named("mobilenet_v3_small", workspace)
    assert load_named(None, workspace)[0].name == "persona-s"  # shipped
    monkeypatch.setattr(cards, "ZOO", tmp_path / "none")
    with pytest.raises(PersonaError, match="there is no student below"):
        load_named(None, workspace)


def test_a_network_in_torch_gives_its_own_embeddings(tmp_path: Path) -> None:
    import torch

    from persona.data.transforms import normalise
    from persona.models.sources import load_network

    named = load_network("mobilenet_v3_small", tmp_path)
    crop = drawn(0)
    some = Eyes(named, AlignSpec(image_size=160))
    found = some.embed([Crop(jpeg_of(crop), None, None)])
    pixels = np.asarray(Image.open(io.BytesIO(jpeg_of(crop))).convert("RGB"))
    with torch.inference_mode():
        images = normalise(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])
        expected = named.network.eval().embed(images).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kept", "wanted", "fits"),
    [
        (AlignSpec("landmarks", 112, 0), AlignSpec("template", 112, 0), True),
        (AlignSpec("landmarks", 112, 0), AlignSpec("landmarks", 160, 0), True),
        (AlignSpec("landmarks", 112, 0), AlignSpec(), False),
        (AlignSpec(), AlignSpec("landmarks", 112, 0), False),
        (AlignSpec(), AlignSpec(image_size=112), True),  # 9 % of the side are like 12 %
        (AlignSpec(), AlignSpec(margin=44), False),
        (AlignSpec("none", 112, 0), AlignSpec(), True),  # nothing is known of them
    ],
)
def test_which_kept_crops_a_network_can_embed(
    kept: AlignSpec, wanted: AlignSpec, fits: bool
) -> None:
    eyes: Any = SimpleNamespace(align=wanted, network=SimpleNamespace(uses_landmarks=False))
    assert carries(kept, eyes) is fits
    eyes.network.uses_landmarks = True  # it aligns faces itself
    assert carries(kept, eyes) is kept.has_landmarks
