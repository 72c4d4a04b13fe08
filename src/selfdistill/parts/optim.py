"""Optimisers: PyTorch's own, and LARS from timm."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from timm.optim.lars import Lars

from selfdistill.spec import Spec

Groups = list[dict[str, Any]]
Unit = Annotated[float, Field(ge=0, lt=1)]


class SGD(Spec):
    kind: Literal["sgd"] = "sgd"
    momentum: Unit = 0.9
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> SGD:
        if self.nesterov and self.momentum == 0:
            raise ValueError("momentum=0 with nesterov=true, which looks ahead along the momentum: set optimizer.nesterov=false too")
        return self

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=0.0, momentum=self.momentum, nesterov=self.nesterov, fused=True)


class LARS(Spec):
    """You et al. 2017: a tensor's step is lr eta |w| / (|g| + wd |w|) times its gradient, in momentum without lr (BYOL's code).

    Biases and BatchNorm's parameters, where weight decay leaves them out, are not adapted either (BYOL App. C, SimCLR).
    """

    kind: Literal["lars"] = "lars"
    momentum: Unit = 0.9
    trust: float = Field(1e-3, gt=0)
    """eta, the trust coefficient"""

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        for group in groups:
            group["always_adapt"] = group["weight_decayed"]  # else timm adapts nothing once weight decay is 0
        return Lars(groups, lr=0.0, momentum=self.momentum, trust_coeff=self.trust)


class AdamW(Spec):
    kind: Literal["adamw"] = "adamw"
    betas: tuple[Unit, Unit] = (0.9, 0.999)

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=0.0, betas=self.betas, fused=True)


class Clip(Spec):
    """Gradient clipping by norm."""

    norm: float = Field(3.0, gt=0)
    per: Literal["model", "tensor"] = "model"
    """one norm over all parameters, or one for each tensor (DINO's code)"""
