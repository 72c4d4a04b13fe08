"""Losses that compare an image with other images: contrast with a batch, with a queue, with prototypes.

Called and updated as those in loss.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from selfdistill.parts.collective import gather, of_this_rank, ranks
from selfdistill.parts.head import FrozenAtFirst, unit_rows
from selfdistill.parts.noted import Noted
from selfdistill.parts.schedule import Progress
from selfdistill.parts.target import sinkhorn
from selfdistill.spec import Count, Positive, Spec

PairList = list[tuple[int, int]]


class NTXent(Spec):
    """SimCLR eq. 1: of the 2B views of a batch (over all ranks), find the other view of the same image; 2B - 2 negatives. Where
    an image has more views they are no negatives of each other."""

    kind: Literal["nt-xent"] = "nt-xent"
    temperature: Positive = 0.1

    def build(self, dim: int, targets: int = 2) -> nn.Module:
        return NTXentLoss(self.temperature)


class NTXentLoss(nn.Module):
    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = temperature

    def forward(self, p: Tensor, t: Tensor, pairs: PairList, progress: Progress) -> Tensor:
        B = p.shape[1]
        p = F.normalize(p, dim=-1)
        every = torch.stack([gather(view) for view in F.normalize(t, dim=-1)])  # [G, N, D], N = ranks B
        G, N = every.shape[:2]
        place = of_this_rank(torch.arange(N, device=p.device), B)  # where this rank's images stand among the N
        same = F.one_hot(place, N).bool()  # [B, N]
        losses = []
        for i, j in pairs:
            logits = (p[i] @ every.flatten(0, 1).T / self.temperature).unflatten(1, (G, N))  # [B, G, N]
            besides = torch.arange(G, device=p.device) != j  # itself among them
            logits = logits.masked_fill(same[:, None] & besides[:, None], -torch.inf)
            losses.append(F.cross_entropy(logits.flatten(1), j * N + place))
        return torch.stack(losses).mean()

    def update(self) -> None:
        pass


class InfoNCE(Spec):
    """MoCo eq. 1: the positive against a queue of earlier targets as negatives."""

    kind: Literal["info-nce"] = "info-nce"
    temperature: Positive = 0.2
    queue: Count = 65536
    """targets of earlier steps that are kept as negatives"""

    def build(self, dim: int, targets: int = 2) -> nn.Module:
        return InfoNCELoss(self, dim)


class InfoNCELoss(nn.Module):
    """The queue [K, D] starts as random unit vectors; after each step the oldest targets give way to the step's own."""

    queue: Tensor

    def __init__(self, spec: InfoNCE, dim: int):
        super().__init__()
        self.temperature = spec.temperature
        self.register_buffer("queue", F.normalize(torch.randn(spec.queue, dim), dim=1))
        self._new: Noted[Tensor] = Noted()

    def forward(self, p: Tensor, t: Tensor, pairs: PairList, progress: Progress) -> Tensor:
        p, t = F.normalize(p, dim=-1), F.normalize(t, dim=-1)
        losses = []
        for i, j in pairs:
            positive = (p[i] * t[j]).sum(-1, keepdim=True)  # [B, 1]
            logits = torch.cat([positive, p[i] @ self.queue.to(p.dtype).T], 1) / self.temperature  # [B, 1 + K]
            losses.append(F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long)))
        if torch.is_grad_enabled():  # a step of training, which an update will follow
            self._new.append(torch.stack([gather(t[j].detach()) for j in dict.fromkeys(j for _, j in pairs)]))  # [G, N, D]
        return torch.stack(losses).mean()

    def update(self) -> None:
        """First in, first out: the newest stand at the end."""
        if self._new:
            new = torch.cat(self._new, 1).flatten(0, 1)  # one order, however many micro-batches
            self.queue.copy_(torch.cat([self.queue, new.to(self.queue.dtype)])[-len(self.queue) :])
            self._new.clear()


class Swapped(Spec):
    """SwAV eq. 1 and 2: predict the code of another view, codes being an equal partition of the batch over prototypes."""

    kind: Literal["swapped"] = "swapped"
    prototypes: Annotated[int, Field(ge=2)] = 3000
    temperature: Positive = 0.1
    epsilon: Positive = 0.05
    """of Sinkhorn: larger is more uniform"""
    iterations: Count = 3
    queue: Annotated[int, Field(ge=0)] = 0
    """earlier projections that join the batch when codes are made; for batches smaller than the number of prototypes"""
    queue_from: Annotated[float, Field(ge=0)] = 15
    """epoch from which the queue is filled, and used once it is full"""
    frozen_epochs: Annotated[float, Field(ge=0)] = 1
    """epochs during which the prototypes stay as they are"""

    def build(self, dim: int, targets: int = 2) -> nn.Module:
        return SwappedLoss(self, dim, targets)


class SwappedLoss(nn.Module):
    """Prototypes [K, D] are unit vectors again after every step; the queue [G, L, D] keeps projections, codes are made anew."""

    queue: Tensor

    def __init__(self, spec: Swapped, dim: int, targets: int):
        super().__init__()
        self.spec = spec
        self.prototypes = FrozenAtFirst(torch.randn(spec.prototypes, dim) / dim**0.5, spec.frozen_epochs)
        self.register_buffer("queue", torch.zeros(targets, spec.queue, dim))
        self._new: Noted[Tensor] = Noted()
        self.update()

    def forward(self, p: Tensor, t: Tensor, pairs: PairList, progress: Progress) -> Tensor:
        q, log_p = self.distributions(p, t, progress)
        if torch.is_grad_enabled() and self.spec.queue and progress.epoch >= self.spec.queue_from:
            self._new.append(torch.stack([gather(view) for view in F.normalize(t.detach(), dim=-1)]))
        return torch.stack([-(q[j] * log_p[i]).sum(-1).mean() for i, j in pairs]).mean()

    def distributions(self, p: Tensor, t: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        """(codes [G, B, K], log-probabilities of the predictions [V, B, K])."""
        C = self.prototypes.weight
        scores = F.normalize(t, dim=-1) @ C.detach().T  # [G, B, K]; the codes do not move the prototypes
        codes = torch.stack([self._code(s, j, progress) for j, s in enumerate(scores)])
        return codes, (F.normalize(p, dim=-1) @ C.T / self.spec.temperature).log_softmax(-1)

    def _code(self, scores: Tensor, view: int, progress: Progress) -> Tensor:
        n, earlier = len(scores), self.queue[view]
        if self.spec.queue and progress.epoch >= self.spec.queue_from and bool(earlier[-1].any()):  # full
            mine = earlier.tensor_split(ranks()[1])[ranks()[0]]  # every rank holds the same queue: each brings its share
            scores = torch.cat([scores, mine.to(scores.dtype) @ self.prototypes.weight.detach().T])
        return sinkhorn(scores / self.spec.epsilon, self.spec.iterations)[:n]

    @torch.no_grad()
    def update(self) -> None:
        self.prototypes.weight.copy_(unit_rows(self.prototypes.weight))
        if self._new:
            self.queue.copy_(torch.cat([torch.cat(self._new, 1).to(self.queue.dtype), self.queue], 1)[:, : self.queue.shape[1]])
            self._new.clear()
