"""MoCo v2, executable. Chen et al., Improved Baselines with Momentum Contrastive Learning, arXiv 2003.04297, which is He et al., Momentum
Contrast for Unsupervised Visual Representation Learning, CVPR 2020, arXiv 1911.05722, with another head; Algorithm 1 of the latter:

    # f_q, f_k: encoder networks for query and key
    # queue: dictionary as a queue of K keys (CxK)
    # m: momentum
    # t: temperature
    f_k.params = f_q.params  # initialize
    for x in loader:  # load a minibatch x with N samples
        x_q = aug(x)  # a randomly augmented version
        x_k = aug(x)  # another randomly augmented version
        q = f_q.forward(x_q)  # queries: NxC
        k = f_k.forward(x_k)  # keys: NxC
        k = k.detach()  # no gradient to keys
        # positive logits: Nx1
        l_pos = bmm(q.view(N,1,C), k.view(N,C,1))
        # negative logits: NxK
        l_neg = mm(q.view(N,C), queue.view(C,K))
        # logits: Nx(1+K)
        logits = cat([l_pos, l_neg], dim=1)
        # contrastive loss, Eqn.(1)
        labels = zeros(N)  # positives are the 0-th
        loss = CrossEntropyLoss(logits/t, labels)
        # SGD update: query network
        loss.backward()
        update(f_q.params)
        # momentum update: key network
        f_k.params = m*f_k.params+(1-m)*f_q.params
        # update dictionary
        enqueue(queue, k)  # enqueue the current minibatch
        dequeue(queue)  # dequeue the earliest minibatch

Sec. 3.3: q and k are l2-normalised. MoCo v2: the head is Linear, ReLU, Linear, the temperature 0.2, lr 0.03 for a batch of 256 decays by
a cosine, once an epoch in the code; SGD with momentum 0.9 and weight decay 1e-4 on every parameter, m 0.999, K 65536. Also from the
code: the queue starts as random unit vectors. Without shuffling BN, which is the identity on one GPU.

Written from the paper, knows nothing of the package: weights and views come from outside, everything else is here.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

Named = dict[str, Tensor]


class State(NamedTuple):
    """By name: f.* of the encoder, g.fc1 g.fc2 of the head."""

    query: Named
    query_statistics: Named  # of the query network's BNs
    key: Named
    key_statistics: Named
    queue: list[Tensor]  # K keys, the earliest first
    velocity: Named


def step(
    encoder: nn.Module,
    state: State,
    x_q: Tensor,
    x_k: Tensor,
    lr: float,
    m: float = 0.999,
    t: float = 0.2,
    weight_decay: float = 1e-4,
) -> tuple[Tensor, Named, State]:
    """One pass of the loop: the loss, its gradients, and the state afterwards."""
    params = {name: value.detach().requires_grad_() for name, value in state.query.items()}
    stats, key_stats = ({n: s.clone() for n, s in of.items()} for of in (state.query_statistics, state.key_statistics))

    q = forward(encoder, params, stats, x_q)  # queries: NxC
    k = forward(encoder, state.key, key_stats, x_k).detach()  # keys: NxC, no gradient to keys
    losses = []
    for query, key in zip(q, k, strict=True):  # eq. 1
        positive, negatives = query @ key / t, [query @ other / t for other in state.queue]
        losses.append(-torch.log(positive.exp() / (positive.exp() + sum(negative.exp() for negative in negatives))))
    loss = torch.stack(losses).mean()
    grads = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))

    params = {n: p.detach() for n, p in params.items()}
    velocity = {n: 0.9 * state.velocity[n] + grads[n] + weight_decay * params[n] for n in params}
    params = {n: params[n] - lr * velocity[n] for n in params}
    key_params = {n: m * state.key[n] + (1 - m) * params[n] for n in params}
    queue = [*state.queue, *k][len(k) :]
    return loss.detach(), grads, State(params, stats, key_params, key_stats, queue, velocity)


def forward(encoder: nn.Module, p: Named, stats: Named, x: Tensor) -> Tensor:
    """The network with parameters p; it leaves BN's running statistics in `stats`."""
    h = functional_call(encoder, {n.removeprefix("f."): t for n, t in (p | stats).items() if n.startswith("f.")}, x)
    z = (h @ p["g.fc1.weight"].T + p["g.fc1.bias"]).relu() @ p["g.fc2.weight"].T + p["g.fc2.bias"]
    return z / z.norm(dim=1, keepdim=True)


def learning_rate(epoch: int, epochs: int, N: int, base: float = 0.03) -> float:
    return base * N / 256 * (1 + math.cos(math.pi * epoch / epochs)) / 2
