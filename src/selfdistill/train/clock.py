"""Where a run's time goes: the seconds of each part of a step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Seconds by part, each counted in one part only: a part within another interrupts it.

    A GPU works behind the loop's back. Where `waits`, each reading waits for it and a part is its work, which costs a few per cent;
    else a part is what the loop itself spent.
    """

    def __init__(self, device: torch.device, waits: bool = False):
        self.waits = waits and device.type == "cuda"
        self.seconds: dict[str, float] = defaultdict(float)
        self._since: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._last = 0.0

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self.enter(part)
        try:
            yield
        finally:
            self.leave()

    def enter(self, part: str) -> None:
        self._count()
        self._open.append(part)

    def leave(self) -> None:
        self._count()
        self._open.pop()

    def lap(self, part: str) -> float:
        """The part's seconds since its last lap."""
        lap = self.seconds[part] - self._since[part]
        self._since[part] = self.seconds[part]
        return lap

    def _count(self) -> None:
        if self.waits:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._last
        self._last = now
