"""Projectors: MLPs whose BatchNorm placement is data (SimSiam Table 3, BYOL App. F.1)."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from selfdistill.spec import Count, Spec

Norm = Literal["none", "hidden", "all"]


def mlp(widths: list[int], bn: Norm, affine: bool, bias: bool, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear-BN-activation blocks, then a Linear (and a BN where `bn` is "all").

    A Linear in front of a BN has no bias: the BN's own shift makes it redundant. `affine` is that of the last BN
    and `bias` that of the last Linear where no BN follows it.
    """
    layers: list[nn.Module] = []
    for i, o in pairwise(widths[:-1]):
        hidden_bn = bn != "none"
        layers += [nn.Linear(i, o, bias=not hidden_bn), *([nn.BatchNorm1d(o)] if hidden_bn else []), activation()]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=bias and bn != "all"))
    if bn == "all":
        layers.append(nn.BatchNorm1d(widths[-1], affine=affine))
    return nn.Sequential(*layers)


def unit_rows(weight: Tensor) -> Tensor:
    """[K, D] with rows of length 1."""
    return F.normalize(weight, dim=1)


class FrozenAtFirst(nn.Module):
    """A weight that the optimiser leaves alone for the first `epochs` epochs (DINO's last layer, SwAV's prototypes)."""

    def __init__(self, weight: Tensor, epochs: float):
        super().__init__()
        self.weight, self.epochs = nn.Parameter(weight), epochs


class Prototypes(FrozenAtFirst):
    """K unit vectors: [..., D] l2-normalised to cosines [..., K], the weight-normalised last layer of DINO's head."""

    unit: Tensor | None = None
    """the weight with unit rows, while it is shared"""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=-1), unit_rows(self.weight) if self.unit is None else self.unit)


@contextmanager
def prototypes_shared(network: nn.Module) -> Iterator[None]:
    """Within it, a network's prototypes are normalised, and cast where autocast will, once for all calls: 65,536 of 256 dimensions cost
    more than the product with a few dozen rows."""
    found = [module for module in network.modules() if isinstance(module, Prototypes)]
    for module in found:
        device, unit = module.weight.device.type, unit_rows(module.weight)
        module.unit = unit.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else unit
    try:
        yield
    finally:
        for module in found:
            module.unit = None


class Projector(Spec):
    """g: features [B, F] to projections [B, out]."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[Count, ...] = (2048, 2048)
    """widths of the hidden layers; [] makes it linear"""
    out: Count = 2048
    """d, the dimension in which student and teacher are compared"""
    bn: Norm = "all"
    """where BatchNorm stands: none, after the hidden layers, or after the output as well"""
    affine: bool = False
    """whether the output's BatchNorm learns scale and shift (SimSiam Table 3: 68.2 without, 68.1 with)"""
    bias: bool = True
    """bias of an output that no BatchNorm follows"""

    def build(self, features: int) -> nn.Module:
        return mlp([features, *self.hidden, self.out], self.bn, self.affine, self.bias)


class DINOHead(Spec):
    """Features [B, F] to logits [B, out]: an MLP with GELU, an l2-normalised bottleneck, `out` prototypes (DINO App. C)."""

    kind: Literal["dino"] = "dino"
    hidden: tuple[Count, ...] = (2048, 2048)
    bottleneck: Count = 256
    out: Count = 65536
    """K, the number of prototypes"""
    bn: Literal["none", "hidden"] = "none"
    """BatchNorm after the hidden layers (DINO App. C: 68.6 kNN with, 69.7 without)"""
    frozen_epochs: float = Field(1.0, ge=0)
    """epochs during which the prototypes stay as they are"""

    def build(self, features: int) -> nn.Module:
        head = mlp([features, *self.hidden, self.bottleneck], self.bn, affine=True, bias=True, activation=nn.GELU)
        for layer in head:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        prototypes = nn.init.kaiming_uniform_(torch.empty(self.out, self.bottleneck), a=5**0.5)  # PyTorch's default
        return nn.Sequential(*head, Prototypes(prototypes, self.frozen_epochs))
