"""Corruptions against scipy, colorsys and the noise's own statistics."""

import colorsys
import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_image

from selfdistill.evaluate.corruptions import CORRUPTIONS, corrupt


def photo(size):
    """A photograph's square, uint8 [1, 3, size, size]."""
    image = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None, :, 100:300, 100:300].float()
    return torch.nn.functional.interpolate(image, (size, size), mode="bilinear", antialias=True).to(torch.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [32, 96])
def test_each_strength_moves_further_from_the_image(name, size):
    """Grey and colour, of either table; the same for the same seed; never out of uint8."""
    for x in (photo(size), photo(size)[:, :1]):
        distance = []
        for strength in range(1, 6):
            found = corrupt(x, name, strength)
            assert found.shape == x.shape
            assert found.dtype == torch.uint8
            assert torch.equal(found, corrupt(x, name, strength))
            distance.append((found.float() - x).square().mean().sqrt())
        assert all(a < b for a, b in itertools.pairwise([0, *distance]))


def test_noise_has_its_variance():
    x = torch.full((4, 1, 50, 50), 128, dtype=torch.uint8)
    gaussian = corrupt(x, "gaussian-noise", 3).float() / 255
    assert float(gaussian.std()) == pytest.approx(0.08, rel=0.05)
    shot = corrupt(x, "shot-noise", 5).float() / 255
    assert float(shot.std()) == pytest.approx((128 / 255 / 50) ** 0.5, rel=0.05)
    assert not torch.equal(corrupt(x, "shot-noise", 5, seed=1), corrupt(x, "shot-noise", 5))


@pytest.mark.parametrize("strength", [1, 3, 5])
def test_blur_is_scipys(strength):
    x = photo(96)
    sigma = CORRUPTIONS["gaussian-blur"].large[strength - 1]
    expected = [gaussian_filter(channel.numpy() / 255, sigma, mode="mirror", truncate=4.0) for channel in x[0]]
    torch.testing.assert_close(
        corrupt(x, "gaussian-blur", strength)[0].double() / 255, torch.from_numpy(np.stack(expected)), atol=1.5 / 255, rtol=0
    )


def test_brightness_and_contrast_are_their_definitions():
    x = photo(32)
    added, kept = CORRUPTIONS["brightness"].small[2], CORRUPTIONS["contrast"].small[2]
    brighter, flatter = (corrupt(x, name, 3)[0].permute(1, 2, 0).reshape(-1, 3) / 255 for name in ("brightness", "contrast"))
    pixels = x[0].permute(1, 2, 0).reshape(-1, 3).double() / 255
    for pixel, found in zip(pixels[::37], brighter[::37], strict=True):
        h, s, v = colorsys.rgb_to_hsv(*pixel.tolist())
        assert found.tolist() == pytest.approx(colorsys.hsv_to_rgb(h, s, min(1, v + added)), abs=1.5 / 255)
    mean = pixels.mean(0)
    torch.testing.assert_close(flatter.double(), (mean + kept * (pixels - mean)).clamp(0, 1), atol=1.5 / 255, rtol=0)


def test_pixelate_keeps_blocks():
    x = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    x[..., 32:] = 200
    assert len(corrupt(x, "pixelate", 5).unique()) <= 3
    assert corrupt(x, "pixelate", 2)[0, 0, :, :28].eq(0).all()
