"""A checkpoint is whole or not there: written beside, flushed, renamed."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import torch

from selfdistill.disk import write_whole
from selfdistill.errors import Failure, Misuse
from selfdistill.parts.schedule import Progress
from selfdistill.recipe import FORMAT, Checkpoint
from selfdistill.siamese import Siamese
from selfdistill.train.weights import fill, read

BEST = "best.ckpt"


class Keeper:
    """Writes the checkpoints of one process of a run: the last one often enough that little is lost and seldom enough that it costs
    under 2 %, and those that `spec` keeps beside it. The last is written last, so that a resume makes again what a kill left out."""

    def __init__(self, folder: Path, spec: Checkpoint, images: int, writes: bool):
        self.folder, self.spec, self.images, self.writes = folder, spec, images, writes
        self.written, self.cost = time.monotonic(), 0.0
        best = folder / BEST
        self.best = read(best, torch.device("cpu")).get("knn_top1", 0.0) if spec.best and writes and best.exists() else -1.0

    def due(self) -> bool:
        return time.monotonic() - self.written > max(60.0, 50 * self.cost)

    def after(self, now: Progress, model: Siamese, optimizer: Any, bad_steps: list[int], knn: float | None, asked: bool) -> None:
        """After each step. knn: of a probe at this step. asked: a checkpoint is wanted now, due or not."""
        if not self.writes:
            return
        epoch, names = now.step // now.steps_per_epoch, []
        if self.spec.every and now.at_epoch_end and epoch % self.spec.every == 0:
            names.append(f"epoch-{epoch}.ckpt")
        if self.spec.best and knn is not None and knn > self.best:
            names.append(BEST)
            self.best = knn
        if names or asked or self.due():
            started = time.monotonic()
            content = packed(model, optimizer, now.step, self.images, bad_steps, knn)
            for name in (*names, "last.ckpt"):
                write_whole(self.folder / name, content)
            self.written = time.monotonic()
            self.cost = self.written - started


def packed(model: Siamese, optimizer: Any, step: int, images: int, bad_steps: list[int], knn: float | None = None) -> memoryview:
    """Model (student, predictor, teacher, memory), optimiser, step, and the steps passed over. The order of images and all random
    draws follow from seed and step, so they need no state."""
    buffer = io.BytesIO()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "bad_steps": bad_steps}
    torch.save({"format": FORMAT, "images": images, "knn_top1": knn, **state}, buffer)
    return buffer.getbuffer()


def load(path: Path, siamese: Siamese, optimizer: Any, images: int, device: torch.device) -> tuple[int, list[int]]:
    """(the step at which the run goes on, the steps passed over); 0 when it was stopped before its first checkpoint. images: how
    many the data has now. Raises `Misuse` or `Failure`."""
    if not path.exists():
        return 0, []
    state = read(path, device)
    if state.get("images", images) != images:
        raise Misuse(
            f"--resume: the data has {images} training images, and the run was made with {state['images']}: their order would be "
            "another one. Put the data back as it was, or start a new run with init_from=RUN"
        )
    fill(siamese, state.get("model"), path)
    try:
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"]), list(state.get("bad_steps", []))
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as e:
        raise Failure(f"{path}: is no checkpoint of this run: {str(e).splitlines()[0]}") from e
