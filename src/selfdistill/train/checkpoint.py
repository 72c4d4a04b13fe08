"""A checkpoint is whole or not there: written beside, flushed, renamed."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import torch

from selfdistill.errors import Failure, Misuse
from selfdistill.siamese import Siamese
from selfdistill.train.run import write_whole


class Keeper:
    """Writes the checkpoint of one process of a run, often enough that little is lost and seldom enough that it costs under 2 %."""

    def __init__(self, path: Path, writes: bool):
        self.path, self.writes = path, writes
        self.last, self.cost = time.monotonic(), 0.0

    def due(self) -> bool:
        return time.monotonic() - self.last > max(60.0, 50 * self.cost)

    def save(self, siamese: Siamese, optimizer: Any, step: int) -> None:
        """Model (student, predictor, teacher, memory), optimiser and step. The order of images and all random draws follow from
        seed and step, so they need no state. Raises `Failure` when the disk does; the last checkpoint is then untouched."""
        started = time.monotonic()
        if self.writes:
            buffer = io.BytesIO()
            torch.save({"model": siamese.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, buffer)
            write_whole(self.path, buffer.getbuffer())
        self.last = time.monotonic()
        self.cost = self.last - started


def load(path: Path, siamese: Siamese, optimizer: Any, device: torch.device) -> int:
    """The step at which the run goes on; 0 when it was stopped before its first checkpoint. Raises `Misuse` or `Failure`."""
    if not path.exists():
        return 0
    state = read(path, device)
    try:
        siamese.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])
    except (RuntimeError, KeyError, ValueError) as e:
        raise Failure(f"{path}: is no checkpoint of this run: {str(e).splitlines()[0]}") from e


def read(path: Path, device: torch.device) -> dict[str, Any]:
    """Tensors and numbers only: a checkpoint may come from a stranger. Raises `Misuse`."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as e:  # pickle.UnpicklingError and whatever a damaged archive provokes
        raise Misuse(f"{path}: refused: it is damaged, or holds more than tensors and numbers ({type(e).__name__})") from e
