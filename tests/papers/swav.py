"""SwAV, executable. Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020,
arXiv 2006.09882, Algorithm 1 (App. A):

    # C: prototypes (DxK)
    # model: convnet + projection head
    # temp: temperature
    for x in loader:  # load a batch x with B samples
        x_t = t(x)  # t is a random augmentation
        x_s = s(x)  # s is another random augmentation
        z = model(cat(x_t, x_s))  # embeddings: 2BxD
        scores = mm(z, C)  # prototype scores: 2BxK
        scores_t = scores[:B]
        scores_s = scores[B:]
        # compute assignments
        with torch.no_grad():
            q_t = sinkhorn(scores_t)
            q_s = sinkhorn(scores_s)
        # convert scores to probabilities
        p_t = Softmax(scores_t / temp)
        p_s = Softmax(scores_s / temp)
        # swap prediction problem
        loss = - 0.5 * mean(q_t * log(p_s) + q_s * log(p_t))
        # SGD update: network and prototypes
        loss.backward()
        update(model.params)
        update(C)
        # normalize prototypes
        with torch.no_grad():
            C = normalize(C, dim=0, p=2)

    # Sinkhorn-Knopp
    def sinkhorn(scores, eps=0.05, niters=3):
        Q = exp(scores / eps).T
        Q /= sum(Q)
        K, B = Q.shape
        u, r, c = zeros(K), ones(K) / K, ones(B) / B
        for _ in range(niters):
            u = sum(Q, dim=1)
            Q *= (r / u).unsqueeze(1)
            Q *= (c / sum(Q, dim=0)).unsqueeze(0)
        return (Q / sum(Q, dim=0, keepdim=True)).T

The `mean` is over images: eq. 2 is a sum over prototypes. Sec. 3.3, multi-crop: codes from the two full views only, each predicted from
every other crop. z is l2-normalised; the head is Linear, BN, ReLU, Linear. From the code: one pass of the convnet for the crops of one
size, one of the head for all; prototypes are normalised before a step, which is after the last one; frozen at first, which is no
gradient, no decay and no momentum; a queue of the embeddings of each full view, made in an epoch to come and used once it is full;
SGD with momentum 0.9 inside of LARC, on every parameter:
    lambda = trust |w| / (|dw| + decay |w| + 1e-8),    v <- 0.9 v + lambda (dw + decay w),    w <- w - lr v.
Unlike that code, which has k / (warmup - 1) of the warm-up at its k-th step and a bias in the head's first Linear.

Written from the paper, knows nothing of the package: weights and views come from outside, everything else is here.
"""

import math
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

Named = dict[str, Tensor]


class State(NamedTuple):
    """By name: f.* of the convnet, g.fc1 g.bn1 g.fc2 of the head, C.weight the prototypes, KxD."""

    weights: Named
    statistics: Named  # BatchNorm's running mean and variance, and how many batches it saw
    velocity: Named
    queue: Tensor | None = None  # [2, length, D], the latest first


def step(
    convnet: nn.Module,
    state: State,
    crops: list[Tensor],
    lr: float,
    frozen: bool,
    queue_length: int = 0,
    queue_started: bool = False,
    temp: float = 0.1,
    eps: float = 0.05,
    weight_decay: float = 1e-6,
) -> tuple[Tensor, Named, State]:
    """One pass of the loop on the crops, two full views first: the loss, its gradients, and the state afterwards.

    frozen: whether this step is one of those that leave the prototypes alone; queue_started: whether it has an epoch with a queue.
    """
    w = {name: value.detach() for name, value in state.weights.items()}
    w["C.weight"] = unit(w["C.weight"])
    w = {name: value.requires_grad_() for name, value in w.items()}
    stats = {name: value.clone() for name, value in state.statistics.items()}

    def f(x: Tensor) -> Tensor:
        return functional_call(convnet, {n.removeprefix("f."): t for n, t in (w | stats).items() if n.startswith("f.")}, x)

    def bn(x: Tensor, name: str) -> Tensor:
        n, mean, var = len(x), x.mean(0), x.var(0, correction=0)
        stats[f"{name}.running_mean"] = 0.9 * stats[f"{name}.running_mean"] + 0.1 * mean.detach()
        stats[f"{name}.running_var"] = 0.9 * stats[f"{name}.running_var"] + 0.1 * var.detach() * n / (n - 1)
        stats[f"{name}.num_batches_tracked"] = stats[f"{name}.num_batches_tracked"] + 1
        return (x - mean) / (var + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    B = len(crops[0])
    h = torch.cat([f(torch.cat(list(same))) for _, same in groupby(crops, key=lambda crop: crop.shape[-1])])
    z = unit(bn(h @ w["g.fc1.weight"].T, "g.bn1").relu() @ w["g.fc2.weight"].T + w["g.fc2.bias"])
    scores = z @ w["C.weight"].T

    queue = None if state.queue is None else state.queue.clone()
    if queue_length and queue_started and queue is None:
        queue = torch.zeros(2, queue_length, z.shape[1], dtype=z.dtype)
    loss = torch.zeros((), dtype=z.dtype)
    for s in (0, 1):
        with torch.no_grad():
            samples = scores[s * B : (s + 1) * B]
            if queue is not None:
                if not (queue[s, -1] == 0).all():  # it is full
                    samples = torch.cat([queue[s] @ w["C.weight"].T, samples])
                queue[s] = torch.cat([z[s * B : (s + 1) * B], queue[s]])[:queue_length]
            q = sinkhorn(samples, eps)[-B:]
        others = [v for v in range(len(crops)) if v != s]
        for v in others:
            p = torch.softmax(scores[v * B : (v + 1) * B] / temp, dim=1)
            loss = loss - (q * p.log()).sum(1).mean() / len(others) / 2
    grads = dict(zip(w, torch.autograd.grad(loss, list(w.values())), strict=True))

    w = {n: p.detach() for n, p in w.items()}
    velocity, weights = dict(state.velocity), dict(w)
    for n in w:
        if not (frozen and n == "C.weight"):
            velocity[n] = 0.9 * velocity[n] + larc(w[n], grads[n], weight_decay)
            weights[n] = w[n] - lr * velocity[n]
    return loss.detach(), grads, State(weights, stats, velocity, queue)


def sinkhorn(scores: Tensor, eps: float = 0.05, niters: int = 3) -> Tensor:
    """As `distributed_sinkhorn` of the code has it."""
    Q = torch.exp(scores / eps).T  # KxB
    K, B = Q.shape
    Q = Q / Q.sum()
    for _ in range(niters):
        Q = Q / Q.sum(dim=1, keepdim=True)  # the weight of a prototype is 1/K
        Q = Q / K
        Q = Q / Q.sum(dim=0, keepdim=True)  # the weight of a sample is 1/B
        Q = Q / B
    Q = Q * B  # columns sum to 1: an assignment
    return Q.T


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def larc(w: Tensor, dw: Tensor, weight_decay: float, trust: float = 1e-3) -> Tensor:
    """lambda (dw + decay w)."""
    return trust * w.norm() / (dw.norm() + weight_decay * w.norm() + 1e-8) * (dw + weight_decay * w)


def learning_rate(done: int, steps: int, warmup: int, B: int, start: float, base: float, final: float) -> float:
    """After `done` of all `steps`, of which `warmup` are a warm-up from `start`; all three rates are those of a batch of 256."""
    if done < warmup:
        return B / 256 * (start + (base - start) * done / warmup)
    return B / 256 * (final + (base - final) * (1 + math.cos(math.pi * (done - warmup) / (steps - warmup))) / 2)
