"""BYOL, executable. Grill et al., Bootstrap Your Own Latent, NeurIPS 2020, arXiv 2006.07733, Algorithm 1 (App. A):

    for k = 1 to K do
        for x_i in B, a batch of N images do
            t ~ T and t' ~ T'                                               // sample image transformations
            z_1  <- g_th(f_th(t(x_i)))   and z_2  <- g_th(f_th(t'(x_i)))    // compute projections
            z'_1 <- g_xi(f_xi(t'(x_i)))  and z'_2 <- g_xi(f_xi(t(x_i)))     // compute target projections
            l_i <- -2 (<q_th(z_1), z'_1> / |q_th(z_1)||z'_1| + <q_th(z_2), z'_2> / |q_th(z_2)||z'_2|)
        dth <- 1/N sum_i d l_i / d th                                       // the total loss gradient w.r.t. th
        th <- optimizer(th, dth, eta_k)                                     // update online parameters
        xi <- tau_k xi + (1 - tau_k) th                                     // update target parameters

Sec. 3: the loss is given as eq. 2, |q/|q| - z'/|z'||^2 = 2 - 2 cos, summed over both directions: l_i + 4.
tau_k = 1 - (1 - tau_base)(cos(pi k/K) + 1)/2. eta is 0.2 x N/256 by a cosine without restarts (SGDR eq. 5: 0 steps done at the first)
after a linear warm-up. g and q are Linear, BN, ReLU, Linear. The optimiser is LARS (You et al. 2017, eq. 6) without biases and BN,
    lambda = trust |w| / (|dw| + decay |w|),    v <- 0.9 v + lambda (dw + decay w),    w <- w - eta v.
From BYOL's code: trust 1e-3, eta outside of v, no bias in the last Linear, a target whose BN normalises by the batch and keeps its own
statistics. Unlike that code, which has |dw + decay w| below the line (a factor up to 1 + 2 decay |w|/|dw|, at decay 1.5e-6) and a bias
in the first Linear of g and q, which the BN behind it cancels.

Written from the paper, knows nothing of the package: weights and views come from outside, everything else is here.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

Named = dict[str, Tensor]
Net = Callable[[Tensor], Tensor]


class State(NamedTuple):
    """By name: f.* of the encoder, g.fc1 g.bn1 g.fc2 of the projector, q.fc1 q.bn1 q.fc2 of the predictor."""

    theta: Named
    statistics: Named  # of the online network's BNs
    xi: Named
    target_statistics: Named
    velocity: Named


def step(
    encoder: nn.Module,
    state: State,
    v: Tensor,
    w: Tensor,
    eta_k: float,
    tau_k: float,
    weight_decay: float = 1.5e-6,
    solve: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Named, State]:
    """One pass of the loop on the views v = t(x) and w = t'(x): the loss, its gradients, and the state afterwards.

    solve: the projections and their targets of both directions, [2 N, d], to a linear predictor [d, d] in place of q.
    """
    theta = {name: value.detach().requires_grad_() for name, value in state.theta.items()}
    stats, target_stats = ({n: s.clone() for n, s in of.items()} for of in (state.statistics, state.target_statistics))
    f, g, q = networks(encoder, theta, stats)
    f_xi, g_xi, _ = networks(encoder, state.xi, target_stats)

    z1, z2 = g(f(v)), g(f(w))  # projections
    with torch.no_grad():
        t2, t1 = g_xi(f_xi(v)), g_xi(f_xi(w))  # target projections
        Q = solve(torch.cat([z1, z2]), torch.cat([t1, t2])) if solve else None
    q = q if Q is None else Q.__rmatmul__  # q(z) = z Q
    loss = (D(q(z1), t1) + D(q(z2), t2)).mean()
    grads = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))

    theta = {n: p.detach() for n, p in theta.items()}
    velocity = {n: 0.9 * state.velocity[n] + lars(n, theta[n], grads[n], weight_decay) for n in theta}
    theta = {n: theta[n] - eta_k * velocity[n] for n in theta}
    xi = {n: tau_k * state.xi[n] + (1 - tau_k) * theta[n] for n in state.xi}
    return loss.detach(), grads, State(theta, stats, xi, target_stats, velocity)


def networks(encoder: nn.Module, p: Named, stats: Named) -> tuple[Net, Net, Net]:
    """f, g and q with the parameters p; they leave BN's running statistics in `stats`."""

    def bn(x: Tensor, name: str) -> Tensor:  # decay 0.9, eps 1e-5
        n, mean, var = len(x), x.mean(0), x.var(0, correction=0)
        stats[f"{name}.running_mean"] = 0.9 * stats[f"{name}.running_mean"] + 0.1 * mean.detach()
        stats[f"{name}.running_var"] = 0.9 * stats[f"{name}.running_var"] + 0.1 * var.detach() * n / (n - 1)
        stats[f"{name}.num_batches_tracked"] = stats[f"{name}.num_batches_tracked"] + 1
        return (x - mean) / (var + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]

    def mlp(x: Tensor, name: str) -> Tensor:
        return bn(x @ p[f"{name}.fc1.weight"].T, f"{name}.bn1").relu() @ p[f"{name}.fc2.weight"].T

    def f(x: Tensor) -> Tensor:
        return functional_call(encoder, {n.removeprefix("f."): t for n, t in (p | stats).items() if n.startswith("f.")}, x)

    return f, lambda y: mlp(y, "g"), lambda z: mlp(z, "q")


def D(q: Tensor, z: Tensor) -> Tensor:
    """Eq. 2, of each image."""
    return (q / q.norm(dim=1, keepdim=True) - z / z.norm(dim=1, keepdim=True)).square().sum(1)


def lars(name: str, w: Tensor, dw: Tensor, weight_decay: float, trust: float = 1e-3) -> Tensor:
    """lambda (dw + decay w), and dw alone for biases and BN."""
    if name.endswith("bias") or "bn" in name:
        return dw
    return trust * w.norm() / (dw.norm() + weight_decay * w.norm()) * (dw + weight_decay * w)


def tau(k: int, K: int, base: float = 0.996) -> float:
    """The target's decay rate at step k = 1..K."""
    return 1 - (1 - base) * (math.cos(math.pi * k / K) + 1) / 2


def eta(k: int, K: int, warmup: int, N: int, base: float = 0.2) -> float:
    """The learning rate at step k = 1..K, of which `warmup` are a warm-up."""
    done = k - 1
    return base * N / 256 * (done / warmup if done < warmup else (1 + math.cos(math.pi * (done - warmup) / (K - warmup))) / 2)
