"""What may go wrong while a run trains: numbers that are not finite, a signal, a process that is gone."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn

from selfdistill.data.images import Images
from selfdistill.data.order import micro_batches, visible_labels
from selfdistill.disk import write_whole
from selfdistill.errors import Failure, in_one_line
from selfdistill.parts.schedule import Progress
from selfdistill.recipe import Recipe
from selfdistill.siamese import Siamese

SAVING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""signals that end a run after saving it: Ctrl-C, a system that shuts down, a queue that wants the machine back (SLURM)"""


class Interrupted(KeyboardInterrupt):
    """One of `SAVING` came; the run is saved and can go on."""

    def __init__(self, signum: int, how_to_go_on: str):
        super().__init__(how_to_go_on)
        self.signum = signum


class Stopped(Failure):
    """A run ends before its time, and all of its processes come to that by themselves."""


class Guard:
    """Passes over a step whose loss or gradient is not finite: nothing of it stays but its number and its images.

    Whether all is well is read once a step, on all ranks alike. On a GPU that is a wait for the device: after the backward pass, when
    nothing is left to be computed before the optimiser; what it costs is the launch of the optimiser's first kernels. The others of a
    step are iBOT's, for how many patches are masked, and where SwAV's queue or a solved predictor asks whether it is filled.
    """

    def __init__(self, siamese: Siamese, recipe: Recipe, images: Images, folder: Path, bad: list[int]):
        """bad: the steps passed over so far, of a run that goes on."""
        self.siamese, self.recipe, self.images, self.folder, self.bad = siamese, recipe, images, folder, bad
        self.before = [[b.clone() for b in alike] for alike in self._alike()]
        self.signum = 0
        for file in folder.glob("bad_steps/*.json"):
            if int(file.stem) not in bad:  # of steps after the checkpoint, which are made again
                file.unlink(missing_ok=True)

    def remember(self) -> None:
        """Before a step: what its forward passes will change."""
        for kept, now in zip(self.before, self._alike(), strict=True):
            torch._foreach_copy_(kept, now)

    def passes(self, after: Progress, loss: Tensor, fabric: Fabric, came: list[int]) -> bool:
        """Whether the step may be made; if not, the model is as it was before. after: counts it.

        `norm` is then that of all gradients together, `signum` the signal that came to any rank, 0 for none. Raises `Stopped` at one
        bad step too many.
        """
        self.norm = nn.utils.get_total_norm([p.grad for p in self.siamese.parameters() if p.grad is not None])
        finite = (loss.detach().float() + self.norm).isfinite()
        said = torch.stack([(~finite).long(), finite.new_full((), came[0] if came else 0, dtype=torch.long)])
        if fabric.world_size > 1:
            dist.all_reduce(said, dist.ReduceOp.MAX)
        bad, self.signum = said.tolist()
        if not bad:
            return True
        for kept, now in zip(self.before, self._alike(), strict=True):
            torch._foreach_copy_(now, kept)
        self.siamese.forget(after)
        self.bad.append(after.step)
        self._note(after.step, float(loss.detach()), float(self.norm), writes=fabric.is_global_zero)
        return False

    def _note(self, step: int, loss: float, norm: float, writes: bool) -> None:
        file = self.folder / "bad_steps" / f"{step}.json"
        if writes:
            batches = micro_batches(self.recipe, len(self.images), step - 1, visible=visible_labels(self.images, self.recipe))
            ids = [int(i) for _ in range(self.recipe.accumulate) for i in next(batches)[1]]
            file.parent.mkdir(exist_ok=True)
            found = {"loss": str(loss), "gradient_norm": str(norm)}  # JSON has no nan
            write_whole(file, json.dumps({"step": step, **found, "images": ids}) + "\n")
        if len(self.bad) > self.recipe.max_bad_steps:
            raise Stopped(
                f"step {step}: loss {loss}, gradient norm {norm}: {len(self.bad)} steps were not finite, and max_bad_steps="
                f"{self.recipe.max_bad_steps}. {file} names the step's images; the last checkpoint is from before. "
                "Lower lr, add a warm-up (lr.warmup=10) or clip gradients (clip={norm: 3})"
            )

    def _alike(self) -> list[list[Tensor]]:
        """Buffers that a forward pass changes, those of one type together: a kernel for each type, not for each tensor."""
        found: dict[torch.dtype, list[Tensor]] = {}
        for buffer in self.siamese.changed_by_forward():
            found.setdefault(buffer.dtype, []).append(buffer)
        return list(found.values())


@contextmanager
def signals() -> Iterator[list[int]]:
    """The signals of `SAVING` that came: the loop looks between two steps, so a step is whole or not made."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came  # only the main thread may handle signals
        return

    def note(signum: int, frame: FrameType | None) -> None:
        came.append(signum)

    old = {s: signal.signal(s, note) for s in SAVING}
    try:
        yield came
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


@contextmanager
def all_present(fabric: Fabric, how_to_go_on: str) -> Iterator[None]:
    """A process that waits for one that is gone hears of it from the network. Raises `Failure`."""
    try:
        yield
    except RuntimeError as e:
        lost = isinstance(e, dist.DistError) or "gloo" in str(e) or "onnection" in str(e)
        if fabric.world_size == 1 or not lost:
            raise
        raise Failure(
            f"process {fabric.global_rank} of {fabric.world_size} lost another one, which was killed or failed: see its own message "
            f"({in_one_line(e, 120)}). The last checkpoint is untouched. Go on with: {how_to_go_on}"
        ) from e


@contextmanager
def compiled(recipe: Recipe) -> Iterator[None]:
    """What torch.compile cannot do here, as without a C++ compiler, it says in its first step. Raises `Failure`."""
    try:
        yield
    except Exception as e:
        if recipe.compile != "on" or not type(e).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        said = in_one_line(str(e).partition("\nSet TORCH")[0], 300)
        raise Failure(f"compile=on: {said}. compile=off, in a new run, trains without") from e
