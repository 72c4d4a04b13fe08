"""Memory that a step frees is kept for the next: on Linux the C library hands it back, and a step spends its time on page faults."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""of glibc's malloc.h"""


def keep_freed_memory() -> None:
    """Tells glibc's malloc to keep what is freed, for the rest of the process; another C library is left alone.

    By default a tensor above 32 MB, at first above 128 KB, is mapped afresh and unmapped when freed, so each activation of each
    step faults in page by page: 5,000 faults a step of iBOT with a small ViT on a CPU, 750 with what is freed kept, some 5 % of the
    step. The process holds its peak of memory to its end.
    """
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt:
            for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20)):
                mallopt(parameter, value)
