"""Numbers below 1e-38, which a CPU multiplies slowly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """The gradients of a collapsed run and of a confident classifier are denormal, and a CPU is 2 to 4 times slower at those.
    Restored after: it is the process's."""
    flushed = bool(torch.tensor(5e-324, dtype=torch.float64) * 1 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
