"""Random numbers of a seed's own, in the middle of somebody else's."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """PyTorch's random numbers are those of `seed`; the caller's own, the GPUs' too, go on afterwards as if none had been drawn."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
