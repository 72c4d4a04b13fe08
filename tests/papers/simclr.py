"""SimCLR, executable. Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020, arXiv 2002.05709,
Algorithm 1:

    input: batch size N, constant tau, structure of f, g, T.
    for sampled minibatch {x_k}, k = 1..N do
        for all k in {1, ..., N} do
            draw two augmentation functions t ~ T, t' ~ T
            x~_{2k-1} = t(x_k)                                  # the first augmentation
            h_{2k-1} = f(x~_{2k-1})                             # representation
            z_{2k-1} = g(h_{2k-1})                              # projection
            x~_{2k} = t'(x_k)                                   # the second augmentation
            h_{2k} = f(x~_{2k})                                 # representation
            z_{2k} = g(h_{2k})                                  # projection
        for all i in {1, ..., 2N} and j in {1, ..., 2N} do
            s_{i,j} = z_i . z_j / (|z_i| |z_j|)                 # pairwise similarity
        define l(i,j) = -log( exp(s_{i,j} / tau) / sum_{k=1}^{2N} 1[k != i] exp(s_{i,k} / tau) )
        L = 1/2N sum_{k=1}^N [ l(2k-1, 2k) + l(2k, 2k-1) ]
        update networks f and g to minimize L

Sec. 2.1 to 2.3: g is Linear, ReLU, Linear; BN's mean and variance are those of all 2N augmented images. LARS with lr 0.3 x N/256 after
a linear warm-up and by a cosine, weight decay 1e-6. Not in the paper but in its code: BN after both layers of g, no bias in front of
them; LARS (You et al. 2017, eq. 6) with trust 1e-3 and momentum 0.9, which leaves biases and BN out of decay and adaptation,
    lambda = trust |w| / (|dw| + decay |w|),    v <- 0.9 v + lambda (dw + decay w),    w <- w - lr v.
Unlike that code, which has lr inside of v, |dw + decay w| below the line, and no shift in g's last BN.

Written from the paper, knows nothing of the package: weights and views come from outside, everything else is here.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

Named = dict[str, Tensor]


class State(NamedTuple):
    """By name: f.* of the encoder, g.fc1 g.bn1 g.fc2 g.bn2 of the projection head."""

    weights: Named
    statistics: Named  # BatchNorm's running mean and variance, and how many batches it saw
    velocity: Named


def step(
    encoder: nn.Module, state: State, first: Tensor, second: Tensor, lr: float, tau: float = 0.1, weight_decay: float = 1e-6
) -> tuple[Tensor, Named, State]:
    """One pass of the loop on both augmentations of N images: the loss, its gradients, and what f and g are afterwards."""
    w = {name: value.detach().requires_grad_() for name, value in state.weights.items()}
    stats = {name: value.clone() for name, value in state.statistics.items()}

    def bn(x: Tensor, name: str) -> Tensor:
        n, mean, var = len(x), x.mean(0), x.var(0, correction=0)
        stats[f"{name}.running_mean"] = 0.9 * stats[f"{name}.running_mean"] + 0.1 * mean.detach()
        stats[f"{name}.running_var"] = 0.9 * stats[f"{name}.running_var"] + 0.1 * var.detach() * n / (n - 1)
        stats[f"{name}.num_batches_tracked"] = stats[f"{name}.num_batches_tracked"] + 1
        return (x - mean) / (var + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def f(x: Tensor) -> Tensor:
        return functional_call(encoder, {n.removeprefix("f."): t for n, t in (w | stats).items() if n.startswith("f.")}, x)

    def g(h: Tensor) -> Tensor:
        return bn(bn(h @ w["g.fc1.weight"].T, "g.bn1").relu() @ w["g.fc2.weight"].T, "g.bn2")

    N = len(first)
    x = torch.stack([first, second], 1).flatten(0, 1)  # x~_1, x~_2, ..., x~_2N: the two of an image side by side
    loss = nt_xent(g(f(x)), N, tau)
    grads = dict(zip(w, torch.autograd.grad(loss, list(w.values())), strict=True))

    w = {n: p.detach() for n, p in w.items()}
    velocity = {n: 0.9 * state.velocity[n] + lars(n, w[n], grads[n], weight_decay) for n in w}
    return loss.detach(), grads, State({n: w[n] - lr * velocity[n] for n in w}, stats, velocity)


def nt_xent(z: Tensor, N: int, tau: float) -> Tensor:
    """L of the projections z_1, ..., z_2N, which are counted from 1 as in the paper."""
    every = range(1, 2 * N + 1)
    s = {(i, j): z[i - 1] @ z[j - 1] / (z[i - 1].norm() * z[j - 1].norm()) for i in every for j in every}

    def l(i: int, j: int) -> Tensor:  # noqa: E743
        return -torch.log(torch.exp(s[i, j] / tau) / sum(torch.exp(s[i, k] / tau) for k in every if k != i))

    return sum(l(2 * k - 1, 2 * k) + l(2 * k, 2 * k - 1) for k in range(1, N + 1)) / (2 * N)


def lars(name: str, w: Tensor, dw: Tensor, weight_decay: float, trust: float = 1e-3) -> Tensor:
    """lambda (dw + decay w), and dw alone for biases and BN."""
    if name.endswith("bias") or "bn" in name:
        return dw
    return trust * w.norm() / (dw.norm() + weight_decay * w.norm()) * (dw + weight_decay * w)


def learning_rate(done: int, steps: int, warmup: int, N: int, base: float = 0.3) -> float:
    """After `done` of all `steps`, of which `warmup` are a warm-up."""
    return base * N / 256 * (done / warmup if done < warmup else (1 + math.cos(math.pi * (done - warmup) / (steps - warmup))) / 2)
