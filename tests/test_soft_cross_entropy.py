"""The prototypes' loss against its definition, value and gradients, in chunks of any size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.parts import soft_cross_entropy as module
from selfdistill.parts.soft_cross_entropy import soft_cross_entropy


def definition(p, q, temperature):
    return -(q * (p / temperature).log_softmax(-1)).sum(-1)


def with_gradients(f, p, q, weight):
    p, q = p.clone().requires_grad_(), q.clone().requires_grad_()
    loss = f(p, q)
    return loss.detach(), *torch.autograd.grad((loss * weight).sum(), (p, q))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 9), k=st.integers(1, 12), temperature=st.floats(0.02, 3), chunk=st.integers(1, 60), seed=st.integers(0, 999))
def test_it_is_its_definition(n, k, temperature, chunk, seed):
    g = torch.Generator().manual_seed(seed)
    p, weight = torch.randn(n, k, generator=g, dtype=torch.float64), torch.randn(n, generator=g, dtype=torch.float64)
    q = torch.rand(n, k, generator=g, dtype=torch.float64) * 3  # rows that sum to anything
    before, module.CHUNK = module.CHUNK, {"cpu": chunk}
    try:
        ours = with_gradients(lambda p, q: soft_cross_entropy(p[None], [q], temperature)[0], p, q, weight)
    finally:
        module.CHUNK = before
    for mine, theirs in zip(ours, with_gradients(lambda p, q: definition(p, q, temperature), p, q, weight), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)


def test_targets_that_are_constants_get_no_gradient():
    p = torch.randn(4, 5, requires_grad=True)
    soft_cross_entropy(p[None], [torch.rand(4, 5)], 0.1).sum().backward()
    assert p.grad is not None


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_logits_in_bf16_are_compared_in_fp32_and_large_ones_stay_finite(scale):
    p, q = (torch.randn(6, 50) * scale).bfloat16(), torch.rand(6, 50).softmax(-1)
    loss, gradient, _ = with_gradients(lambda p, q: soft_cross_entropy(p[None], [q], 0.1)[0], p, q, torch.ones(6))
    assert loss.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(loss, definition(p.float(), q, 0.1), atol=1e-3, rtol=1e-5)
    assert torch.isfinite(gradient).all()


def test_views_that_share_a_target_add_their_gradients_to_it():
    torch.manual_seed(0)
    p, q, r = (torch.randn(3, 4, 5, dtype=torch.float64), *(torch.rand(4, 5, dtype=torch.float64) for _ in range(2)))
    weight = torch.randn(3, 4, dtype=torch.float64)
    found = []
    for f in (
        lambda p, q: soft_cross_entropy(p, q, 0.3),
        lambda p, q: torch.stack([definition(*of, 0.3) for of in zip(p, q, strict=True)]),
    ):
        p_, q_, r_ = (x.clone().requires_grad_() for x in (p, q, r))
        found.append(torch.autograd.grad((f(p_, [q_, r_, q_]) * weight).sum(), (p_, q_, r_)))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)
