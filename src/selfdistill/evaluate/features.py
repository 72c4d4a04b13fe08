"""Frozen features."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from selfdistill.parts.backbone import in_eval


@torch.no_grad()  # not inference_mode: a user may train on what it gives
def features(backbone: nn.Module, batches: Iterable[Tensor], bf16: bool = False) -> Tensor:
    """[N, F] fp32 on the CPU: the backbone in eval mode on batches [b, C, S, S]; its mode is restored. bf16: by autocast."""
    found = []
    with in_eval(backbone):
        for x in batches:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
                found.append(backbone(x).float().cpu())
    return torch.cat(found)
