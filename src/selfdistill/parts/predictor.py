"""The predictor h, on the student's side only: trained, or solved in closed form.

`solve(z, t)` comes before the predictions of a step, z: [V, B, D] the student's projections, t: [G, B, D] the targets;
`h(z)` predicts one view; `update` comes once per optimiser step.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from selfdistill.parts.collective import gather
from selfdistill.parts.head import Norm, mlp
from selfdistill.parts.noted import Noted
from selfdistill.parts.schedule import Progress
from selfdistill.spec import Count, Spec


class Predictor(Spec):
    """h: projections [B, d] to predictions [B, d], an MLP that learns by gradient."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[Count, ...] = (512,)
    """widths of the hidden layers, [] makes it linear; SimSiam advises a bottleneck of d/4 (App. B)"""
    bn: Norm = "hidden"
    """where BatchNorm stands: none, after the hidden layers, or after the output as well"""
    bias: bool = True
    """bias of the output"""
    trainable: bool = True
    """false: fixed at its random initialisation (SimSiam Table 1b)"""
    lr_scale: float = Field(1.0, ge=0)
    """its learning rate over the encoder's (BYOL Table 21: 10 makes up for a missing target network)"""
    lr_decay: bool = True
    """false: its learning rate stays at base (SimSiam Table 1c, and from Sec. 4.3 on)"""

    def build(self, dim: int) -> nn.Module:
        return Learned(*mlp([dim, *self.hidden, dim], self.bn, affine=True, bias=self.bias)).requires_grad_(self.trainable)


class LeastSquares(Spec):
    """The best linear predictor of each batch, Q* = (Z'Z)^-1 Z'T, without gradient (BYOL App. I.2: 52.5 without a target network)."""

    kind: Literal["least-squares"] = "least-squares"
    trainable: ClassVar[bool] = False

    def build(self, dim: int) -> nn.Module:
        return LeastSquaresPredictor(dim)


class DirectPred(Spec):
    """A linear predictor set from the spectrum of F = E[z z'] = U diag(s) U': W = U diag(sqrt(s / max s) + eps) U' (DirectPred, Tian
    et al. 2021; s over its largest as in the code, so that W does not depend on the scale of z)."""

    kind: Literal["directpred"] = "directpred"
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.3
    """rho in F <- rho F + (1 - rho) mean(z z'), uncentred"""
    epsilon: Annotated[float, Field(ge=0)] = 0.1
    """lifts the small eigenvalues (Table 6: 77.9 at 0.1, 76.8 at 0)"""
    every: Count = 1
    """steps between two settings of W; the spectrum of d = 2,048 costs seconds on a CPU"""
    trainable: ClassVar[bool] = False

    def build(self, dim: int) -> nn.Module:
        return DirectPredictor(self, dim)


class Learned(nn.Sequential):
    """What is learned by gradient is not solved; without layers it is the identity."""

    def solve(self, z: Tensor, t: Tensor) -> None:
        pass

    def update(self, progress: Progress) -> None:
        pass


class _Linear(nn.Module):
    """p = z W, W [D, D] a buffer; the identity until it is set."""

    W: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("W", torch.eye(dim))

    def forward(self, z: Tensor) -> Tensor:
        return z @ self.W.to(z.dtype)


class LeastSquaresPredictor(_Linear):
    def solve(self, z: Tensor, t: Tensor) -> None:
        """From all pairs of two views, over all ranks; in fp64, since Z'Z squares the condition. The solution of least norm."""
        if not torch.is_grad_enabled():  # no step of training: W stays what the last one had
            return
        pairs = [(i, j) for i in range(len(z)) for j in range(len(t)) if i != j]
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            Z, T = (torch.cat(rows).double() for rows in ([z[i] for i, _ in pairs], [t[j] for _, j in pairs]))  # [n, D]
            gram, cross = (gather(m[None]).sum(0) for m in (Z.T @ Z, Z.T @ T))  # [D, D]
            self.W.copy_(torch.linalg.pinv(gram, hermitian=True) @ cross if gram.isfinite().all() else torch.full_like(gram, torch.nan))

    def update(self, progress: Progress) -> None:
        pass


class DirectPredictor(_Linear):
    F: Tensor
    timed = True

    def __init__(self, spec: DirectPred, dim: int):
        super().__init__(dim)
        self.spec = spec
        self.register_buffer("F", torch.zeros(dim, dim))
        self._seen: Noted[Tensor] = Noted()

    def solve(self, z: Tensor, t: Tensor) -> None:
        """Notes the batch's correlation; W moves after the step."""
        if torch.is_grad_enabled():  # a step of training, which an update will follow
            rows = z.detach().flatten(0, 1).to(self.F.dtype)  # [V B, D]
            with torch.autocast(z.device.type, enabled=False):
                self._seen.append(gather((rows.T @ rows / len(rows))[None]).mean(0))  # [D, D]

    def update(self, progress: Progress) -> None:
        if self._seen:
            self.F.lerp_(torch.stack(self._seen).mean(0), 1 - self.spec.momentum if self.F.any() else 1.0)
            self._seen.clear()
        if not self.F.isfinite().all():
            self.W.fill_(torch.nan)  # diverged, and seen to be
        elif progress.step % self.spec.every == 0 and self.F.any():  # where the first steps are refused, nothing is known yet
            s, U = torch.linalg.eigh(self.F)
            p = ((s / s[-1]).clamp(min=0).sqrt() + self.spec.epsilon).clamp(min=1e-4)  # the code's floor
            self.W.copy_(U @ torch.diag(p) @ U.T)
