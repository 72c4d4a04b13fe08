"""Each metric against a closed form, and the verdict on outputs whose state is known."""

import math

import pytest
import torch

from selfdistill.diagnose import metrics
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
    assert metrics.entropy(torch.full((5, K), 1 / K)) == pytest.approx(math.log(K), abs=1e-5)
    assert metrics.entropy(torch.eye(K)) == 0
    assert metrics.usage_entropy(torch.eye(K)) == pytest.approx(math.log(K), abs=1e-5)
    assert metrics.usage_entropy(torch.eye(K)[[3] * 5]) == 0


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
        ("dino", TARGETS | {"target_entropy": 8.317, "output_std": 0.1}, "uniform-target", "Sharpen"),
        ("simsiam", TARGETS | {"target_entropy": 8.317}, "healthy", ""),
        ("dino", TARGETS | {"target_entropy": 0.01, "target_usage_entropy": 0.02}, "dominated-target", "Centre"),
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
