"""The verdict on embeddings whose state is known because they were made so, at any scale, from few images, in any direction."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import selfdistill as sd
from selfdistill.diagnose import metrics
from selfdistill.diagnose.describe import describe
from selfdistill.errors import Misuse

images, dims, seeds = st.integers(2, 200), st.integers(8, 96), st.integers(0, 10**6)
scales = st.sampled_from([1e-30, 1e-6, 1.0, 1e6, 1e30])
checked = settings(max_examples=30, deadline=None)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def turned(z: Tensor, seed: int) -> Tensor:
    """z [N, d] in a random orthonormal basis."""
    return z @ torch.linalg.qr(normal(seed, z.shape[1], z.shape[1])).Q


def of_rank(k: int, n: int, d: int, seed: int) -> Tensor:
    """[n, d], centred, with k equal singular values and no others."""
    x = normal(seed, n, k)
    return turned(torch.cat([torch.linalg.qr(x - x.mean(0)).Q, torch.zeros(n, d - k)], 1), seed + 1)


def verdict(z: Tensor) -> str:
    return sd.diagnosis_of(z).verdict


@checked
@given(images, dims, seeds, scales)
def test_a_constant_is_collapsed(n, d, seed, scale):
    constant = scale * normal(seed, 1, d).expand(n, d)
    assert verdict(constant) == "collapsed"
    assert verdict(constant + 1e-3 * scale * normal(seed + 1, n, d)) == "collapsed"
    assert metrics.effective_rank(constant) == 0
    assert verdict(torch.zeros(n, d)) == "collapsed"


@checked
@given(images, dims, seeds, scales)
def test_isotropic_is_healthy_from_two_images_on(n, d, seed, scale):
    assert verdict(scale * normal(seed, n, d)) == "healthy"


@checked
@given(st.integers(20, 300), dims, st.data())
def test_rank_is_judged_by_what_it_could_be(n, d, data):
    """Where all other directions are dead, sqrt(min(d, N - 1)) of them are few: 16 of 256, 8 of 64, 3 of 10."""
    limit = min(d, n - 1)
    k = data.draw(st.integers(1, limit))
    z = of_rank(k, n, d, data.draw(seeds))
    assert metrics.effective_rank(z) == pytest.approx(k, rel=1e-3)
    assert describe(z)["spanned"] == k
    assert verdict(z) == ("dimensional-collapse" if k**2 <= limit else "healthy")


@checked
@given(st.integers(20, 300), dims, st.data())
def test_directions_that_hardly_vary_count_little(n, d, data):
    """Where the others are alive and small, the cube root is: 6 of 256, 4 of 64, 2 of 8."""
    limit = min(d, n - 1)
    k, seed = data.draw(st.integers(1, limit)), data.draw(seeds)
    z = of_rank(k, n, d, seed) + 3e-4 * of_rank(limit, n, d, seed + 2)
    assert describe(z)["spanned"] >= limit - 2
    if abs(math.log(k) - math.log(limit) / 3) > 0.3:  # they count for something
        assert verdict(z) == ("dimensional-collapse" if k < limit ** (1 / 3) else "healthy")


@checked
@given(images, dims, seeds)
def test_n_images_have_a_rank_of_at_most_n_less_one(n, d, seed):
    found = describe(normal(seed, n, d))
    assert found["rank_limit"] == min(d, n - 1)
    assert found["effective_rank"] + 1e-4 >= 1
    assert max(found["effective_rank"], found["direction_rank"]) <= found["rank_limit"] * (1 + 1e-4)


@checked
@given(st.integers(50, 300), st.integers(32, 96), seeds, scales, st.sampled_from(["lengths", "channels", "log-normal", "one outlier"]))
def test_heavy_tails_are_no_collapse(n, d, seed, scale, kind):
    """A few long embeddings hold nearly all of the variance, and the rank of the covariance with it; the directions do not care."""
    z = normal(seed, n, d)
    heavy = {
        "lengths": lambda: z / normal(seed + 1, n, 1).abs().clamp(min=1e-6),  # multivariate Cauchy; a draw may be 0
        "channels": lambda: z / normal(seed + 1, n, d).abs().clamp(min=1e-6),  # a Cauchy each
        "log-normal": lambda: (3 * z).exp(),
        "one outlier": lambda: torch.cat([1e6 * z[:1], z[1:]]),
    }[kind]()
    assert verdict(scale * heavy) == "healthy"


@checked
@given(st.integers(50, 300), dims, seeds, st.sampled_from([0.0, 1.0]), scales)
def test_one_live_channel_is_told_from_none(n, d, seed, rest, scale):
    """Its output_std is 1 / sqrt(d), small as a collapsed one's."""
    z = torch.full((n, d), rest)
    z[:, seed % d] = normal(seed, n)
    assert verdict(scale * z) == "dimensional-collapse"
    z[:, seed % d] = rest
    assert verdict(scale * z + scale) == "collapsed"


@checked
@given(images, dims, seeds, st.integers(-100, 100))
def test_no_metric_depends_on_the_scale(n, d, seed, exponent):
    """By powers of 2, which change no digit of a float, and so not even the last digit of a metric."""
    z = normal(seed, n, d)
    for name, value in describe(z).items():
        assert describe(z * 2.0**exponent)[name] == pytest.approx(value, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_will_do(dtype):
    z = normal(0, 200, 32)
    assert verdict(z.to(dtype)) == "healthy"
    assert verdict(torch.ones(200, 32, dtype=dtype)) == "collapsed"
    assert verdict((z[:, :1] @ z[:1]).to(dtype)) == "dimensional-collapse"
    if dtype == torch.float64:
        assert verdict(z.to(dtype) * 1e300) == "healthy"


def test_the_largest_floats_are_no_divergence_and_infinity_is():
    z = normal(0, 100, 16)
    z = z / z.abs().max() * torch.finfo(torch.float32).max
    assert verdict(z) == "healthy"
    assert verdict(z * 2) == "diverged"


@pytest.mark.parametrize("d", [64, 512, 2048])
def test_two_points_are_a_collapse_whatever_noise_adds_to_the_rank(d):
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2, d, generator=g)[torch.arange(800) % 2] + 0.01 * torch.randn(800, d, generator=g)
    assert sd.diagnosis_of(z).verdict == "dimensional-collapse"
    four = torch.randn(4, d, generator=g)[torch.arange(800) % 4] + 0.3 * torch.randn(800, d, generator=g)
    assert "along one line" not in sd.diagnosis_of(four).because


def test_one_image_is_refused():
    with pytest.raises(Misuse, match=r"\[1, 8\] are no embeddings.*two each at least"):
        sd.diagnosis_of(torch.ones(1, 8))


def test_an_array_is_judged_as_its_file_is(tmp_path):
    z = normal(0, 200, 32).numpy()
    holes = z.copy()
    holes[3] = np.nan  # an image that could not be read
    np.save(tmp_path / "z.npy", holes)
    for of in (tmp_path / "z.npy", holes):
        with pytest.warns(UserWarning, match="1 of 200 rows are NaN"):
            assert sd.diagnosis_of(of).verdict == "healthy"
    for same in (z[::-1], z.astype(">f4"), (100 * z).astype(np.int16), torch.from_numpy(z).bfloat16()):
        assert sd.diagnosis_of(same, labels=[0, 1] * 100).verdict == "healthy"
    for other in (z > 0, z.astype(str), z.astype(object), torch.from_numpy(z) > 0):
        with pytest.raises(Misuse, match="are no embeddings"):
            sd.diagnosis_of(other)
