"""Similarity transforms and the five-point template."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from persona.data.align import AlignSpec, FoundFace
from persona.data.align.crop import crop_landmarks, in_margin_box, margin_box
from persona.data.align.decode import Decoded
from persona.landmarks import TEMPLATE_52, invert, move, similarity, template
from persona.models.onnx_network import turn


def turned(
    points: np.ndarray, degrees: float, scale: float, shift: tuple[float, float]
) -> np.ndarray:
    a = np.deg2rad(degrees)
    matrix = scale * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    return np.asarray(points @ matrix.T + shift)


@pytest.mark.parametrize("degrees", [-170, -30, 0, 15, 90])
@pytest.mark.parametrize("scale", [0.2, 1, 3.7])
def test_an_exact_similarity_is_found(degrees: float, scale: float) -> None:
    there = turned(TEMPLATE_52, degrees, scale, (40, -7))
    matrix = similarity(there[None], TEMPLATE_52)
    np.testing.assert_allclose(move(there[None], matrix)[0], TEMPLATE_52, atol=1e-9)
    np.testing.assert_allclose(move(TEMPLATE_52[None], invert(matrix))[0], there, atol=1e-9)


def test_an_inexact_one_is_the_least_squares_one() -> None:
    """Umeyama's estimate by singular values, on points no similarity fits."""
    rng = np.random.default_rng(0)
    source = TEMPLATE_52 + rng.normal(0, 4, (5, 2))
    x, y = source - source.mean(0), TEMPLATE_52 - TEMPLATE_52.mean(0)
    u, s, vt = np.linalg.svd(y.T @ x / 5)
    sign = np.diag([1, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ sign @ vt
    scale = float(np.trace(np.diag(s) @ sign)) / float((x**2).sum() / 5)
    expected = scale * rotation
    found = similarity(source[None], TEMPLATE_52)[0]
    np.testing.assert_allclose(found[:, :2], expected, atol=1e-9)


def test_a_template_of_another_size_keeps_its_edges() -> None:
    np.testing.assert_allclose(template(112), TEMPLATE_52)
    np.testing.assert_allclose((template(224) + 0.5) / 2 - 0.5, TEMPLATE_52)


def dotted(points: np.ndarray, size: int, radius: float) -> Image.Image:
    """Light dots on black, where the points are."""
    y, x = np.mgrid[:size, :size]
    light = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / 2 / radius**2) for px, py in points)
    return Image.fromarray(np.asarray(light * 255).clip(0, 255).astype(np.uint8)).convert("RGB")


def centre(image: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Centre of the light within 8 px of a place."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    weight = image * (np.hypot(x - near[0], y - near[1]) < 8)
    place = np.array([(x * weight).sum(), (y * weight).sum()])
    return np.asarray(place / weight.sum())


@pytest.mark.parametrize(("degrees", "scale"), [(0, 1.0), (20, 1.6), (-35, 4.3)])
def test_dots_land_on_the_template(degrees: float, scale: float) -> None:
    """Both ways: turned while packing, and turned from a stretched margin crop."""
    points = turned(TEMPLATE_52 - 56, degrees, scale, (500, 500))
    photo = dotted(points, 1000, 2 * scale)
    crop, landmarks_62 = crop_landmarks(photo, points, AlignSpec("landmarks", 112, 0))
    np.testing.assert_allclose(landmarks_62[:5], TEMPLATE_52, atol=0.05)
    grey = np.asarray(crop.convert("L"), float)
    for point in TEMPLATE_52:
        np.testing.assert_allclose(centre(grey, point), point, atol=0.4)

    spec = AlignSpec("mtcnn", 160, 14)
    radius = 70 * scale
    box = (500 - 0.9 * radius, 500 - 1.2 * radius, 500 + 0.9 * radius, 500 + 1.2 * radius)
    region = margin_box(photo.size, box, spec)
    stretched = np.asarray(Decoded(photo).resize(region, spec.image_size), np.float32)
    in_crop = in_margin_box(photo.size, FoundFace(box, 1.0, points), spec)
    assert in_crop is not None and in_crop[5, 0] > 1.2 * in_crop[5, 1]
    pixels = torch.from_numpy(stretched).permute(2, 0, 1)[None]
    back = turn(pixels, in_crop[None].astype(np.float32), 112)[0, 0].numpy()
    for point in TEMPLATE_52:
        np.testing.assert_allclose(centre(back, point), point, atol=0.5)


def test_crops_that_are_aligned_already_are_left_alone() -> None:
    pixels = torch.rand(2, 3, 112, 112)
    landmarks = np.tile(np.vstack([TEMPLATE_52, [[0.7, 0.7]]]), (2, 1, 1)).astype(np.float32)
    assert turn(pixels, landmarks, 112) is pixels
