"""Mixing photos: drawn from seeds, applied in batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from persona.config import MixConfig
from persona.data.mixing import Mix, apply_mix, draw_mix


def drawn(config: MixConfig, *seeds: int) -> Mix:
    mix = draw_mix(config, 400, *seeds)
    assert mix is not None
    return mix


def test_mixes_depend_on_the_seeds_alone() -> None:
    config = MixConfig(mixup=1, cutmix=1)
    for one, two in zip(drawn(config, 1, 2, 0, 3), drawn(config, 1, 2, 0, 3), strict=True):
        np.testing.assert_array_equal(one, two)
    assert (drawn(config, 1).partner != drawn(config, 2).partner).any()
    assert draw_mix(MixConfig(), 8, 1) is None


@pytest.mark.parametrize(
    ("config", "pasted"),
    [(MixConfig(mixup=1), 0), (MixConfig(cutmix=1), 1), (MixConfig(mixup=1, cutmix=1), 0.5)],
)
def test_each_photo_is_mixed_by_one_kind_and_keeps_half_of_itself(
    config: MixConfig, pasted: float
) -> None:
    mix = drawn(config, 5)
    assert sorted(mix.partner.tolist()) == list(range(400))
    width, height = (mix.box[:, 2:] - mix.box[:, :2]).T
    np.testing.assert_allclose(width, height, atol=1e-6)
    assert (width > 0).mean() == pytest.approx(pasted, abs=0.08)
    assert (mix.share[width > 0] == 1).all()
    kept = np.where(width > 0, 1 - width * height, mix.share)
    assert kept.min() >= 0.5 - 1e-6 and kept.max() <= 1
    assert kept.mean() == pytest.approx(0.75, abs=0.03)  # uniform from 1/2 to 1
    assert mix.box.min() >= 0 and mix.box.max() <= 1 + 1e-6


def test_photos_are_blended_or_pasted() -> None:
    images = torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(0)) * 255
    mix = Mix(
        np.array([1, 2, 0]),
        np.array([0.75, 1, 1], np.float32),
        np.array([[0, 0, 0, 0], [0.25, 0.5, 0.5, 0.75], [0.3, 0.3, 0.3, 0.3]], np.float32),
    )
    before = images.clone()
    mixed = apply_mix(images, mix)
    assert torch.equal(images, before)
    torch.testing.assert_close(mixed[0], 0.75 * images[0] + 0.25 * images[1])
    wanted = images[1].clone()
    wanted[:, 10:15, 5:10] = images[2][:, 10:15, 5:10]
    torch.testing.assert_close(mixed[1], wanted)
    torch.testing.assert_close(mixed[2], images[2])
