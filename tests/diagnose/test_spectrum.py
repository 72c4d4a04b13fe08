"""Metrics of the spectrum against closed forms, NumPy and properties; all on embeddings whose state is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.diagnose import metrics
from selfdistill.diagnose.describe import READING, describe, ordered


def with_spectrum(eigenvalues: list[float], n: int = 64) -> torch.Tensor:
    """z [n, D], centred, whose covariance has exactly these eigenvalues."""
    d = len(eigenvalues)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    u = torch.linalg.qr(x - x.mean(0))[0]  # orthonormal columns that add up to 0
    v = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))[0]
    return (u * (torch.tensor(eigenvalues, dtype=torch.float64) * n).sqrt()) @ v.T


def test_spectrum_is_the_covariances():
    values = [5.0, 2.0, 1.0, 0.25]
    z = with_spectrum(values) + 7
    assert metrics.spectrum(z).tolist() == pytest.approx(values, rel=1e-4)
    assert metrics.spectrum(z).tolist() == pytest.approx(sorted(np.linalg.eigvalsh(np.cov(z.T.numpy(), bias=True)))[::-1], rel=1e-4)
    assert metrics.spectrum(torch.full((5, 3), math.nan)).isnan().all()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=8), st.floats(0.1, 100))
def test_ranks_are_their_formulas_and_do_not_change_with_scale(values, scale):
    z = with_spectrum(values)
    sigma = np.sqrt(values) / np.sqrt(values).sum()
    assert metrics.effective_rank(scale * z) == pytest.approx(math.exp(-(sigma * np.log(sigma)).sum()), rel=1e-3)
    assert metrics.participation_ratio(metrics.spectrum(scale * z)) == pytest.approx(
        sum(values) ** 2 / sum(v * v for v in values), rel=1e-3
    )


def test_rankme_counts_the_mean_as_a_direction():
    z = with_spectrum([1.0, 1.0, 1.0])
    assert metrics.rankme(z) == pytest.approx(metrics.effective_rank(z), rel=1e-5)
    shifted = z + 1000
    assert metrics.effective_rank(shifted) == pytest.approx(3, rel=1e-3)
    assert metrics.rankme(shifted) < 1.1
    assert metrics.rankme(torch.zeros(4, 3)) == 0
    assert math.isnan(metrics.rankme(torch.full((4, 3), math.inf)))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("d", [6, 60, 200])
def test_alpha_of_a_power_law(alpha, d):
    """Exact where the law is exact, whichever ranks are looked at."""
    assert metrics.alpha_req(torch.arange(1, d + 1).double() ** -alpha) == pytest.approx(alpha, abs=1e-9)


def test_alpha_is_weighted_least_squares():
    values = torch.rand(150, generator=torch.Generator().manual_seed(0)).double().sort(descending=True).values + 0.01
    i = np.arange(4, 101)
    expected = np.polyfit(np.log(i), np.log(values[3:100].numpy()), 1, w=1 / np.sqrt(i))[0]
    assert metrics.alpha_req(values) == pytest.approx(-expected, rel=1e-9)
    assert math.isnan(metrics.alpha_req(torch.tensor([1.0, 0.0, 0.0])))


def test_lidar_counts_directions_that_tell_images_apart():
    """`apart` dimensions separate the images, the others are noise of the augmentation, as large: RankMe sees all, LiDAR those."""
    g = torch.Generator().manual_seed(0)
    A, N, D, apart = 20, 400, 12, 4
    z = torch.randn(A, N, D, generator=g) * 0.1
    z[..., :apart] += 3 * torch.randn(N, apart, generator=g)
    z[..., apart:] *= 30
    assert metrics.lidar(z) == pytest.approx(apart, rel=0.05)
    assert metrics.rankme(z.flatten(0, 1)) == pytest.approx(D, rel=0.05)


def test_lidar_is_its_formula():
    """With S_w^-1/2 written out, in NumPy."""
    z = torch.randn(5, 9, 4, generator=torch.Generator().manual_seed(0)).double()
    means = z.mean(0).numpy()
    within = sum(np.outer(d, d) for d in (z.numpy() - means).reshape(-1, 4)) / (9 * 4) + 1e-4 * np.eye(4)
    between = np.cov(means.T)
    values, vectors = np.linalg.eigh(within)
    half = vectors @ np.diag(values**-0.5) @ vectors.T
    p = np.linalg.eigvalsh(half @ between @ half)
    p = p / p.sum()
    assert metrics.lidar(z) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-5)
    for N in (9, 3):
        assert metrics.lidar(torch.ones(5, N, 4)) == 0  # nothing tells images apart
        assert metrics.lidar(torch.randn(5, N, 8)) <= min(N - 1, 8)
    assert math.isnan(metrics.lidar(z * math.nan))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(2, 20), st.integers(0, 10**6))
def test_the_centre_is_what_the_std_leaves(n, d, seed):
    """Sum over channels of the variance = 1 - |mean|^2, for vectors of length 1."""
    z = torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + 1, dim=1)
    assert float(z.var(0, correction=0).sum()) == pytest.approx(1 - metrics.centre_norm(3 * z) ** 2, abs=1e-5)


def test_agreement_is_the_mean_cosine():
    x = torch.eye(4)
    assert metrics.agreement(x, 5 * x) == pytest.approx(1)
    assert metrics.agreement(x, -x) == pytest.approx(-1)
    assert metrics.agreement(x, x.roll(1, 0)) == pytest.approx(0)


def test_describe_tells_all_and_json_has_no_nan():
    z = torch.randn(4, 50, 8, generator=torch.Generator().manual_seed(0))
    found = describe(z)
    assert set(READING) - {"knn_top1", "ridge_top1"} <= found.keys()
    assert (found["images"], found["dimensions"]) == (50, 8)
    assert list(ordered(found)) == [name for name in READING if name in found]
    assert ordered(describe(z * math.nan))["effective_rank"] is None
    assert describe(torch.randn(9000, 4))["rank_limit"] == 4  # thinned: 40 million pairs


def test_views_of_one_image_are_not_counted_as_images():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(20, 64, generator=g) + 0.01 * torch.randn(8, 20, 64, generator=g)
    found, one = describe(z), describe(z[0])
    assert {name: found[name] for name in one} == one
    assert found["effective_rank"] <= 19


def test_another_image_is_of_another_class_in_a_sorted_set():
    z = torch.eye(4)[[0, 0, 1, 1]].expand(2, 4, 4)
    assert metrics.expectation_gap(z, z, z) == metrics.ExpectationGap(0.0, 0.0, 2.0)
