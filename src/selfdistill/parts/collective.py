"""What is global over ranks. One process: the identity."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """For a question that one rank asks by itself: nothing is gathered, which the others would have to take part in."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def ranks() -> tuple[int, int]:
    """(this rank, how many)."""
    if not _alone and dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(x: Tensor) -> Tensor:
    """[n, ...] on each rank to [ranks * n, ...] on all of them, in the order of ranks. Gradients flow back to every rank: a loss
    over gathered tensors, averaged over ranks by DDP, has the gradient of one process with the whole batch."""
    if ranks()[1] == 1:
        return x
    return torch.cat(all_gather(x.contiguous()))


def own(x: Tensor, n: int) -> Tensor:
    """This rank's n rows of what `gather` put together."""
    return x[ranks()[0] * n :][:n]
