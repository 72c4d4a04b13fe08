"""Random numbers that are a pure function of (seed, epoch, image, view): no state, so nothing to lose or to share.

The same whatever the number of workers, ranks or the batch size, and after a resume. A counter-based generator (splitmix64;
Steele, Lea & Flood 2014) in int64 tensors: a counter per number, two multiply-xorshift rounds to mix it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


GOLDEN, MIX1, MIX2 = (_signed(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift(x: Tensor, n: int) -> Tensor:
    """Logical right shift: int64's own keeps the sign."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * MIX1
    x = (x ^ _shift(x, 27)) * MIX2
    return x ^ _shift(x, 31)


def uniform(seed: int, epoch: int | Tensor, index: Tensor, view: int, n: int) -> Tensor:
    """[B, n] float32 in [0, 1) for the images `index` [B] int64; multiples of 2^-24. epoch: of all, or [B], which time each comes."""
    key = torch.full((), seed, device=index.device)
    for word in (epoch, view, index):
        key = mix(key * GOLDEN + word + 1)  # a chain of keys: (seed, epoch, view, index) and (seed, view, epoch, index) differ
    counter = torch.arange(1, n + 1, device=index.device)
    return _shift(mix(key[:, None] + counter * GOLDEN), 40).to(torch.float32) * 2.0**-24  # [B, n]


def evenly_spaced(n: int, most: int) -> Tensor:
    """[min(n, most)] int64 places spread over n, both ends among them: many sets are sorted by class."""
    return torch.linspace(0, n - 1, min(n, most), dtype=torch.float64).round().long()


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """The order of n images in an epoch, [n] int64."""
    generator = torch.Generator().manual_seed(int(mix(mix(torch.tensor(seed)) + epoch + 1)) & ((1 << 63) - 1))
    return torch.randperm(n, generator=generator)


def balanced(seed: int, labels: Tensor, each: Sequence[int]) -> Tensor:
    """Places of `each[c]` images of every class c, fewer where it has fewer, drawn by seed; labels [N], -1 for none."""
    order = permutation(seed, 0, len(labels))
    return torch.cat([order[labels[order] == c][:n] for c, n in enumerate(each)])
