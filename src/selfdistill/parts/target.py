"""What a teacher's logits become before a cross-entropy: a distribution, kept from collapsing by centring or by Sinkhorn."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from selfdistill.own import Slot
from selfdistill.parts.collective import gather
from selfdistill.parts.noted import Noted
from selfdistill.parts.schedule import Progress, Schedule
from selfdistill.spec import Count, Spec

Temperature = Annotated[Schedule, AfterValidator(lambda tau: tau.within(1e-4, math.inf))]


class Softmax(Spec):
    """softmax(t / tau), nothing more (SimSiam Sec. 4.5 with tau 1; DINO Fig. 7 without centring)."""

    kind: Literal["softmax"] = "softmax"
    temperature: Temperature = Schedule(base=1.0)

    def build(self, dim: int) -> nn.Module:
        return SoftmaxTarget(self.temperature)


class Centre(Spec):
    """softmax((t - c) / tau): c, the running mean of the logits, prevents one output from dominating, and a low temperature
    (sharpening) prevents the uniform one (DINO eq. 4 and Sec. 5.3)."""

    kind: Literal["centre"] = "centre"
    temperature: Temperature = Schedule(base=0.07, warmup=30, warmup_from=0.04)
    """tau_t; sharpening is tau_t below the student's temperature"""
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.9
    """m in c <- m c + (1 - m) mean(t); 1 never moves from 0, which takes centring out"""

    def build(self, dim: int) -> nn.Module:
        return CentreTarget(self, dim)


class Sinkhorn(Spec):
    """Logits to an equal partition of the samples over the prototypes (SwAV; DINO Table 7 row SK; DINOv2)."""

    kind: Literal["sinkhorn"] = "sinkhorn"
    temperature: Temperature = Schedule(base=0.05)
    """epsilon"""
    iterations: Count = 3

    def build(self, dim: int) -> nn.Module:
        return SinkhornTarget(self)


Target = Annotated[Softmax | Centre | Sinkhorn, Slot("target")]


class SoftmaxTarget(nn.Module):
    def __init__(self, temperature: Schedule):
        super().__init__()
        self.temperature = temperature

    def forward(self, t: Tensor, progress: Progress) -> Tensor:
        """Logits [..., K] to probabilities, fp32 or better."""
        return (t / self.temperature.at(progress)).softmax(-1)

    def update(self) -> None:
        pass


class CentreTarget(SoftmaxTarget):
    """The centre is a buffer, so a checkpoint has it; the mean is over images, views and ranks, and moves once a step."""

    centre: Tensor

    def __init__(self, spec: Centre, dim: int):
        super().__init__(spec.temperature)
        self.m = spec.momentum
        self.register_buffer("centre", torch.zeros(dim))
        self._sums: Noted[Tensor] = Noted()

    def forward(self, t: Tensor, progress: Progress) -> Tensor:
        if torch.is_grad_enabled():  # a step of training, which an update will follow
            rows = t.detach().flatten(0, -2)
            count = rows.new_full((1, 1), len(rows))  # ranks differ in how many patches they mask
            self._sums.append(gather(torch.cat([rows.sum(0, keepdim=True), count], 1)).sum(0))  # [K + 1]
        return super().forward(t - self.centre, progress)

    def update(self) -> None:
        if self._sums:
            total = sum(self._sums, start=self.centre.new_zeros(len(self.centre) + 1))
            some = total[-1] > 0  # a step without a masked patch moves nothing; to ask would wait for the device
            mean, weight = total[:-1] / total[-1].clamp(min=1), (1 - self.m) * some.to(self.centre.dtype)
            self.centre.lerp_(mean.to(self.centre.dtype), weight)
            self._sums.clear()


class SinkhornTarget(SoftmaxTarget):
    def __init__(self, spec: Sinkhorn):
        super().__init__(spec.temperature)
        self.iterations = spec.iterations

    def forward(self, t: Tensor, progress: Progress) -> Tensor:
        """Logits [G, B, K], each view on its own; of masked patches [M, K], all together (DINOv2)."""
        logits = t / self.temperature.at(progress)
        return sinkhorn(logits, self.iterations) if t.ndim == 2 else torch.stack([sinkhorn(view, self.iterations) for view in logits])


def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """Codes [n, K] of this rank's logits [n, K] (already divided by epsilon): rows sum to 1, and over the samples of all ranks, which
    may differ in n, each prototype gets the same share (SwAV's `distributed_sinkhorn`). In logarithms: exp(1 / 0.05) alone is 5e8."""
    q = logits
    for _ in range(iterations):
        q = q - gather(q.logsumexp(0, keepdim=True)).logsumexp(0)  # each prototype the same share
        q = q - q.logsumexp(1, keepdim=True)  # each sample one
    return q.exp()
