"""A fault of PyTorch's on CPUs (seen in 2.14, with oneDNN): in bf16 the gradient of a strided convolution's weight, over a map smaller than
the stride, is in part memory that was never written: inf, nan, or any number. In fp32 it is right.

A 3 x 3 convolution of stride 2 meets a map of 1 x 1 where a ResNet made for photographs looks at 8 x 8 images, or at crops of 4 x 4.
"""

import torch
from torch import Tensor, nn


class Strided(nn.Conv2d):
    """`nn.Conv2d` that leaves autocast where the map is smaller than the stride: one place, whose cost is nothing."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        small = any(side < stride for side, stride in zip(input.shape[-2:], self.stride, strict=True))
        if small and input.is_cpu and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super()._conv_forward(input.to(weight.dtype), weight, bias)
        return super()._conv_forward(input, weight, bias)


def with_sound_gradients(net: nn.Module) -> nn.Module:
    """The network itself, whose strided convolutions are `Strided`; its keys and what it computes stay."""
    for module in net.modules():
        if type(module) is nn.Conv2d and max(module.stride) > 1 and max(module.kernel_size) > 1:
            module.__class__ = Strided
    return net
