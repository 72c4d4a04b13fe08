"""What is global over ranks. One process: the identity."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

M = TypeVar("M", bound=nn.Module)
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


@contextmanager
def all_wait() -> Iterator[None]:
    """All ranks wait until the last one comes out, for days if need be: the default group gives its barrier half an hour."""
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=100)) if ranks()[1] > 1 else None
    yield
    if group:
        dist.barrier(group)
        dist.destroy_process_group(group)


def synchronised(module: M) -> M:
    """With BatchNorm over all ranks' batch. timm's conversion: in PyTorch's own a BatchNorm of timm's loses its activation."""
    made: M = convert_sync_batchnorm(module)
    return made


def gather(x: Tensor) -> Tensor:
    """[n, ...] on each rank to [ranks * n, ...] on all of them, in the order of ranks. Gradients flow back to every rank: a loss
    over gathered tensors, averaged over ranks by DDP, has the gradient of one process with the whole batch."""
    if ranks()[1] == 1:
        return x
    return torch.cat(all_gather(x.contiguous()))


def of_this_rank(x: Tensor, n: int) -> Tensor:
    """This rank's n rows of what `gather` put together."""
    return x[ranks()[0] * n :][:n]
