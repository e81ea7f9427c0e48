"""Each augmentation against a reference, and what all of them keep to."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import affine_transform, gaussian_filter, maximum_filter

from persona.config import STANDARD, AugmentConfig, from_dict, to_dict
from persona.data.augmentations import AUGMENTATIONS, Augmentation, Column, Stage
from persona.data.augmentations.temperature import NEUTRAL_MIRED, XYZ_TO_RGB, light
from persona.data.kept_targets import photo_views
from persona.data.transforms import apply_views, view_landmarks
from persona.data.views import (
    IDENTITY,
    VIEW,
    draw_views,
    identity_view,
    mirror_view,
    sound_views,
    view_columns,
)
from persona.errors import PersonaError

NEW: dict[str, dict[str, Any]] = {
    "affine": {"rotation": 20, "scale": 0.2, "shift": 0.1},
    "blur": {"blur": 0.5},
    "fill": {"fill": 0.5},
    "gamma": {"gamma": 1.0},
    "jpeg": {"jpeg": 0.5},
    "temperature": {"temperature": 60},
}
STRONG: dict[str, Any] = {
    "crop": 0.2,
    "low_resolution": 0.2,
    "grey": 0.1,
    "jitter": 0.3,
    "erase": 0.1,
}
ALL: dict[str, Any] = {
    **STRONG,
    **{name: value for options in NEW.values() for name, value in options.items()},
}


def photos(count: int = 8, side: int = 64) -> torch.Tensor:
    """(count, 3, side, side) uint8: smooth colours with a little noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    noise = 5 * torch.randn(smooth.shape, generator=generator)
    return (smooth + noise).clamp(0, 255).to(torch.uint8)


def view(augment: AugmentConfig, **values: float) -> np.ndarray:
    """(1, V) a view with these values, otherwise the photo as it is."""
    row = identity_view(augment)
    for name, value in values.items():
        row[[column.name for column in view_columns(augment)].index(name)] = value
    return row[None]


# Computed by commit f12965a, which had all augmentations in one file: SHA-256 of the rows, then
# mean and standard deviation of all pixels and of some.
EARLIER: list[tuple[dict[str, Any], str, list[float]]] = [
    ({}, "7261a77eae0beb08", [127.501, 73.901, 129.336, 73.92]),
    ({"flip": False}, "6d980bac63ca3196", [127.501, 73.901, 126.545, 73.92]),
    ({"crop": 0.3}, "0297c5b3536f237a", [127.492, 49.933, 128.817, 54.039]),
    ({"low_resolution": 0.5}, "1c8c5a1026657265", [127.472, 45.984, 127.765, 38.384]),
    ({"grey": 0.4}, "b8f00b73a788498f", [127.505, 61.434, 128.952, 63.863]),
    ({"jitter": 0.3}, "f3b5c23197e29c94", [119.786, 65.929, 120.907, 64.524]),
    ({"erase": 0.5}, "583e34b75718febf", [127.5, 72.477, 129.22, 73.044]),
    (STRONG, "9cd04b0d112e38f6", [120.697, 42.264, 121.657, 45.02]),
]


@pytest.mark.parametrize(("options", "digest", "figures"), EARLIER)
def test_the_same_seeds_give_the_views_of_earlier_versions(
    options: dict[str, Any], digest: str, figures: list[float]
) -> None:
    augment = AugmentConfig(**options)
    rows = np.concatenate([draw_views(augment, 24, 1, 2, 3), photo_views(augment, 8, 3, 17, 0)])
    assert hashlib.sha256(rows.tobytes()).hexdigest().startswith(digest)
    noise = (np.arange(32 * 32 * 32 * 3) * 2654435761 % 2**32 >> 24).astype(np.uint8)
    images = torch.from_numpy(noise.reshape(32, 32, 32, 3)).permute(0, 3, 1, 2)
    seen = apply_views(images, rows, augment)
    found = seen.mean(), seen.std(), seen[:, :, ::5, ::7].mean(), seen[20:, 0, 3:9].std()
    assert [float(value) for value in found] == pytest.approx(figures, abs=2e-3)


def test_a_config_of_earlier_versions_is_written_as_it_was() -> None:
    plain = {"flip": True, "crop": 0.2, "low_resolution": 0.0, "grey": 0.0, "jitter": 0.0}
    augment = from_dict(AugmentConfig, {"crop": 0.2}, where="here")
    assert list(to_dict(augment).items()) == list({**plain, "erase": 0.0}.items())
    assert [column.name for column in view_columns(augment)] == list(VIEW)
    assert len(VIEW) == 11 and {one.name for one in augment.augmentations} == {*STANDARD}


@pytest.mark.parametrize("name", NEW)
def test_a_new_one_changes_nothing_that_others_draw(name: str) -> None:
    strong, more = AugmentConfig(**STRONG), AugmentConfig(**STRONG, **NEW[name])
    alone = AugmentConfig(**NEW[name])
    one, two = draw_views(strong, 64, 3, 4), draw_views(more, 64, 3, 4)
    np.testing.assert_array_equal(one, two[:, : len(VIEW)])
    np.testing.assert_array_equal(draw_views(alone, 64, 3, 4)[:, len(VIEW) :], two[:, len(VIEW) :])
    np.testing.assert_array_equal(draw_views(AugmentConfig(**ALL), 64, 3, 4)[:, : len(VIEW)], one)
    assert to_dict(more) == {**to_dict(strong), **NEW[name]}
    assert more.beyond_flip and alone.beyond_flip and not AugmentConfig().beyond_flip
    assert from_dict(AugmentConfig, to_dict(more), where="here") == more


@pytest.mark.parametrize("name", [*STANDARD, *NEW])
def test_drawn_columns_are_within_their_bounds_and_change_a_photo(name: str) -> None:
    augment = AugmentConfig(**(NEW.get(name) or STRONG))
    (one,) = (one for one in augment.augmentations if one.name == name)
    strongest: dict[str, Any] = {}
    for item in dataclasses.fields(one.config_class):
        check = item.metadata.get("check")
        strongest[item.name] = check.keywords["high"] if check else True
    augment = AugmentConfig(strongest)
    views = draw_views(augment, 500, 1)
    assert sound_views(views, augment).all()
    images = photos(1).repeat(24, 1, 1, 1)
    images[:, :, :, :4] = 0  # something to fill
    assert (apply_views(images, views[:24], augment) != images).any()
    kept = apply_views(images, np.tile(identity_view(augment), (24, 1)), augment)
    assert torch.equal(kept, images.float())
    for value in (np.nan, np.inf, 1e4):
        views[3, -1] = value
        assert not sound_views(views, augment)[3] and sound_views(views, augment)[:3].all()


def test_a_view_is_the_same_alone_and_in_a_batch() -> None:
    augment = AugmentConfig(**ALL)
    images, views = photos(), draw_views(augment, 8, 7)
    together = apply_views(images, views, augment)
    assert together.dtype == torch.float32 and together.min() >= 0 and together.max() <= 255
    assert torch.equal(together, apply_views(images, views, augment))
    for row in range(8):
        alone = apply_views(images[row : row + 1], views[row : row + 1], augment)
        # A sum in another order may round a coefficient of a JPEG the other way.
        assert float((alone[0] - together[row]).abs().mean()) < 0.05
    both = np.stack([identity_view(augment), mirror_view(augment)])
    seen = apply_views(images[:2], both, augment)
    assert torch.equal(seen[1], images[1].flip(2).float())


def test_what_no_photo_uses_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    augment = AugmentConfig(**ALL)
    done = []
    for one in augment.augmentations:

        def apply(self: Augmentation, images: Any, columns: Any, name: str = one.name) -> Any:
            done.append((name, len(images), {len(column) for column in columns.values()}))
            return images

        monkeypatch.setattr(type(one), "apply", apply)
    views = np.tile(identity_view(augment), (8, 1))
    apply_views(photos(), views, augment)
    assert not done
    views[2] = view(augment, sigma=0.01, erase_left=0.3)
    views[5] = view(augment, sigma=0.02, side=0.8)
    apply_views(photos(), views, augment)
    assert done == [("crop", 8, {8}), ("blur", 2, {2})]


# --- each against a reference ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("angle", "factor", "right", "down"),
    [(0, 1, 0.125, -0.25), (0, 1.3, 0, 0), (90, 1, 0, 0), (-12.5, 0.9, 0.03, 0.07)],
)
def test_affine_is_scipys(angle: float, factor: float, right: float, down: float) -> None:
    augment, images = AugmentConfig(rotation=90), photos(1)
    row = view(augment, angle=angle, factor=factor, right=right, down=down)
    seen = apply_views(images, row, augment)[0].numpy()
    turn = np.radians(angle)
    # In (row, column) order, from the result back to the photo.
    forward = factor * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    back, centre = np.linalg.inv(forward), np.full(2, 63 / 2)
    offset = centre - back @ (centre + 64 * np.array([down, right]))
    for channel in range(3):
        photo = images[0, channel].numpy().astype(float)
        wanted = affine_transform(photo, back, offset, order=1, mode="nearest")
        np.testing.assert_allclose(seen[channel], wanted, atol=0.05)


def test_landmarks_follow_the_pixels_of_affine() -> None:
    augment = AugmentConfig(rotation=90, crop=0.3)
    image = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    image[:, :, 18:24, 38:44] = 255
    rows = np.concatenate(
        [
            view(augment, angle=30),
            view(augment, factor=1.4, right=0.05, down=-0.1),
            view(augment, angle=-20, factor=0.8, right=-0.1, flip=1),
            view(augment, angle=15, side=0.8, left=0.1, top=0.05),
        ]
    )
    seen = apply_views(image, rows, augment)[:, 0]
    points = torch.full((4, 5, 2), 20.5)
    points[..., 0] = 40.5
    moved = view_landmarks(torch.cat([points, torch.ones(4, 1, 2)], dim=1), rows, 64, augment)
    place = torch.arange(64.0)
    for row in range(4):
        mass = seen[row].sum()
        centre = (seen[row] * place).sum() / mass, (seen[row] * place[:, None]).sum() / mass
        assert moved[row, 0].tolist() == pytest.approx([float(c) for c in centre], abs=0.1)
    assert moved[:, 5, 0].tolist() == pytest.approx([1, 1.4, 0.8, 1 / 0.8])


def cut(angle: float, shift: float, *, brightness: float = 1.0) -> tuple[Any, Any]:
    """Two photos that end inside of their crops, as uint8, and (64, 64) bool where they do."""
    turn, place = np.radians(angle), np.mgrid[:64, :64] - 31.5
    across = np.cos(turn) * place[1] - np.sin(turn) * place[0]
    along = np.sin(turn) * place[1] + np.cos(turn) * place[0]
    outside = (np.abs(across + shift) > 26) | (along > 20)
    images = 40 + 0.8 * brightness * photos(2).float()
    images[:, :, torch.from_numpy(outside)] = 0
    return images.round().to(torch.uint8), outside


@pytest.mark.parametrize(("angle", "shift"), [(0, 0), (0, 12), (9, 3), (-23, -5)])
def test_fill_leaves_no_black_and_touches_nothing_else(angle: float, shift: float) -> None:
    augment, (images, outside) = AugmentConfig(fill=1), cut(angle, shift)
    seen = apply_views(images, np.tile(view(augment, fill=1), (2, 1)), augment).numpy()
    assert seen.min() >= 40  # the darkest of the photos
    near = maximum_filter(outside, 3)  # the decoder mixes the rim with black
    assert np.array_equal(seen[:, :, ~near], images.numpy()[:, :, ~near])


def test_fill_takes_the_colour_at_the_near_end_of_the_shortest_run() -> None:
    augment = AugmentConfig(fill=1)
    images = torch.full((1, 3, 64, 64), 60, dtype=torch.uint8)
    images[:, 0, :, 20:] = 200
    images[:, 1, :14] = 150
    images[:, :, :10] = images[:, :, :, :16] = 0
    seen = apply_views(images, view(augment, fill=1), augment)[0]
    assert seen[:, 40, 4].tolist() == [60, 60, 60]  # from the right, 2 px behind the rim
    assert seen[:, 2, 40].tolist() == [200, 150, 60]  # from below
    assert torch.equal(seen[:, 14:, 20:], images[0, :, 14:, 20:].float())


@pytest.mark.parametrize("kind", ["whole", "black", "night", "not chosen"])
def test_fill_leaves_whole_dark_and_black_photos_alone(kind: str) -> None:
    augment, (images, outside) = AugmentConfig(fill=1), cut(12, 4)
    if kind == "whole":
        images = photos(2).clamp(min=30)
    elif kind == "black":
        images.zero_()
    elif kind == "night":  # what is dark is not black
        images[:, :, torch.from_numpy(outside)] = 12
    rows = np.tile(view(augment, fill=kind != "not chosen"), (2, 1))
    assert torch.equal(apply_views(images, rows, augment), images.float())


def test_fill_sees_through_the_noise_of_a_jpeg() -> None:
    augment, (images, outside) = AugmentConfig(fill=1), cut(9, 3)
    buffer = io.BytesIO()
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=92)
    stored = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)[None]
    seen = apply_views(stored, view(augment, fill=1), augment)[0].amax(0).numpy()
    assert (stored[0].amax(0).numpy()[outside] < 24).mean() > 0.9
    assert (seen[outside] < 24).mean() < 0.01


@pytest.mark.parametrize("sigma_px", [0.3, 0.8, 1.28])
def test_blur_is_scipys(sigma_px: float) -> None:
    augment, images = AugmentConfig(blur=1), photos(2)
    # A photo that is blurred more lies in the same batch.
    rows = np.concatenate([view(augment, sigma=sigma_px / 64), view(augment, sigma=0.02)])
    seen = apply_views(images, rows, augment)
    for channel in range(3):
        photo = images[0, channel].numpy().astype(float)
        wanted = gaussian_filter(photo, sigma_px, mode="nearest", truncate=4.0)
        np.testing.assert_allclose(seen[0, channel].numpy(), wanted, atol=1e-3)


def test_gamma_is_a_power() -> None:
    augment, images = AugmentConfig(gamma=1), photos(1)
    seen = apply_views(images, view(augment, exponent=1.7), augment)
    wanted = 255 * (images.numpy().astype(float) / 255) ** 1.7
    np.testing.assert_allclose(seen.numpy(), wanted, atol=1e-3)
    exponents = draw_views(augment, 4000, 1)[:, -1]
    assert exponents.min() >= 0.5 and exponents.max() <= 2
    assert np.median(exponents) == pytest.approx(1, abs=0.05)


def planck(kelvin: float) -> np.ndarray:
    """Linear sRGB of a black body, by Planck's law and the fits of Wyman et al. 2013, section 2."""
    nm = np.arange(380.0, 781.0)

    def lobe(height: float, mean: float, below: float, above: float) -> np.ndarray:
        return height * np.exp(-0.5 * ((nm - mean) * np.where(nm < mean, below, above)) ** 2)

    x = lobe(0.362, 442.0, 0.0624, 0.0374) + lobe(1.056, 599.8, 0.0264, 0.0323)
    x += lobe(-0.065, 501.1, 0.0490, 0.0382)
    y = lobe(0.821, 568.8, 0.0213, 0.0247) + lobe(0.286, 530.9, 0.0613, 0.0322)
    z = lobe(1.217, 437.0, 0.0845, 0.0278) + lobe(0.681, 459.0, 0.0385, 0.0725)
    spectrum = nm**-5 / np.expm1(1.4388e7 / (nm * kelvin))
    xyz = np.stack([x, y, z]) @ spectrum
    return np.asarray(XYZ_TO_RGB @ xyz / xyz[1])


def test_colour_temperature_is_plancks() -> None:
    shifts = np.array([-100.0, -50, 0, 30, 100])
    gains = light(shifts)
    day = planck(1e6 / NEUTRAL_MIRED)
    for shift, gain in zip(shifts, gains, strict=True):
        wanted = (planck(1e6 / (NEUTRAL_MIRED + shift)) / day) ** (1 / 2.2)
        wanted /= wanted @ (0.299, 0.587, 0.114)
        np.testing.assert_allclose(gain, wanted, atol=0.02)
    assert gains[4, 0] > 1.1 and gains[4, 2] < 0.9  # lamps are warm
    np.testing.assert_allclose(gains @ (0.299, 0.587, 0.114), 1, atol=1e-6)
    augment, images = AugmentConfig(temperature=50), photos(1)
    seen = apply_views(images, view(augment, mired=30), augment)
    wanted = np.clip(images.numpy() * gains[3][:, None, None], 0, 255)
    np.testing.assert_allclose(seen.numpy(), wanted, atol=1e-3)


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 95])
@pytest.mark.parametrize("side", [64, 60])
def test_jpeg_is_libjpegs_but_for_rounding(quality: int, side: int) -> None:
    augment, images = AugmentConfig(jpeg=1), photos(2, side)
    seen = apply_views(images, np.tile(view(augment, quality=quality), (2, 1)), augment)
    for image, found in zip(images, seen, strict=True):
        buffer = io.BytesIO()
        pixels = image.permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        wanted = np.asarray(Image.open(buffer)).astype(float)
        lost = np.abs(wanted - pixels).mean()
        assert np.abs(found.permute(1, 2, 0).numpy() - wanted).mean() < min(1.25, 0.5 * lost)


# --- options and registry -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotation": 91}, "rotation 91.0: choose 0 to 90"),
        ({"blur": -0.1}, "blur -0.1: choose 0 to 1"),
        ({"temperature": 101}, "temperature 101.0: choose 0 to 100"),
        (
            {"rotatoin": 3},
            r"unknown key 'augment\.rotatoin' in here; did you mean .augment\.rotation",
        ),
        ({"jpeg": "yes"}, r"augment\.jpeg in here: expected float, found 'yes'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PersonaError, match=message):
        from_dict(AugmentConfig, options, where="here", prefix="augment.")
    with pytest.raises(TypeError, match="no augmentation has an option rotatoin"):
        AugmentConfig(rotatoin=3)


def test_the_documentation_lists_every_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "augmentations.md").read_text()
    for name in AUGMENTATIONS.built_in:
        for item in dataclasses.fields(AUGMENTATIONS.find(name).config_class):
            assert f"| `{item.name}` |" in page


def test_two_augmentations_do_not_share_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AUGMENTATIONS, "_items", dict(AUGMENTATIONS._items))

    @dataclasses.dataclass(frozen=True)
    class Options:
        crop: float = 0.0

    class Other(Augmentation):
        name = "other"
        config_class, stage = Options, Stage.COVER
        columns = (Column("other", 0, 0, 1),)

        def draw(self, rng: np.random.Generator, count: int) -> Any:
            raise NotImplementedError

        def apply(self, images_BCHW: torch.Tensor, columns: Any) -> torch.Tensor:
            raise NotImplementedError

    assert AugmentConfig(crop=0.1).options["crop"] == 0.1
    with pytest.raises(PersonaError, match="'other' has the option 'crop' of 'crop'"):
        from_dict(AugmentConfig, {"unheard_of": 1}, where="here")
    assert IDENTITY.shape == (11,)
