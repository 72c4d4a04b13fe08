"""Metrics of distributions against closed forms and PyTorch."""

import math

import pytest
import torch
import torch.nn.functional as F

from selfdistill.diagnose import outputs
from selfdistill.parts.loss import CrossEntropy, OverOutputs
from selfdistill.parts.schedule import Progress


def test_cross_entropy_is_entropy_plus_kl():
    """DINO Sec. 5.3: H(q, p) = h(q) + KL(q || p)."""
    g = torch.Generator().manual_seed(0)
    q, log_p = torch.randn(50, 9, generator=g).softmax(-1), torch.randn(50, 9, generator=g).log_softmax(-1)
    cross = float(-(q * log_p).sum(-1).mean())
    assert outputs.entropy(q) + outputs.kl(q, log_p) == pytest.approx(cross, rel=1e-5)
    assert outputs.kl(q, log_p) == pytest.approx(float(F.kl_div(log_p, q, reduction="batchmean")), rel=1e-5)
    assert outputs.kl(q, q.log()) == pytest.approx(0, abs=1e-6)


def test_kl_of_a_sure_target_is_the_students_surprise():
    assert outputs.kl(torch.eye(4), torch.full((4, 4), 0.25).log()) == pytest.approx(math.log(4), rel=1e-6)


@pytest.mark.parametrize(("n", "k", "used", "share"), [(8, 4, 4, 1.0), (8, 4, 1, 0.25), (3, 10, 3, 1.0), (3, 10, 1, 1 / 3)])
def test_usage_is_a_share_of_what_could_be_used(n, k, used, share):
    q = F.one_hot(torch.arange(n) % used, k).float()
    assert outputs.usage(q) == pytest.approx(share)


def test_same_output():
    q = torch.eye(4)
    assert outputs.same_output(q, q.log_softmax(-1)) == 1
    assert outputs.same_output(q, q[[0, 1, 3, 2]]) == 0.5


def test_a_loss_says_which_distributions_it_compares():
    """The cross-entropy of what `distributions` says is the loss."""
    loss = CrossEntropy(temperature=0.1).build(6)
    assert isinstance(loss, OverOutputs)
    p, t = torch.randn(2, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    now = Progress(0, 10, 1)
    q, log_p = loss.distributions(p, t, now)
    expected = -(q[[0, 1]] * log_p[[1, 0]]).sum(-1).mean()
    assert float(loss(p, t, [(0, 1), (1, 0)], now)) == pytest.approx(float(expected), rel=1e-5)
