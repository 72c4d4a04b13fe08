"""Lightning Fabric as the loop wants it: on a recipe's devices, in its precision."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from selfdistill.recipe import Recipe

KNOWN = signature(DistributedDataParallel).parameters
SYNC_BUFFERS = next(word for word in ("forward_sync_buffers", "broadcast_buffers") if word in KNOWN)
"""PyTorch's word for sending buffers with each forward pass: 2.14 has both, and warns of the older one"""


class AsComputed(MixedPrecision):
    """Autocast that leaves outputs as they were computed. Fabric's own copies them to fp32: DINO's logits of ten views of 64 images over
    65,536 prototypes are 84 MB, and the copies (z, p) 336 MB, which the loop would hold through the backward pass."""

    def convert_output(self, data: Any) -> Any:
        return data


def fabric_of(recipe: Recipe) -> Fabric:
    """Not launched yet. Raises what Fabric does where there are not so many devices."""
    accelerator: Any = "cuda" if torch.cuda.is_available() else "cpu"  # not Apple's, which has no float64 to draw a crop's corner in
    precision = AsComputed("bf16-mixed", accelerator) if recipe.precision == "bf16" else None
    fabric = Fabric(accelerator=accelerator, devices=recipe.devices, plugins=precision)
    if isinstance(fabric.strategy, DDPStrategy):
        # All processes move a centre, a queue and a memory alike, and of BatchNorm's statistics the first one's are kept. Sent anew with
        # each forward pass, as is DDP's default, MoCo's queue is 34 MB and the memory of 60,000 images 490.
        fabric.strategy._ddp_kwargs[SYNC_BUFFERS] = False
    return fabric
