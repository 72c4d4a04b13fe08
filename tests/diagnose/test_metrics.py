"""Each metric against a closed form, and the verdict on outputs whose state is known."""

import math

import pytest
import torch

from selfdistill.diagnose import metrics, outputs
from selfdistill.diagnose.verdict import judge
from selfdistill.methods import METHODS

G = torch.Generator().manual_seed(0)


def test_output_std_is_one_for_an_isotropic_output_and_zero_for_a_constant():
    assert metrics.output_std(torch.randn(4000, 64, generator=G)) == pytest.approx(1, abs=0.02)
    assert metrics.output_std(torch.ones(100, 8) * 3) == pytest.approx(0, abs=1e-6)
    assert metrics.output_std(torch.cat([torch.eye(4), -torch.eye(4)])) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_counts_equal_directions(rank):
    z = torch.cat([torch.eye(8)[:rank], -torch.eye(8)[:rank]])  # centred, `rank` equal singular values
    assert metrics.effective_rank(z) == pytest.approx(rank, rel=1e-4)
    assert metrics.effective_rank(z + 5) == pytest.approx(rank, rel=1e-3)


def test_effective_rank_of_a_constant_and_of_nan():
    assert metrics.effective_rank(torch.ones(20, 5)) == 0
    assert math.isnan(metrics.effective_rank(torch.full((20, 5), math.nan)))


def test_alignment_and_uniformity():
    """Equal pairs 0, opposite pairs 4; on a sphere of many dimensions l_uniform = -2 t to first order, -3.938 at d = 128, t = 2."""
    x = torch.randn(3000, 128, generator=G)
    assert metrics.alignment(x, 3 * x) == pytest.approx(0, abs=1e-5)
    assert metrics.alignment(x, -x) == pytest.approx(4, abs=1e-4)
    assert metrics.uniformity(x) == pytest.approx(-3.938, abs=0.01)
    assert metrics.uniformity(torch.ones(10, 4)) == pytest.approx(0, abs=1e-5)


def test_entropies():
    """Uniform targets; sure and all different; sure and all the same."""
    K = 16
    assert outputs.entropy(torch.full((5, K), 1 / K)) == pytest.approx(math.log(K), abs=1e-5)
    assert outputs.entropy(torch.eye(K)) == 0
    assert outputs.usage_entropy(torch.eye(K)) == pytest.approx(math.log(K), abs=1e-5)
    assert outputs.usage_entropy(torch.eye(K)[[3] * 5]) == 0


def gap_case(phi: float, A: int = 4, N: int = 6):
    """(z, t, rest): z = e_n, targets cos(phi) e_n +- sin(phi) f_n, of half of the A augmentations each sign; e and f orthonormal.
    rest: the mean of the other targets, cos(phi) e_n -+ sin(phi) f_n / (A - 1)."""
    basis = torch.linalg.qr(torch.randn(2 * N, 2 * N, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    e, f, sign = basis[:N], basis[N:], torch.tensor([1.0, -1.0] * (A // 2), dtype=torch.float64)[:, None, None]
    cos, sin = math.cos(phi), math.sin(phi)
    return e.expand(A, N, -1), cos * e + sign * sin * f, cos * e - sign * sin * f / (A - 1)


@pytest.mark.parametrize("phi", [0.0, 0.4, 1.2])
def test_expectation_gap_is_its_closed_form(phi):
    """The distance to a mean of unit vectors, shorter than 1, of the own augmentation left out."""
    z, t, rest = gap_case(phi)
    cos, sin = math.cos(phi), math.sin(phi)
    length = math.hypot(cos, sin / 3)
    perfect = metrics.expectation_gap(2 * rest, 5 * z, 3 * t)  # lengths do not matter
    assert perfect.predictor == pytest.approx((1 - length) ** 2, abs=1e-12)
    assert perfect.projection == pytest.approx((1 - cos) ** 2 + (sin / 3) ** 2, abs=1e-12)
    assert perfect.other == pytest.approx(1 + length**2)  # another image is orthogonal
    own = metrics.expectation_gap(t, z, t)  # what would be less, were its own augmentation in the mean
    assert own.predictor == pytest.approx((sin * 4 / 3) ** 2, abs=1e-12)


def test_expectation_gap_orders_what_knows_more():
    """The mean direction, before one draw of it, before that of another image; and noise makes each of them worse."""
    g = torch.Generator().manual_seed(0)
    mean, noise = torch.randn(30, 16, generator=g), torch.randn(2, 8, 30, 16, generator=g)
    gaps = [metrics.expectation_gap(mean.expand(8, -1, -1), *(mean + scale * noise)) for scale in (0.2, 0.5)]
    for gap in gaps:
        assert gap.predictor < gap.projection < gap.other
    assert gaps[0].predictor < gaps[1].predictor
    assert gaps[0].projection < gaps[1].projection


def test_expectation_gap_does_not_depend_on_the_order_of_images():
    p, z, t = torch.randn(3, 5, 20, 8, generator=torch.Generator().manual_seed(0)).double()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    whole, permuted = metrics.expectation_gap(p, z, t), metrics.expectation_gap(p[:, order], z[:, order], t[:, order])
    assert permuted[:2] == pytest.approx(whole[:2], rel=1e-12)
    assert permuted.other == pytest.approx(whole.other, rel=0.1)
    assert metrics.expectation_gap(p[:, order], z, t).predictor != pytest.approx(whole.predictor, rel=1e-6)  # of p and t together


HEALTHY = {"loss": -0.9, "output_std": 0.95, "effective_rank": 60.0, "rank_limit": 128.0}
TARGETS = {"target_outputs": 4096, "target_entropy": 4.0, "target_usage_entropy": 8.0}


@pytest.mark.parametrize(
    ("method", "change", "state", "advice"),
    [
        ("simsiam", {}, "healthy", ""),
        ("simsiam", {"output_std": 0.01, "effective_rank": 3.0}, "collapsed", "lower lr"),
        ("simsiam", {"effective_rank": 1.5}, "dimensional-collapse", ""),
        ("simsiam", {"loss": math.nan}, "diverged", "lr"),
        ("dino", TARGETS, "healthy", ""),
        ("dino", TARGETS | {"target_entropy": 8.317, "output_std": 0.1}, "uniform-target", "projector.bn=hidden"),
        ("simsiam", TARGETS | {"target_entropy": 8.317}, "healthy", ""),
        ("dino", TARGETS | {"target_entropy": 0.01, "target_usage_entropy": 0.02}, "dominated-target", "projector.bn=hidden"),
        ("dino", TARGETS | {"target_entropy": 0.01, "target_usage_entropy": 7.0}, "healthy", ""),
    ],
)
def test_verdict(method, change, state, advice):
    verdict = judge({**HEALTHY, **change}, METHODS[method])
    assert verdict.state == state
    assert advice.lower() in verdict.advice.lower()
    assert f"{state}: " in str(verdict)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["stop_gradient=false"], "stop_gradient=true"),
        (["predictor=none"], "predictor=mlp"),
        (["predictor.trainable=false"], "predictor.trainable=true"),
    ],
)
def test_a_collapse_names_the_missing_ingredient(settings, named):
    verdict = judge({**HEALTHY, "output_std": 0.01}, METHODS["simsiam"].edit(settings))
    assert named in verdict.advice


def test_chance_accuracy_alone_is_no_collapse():
    """SimSiam footnote 4."""
    assert judge({**HEALTHY, "knn_top1": 0.1}, METHODS["simsiam"]).state == "healthy"
