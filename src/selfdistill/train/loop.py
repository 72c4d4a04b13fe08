"""The training loop, the only one: runs a resolved recipe on Lightning Fabric and leaves a run folder."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import nn

from selfdistill.data.images import Pixels, Source
from selfdistill.data.loader import training_views
from selfdistill.errors import Misuse
from selfdistill.evaluate.knn import knn_accuracy
from selfdistill.parts.schedule import Progress
from selfdistill.recipe import Recipe
from selfdistill.siamese import Siamese, Step
from selfdistill.train import checkpoint
from selfdistill.train.journal import Journal
from selfdistill.train.loggers import open_loggers
from selfdistill.train.monitor import Clocked, Monitor, test_errors
from selfdistill.train.run import Run, labelled, make_folder, new_folder, write_whole
from selfdistill.views.draw import mix


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came; the run is saved and can go on."""

    def __init__(self, signum: int, how_to_go_on: str):
        super().__init__(how_to_go_on)
        self.signum = signum


def pretrain(
    recipe: Recipe,
    source: Source,
    out: Path | None = None,
    resume: bool = False,
    encoder: nn.Module | None = None,
    console: Console | None = None,
) -> Run:
    """Runs a resolved recipe to its end and returns the run.

    out: the run folder; a new one under runs/ if none. resume: go on from its checkpoint. encoder: a module of the user's own.
    Raises `Misuse` before anything is written, `Failure` when a disk fails, `Interrupted` once a signal's checkpoint is written.
    """
    fabric = Fabric(devices=recipe.devices, precision="bf16-mixed" if recipe.precision == "bf16" else "32-true")
    fabric.launch()
    recipe.micro_batch(fabric.world_size)  # refuses a batch that the devices cannot share
    fabric.seed_everything(recipe.seed, verbose=False)
    steps_per_epoch = len(source.train) // recipe.batch_size
    total = recipe.epochs * steps_per_epoch
    siamese = Siamese(recipe, len(source.train), encoder).to(memory_format=torch.channels_last)
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        siamese = nn.SyncBatchNorm.convert_sync_batchnorm(siamese)  # statistics of the whole batch, as all the papers have them
    model, optimizer = fabric.setup(siamese, recipe.optimizer.build(siamese.param_groups()))

    if not resume:
        data = re.sub(r"[^\w.-]+", "-", Path(recipe.data).name).strip("-")  # hf:NAME and shards-{000..127}.tar are names too
        out = fabric.broadcast(new_folder(out, f"{recipe.method}-{data}"))
        if fabric.is_global_zero:
            make_folder(out, recipe)
        fabric.barrier()
    assert out is not None
    run = Run(out, encoder, source)
    start = checkpoint.load(run.checkpoint, siamese, optimizer, fabric.device) if resume else 0
    keeper = checkpoint.Keeper(run.checkpoint, writes=fabric.is_global_zero)
    console = console or Console()

    def bad(path: Path, reason: str) -> None:
        if recipe.on_bad_image == "error":
            raise Misuse(f"{path}: {reason}. on_bad_image=skip trains on the others")
        console.print(f"left out: {path}: {reason}", soft_wrap=True, highlight=False, markup=False)

    views = Clocked(training_views(source.train, recipe, start, fabric.device, bad, fabric.global_rank, fabric.world_size))
    monitor = None
    if fabric.is_global_zero:
        monitor = Monitor(recipe, source, Journal(out, start, total, console, open_loggers(recipe, out, start)), views)
    try:
        with _signals() as came, _denormals_flushed():
            if monitor and start == 0:
                monitor.before(siamese)
            for step in range(start, total):
                now = Progress(step, steps_per_epoch, recipe.epochs)
                lr = set_schedules(optimizer, recipe, now)
                # What a layer draws (dropout, drop path) is a function of seed and step, so that a resume draws the same.
                torch.manual_seed(int(mix(torch.tensor(recipe.seed * 1_000_003 + step)) >> 1) + fabric.global_rank)
                for micro in range(recipe.accumulate):
                    with fabric.no_backward_sync(model, enabled=micro < recipe.accumulate - 1):
                        made: Step = model(next(views), now)
                        fabric.backward(made.loss / recipe.accumulate)
                _clip(model, recipe)
                _freeze(optimizer, now)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                now = Progress(step + 1, steps_per_epoch, recipe.epochs)
                siamese.after_step(now)
                if monitor:
                    monitor.after(now, made, lr, siamese)
                last = now.step == total
                if last or came or keeper.due():
                    keeper.save(siamese, optimizer, now.step)
                if came and not last:
                    how = f"selfdistill pretrain {recipe.method} --out {out} --resume"
                    raise Interrupted(came[0], f"saved at step {now.step} of {total}. Go on with: {how}")
    finally:
        if monitor:
            monitor.journal.close()
    if monitor:
        _finish(run, siamese, monitor.journal)
    fabric.barrier()
    return run


def set_schedules(optimizer: torch.optim.Optimizer, recipe: Recipe, now: Progress) -> float:
    """Learning rate and weight decay of the coming step for each group; returns the encoder's learning rate."""
    lr, kept = (schedule.at(now) * recipe.lr_factor for schedule in (recipe.lr, recipe.lr.undecayed()))
    for group in optimizer.param_groups:
        group["lr"] = (lr if group["lr_decay"] else kept) * group["lr_scale"]
        group["weight_decay"] = recipe.weight_decay.at(now) if group["weight_decayed"] else 0.0
    return lr


def _clip(model: nn.Module, recipe: Recipe) -> None:
    if recipe.clip:
        params = [p for p in model.parameters() if p.grad is not None]
        for group in [params] if recipe.clip.per == "model" else [[p] for p in params]:
            nn.utils.clip_grad_norm_(group, recipe.clip.norm)


def _freeze(optimizer: torch.optim.Optimizer, now: Progress) -> None:
    """A parameter without gradient is passed over: no step, no decay, no momentum (DINO's `cancel_gradients_last_layer`)."""
    for group in optimizer.param_groups:
        if now.epoch < group["frozen_epochs"]:
            for p in group["params"]:
                p.grad = None


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """A collapsed run's gradients are denormal, and a CPU is 2 to 3 times slower at those. Restored after: it is the process's."""
    flushed = bool(torch.tensor(5e-324, dtype=torch.float64) * 1 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that came, SIGINT and SIGTERM: the loop looks between two steps, so a step is whole or not made."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came  # only the main thread may handle signals
        return
    old = {s: signal.signal(s, lambda signum, frame: came.append(signum)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


def _finish(run: Run, siamese: Siamese, journal: Journal) -> None:
    """backbone.safetensors and summary.json, with kNN over the whole bank beside its two baselines."""
    state = {k: v.detach().contiguous().cpu() for k, v in siamese.backbone.net.state_dict().items()}
    write_whole(run.path / "backbone.safetensors", safetensors.torch.save(state))
    summary = dict(journal.last)
    try:
        bank, labels, test, targets = labelled(run.source)
    except Misuse:
        pass
    else:
        summary["knn_top1"] = run.knn()
        # A module of the user's own holds trained weights by now: what it was worth at first, the first line tells.
        summary["knn_random_init"] = run.metrics[0]["knn_top1"] if run.own_encoder else run.knn(trained=False)
        if run.recipe.labels is not None:
            summary |= test_errors(siamese, run.recipe, test, targets)
        if isinstance(bank, Pixels) and isinstance(test, Pixels):
            summary["knn_raw_pixels"] = knn_accuracy(bank.pixels.flatten(1), labels, test.pixels.flatten(1), targets)
    write_whole(run.path / "summary.json", json.dumps(summary, indent=2) + "\n")
