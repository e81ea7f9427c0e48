from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN
from PIL import Image
from torchvision.ops import nms

from persona.data.align import AlignSpec, detect
from persona.data.align.crop import margin_box
from persona.data.align.decode import Decoded
from persona.data.align.detect import Mtcnn, Networks, _AreaSums, _Level, _pyramid, _suppress
from persona.data.align.detect_onnx import OnnxNetworks
from persona.data.align.detect_torch import TorchNetworks
from persona.data.align.spec import FoundFace
from persona.data.synthetic import draw_identity, draw_photo
from persona.errors import PersonaError

SPEC = AlignSpec()


RUNTIMES = {"torch": lambda: TorchNetworks("cpu"), "onnxruntime": OnnxNetworks}
chosen_runtime = ["torch"]


@pytest.fixture(autouse=True, params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    """What the networks run in: every test holds for both."""
    chosen_runtime[0] = request.param
    return str(request.param)


@functools.cache
def networks_of(runtime: str) -> Networks:
    networks: Networks = RUNTIMES[runtime]()  # type: ignore[assignment]
    return networks


@functools.cache
def detector_of(runtime: str) -> Mtcnn:
    return Mtcnn(networks=networks_of(runtime))


def detector() -> Mtcnn:
    return detector_of(chosen_runtime[0])


def networks() -> Networks:
    return networks_of(chosen_runtime[0])


@functools.cache
def reference() -> Any:
    return MTCNN(
        image_size=160, margin=14, selection_method="center_weighted_size", post_process=False
    )


def find(*photos: Image.Image) -> list[FoundFace | None]:
    return detector()([np.asarray(photo) for photo in photos])


def crop(photo: Image.Image, face: FoundFace) -> np.ndarray:
    region = margin_box(photo.size, face.box, SPEC)
    return np.asarray(Decoded(photo).resize(region, SPEC.image_size), np.float32)


def drawn(count: int) -> list[Image.Image]:
    """Drawn faces of many sizes, upright and flat, and two photos without a face."""
    photos = [Image.new("RGB", (90, 60), "grey"), Image.new("RGB", (20, 20), "white")]
    rng = np.random.default_rng(0)
    for number in range(count - 2):
        photo = draw_photo(draw_identity(1, number), number, int(rng.integers(60, 260)))
        if number % 3 == 1:
            wide = Image.new("RGB", (photo.width + 61, photo.height), "grey")
            wide.paste(photo, (int(rng.integers(61)), 0))
            photo = wide
        photos.append(photo if number % 4 else photo.crop((0, 0, photo.width - 5, photo.height)))
    return photos


def check_parity(photos: list[Image.Image]) -> None:
    """Crops and no-face decisions are the reference's, over 99.5 % of the photos."""
    faces = [
        face for start in range(0, len(photos), 64) for face in find(*photos[start : start + 64])
    ]
    far = 0
    for photo, face in zip(photos, faces, strict=True):
        expected = reference()(photo)
        if expected is None or face is None:
            far += (expected is None) != (face is None)
            continue
        difference = np.abs(crop(photo, face) - expected.permute(1, 2, 0).numpy())
        far += float(difference.mean()) > 1
    assert far <= 0.005 * len(photos)


def test_crops_equal_facenet_pytorch() -> None:
    check_parity(drawn(40))


@pytest.mark.parametrize("band_px", [1, 3000, 20_000])
def test_bands_of_a_large_photo_change_nothing(
    band_px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = drawn(12)
    whole = find(*photos)
    monkeypatch.setattr(detect, "BAND_PX", band_px)
    for found, expected in zip(find(*photos), whole, strict=True):
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            np.testing.assert_allclose(found.box, expected.box, atol=1e-3)
            assert found.probability == pytest.approx(expected.probability, abs=1e-5)


REAL = Path(__file__).parents[4] / "shared" / "faces" / "raw"


@pytest.mark.heavy
@pytest.mark.skipif(not REAL.is_dir(), reason="real faces are not shipped")
def test_crops_of_real_faces_equal_facenet_pytorch() -> None:
    paths = sorted(REAL.rglob("*.jpg"))
    assert len(paths) >= 500
    check_parity([Image.open(path).convert("RGB") for path in paths])


def test_boxes_probabilities_and_points_equal_facenet_pytorch() -> None:
    photo = draw_photo(draw_identity(1, 3), 3)
    found = reference().detect(photo, landmarks=True)
    boxes, probabilities, points = reference().select_boxes(
        *found, photo, method="center_weighted_size"
    )
    (face,) = find(photo)
    assert face is not None and face.landmarks_52 is not None
    np.testing.assert_allclose(face.box, boxes[0].astype(float), atol=0.01)
    np.testing.assert_allclose(face.landmarks_52, points[0].astype(float), atol=0.01)
    assert face.probability == pytest.approx(float(np.ravel(probabilities)[0]), abs=1e-5)


def test_a_photo_has_the_same_bits_in_any_company() -> None:
    photos = drawn(10)
    together = find(*photos)
    backwards = find(*photos[::-1])[::-1]
    for photo, face, other in zip(photos, together, backwards, strict=True):
        (alone,) = find(photo)
        for found in (alone, other):
            if face is None:
                assert found is None
                continue
            assert found is not None
            assert (face.box, face.probability) == (found.box, found.probability)
            np.testing.assert_array_equal(face.landmarks_52, found.landmarks_52)


def test_stacked_canvases_give_the_same_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, but on the CPU."""
    photos = drawn(8)
    expected = find(*photos)
    monkeypatch.setattr(networks(), "on_gpu", True)
    for face, found in zip(expected, find(*photos), strict=True):
        assert (face is None) == (found is None)
        if face is not None and found is not None:
            np.testing.assert_allclose(face.box, found.box, atol=0.01)


def test_a_larger_smallest_face_is_that_of_the_reference() -> None:
    """facenet-pytorch's `min_face_size`: other scales, so other crops, and small faces are lost."""
    larger = Mtcnn(networks=networks(), min_face_px=60)
    known = {"image_size": 160, "margin": 14, "post_process": False}
    theirs = MTCNN(min_face_size=60, selection_method="center_weighted_size", **known)
    photos = [photo for photo in drawn(24) if min(photo.size) >= 60]
    small = Image.new("RGB", (200, 200), "grey")
    small.paste(draw_photo(draw_identity(1, 0), 0, 64), (70, 70))
    photos.append(small)
    faces = larger([np.asarray(photo) for photo in photos])
    default = find(*photos)
    for photo, face in zip(photos, faces, strict=True):
        expected = theirs(photo)
        assert (face is None) == (expected is None)
        if face is not None:
            gap = np.abs(crop(photo, face) - expected.permute(1, 2, 0).numpy())
            assert float(gap.mean()) < 1
    assert any(face is not None for face in faces)
    assert default[-1] is not None and faces[-1] is None
    pairs = [(a.box, b.box) for a, b in zip(faces, default, strict=True) if a and b]
    assert any(one != other for one, other in pairs)


def test_no_photos_have_no_faces() -> None:
    assert find() == []


@pytest.mark.parametrize("size", [(20, 20), (250, 250), (37, 480), (1200, 801), (21, 4000)])
def test_levels_do_not_overlap_on_their_canvas(size: tuple[int, int]) -> None:
    levels, canvas = _pyramid(*size)
    taken = np.zeros(canvas, int)
    for level in levels:
        assert level.top % 2 == level.left % 2 == 0
        part = taken[level.top : level.top + level.height, level.left : level.left + level.width]
        assert part.shape == (level.height, level.width)
        part += 1
    assert taken.max() == 1
    assert taken.mean() > 0.8 or min(size) < 100


def test_the_smallest_photo_of_any_min_face_has_a_level() -> None:
    """47 * (12 / 47) is 11.999999999999998 in floats."""
    for side in range(12, 1001):
        levels, canvas = _pyramid(side, side + 5, side)
        assert [level.scale for level in levels] == [12 / side]
        assert min(levels[0].height, levels[0].width) >= 12
        assert canvas >= (levels[0].height, levels[0].width)


def test_a_photo_that_is_as_small_as_the_smallest_face() -> None:
    grey = np.full((47, 60, 3), 128, np.uint8)
    assert Mtcnn(networks=networks(), min_face_px=47)([grey]) == [None]


def test_area_sums_resize_as_torch_does() -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (83, 61, 3), dtype=np.uint8)
    sums = _AreaSums([photo[:40, :30], photo], networks())
    pixels = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float()

    def reduced(part: torch.Tensor, *size: int) -> np.ndarray:
        return torch.nn.functional.interpolate(part, size, mode="area")[0].permute(1, 2, 0).numpy()

    canvas = networks().zeros(60, 50, 3)
    sums.resize(1, _Level(0.6, 50, 37, 4, 6), canvas)
    np.testing.assert_array_equal(np.asarray(canvas)[4:54, 6:43], reduced(pixels, 50, 37))
    windows = np.array([[3, 5, 50, 80], [10, 70, 17, 83], [0, 0, 61, 83]])
    crops = np.asarray(sums.sample(np.array([1, 1, 1]), windows, 24))
    for (left, top, right, bottom), crop_HWC in zip(windows, crops, strict=True):
        expected = reduced(pixels[:, :, top:bottom, left:right], 24, 24)
        np.testing.assert_array_equal(crop_HWC, expected)


def test_sums_that_overflow_do_no_harm() -> None:
    photo = np.full((3000, 3000, 3), 255, np.uint8)
    windows = np.array([[2900, 2900, 3000, 3000]])
    assert (_AreaSums([photo], networks()).sample(np.array([0]), windows, 24) == 255).all()


def test_of_two_faces_the_large_central_one_is_taken() -> None:
    photo = Image.new("RGB", (420, 300), "grey")
    photo.paste(draw_photo(draw_identity(1, 0), 0, 120), (0, 90))
    photo.paste(draw_photo(draw_identity(1, 3), 3, 280), (120, 10))
    (face,) = find(photo)
    assert face is not None
    x0, _, x1, _ = face.box
    assert x0 > 120 and x1 - x0 > 80


def test_nearly_all_drawn_faces_are_found() -> None:
    photos = [draw_photo(draw_identity(0, number), number) for number in range(40)]
    assert sum(face is not None for face in find(*photos)) >= 37


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(PersonaError, match="torch sees no GPU here; --device cpu"):
        Mtcnn("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_finds_the_same_faces() -> None:
    photos = drawn(40)
    on_gpu = Mtcnn("cuda")([np.asarray(photo) for photo in photos])
    for face, found in zip(find(*photos), on_gpu, strict=True):
        assert (face is None) == (found is None)
        if face is not None and found is not None:
            np.testing.assert_allclose(face.box, found.box, atol=0.1)


def test_workers_spread_over_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(os, "getpid", lambda: 7)

    def to(network: torch.nn.Module, place: torch.device, **_: object) -> torch.nn.Module:
        places.append(place)
        return network

    monkeypatch.setattr(torch.nn.Module, "to", to)
    Mtcnn("auto")
    assert places == [torch.device("cuda", 1)] * 3


def test_all_faces_of_a_photo() -> None:
    both = Image.new("RGB", (400, 160), "grey")
    for place in range(2):
        both.paste(draw_photo(draw_identity(1, place), place, 160), (240 * place, 0))
    alone = Image.new("RGB", (90, 60), "grey")
    photos = [np.asarray(both), np.asarray(alone)]
    found, none = detector().find_all(photos)
    assert none == []
    assert sorted(int(face.box[0] // 200) for face in found) == [0, 1]
    probabilities = [face.probability or 0.0 for face in found]
    assert probabilities == sorted(probabilities, reverse=True)
    (chosen, nobody) = detector()(photos)
    assert nobody is None
    assert chosen is not None
    assert chosen.box in [face.box for face in found]


@pytest.mark.parametrize("count", [0, 1, 40, 700])
def test_suppression_is_torchvisions(count: int) -> None:
    rng = np.random.default_rng(count)
    corners = rng.integers(0, 60, (count, 2))
    boxes = np.hstack([corners, corners + rng.integers(1, 40, (count, 2))]).astype(np.float32)
    scores = rng.integers(0, 50, count).astype(np.float32) / 50  # with ties
    for overlap in (0.5, 0.7):
        expected = nms(torch.from_numpy(boxes), torch.from_numpy(scores), overlap).numpy()
        np.testing.assert_array_equal(_suppress(boxes, scores, overlap), expected)
