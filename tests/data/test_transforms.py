"""Views: drawn from seeds, applied in batches, replayed exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from persona.config import AugmentConfig
from persona.data.transforms import apply_views, normalise, view_landmarks
from persona.data.views import IDENTITY, MIRROR, VIEW, draw_views, mirror_landmarks, mix_seeds

STRONG = AugmentConfig(crop=0.3, low_resolution=0.5, grey=0.3, jitter=0.4, erase=0.5)


def photos(count: int = 16, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 255)
    return smooth.to(torch.uint8).contiguous(memory_format=torch.channels_last)


def view(**values: float) -> np.ndarray:
    row = IDENTITY.copy()
    for name, value in values.items():
        row[VIEW.index(name)] = value
    return row


def test_the_photo_and_its_mirror_image_are_exact() -> None:
    images = photos(2)
    seen = apply_views(images, np.stack([IDENTITY, MIRROR]))
    assert seen.dtype == torch.float32
    assert torch.equal(seen[0], images[0].float())
    assert torch.equal(seen[1], images[1].flip(2).float())


def test_mirroring_depends_on_the_seeds_alone() -> None:
    one, two = (draw_views(AugmentConfig(), 64, 1, 2, 3) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert (one != draw_views(AugmentConfig(), 64, 1, 3, 2)).any()
    assert 16 < one[:, 0].sum() < 48
    assert (one[:, 1:] == IDENTITY[1:]).all()
    assert (draw_views(AugmentConfig(flip=False), 64, 1) == IDENTITY).all()


def test_other_options_do_not_change_the_coins() -> None:
    plain, strong = draw_views(AugmentConfig(), 64, 5), draw_views(STRONG, 64, 5)
    np.testing.assert_array_equal(plain[:, 0], strong[:, 0])


def test_drawn_views_stay_within_what_was_asked() -> None:
    views = dict(zip(VIEW, draw_views(STRONG, 4000, 1).T, strict=True))
    assert 0.7 <= views["side"].min() < 0.72 and views["side"].max() <= 1
    assert (views["left"] >= 0).all() and (views["left"] + views["side"] <= 1 + 1e-6).all()
    assert set(np.unique(views["reduce"])) == {1, 2, 3, 4}
    assert (views["reduce"] > 1).mean() == pytest.approx(0.5, abs=0.05)
    assert (views["saturation"] == 0).mean() == pytest.approx(0.3, abs=0.05)
    assert views["brightness"].min() >= 0.6 and views["brightness"].max() <= 1.4
    assert (views["erase_side"] > 0).mean() == pytest.approx(0.5, abs=0.05)
    assert views["erase_side"].max() <= 0.4


def test_a_row_replays_the_same_pixels_alone_or_in_a_batch() -> None:
    images, views = photos(), draw_views(STRONG, 16, 7)
    together = apply_views(images, views)
    assert torch.equal(together, apply_views(images, views))
    for row in range(16):
        alone = apply_views(images[row : row + 1], views[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-3)
    assert float(together.min()) >= 0 and float(together.max()) <= 255


def test_a_crop_is_the_part_scaled_to_the_whole() -> None:
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[..., :16] = 200  # the left half is light
    left = apply_views(image, view(left=0, top=0.25, side=0.5)[None])
    right = apply_views(image, view(left=0.5, top=0.25, side=0.5)[None])
    assert float(left[..., :28].min()) == 200 and float(right[..., 4:].max()) == 0


def test_colours_agree_with_torchvision() -> None:
    from torchvision.transforms import functional as tv

    images = photos(4).float() / 255
    for name, function in (
        ("brightness", tv.adjust_brightness),
        ("contrast", tv.adjust_contrast),
        ("saturation", tv.adjust_saturation),
    ):
        seen = apply_views(photos(4), np.tile(view(**{name: 1.3}), (4, 1))) / 255
        # torchvision's weights of grey are rounded to four digits.
        torch.testing.assert_close(seen, function(images, 1.3), rtol=0, atol=2e-3)
    grey = apply_views(photos(4), np.tile(view(saturation=0), (4, 1)))
    torch.testing.assert_close(grey[:, 0], grey[:, 2])


def test_low_resolution_loses_detail_and_keeps_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = (torch.rand(1, 3, 32, 32, generator=generator) * 255).to(torch.uint8)
    reduced = apply_views(noise, view(reduce=4)[None])
    assert float(reduced.std()) < 0.4 * float(noise.float().std())
    assert float(reduced.mean()) == pytest.approx(float(noise.float().mean()), abs=3)


def test_erasing_covers_a_square() -> None:
    image = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    seen = apply_views(image, view(erase_left=0.5, erase_top=0.25, erase_side=0.2)[None])
    covered = (seen[0, 0] == 127.5).nonzero()
    assert covered.min(0).values.tolist() == [10, 20] and covered.max(0).values.tolist() == [17, 27]


def test_landmarks_follow_the_pixels() -> None:
    """A light dot at a point is at the moved point of every view."""
    point = torch.tensor([20.0, 11.0])
    image = torch.zeros(3, 3, 40, 40, dtype=torch.uint8)
    image[:, :, 11, 20] = 255
    views = np.stack([MIRROR, view(left=0.3, top=0.1, side=0.6), view(flip=1, left=0.2, side=0.7)])
    seen = apply_views(image, views)
    landmarks = torch.cat([point.expand(3, 5, 2), torch.full((3, 1, 2), 0.8)], dim=1)
    moved = view_landmarks(landmarks, views, 40)
    for row in range(3):
        y, x = divmod(int(seen[row, 0].argmax()), 40)
        assert abs(x - float(moved[row, 0, 0])) <= 1 and abs(y - float(moved[row, 0, 1])) <= 1
    torch.testing.assert_close(moved[:, 5, 0], torch.tensor([0.8, 0.8 / 0.6, 0.8 / 0.7]))


def test_a_mirrored_left_eye_is_the_right_one() -> None:
    points = torch.tensor([[10.0, 10], [30, 10], [20, 20], [12, 30], [28, 30], [1, 1]])[None]
    moved = view_landmarks(points, MIRROR[None], 40)[0]
    assert moved[:5].tolist() == [[9, 10], [29, 10], [19, 20], [11, 30], [27, 30]]


def test_normalise_is_facenets() -> None:
    images = torch.tensor([0, 127, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [(v - 127.5) / 128 for v in (0, 127, 255)]
    assert normalise(images).flatten().tolist() == pytest.approx(expected)
    before = images.float()
    normalise(before)
    assert torch.equal(before, images.float())  # its input is left as it was


def test_seeds_do_not_collide() -> None:
    mixed = {mix_seeds(a, b, c) for a in range(8) for b in range(8) for c in range(8)}
    assert len(mixed) == 512


def test_the_points_of_a_mirror_image_are_those_of_its_view() -> None:
    points = torch.rand(5, 6, 2, generator=torch.Generator().manual_seed(0)) * 32
    view = view_landmarks(points, np.tile(MIRROR, (5, 1)), 32)
    np.testing.assert_allclose(mirror_landmarks(points.numpy(), 32), view.numpy(), atol=1e-5)
