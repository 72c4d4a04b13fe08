"""views.colour=folded: the exact chain where nothing is clamped and no hue turned, and how far off elsewhere."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_sample_images

from selfdistill.views.augment import views_of_crops, views_of_pixels
from selfdistill.views.color import hue
from selfdistill.views.crop import crop_and_resize
from selfdistill.views.folded import colour_map
from selfdistill.views.spec import Augment, Crops

LEVEL = 1 / 255


def both(images, **augment):
    """One view of each image, by the exact chain and folded, in [0, 1]."""
    specs = [Crops(size=24, mean=(0.0,), std=(1.0,), augment=Augment(**augment), colour=colour) for colour in ("exact", "folded")]
    return [views_of_pixels(images, torch.arange(len(images)), spec, 1, 0, 0).crops[0][0] for spec in specs]


@pytest.mark.parametrize("channels", [1, 3])
def test_without_hue_and_clamping_it_is_the_exact_chain(channels):
    """Crop, flip, brightness, contrast, saturation, grey, blur and solarise, in all orders."""
    images = torch.randint(110, 140, (200, channels, 30, 30), dtype=torch.uint8)
    exact, folded = both(images, hue=0.0, brightness=0.2, contrast=0.3, saturation=0.3, solarize=0.2)
    # where blur comes before an affine map it comes out the same; only a solarised pixel on the edge of 128 may fall on either side
    assert ((exact - folded).abs().flatten(1).amax(1) < 1e-4).double().mean() > 0.95


def photographs():
    cut = [torch.from_numpy(photo.copy()).unfold(0, 64, 60).unfold(1, 64, 60).flatten(0, 1) for photo in load_sample_images().images]
    return torch.cat(cut)  # [N, 3, 64, 64]


@pytest.mark.parametrize(("changed", "mean", "tail"), [({"hue": 0.0}, 1.5, 8.0), ({}, 9.0, 25.0)])
def test_how_far_it_is_off_on_photographs(changed, mean, tail):
    """At SimSiam's strengths, in grey levels of an image's mean deviation, over images: their mean, and what 95 % stay below. It comes from
    clamping without hue, and from YIQ with it: a turn keeps luma, one in HSV keeps the largest channel."""
    exact, folded = both(photographs(), **changed)
    off = (exact - folded).abs().flatten(1).mean(1) / LEVEL
    assert 0 < off.mean() < mean
    assert off.quantile(0.95) < tail
    assert abs((exact - folded).mean()) < 1.5 * LEVEL  # no brighter or darker


@settings(max_examples=30, deadline=None)
@given(share=st.floats(-0.1, 0.1), seed=st.integers(0, 1000))
def test_hue_turns_the_way_of_hsv_and_keeps_luma(share, seed):
    g = torch.Generator().manual_seed(seed)
    x = 0.5 + 0.2 * (torch.rand(1, 3, 32, 32, generator=g) - 0.5)
    matrix, offset = colour_map(x.mean((2, 3)), torch.tensor([[3]]), torch.tensor([[0.0, 0.0, 0.0, share]]), torch.tensor([False]))
    turned = (matrix @ x.flatten(2) + offset).view_as(x)
    luma = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(torch.einsum("c,bchw", luma, turned), torch.einsum("c,bchw", luma, x), atol=1e-3, rtol=0)
    if abs(share) > 0.02:
        ours, theirs = (turned - x).flatten(), (hue(x, torch.tensor([share])) - x).flatten()
        assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.5


def test_a_flip_in_the_crop_is_a_flip_of_the_crop():
    images, boxes = torch.randint(0, 256, (5, 3, 20, 17), dtype=torch.uint8), torch.tensor([[2, 3, 11, 9]]).expand(5, 4)
    flip = torch.tensor([True, False, True, True, False])
    plain, flipped = crop_and_resize(images, boxes, 8), crop_and_resize(images, boxes, 8, flip)
    torch.testing.assert_close(flipped, torch.where(flip[:, None, None, None], plain.flip(-1), plain))


def test_crops_of_workers_are_folded_as_pixels_are():
    images, ids = torch.randint(110, 140, (40, 3, 24, 24), dtype=torch.uint8), torch.arange(40)
    weak = {"brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "hue": 0.05}  # nothing is clamped, before the blur or after
    whole = Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0), **weak)
    spec = Crops(size=24, mean=(0.0,), std=(1.0,), colour="folded", augment=whole)
    pixels, crops = views_of_pixels(images, ids, spec, 1, 3, 1), views_of_crops([images[:, None]], ids, spec, 1, 3, 1)
    torch.testing.assert_close(pixels.crops[0], crops.crops[0], atol=1e-4, rtol=0)
