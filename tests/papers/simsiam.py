"""SimSiam, executable. Chen & He, Exploring Simple Siamese Representation Learning, CVPR 2021, arXiv 2011.10566, Algorithm 1:

    # f: backbone + projection mlp
    # h: prediction mlp
    for x in loader:  # load a minibatch x with n samples
        x1, x2 = aug(x), aug(x)  # random augmentation
        z1, z2 = f(x1), f(x2)  # projections, n-by-d
        p1, p2 = h(z1), h(z2)  # predictions, n-by-d
        L = D(p1, z2)/2 + D(p2, z1)/2  # loss
        L.backward()  # back-propagate
        update(f, h)  # SGD update

    def D(p, z):  # negative cosine similarity
        z = z.detach()  # stop gradient
        p = normalize(p, dim=1)  # l2-normalize
        z = normalize(z, dim=1)  # l2-normalize
        return -(p*z).sum(dim=1).mean()

Sec. 3: the projection MLP has 3 layers, BN on each fc, its output fc included, and no ReLU there; the prediction MLP has 2, and neither
BN nor ReLU at its output. SGD with momentum 0.9 and weight decay 0.0001 on every parameter, lr x n/256 with base 0.05 and a cosine
decay. Sec. 4.2 (c) and after: h's learning rate does not decay. Not in the paper but in its code: the projection's last BN has no scale
and shift, an fc in front of a BN has no bias, the cosine moves once an epoch.

Written from the paper, knows nothing of the package: weights and views come from outside, everything else is here.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

Named = dict[str, Tensor]


class State(NamedTuple):
    """By name: f.* of the backbone, g.fc1 g.bn1 g.fc2 g.bn2 g.fc3 g.bn3 of the projection, h.fc1 h.bn1 h.fc2 of the prediction MLP."""

    weights: Named
    statistics: Named  # BatchNorm's running mean and variance, and how many batches it saw
    velocity: Named


def step(
    backbone: nn.Module, state: State, x1: Tensor, x2: Tensor, lr: float, lr_h: float, weight_decay: float = 1e-4
) -> tuple[Tensor, Named, State]:
    """One pass of the loop: the loss, its gradients, and what f and h are afterwards."""
    w = {name: value.detach().requires_grad_() for name, value in state.weights.items()}
    stats = {name: value.clone() for name, value in state.statistics.items()}

    def fc(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T

    def standard(x: Tensor, name: str) -> Tensor:  # BN before scale and shift: by this batch; the running statistics take a tenth of it
        n, mean, var = len(x), x.mean(0), x.var(0, correction=0)
        stats[f"{name}.running_mean"] = 0.9 * stats[f"{name}.running_mean"] + 0.1 * mean.detach()
        stats[f"{name}.running_var"] = 0.9 * stats[f"{name}.running_var"] + 0.1 * var.detach() * n / (n - 1)
        stats[f"{name}.num_batches_tracked"] = stats[f"{name}.num_batches_tracked"] + 1
        return (x - mean) / (var + 1e-5).sqrt()

    def bn(x: Tensor, name: str) -> Tensor:
        return standard(x, name) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def f(x: Tensor) -> Tensor:
        x = functional_call(backbone, {n.removeprefix("f."): t for n, t in (w | stats).items() if n.startswith("f.")}, x)
        x = bn(fc(x, "g.fc1"), "g.bn1").relu()
        x = bn(fc(x, "g.fc2"), "g.bn2").relu()
        return standard(fc(x, "g.fc3"), "g.bn3")

    def h(z: Tensor) -> Tensor:
        return fc(bn(fc(z, "h.fc1"), "h.bn1").relu(), "h.fc2") + w["h.fc2.bias"]

    z1, z2 = f(x1), f(x2)  # projections, n-by-d
    p1, p2 = h(z1), h(z2)  # predictions, n-by-d
    loss = D(p1, z2) / 2 + D(p2, z1) / 2
    grads = dict(zip(w, torch.autograd.grad(loss, list(w.values())), strict=True))

    velocity = {n: 0.9 * state.velocity[n] + grads[n] + weight_decay * w[n].detach() for n in w}
    weights = {n: w[n].detach() - (lr_h if n.startswith("h.") else lr) * velocity[n] for n in w}
    return loss.detach(), grads, State(weights, stats, velocity)


def D(p: Tensor, z: Tensor) -> Tensor:
    """Negative cosine similarity."""
    z = z.detach()  # stop gradient
    p = p / p.norm(dim=1, keepdim=True)  # l2-normalize
    z = z / z.norm(dim=1, keepdim=True)  # l2-normalize
    return -(p * z).sum(dim=1).mean()


def learning_rates(epoch: int, epochs: int, n: int, base: float = 0.05) -> tuple[float, float]:
    """Of f, which decays, and of h, which does not."""
    return base * n / 256 * (1 + math.cos(math.pi * epoch / epochs)) / 2, base * n / 256
