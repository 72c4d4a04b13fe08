"""PyTorch's bf16 gradient of a strided convolution over a map smaller than its stride, against fp32."""

import pytest
import torch
from torch import nn

from selfdistill.parts.strided import Strided, with_sound_gradients


def poison():
    """Memory that is given back full of inf, for whoever takes it without writing to it."""
    for size in (1 << k for k in range(4, 21)):
        torch.full((size,), torch.inf)


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 2, 1), (7, 4, 3), (3, 4, 2), (3, 2, 2), (3, 2, 5)])
def test_the_gradient_is_that_of_fp32(kernel, stride, side):
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 128, kernel, stride, kernel // 2).to(memory_format=torch.channels_last)
    net = with_sound_gradients(nn.Sequential(conv))
    assert isinstance(net[0], Strided)
    x = torch.randn(32, 64, side, side).to(memory_format=torch.channels_last)
    found = []
    for bf16 in (False, True):
        net.zero_grad()
        poison()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = net(x)
        (y.float() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        found.append(conv.weight.grad.clone())
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0.02 * float(found[0].abs().max()))


def test_keys_and_other_convolutions_stay():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1, 2))
    keys = list(net.state_dict())
    assert [type(m) for m in with_sound_gradients(net)] == [Strided, nn.Conv2d, nn.Conv2d]
    assert list(net.state_dict()) == keys


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_type_is_as_it_was(dtype):
    net = with_sound_gradients(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1))).to(dtype)
    assert net(torch.zeros(1, 3, 1, 1, dtype=dtype)).dtype == dtype
