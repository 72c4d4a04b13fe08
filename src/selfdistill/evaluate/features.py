"""Frozen features."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.inference_mode()
def features(backbone: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """[N, F] fp32 on the CPU: the backbone in eval mode on batches [b, C, S, S]; its mode is restored."""
    training = backbone.training
    backbone.eval()
    try:
        return torch.cat([backbone(x).float().cpu() for x in batches])
    finally:
        backbone.train(training)
