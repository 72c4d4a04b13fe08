"""Mean Teacher, executable. Tarvainen & Valpola, Mean teachers are better role models, NIPS 2017, arXiv 1703.01780, Sec. 2:

    J(th)  = E_{x, eta', eta} |f(x, th', eta') - f(x, th, eta)|^2           // consistency cost, f a softmax over C classes
    th'_t  = alpha th'_{t-1} + (1 - alpha) th_t                             // the teacher's weights

plus the classification cost, the student's cross-entropy where an image has a label. Sec. 3 and the code: consistency over C, a mean over
all images, weight ramped up from 0 by exp(-5 (1 - t)^2), t in [0, 1], here at its i-th step with i steps done; alpha 0.99 while ramping
up and 0.999 after, here by the steps done at the update, the one just made among them; cross-entropy summed over the labelled images and
divided by all of the batch; SGD with Nesterov's momentum 0.9, in PyTorch's form, and weight decay on every parameter,
    d = dw + decay w,    v <- 0.9 v + d,    w <- w - eta (d + 0.9 v).
The teacher's BN normalises by the batch and keeps its own statistics.
Unlike that code, both networks see both views: the consistency is the mean of both directions, the cross-entropy that of both views.
One output for both costs, no alpha of min(1 - 1/(step + 1), .), a cosine instead of its ramp-down.

Written from the paper, knows nothing of the package: weights and views come from outside, everything else is here.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

Named = dict[str, Tensor]


class State(NamedTuple):
    """By name: f.* of the network below its classifier, c.weight and c.bias of that."""

    theta: Named
    statistics: Named  # of the student's BNs
    teacher: Named
    teacher_statistics: Named
    velocity: Named


class Now(NamedTuple):
    """What the schedules say of this step."""

    eta: float
    w: float
    alpha: float


def step(net: nn.Module, state: State, views: tuple[Tensor, Tensor], labels: Tensor, now: Now, decay: float) -> tuple[Tensor, Named, State]:
    """One step on two views of the images, labels -1 where there is none: the loss, its gradients, and the state afterwards."""
    theta = {name: value.detach().requires_grad_() for name, value in state.theta.items()}
    stats, teacher_stats = ({n: s.clone() for n, s in of.items()} for of in (state.statistics, state.teacher_statistics))
    p1, p2 = (logits(net, theta, stats, view).softmax(1) for view in views)
    with torch.no_grad():
        q1, q2 = (logits(net, state.teacher, teacher_stats, view).softmax(1) for view in views)

    classification = (cross_entropy(p1, labels) + cross_entropy(p2, labels)) / 2
    consistency = (distance(p1, q2) + distance(p2, q1)) / 2
    loss = classification + now.w * consistency
    grads = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))

    theta = {n: p.detach() for n, p in theta.items()}
    d = {n: grads[n] + decay * theta[n] for n in theta}
    velocity = {n: 0.9 * state.velocity[n] + d[n] for n in theta}
    theta = {n: theta[n] - now.eta * (d[n] + 0.9 * velocity[n]) for n in theta}
    teacher = {n: now.alpha * state.teacher[n] + (1 - now.alpha) * theta[n] for n in theta}
    return loss.detach(), grads, State(theta, stats, teacher, teacher_stats, velocity)


def logits(net: nn.Module, p: Named, stats: Named, x: Tensor) -> Tensor:
    """With the parameters p; it leaves BN's running statistics in `stats`."""
    h = functional_call(net, {n.removeprefix("f."): t for n, t in (p | stats).items() if n.startswith("f.")}, x)
    return h @ p["c.weight"].T + p["c.bias"]


def cross_entropy(p: Tensor, labels: Tensor) -> Tensor:
    """Over the whole batch: an image without a label counts 0."""
    costs = [-p[i, c].log() for i, c in enumerate(labels.tolist()) if c >= 0]
    return sum(costs, start=p.new_zeros(())) / len(labels)


def distance(p: Tensor, q: Tensor) -> Tensor:
    images, classes = p.shape
    return ((p - q) ** 2).sum() / classes / images


def ramp_up(done: int, steps: int) -> float:
    return math.exp(-5 * (1 - done / steps) ** 2) if done < steps else 1.0


def alpha(done: int, steps: int, early: float = 0.99, late: float = 0.999) -> float:
    """`done` with the step just made."""
    return early if done < steps else late


def cosine(done: int, steps: int, base: float) -> float:
    return base * (1 + math.cos(math.pi * done / steps)) / 2
