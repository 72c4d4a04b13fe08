"""`--profile`: where a run's time went, a trace of a few of its steps, and how near it came to what the device can do."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from selfdistill.disk import write_whole
from selfdistill.parts.backbone import device_of
from selfdistill.parts.collective import alone
from selfdistill.parts.schedule import Progress
from selfdistill.parts.seeded import drawn_from
from selfdistill.recipe import Recipe
from selfdistill.siamese import Siamese
from selfdistill.train.clock import Clock
from selfdistill.views.batch import Views

TRACED = range(5, 8)
"""steps in the trace: the first ones allocate and compile"""


class Profiled(BaseModel):
    """profile.json."""

    steps: Annotated[int, Field(gt=0)]
    images_per_second: float
    seconds: dict[str, float]
    flops_per_step: float
    flops_per_second: float
    matrix_product_flops_per_second: float

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """(part, its share of the time, milliseconds a step), the largest first."""
        total, largest_first = sum(self.seconds.values()), sorted(self.seconds.items(), key=lambda of: -of[1])
        return [(part, f"{s / total:.1%}", f"{1e3 * s / self.steps:.2f}") for part, s in largest_first]


class Profile:
    """Watches a run's steps; `finish` writes profile.json and trace.json (for chrome://tracing or Perfetto) and says what they hold."""

    def __init__(self, out: Path, siamese: Siamese, recipe: Recipe, clock: Clock):
        self.out, self.siamese, self.recipe, self.clock = out, siamese, recipe, clock
        self.flops, self.steps = 0, 0
        self.tracer = torch.profiler.profile()

    def before(self, views: Views, now: Progress) -> None:
        """With the views of each step, before it is made."""
        if self.steps == 0:
            self.flops = flops(self.siamese, views, now, self.recipe)
            if self.recipe.teacher.own_weights:
                self.siamese.teacher.register_forward_pre_hook(lambda *_: self.clock.enter("teacher forward"))
                self.siamese.teacher.register_forward_hook(lambda *_: self.clock.leave())
        if self.steps == TRACED.start:
            self.tracer.start()
        if self.steps == TRACED.stop:
            self.tracer.stop()
        self.steps += 1

    def finish(self) -> str:
        """The table, a line a part: its share of the run's time and its milliseconds a step."""
        if TRACED.start < self.steps <= TRACED.stop:  # a run that ended while it was traced
            self.tracer.stop()
        if self.steps > TRACED.start:
            self.tracer.export_chrome_trace(str(self.out / "trace.json"))
        seconds = dict(self.clock.seconds)
        total = sum(seconds.values())
        device = device_of(self.siamese)
        step = sum(seconds.get(part, 0.0) for part in MODEL) / self.steps
        reached, limit = self.flops / step, product_rate(device, self.recipe.precision)
        found = Profiled(
            steps=self.steps,
            images_per_second=self.steps * self.recipe.batch_size / total,
            seconds=seconds,
            flops_per_step=self.flops,
            flops_per_second=reached,
            matrix_product_flops_per_second=limit,
        )
        write_whole(self.out / "profile.json", found.model_dump_json(indent=2) + "\n")
        lines = [f"{'part':18} {'share':>7} {'ms a step':>10}"]
        lines += [f"{part:18} {share:>7} {ms:>10}" for part, share, ms in found.rows]
        lines.append(f"{found.images_per_second:.0f} images/s. Forward and backward: {self.flops / 1e9:.3g} GFLOP a step, at")
        lines.append(f"{reached / 1e9:.3g} GFLOP/s, {reached / limit:.0%} of a matrix product's {limit / 1e9:.3g} on this device.")
        return "\n".join(lines)


MODEL = ("forward", "teacher forward", "backward")


def flops(siamese: Siamese, views: Views, now: Progress, recipe: Recipe) -> int:
    """Of one micro-batch's forward and backward pass times `accumulate`, counted on a copy with random numbers of its own: a pass moves
    BatchNorm's statistics, and draws for drop path what the step itself should."""
    model: Any = copy.deepcopy(siamese)
    for module in model.modules():
        module._compiled_call_impl = None  # a copy's is the original's
        if isinstance(module, nn.SyncBatchNorm):
            module.eval()  # the other ranks do not count, and it would wait for them
    step = torch.autocast(device_of(model).type, torch.bfloat16, enabled=recipe.precision == "bf16")  # else fp32's memory
    with alone(), drawn_from(recipe.seed), FlopCounterMode(display=False) as counter:
        with step:
            loss = model(views, now).loss
        loss.backward()
    return int(counter.get_total_flops()) * recipe.accumulate


def product_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a square matrix product, the best of five."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        (a @ a).sum().item()  # the sum waits for a GPU
        seconds.append(time.perf_counter() - started)
    return 2 * n**3 / min(seconds)
