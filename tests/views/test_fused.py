"""The compiled kernel against its definition, the eager PyTorch, which other tests hold to torchvision."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.views import augment
from selfdistill.views.augment import views_of_crops, views_of_pixels
from selfdistill.views.spec import Augment, Crops, Locals


def pixels(*shape, seed=0):
    """Noise in one half of the images, in the other smooth grey levels with flat parts, where pixels are equal and grey."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, shape, dtype=torch.uint8, generator=g)
    x[::2] = torch.nn.functional.interpolate(x[::2, ..., :2, :2].flatten(1, -3).float(), shape[-2:]).view(x[::2].shape).to(torch.uint8)
    return x


def both(make, spec):
    """(compiled, eager), each a list of views by size."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for compiled in (True, False):
            patch.setattr(augment, "FUSED", compiled)
            found.append(make(spec).crops)
    return found


def check(make, spec):
    """Equal to 1e-5 of a pixel's range, which normalisation divides by the std. But a pixel that is solarised at 128 / 255 and by rounding
    falls on its other side."""
    without = [how and how.model_copy(update={"solarize": 0.0}) for how in (spec.augment, spec.second)]
    before = both(make, spec.model_copy(update={"augment": without[0], "second": without[1], "mean": (0.0,), "std": (1.0,)}))[1]
    for ours, theirs, x in zip(*both(make, spec), before, strict=True):
        assert ours.shape == theirs.shape
        on_edge = (x - 128 / 255).abs() < 1e-6
        torch.testing.assert_close(ours.masked_fill(on_edge, 0), theirs.masked_fill(on_edge, 0), atol=1e-5 / min(spec.std), rtol=0)


probability, strength = st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.1, 0.4, 0.8, 1.5])
augments = st.builds(
    Augment,
    scale=st.sampled_from([(0.05, 0.4), (0.2, 1.0), (1.0, 1.0)]),
    sigma=st.sampled_from([(0.1, 2.0), (0.1, 0.1), (3.0, 8.0)]),
    hue=st.sampled_from([0.0, 0.1, 0.5]),
    **dict.fromkeys(("brightness", "contrast", "saturation"), strength),
    **dict.fromkeys(("flip", "jitter", "grey", "blur", "solarize", "erase"), probability),
)


@settings(max_examples=70, deadline=None)
@given(how=augments, second=augments, H=st.integers(8, 64), W=st.integers(8, 64), size=st.integers(4, 64), channels=st.sampled_from([1, 3]),
       seed=st.integers(0, 1000), statistics=st.sampled_from([((0.5,), (0.5,)), ((0.3,), (0.225,))]))  # fmt: skip
def test_pixels_equal_eager(how, second, H, W, size, channels, seed, statistics):
    spec = Crops(size=size, augment=how, second=second, mean=statistics[0], std=statistics[1])
    images, ids = pixels(6, channels, H, W, seed=seed), torch.arange(6) + seed
    check(lambda spec: views_of_pixels(images, ids, spec, 2, seed, 3), spec)


@settings(max_examples=60, deadline=None)
@given(how=augments, size=st.integers(4, 64), channels=st.sampled_from([1, 3]), seed=st.integers(0, 1000))
def test_crops_of_workers_equal_eager(how, size, channels, seed):
    crops, ids = pixels(6, 2, channels, size, size, seed=seed), torch.arange(6) + seed
    spec = Crops(size=size, augment=how, mean=(0.0,), std=(1.0,))
    check(lambda spec: views_of_crops([crops], ids, spec, 2, seed, 3), spec)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_views_of_224_and_96_from_a_large_image_equal_eager(channels):
    how = Augment(blur=1.0, erase=0.3, grey=0.3)
    statistics = {"mean": (0.485, 0.456, 0.406)[:channels], "std": (0.229, 0.224, 0.225)[:channels]}
    spec = Crops(
        size=224,
        augment=how,
        second=how.model_copy(update={"sigma": (2.0, 9.0), "scale": (0.9, 1.0)}),
        locals=Locals(count=2),
        **statistics,
    )
    images, ids = pixels(4, channels, 301, 517), torch.arange(4)
    check(lambda spec: views_of_pixels(images, ids, spec, 2, 0, 0), spec)


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.2, 0.3, 0.4)), ((0.1, 0.2, 0.3), (0.5,))])
def test_one_value_serves_all_channels_beside_one_a_channel(mean, std):
    images, ids = pixels(4, 3, 12, 12), torch.arange(4)
    check(lambda spec: views_of_pixels(images, ids, spec, 2, 0, 0), Crops(size=8, mean=mean, std=std))


def test_any_number_of_threads_gives_the_same():
    images, ids, before = pixels(7, 3, 20, 20), torch.arange(7), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3, 16):
            torch.set_num_threads(count)
            found.append(views_of_pixels(images, ids, Crops(size=16), 2, 0, 0).crops[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("threads", [1, 4])
def test_a_fork_works_on(threads):
    """As DataLoader's workers do, in a process whose parent has run the kernel by several threads."""
    images, ids, before = pixels(8, 3, 20, 20), torch.arange(8), torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        expected = views_of_pixels(images, ids, Crops(size=16), 2, 0, 0).crops[0]
        from_child, to_parent = os.pipe()
        child = os.fork()
        if not child:
            torch.set_num_threads(threads)
            os.write(to_parent, bytes([torch.equal(views_of_pixels(images, ids, Crops(size=16), 2, 0, 0).crops[0], expected)]))
            os._exit(0)
        os.close(to_parent)
        assert os.waitpid(child, 0)[1] == 0
        assert os.read(from_child, 1) == b"\1"
    finally:
        torch.set_num_threads(before)


def test_an_empty_batch_and_images_that_are_not_contiguous():
    images = pixels(4, 3, 20, 20)
    assert views_of_pixels(images[:0], torch.arange(0), Crops(size=16), 2, 0, 0).crops[0].shape == (2, 0, 3, 16, 16)
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    expected, found = (views_of_pixels(x, torch.arange(4), Crops(size=16), 2, 0, 0).crops[0] for x in (images, strided))
    assert torch.equal(found, expected)
