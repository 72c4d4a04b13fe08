"""DINO, executable. Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021, arXiv 2104.14294, Algorithm 1,
"without multi-crop":

    # gs, gt: student and teacher networks
    # C: center (K)
    # tps, tpt: student and teacher temperatures
    # l, m: network and center momentum rates
    gt.params = gs.params
    for x in loader:  # load a minibatch x with n samples
        x1, x2 = augment(x), augment(x)  # random views
        s1, s2 = gs(x1), gs(x2)  # student output n-by-K
        t1, t2 = gt(x1), gt(x2)  # teacher output n-by-K
        loss = H(t1, s2)/2 + H(t2, s1)/2
        loss.backward()  # back-propagate
        # student, teacher and center updates
        update(gs)  # SGD
        gt.params = l*gt.params + (1-l)*gs.params
        C = m*C + (1-m)*cat([t1, t2]).mean(dim=0)

    def H(t, s):
        t = t.detach()  # stop gradient
        s = softmax(s / tps, dim=1)
        t = softmax((t - C) / tpt, dim=1)  # center + sharpen
        return - (t * log(s)).sum(dim=1).mean()

Sec. 3.1, multi-crop: all crops through the student, the two global views only through the teacher; every teacher view against every
student view but the same one, eq. 3, and the mean over these in the code. Sec. 3.2 and App. C: the head has 3 layers with GELU, then l2,
then weight-normalised prototypes without bias, all of gain 1; AdamW, lr 0.0005 x n/256 after a linear warm-up and by a cosine, weight
decay by a cosine from 0.04 to 0.4, tpt by a linear warm-up from 0.04 to 0.07, l by a cosine from 0.996 to 1, m 0.9, tps 0.1. From the code:
one pass of the backbone for the crops of one size, one of the head for all; each parameter's gradient clipped to a norm of 3 by itself; the
prototypes without an update in the first epoch, which is no gradient, no decay and no moments; no decay for biases and 1-D parameters.
Unlike that code, which has k / (warmup - 1) of a warm-up at its k-th step, moves tpt once an epoch, and has l one step behind.

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
    """By name: f.* of the backbone, g.fc1 g.fc2 g.fc3 of the head, g.last.weight its prototypes."""

    student: Named
    student_statistics: Named  # of BNs, where the backbone has any
    teacher: Named
    teacher_statistics: Named
    center: Tensor
    moments: dict[str, tuple[Tensor, Tensor, int]]  # AdamW's: first, second, and how many steps made them


class Now(NamedTuple):
    """What the schedules say of this step, and whether it leaves the prototypes alone."""

    lr: float
    weight_decay: float
    tpt: float
    l: float  # noqa: E741
    frozen: bool


def step(
    backbone: nn.Module, state: State, crops: list[Tensor], now: Now, tps: float = 0.1, m: float = 0.9, clip: float = 3.0
) -> tuple[Tensor, Named, State]:
    """One pass of the loop on the crops, two global views first: the loss, its gradients before clipping, and the state afterwards."""
    w = {name: value.detach().requires_grad_() for name, value in state.student.items()}
    stats, teacher_stats = ({n: s.clone() for n, s in of.items()} for of in (state.student_statistics, state.teacher_statistics))
    s = network(backbone, w, stats, crops)
    with torch.no_grad():
        t = network(backbone, state.teacher, teacher_stats, crops[:2])

    loss, compared = torch.zeros((), dtype=t[0].dtype), 0
    for j in range(len(t)):
        for i in range(len(s)):
            if i != j:
                loss, compared = loss + H(t[j], s[i], state.center, now.tpt, tps), compared + 1
    loss = loss / compared
    grads = dict(zip(w, torch.autograd.grad(loss, list(w.values())), strict=True))

    w, moments = {n: p.detach() for n, p in w.items()}, dict(state.moments)
    for n in w:
        if not (now.frozen and n == "g.last.weight"):
            w[n], moments[n] = adamw(w[n], clipped(grads[n], clip), moments[n], now.lr, 0.0 if w[n].ndim == 1 else now.weight_decay)
    teacher = {n: now.l * state.teacher[n] + (1 - now.l) * w[n] for n in w}
    center = m * state.center + (1 - m) * torch.cat(t).mean(dim=0)
    return loss.detach(), grads, State(w, stats, teacher, teacher_stats, center, moments)


def network(backbone: nn.Module, p: Named, stats: Named, crops: list[Tensor]) -> list[Tensor]:
    """n-by-K of each crop, with the parameters p; it leaves BN's running statistics in `stats`."""
    mine = {n.removeprefix("f."): t for n, t in (p | stats).items() if n.startswith("f.")}

    def f(x: Tensor) -> Tensor:
        return functional_call(backbone, mine, x)

    def fc(x: Tensor, name: str) -> Tensor:
        return x @ p[f"g.{name}.weight"].T + p[f"g.{name}.bias"]

    x = torch.cat([f(torch.cat(list(same))) for _, same in groupby(crops, key=lambda crop: crop.shape[-1])])
    x = fc(gelu(fc(gelu(fc(x, "fc1")), "fc2")), "fc3")
    x = x / x.norm(dim=1, keepdim=True)
    v = p["g.last.weight"]
    return list((x @ (v / v.norm(dim=1, keepdim=True)).T).chunk(len(crops)))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def H(t: Tensor, s: Tensor, C: Tensor, tpt: float, tps: float) -> Tensor:
    t = t.detach()  # stop gradient
    s = torch.softmax(s / tps, dim=1)
    t = torch.softmax((t - C) / tpt, dim=1)  # center + sharpen
    return -(t * s.log()).sum(dim=1).mean()


def clipped(grad: Tensor, norm: float) -> Tensor:
    return grad * min(1.0, norm / (float(grad.norm()) + 1e-6))


def adamw(w: Tensor, dw: Tensor, moments: tuple[Tensor, Tensor, int], lr: float, weight_decay: float) -> tuple[Tensor, tuple]:
    """Loshchilov & Hutter, Algorithm 2, with PyTorch's lr x decay."""
    first, second, steps = 0.9 * moments[0] + 0.1 * dw, 0.999 * moments[1] + 0.001 * dw**2, moments[2] + 1
    change = first / (1 - 0.9**steps) / ((second / (1 - 0.999**steps)).sqrt() + 1e-8)
    return w - lr * weight_decay * w - lr * change, (first, second, steps)


def cosine(done: int, steps: int, base: float, final: float) -> float:
    return final + (base - final) * (1 + math.cos(math.pi * done / steps)) / 2


def warmed(done: int, steps: int, start: float, base: float) -> float:
    """Linear from start to base within `steps`, then base."""
    return start + (base - start) * min(1.0, done / steps)
