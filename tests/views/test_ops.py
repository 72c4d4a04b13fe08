"""Each operation against torchvision's, with given parameters; each draw against torchvision's distribution."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from selfdistill.views import color
from selfdistill.views.augment import DRAWS, _erased, _jitters, draws, plain, views_of_crops, views_of_pixels
from selfdistill.views.crop import DRAWS as CROP
from selfdistill.views.crop import crop_and_resize, crop_boxes
from selfdistill.views.draw import permutation, uniform
from selfdistill.views.spec import Augment, Crops

LEVEL = 1 / 255
OPS = [
    (lambda x, f: color.blend(x, f, 0 * f, 0 * f), tv.adjust_brightness, 0.0, 2.0),
    (lambda x, f: color.blend(x, f, torch.ones_like(f), 0 * f), tv.adjust_contrast, 0.0, 2.0),
    (lambda x, f: color.blend(x, f, 0 * f, torch.ones_like(f)), tv.adjust_saturation, 0.0, 2.0),
    (color.hue, tv.adjust_hue, -0.5, 0.5),
]


@pytest.mark.parametrize(("ours", "theirs", "low", "high"), OPS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), where=st.floats(0, 1))
def test_colour_operation_equals_torchvision(ours, theirs, low, high, seed, where):
    x = torch.rand(3, 3, 9, 7, generator=torch.Generator().manual_seed(seed))
    factor = low + (high - low) * where
    expected = torch.stack([theirs(image, factor) for image in x])
    torch.testing.assert_close(ours(x, torch.full((3,), factor)), expected, atol=LEVEL / 4, rtol=0)


def test_hue_of_grey_and_of_primaries():
    x = torch.tensor([[0.0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])[:, :, None, None]
    for shift in (-0.5, -1 / 3, 0.0, 1 / 3, 0.5):
        expected = torch.stack([tv.adjust_hue(image, shift) for image in x])
        torch.testing.assert_close(color.hue(x, torch.full((7,), shift)), expected, atol=1e-5, rtol=0)


def test_grey_and_solarize_equal_torchvision():
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(color.grey(x), torch.stack([tv.rgb_to_grayscale(i) for i in x]), atol=1e-6, rtol=0)
    levels = torch.arange(256).view(1, 1, 16, 16) / 255  # the threshold is one of them
    for image in (x, levels):
        torch.testing.assert_close(color.solarize(image), tv.solarize(image, 128 / 255), atol=0, rtol=0)


@pytest.mark.parametrize(("size", "kernel"), [(224, 23), (96, 9), (32, 3), (8, 3)])
def test_blur_equals_torchvision(size, kernel):
    x = torch.rand(3, 3, size, size)
    sigma = torch.tensor([0.1, 1.0, 2.0])
    expected = torch.stack([tv.gaussian_blur(i, [kernel, kernel], [s.item()] * 2) for i, s in zip(x, sigma, strict=True)])
    torch.testing.assert_close(color.blur(x, sigma), expected, atol=1e-5, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_crop_and_resize_equals_torchvision(data):
    """Enlarged or reduced, antialiased, at the borders too."""
    H, W, size = (data.draw(st.integers(4, 40)) for _ in range(3))
    h, w = data.draw(st.integers(1, H)), data.draw(st.integers(1, W))
    top, left = data.draw(st.integers(0, H - h)), data.draw(st.integers(0, W - w))
    image = torch.randint(0, 256, (1, 3, H, W), dtype=torch.uint8, generator=torch.Generator().manual_seed(H * W))
    ours = crop_and_resize(image, torch.tensor([[top, left, h, w]]), size)
    theirs = tv.resized_crop(image.float() / 255, top, left, h, w, [size, size], antialias=True)
    torch.testing.assert_close(ours, theirs, atol=LEVEL / 4, rtol=0)


SIDES = [(28, 28, (0.2, 1.0)), (375, 500, (0.08, 1.0)), (500, 100, (0.9, 1.0)), (100, 501, (0.9, 1.0)), (32, 32, (0.05, 0.4))]


@pytest.mark.parametrize(("H", "W", "scale"), SIDES)
def test_boxes_are_distributed_as_torchvisions(H, W, scale):
    """Means and deviations of top, left, height and width: 20,000 draws against 5,000, within 5 standard errors; same support."""
    n = 20_000
    ours = crop_boxes(uniform(0, 0, torch.arange(n), 0, CROP), H, W, Augment(scale=scale)).double()
    torch.manual_seed(0)
    image = torch.empty(1, H, W)
    crop = v2.RandomResizedCrop(8, scale)
    theirs = torch.tensor([[p[k] for k in ("top", "left", "height", "width")] for p in (crop.make_params([image]) for _ in range(5000))])
    theirs = theirs.double()
    error = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt() + 1e-9
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * error).all()
    assert torch.allclose(ours.std(0), theirs.std(0), rtol=0.08, atol=0.1)
    assert (ours[:, 0] + ours[:, 2] <= H).all()
    assert (ours[:, 1] + ours[:, 3] <= W).all()
    assert (ours >= 0).all()


def test_boxes_of_images_of_different_sizes_equal_those_drawn_alone():
    u = uniform(3, 1, torch.arange(50), 0, CROP)
    H, W = torch.randint(2, 600, (50,)), torch.randint(2, 600, (50,))
    together = crop_boxes(u, H, W, Augment())
    alone = torch.cat([crop_boxes(u[i : i + 1], int(H[i]), int(W[i]), Augment()) for i in range(50)])
    assert torch.equal(together, alone)


def test_uniform_numbers_are_uniform_and_independent():
    u = uniform(7, 3, torch.arange(4000), 1, 50).double()
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * math.sqrt(1 / 12 / u.numel())
    assert abs(u.var() - 1 / 12) < 1e-3
    correlation = torch.corrcoef(u.T) - torch.eye(50)
    assert correlation.abs().max() < 6 / math.sqrt(4000)
    counts = torch.histc(u.flatten(), 64, 0, 1)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 63 + 6 * math.sqrt(2 * 63)


def test_any_part_of_the_key_changes_the_draw():
    index = torch.arange(5)
    base = uniform(1, 2, index, 3, 8)
    for other in (uniform(2, 2, index, 3, 8), uniform(1, 3, index, 3, 8), uniform(1, 2, index, 4, 8), uniform(1, 2, index + 5, 3, 8)):
        assert not torch.isclose(base, other).any()
    assert not torch.equal(uniform(1, 2, index, 3, 8), uniform(2, 1, index, 3, 8))
    assert torch.equal(base, uniform(1, 2, index, 3, 8))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 10_000), cut=st.integers(1, 31))
def test_views_do_not_depend_on_the_batch(seed, epoch, cut):
    images = torch.randint(0, 256, (32, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    index = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))[:32]
    spec = Crops(size=10, augment=Augment(solarize=0.2, erase=0.3))
    whole = views_of_pixels(images, index, spec, 2, seed, epoch).crops[0]
    parts = [views_of_pixels(images[r], index[r], spec, 2, seed, epoch).crops[0] for r in (slice(0, cut), slice(cut, 32))]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)
    assert not torch.allclose(whole[0], whole[1])


def test_crops_cut_by_a_worker_get_the_same_augmentation_as_pixels():
    """The file path rounds the crop to uint8, no more."""
    images = torch.randint(0, 256, (16, 3, 20, 20), dtype=torch.uint8)
    index, spec = torch.arange(16), Crops(size=8, augment=Augment(jitter=0, blur=0, grey=0))
    cut = []
    for v in range(2):
        boxes = crop_boxes(draws(5, 2, index, v)[:, :CROP], 20, 20, spec.augment)
        cut.append((crop_and_resize(images, boxes, 8) * 255).round().to(torch.uint8))
    files = views_of_crops([torch.stack(cut, 1)], index, spec, 2, 5, 2).crops[0]
    pixels = views_of_pixels(images, index, spec, 2, 5, 2).crops[0]
    torch.testing.assert_close(files, pixels, atol=LEVEL / 0.22, rtol=0)


@pytest.mark.parametrize("name", ["flip", "grey", "blur", "solarize", "jitter", "erase"])
def test_probabilities(name):
    """Each operation touches its share of images: 0, a half, all."""
    off = dict.fromkeys(("flip", "grey", "blur", "solarize", "jitter", "erase"), 0.0)
    x = torch.randint(0, 256, (2000, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for p in (0.0, 0.5, 1.0):
        spec = Crops(size=8, mean=(0.0,), std=(1.0,), augment=Augment(**{**off, name: p, "sigma": (1.0, 2.0)}))
        y = views_of_crops([x[:, None]], torch.arange(2000), spec, 1, 0, 0).crops[0][0]
        share = (y != x / 255).flatten(1).any(1).double().mean()
        assert abs(share - p) < 5 * math.sqrt(0.25 / 2000) * (0 < p < 1) + 0.01


def test_erased_rectangles_have_zhongs_areas_and_ratios():
    u = torch.tensor([[0.0, a, r, 0.5, 0.5] for a in (0.0, 0.5) for r in (0.0, 0.5, 1.0)])
    _, _, h, w = _erased(u, 1.0, 1000, 1000).double().unbind(1)
    torch.testing.assert_close(h * w / 1e6, torch.tensor([0.02] * 3 + [0.175] * 3).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(h / w, torch.tensor([0.3, 1.0, 1 / 0.3] * 2).double(), atol=0, rtol=0.02)


def test_no_strength_of_jitter_turns_an_image_negative():
    """As torchvision: a factor is 0 at least."""
    u = uniform(0, 0, torch.arange(500), 0, DRAWS)
    _, factors = _jitters(u, Augment(brightness=1.5, contrast=2, saturation=3, jitter=1), 3)
    assert (factors[:, :3] >= 0).all()
    assert (factors[:, :3] < 0.1).any(0).all()


def test_a_grey_image_stays_of_one_channel():
    views = views_of_pixels(
        torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8), torch.arange(4), Crops(size=8, mean=(0.5,), std=(0.5,)), 2, 0, 0
    )
    assert views.crops[0].shape == (2, 4, 1, 8, 8)


def test_plain_is_the_normalised_image_or_its_central_square():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    spec = Crops(size=8, mean=(0.5,), std=(0.25,))
    torch.testing.assert_close(plain(images, spec), (images.float() / 255 - 0.5) / 0.25)
    wide = torch.cat([torch.zeros_like(images), images, torch.zeros_like(images)], 3)
    torch.testing.assert_close(plain(wide, spec), plain(images, spec))


def test_an_epoch_is_a_permutation_of_its_own():
    a, b, c = permutation(0, 0, 1000), permutation(0, 1, 1000), permutation(1, 0, 1000)
    assert torch.equal(a.sort().values, torch.arange(1000))
    assert not torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(a, permutation(0, 0, 1000))


def test_a_flip_in_the_crop_is_a_flip_of_the_crop():
    images, boxes = torch.randint(0, 256, (5, 3, 20, 17), dtype=torch.uint8), torch.tensor([[2, 3, 11, 9]]).expand(5, 4)
    flip = torch.tensor([True, False, True, True, False])
    plain, flipped = crop_and_resize(images, boxes, 8), crop_and_resize(images, boxes, 8, flip)
    torch.testing.assert_close(flipped, torch.where(flip[:, None, None, None], plain.flip(-1), plain))
