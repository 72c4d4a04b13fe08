"""The training loop, the only one: runs a resolved recipe on Lightning Fabric and leaves a run folder."""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

import safetensors.torch
import torch
from rich.console import Console
from torch import Tensor, nn

from selfdistill import own
from selfdistill.data.images import Pixels, Source
from selfdistill.data.loader import training_views, workers_alive
from selfdistill.disk import locked, object_of, write_whole
from selfdistill.errors import Misuse
from selfdistill.evaluate.knn import knn_accuracy, usual_k
from selfdistill.parts.backbone import statistics_kept
from selfdistill.parts.collective import all_wait, synchronised
from selfdistill.parts.denormal import denormals_flushed
from selfdistill.parts.loss import Output
from selfdistill.parts.schedule import Progress
from selfdistill.recipe import Recipe
from selfdistill.siamese import Siamese, Step
from selfdistill.train import checkpoint
from selfdistill.train.allocator import keep_freed_memory
from selfdistill.train.clock import Clock
from selfdistill.train.fabric import fabric_of
from selfdistill.train.faults import Guard, Interrupted, Stopped, all_present, compiled, signals
from selfdistill.train.initial import initialised
from selfdistill.train.journal import Journal, say
from selfdistill.train.loggers import open_loggers
from selfdistill.train.meeting import meet_on_loopback
from selfdistill.train.monitor import Monitor, test_errors, whole
from selfdistill.train.profile import Profile
from selfdistill.train.run import DIAGNOSIS, EVALUATION, Run, make_folder, record_of
from selfdistill.train.weights import state_of
from selfdistill.views.draw import mix

SEEN = 64
"""images of a step that probes look at, where its micro-batches have fewer: the verdict's thresholds are of batches, and the outputs of a
few images may look like one. More would cost what `accumulate` is there to spare"""


def pretrain(
    recipe: Recipe,
    source: Source,
    out: Path | None = None,
    resume: bool = False,
    encoder: nn.Module | None = None,
    console: Console | None = None,
    profile: bool = False,
) -> Run:
    """Runs a resolved recipe to its end and returns the run.

    out: the run folder; a new one under runs/ if none. resume: go on from its checkpoint. encoder: a module of the user's own.
    profile: say at the end where the time went (train/profile.py). Raises `Misuse` before anything is written, `Failure` when a disk
    fails, `Stopped` when on_collapse=stop ended the run, once all is written, `Interrupted` once a signal's checkpoint is written.
    """
    keep_freed_memory()
    fabric = fabric_of(recipe)
    meeting = meet_on_loopback(recipe.devices)  # after Fabric said that there are so many devices
    fabric.launch()
    recipe.micro_batch(fabric.world_size)  # refuses a batch that the devices cannot share
    fabric.seed_everything(recipe.seed, verbose=False)
    steps_per_epoch = len(source.train) // recipe.batch_size
    total = recipe.epochs * steps_per_epoch
    console = console or Console(markup=False, emoji=False)
    if recipe.init_from and not (resume and out and Run(out).checkpoint.exists()):
        backbone, said = initialised(recipe, encoder)
        say(console, said)
    else:
        backbone = recipe.encoder.build(recipe.views.size, encoder)
    siamese = Siamese(recipe, len(source.train), backbone)
    for p in siamese.parameters():
        if p.ndim == 4:  # `to(memory_format=...)` fails at five dimensions
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        siamese = synchronised(siamese)  # statistics of the whole batch, as all the papers have them
    if recipe.compile == "on":
        for network in siamese.networks.values():
            network.backbone.compile()
    say(console, f"precision={recipe.precision} compile={recipe.compile}")
    model, optimizer = fabric.setup(siamese, recipe.optimizer.build(siamese.param_groups()))

    if not resume:
        named = Path(recipe.data.removeprefix(own.PYTHON)).name  # hf:NAME and shards-{000..127}.tar too
        data = re.sub(r"[^\w.-]+", "-", named).strip("-")
        out = fabric.broadcast(make_folder(out, f"{recipe.method}-{data}", recipe) if fabric.is_global_zero else out)
    assert out is not None
    run = Run(out, encoder, source)
    changed, run.recipe = run.recipe != recipe, recipe  # a resume may have changed what it may, as workers
    start, passed_over = checkpoint.load(run.checkpoint, siamese, optimizer, len(source.train), fabric.device) if resume else (0, [])
    if resume and start < total:
        say(console, f"goes on at step {start} of {total}" if start else f"no checkpoint yet: begins anew, at step 0 of {total}")
    keeper = checkpoint.Keeper(run.checkpoint.parent, recipe.checkpoint, len(source.train), writes=fabric.is_global_zero)

    def bad(path: Path, reason: str) -> None:
        if recipe.on_bad_image == "error":
            raise Misuse(f"{path}: {reason}. on_bad_image=skip trains on the others")
        say(console, f"left out: {path}: {reason}")

    clock = Clock(fabric.device, waits=profile)
    views = training_views(source.train, recipe, start, fabric.device, bad, fabric.global_rank, fabric.world_size, clock)
    monitor = journal = watch = lock = None
    ends = False
    try:
        if fabric.is_global_zero:
            lock = locked(out)
            if changed:
                write_whole(out / "recipe.yaml", record_of(recipe, run.versions))
            refused = next(n for n in count() if start - n not in passed_over)
            journal = Journal(out, start, total, console, open_loggers(recipe, out, start))
            monitor = Monitor(recipe, source, journal, clock, refused)
            if recipe.probe_every == "auto":
                say(console, f"probe_every={monitor.every}")
            watch = Profile(out, siamese, recipe, clock) if profile else None
            for of_the_end in ("summary.json", EVALUATION, DIAGNOSIS) if start < total else ():  # a collapse had ended it, and it goes on
                (out / of_the_end).unlink(missing_ok=True)
        guard = Guard(siamese, recipe, source.train, out, passed_over)
        with signals() as came, all_present(fabric, run.how_to_go_on), compiled(recipe), workers_alive(), denormals_flushed():
            if monitor and start == 0:
                with clock("probes and log"):
                    monitor.before(siamese)
            for step in range(start, total):
                now = Progress(step, steps_per_epoch, recipe.epochs)
                lr = set_schedules(optimizer, recipe, now)
                torch.manual_seed(seed_of(recipe.seed, step, fabric.global_rank))
                with clock("optimiser"):
                    guard.remember()
                losses: list[dict[str, Tensor]] = []
                outputs: deque[tuple[Output, Output, Output]] = deque(maxlen=math.ceil(SEEN / recipe.micro_batch(fabric.world_size)))
                for micro in range(recipe.accumulate):
                    with clock("data"):
                        seen = next(views)
                    if watch and micro == 0:
                        watch.before(seen, now)
                    with fabric.no_backward_sync(model, enabled=micro < recipe.accumulate - 1):
                        with clock("forward"):
                            part: Step = model(seen, now)
                        with clock("backward"), statistics_kept(siamese.student):
                            fabric.backward(part.loss / recipe.accumulate)
                    losses.append({name: loss.detach() for name, loss in part.losses.items()})
                    outputs.append((part.z.detach(), part.p.detach(), part.t.detach()))
                after = Progress(step + 1, steps_per_epoch, recipe.epochs)
                made = _of_the_step(losses, outputs)
                if step == start and fabric.world_size > 1:
                    _all_learn(siamese)
                with clock("optimiser"):
                    passed = guard.passes(after, made.loss, fabric, came)
                if passed:  # else all is as before the step
                    with clock("optimiser"):
                        _clip(model, recipe, guard.norm)
                        _freeze(optimizer, now)
                        optimizer.step()
                    with clock("teacher update"):
                        siamese.after_step(after)
                optimizer.zero_grad(set_to_none=True)
                with clock("probes and log"):
                    knn = monitor.after(after, made, lr, siamese, passed) if monitor else None
                last = after.step == total
                if recipe.on_collapse == "stop" and after.at_epoch_end and not last:
                    ends = fabric.broadcast(monitor is not None and monitor.ends)  # all ranks stop at the same step
                with clock("checkpoint"):
                    keeper.after(after, siamese, optimizer, guard.bad, knn, asked=last or ends or guard.signum > 0)
                if ends:
                    break
                if guard.signum and not last:
                    fabric.barrier()  # a process that ends takes the others with it: not before the checkpoint is written
                    raise Interrupted(guard.signum, f"saved at step {after.step} of {total}. Go on with: {run.how_to_go_on}")
    finally:
        views.close()  # and with it the workers
        if journal:
            journal.close()
        if lock:
            lock.release()
    with all_present(fabric, run.how_to_go_on), all_wait():
        if journal:
            _finish(run, siamese, journal)
    del meeting  # not before: the processes talk through it
    if watch and watch.steps:  # none where nothing was left to do
        say(console, watch.finish())
    if ends:
        raise Stopped(
            f"stopped at epoch {after.epoch:.0f} of {recipe.epochs} (on_collapse=stop). {run.summary['because']} What there is: {out}"
        )
    return run


def seed_of(seed: int, step: int, rank: int) -> int:
    """Of what a layer draws in a step (dropout, drop path): a function of the three, so that a resume draws the same."""
    return int(mix(torch.tensor(seed * 1_000_003 + step)) >> 1) + rank


def set_schedules(optimizer: torch.optim.Optimizer, recipe: Recipe, now: Progress) -> float:
    """Learning rate and weight decay of the coming step for each group; returns the encoder's learning rate."""
    lr, kept = (schedule.at(now) * recipe.lr_factor for schedule in (recipe.lr, recipe.lr.undecayed()))
    for group in optimizer.param_groups:
        group["lr"] = (lr if group["lr_decay"] else kept) * group["lr_scale"]
        group["weight_decay"] = recipe.weight_decay.at(now) if group["weight_decayed"] else 0.0
    return lr


def _of_the_step(losses: Sequence[dict[str, Tensor]], outputs: Iterable[tuple[Output, Output, Output]]) -> Step:
    """losses: of all its micro-batches, of which it has the means. outputs: z, p and t of the last ones."""
    means = {name: torch.stack([of[name] for of in losses]).mean() for name in losses[0]}
    z, p, t = (_joined(of) for of in zip(*outputs, strict=True))
    return Step(torch.stack(list(means.values())).sum(), means, z, p, t)


def _joined(outputs: Sequence[Output]) -> Output:
    if len(outputs) == 1:  # no copy of what may be the step's largest tensors
        return outputs[0]
    patches = [of.patch for of in outputs if of.patch is not None]
    return Output(torch.cat([of.cls for of in outputs], 1), torch.cat(patches) if patches else None)  # cls [V, B, D]; patch [M, D]


def _all_learn(siamese: Siamese) -> None:
    """Raises `Misuse` after a backward pass that did not reach a parameter: the processes would wait for each other's gradient of it."""
    idle = [name for name, p in siamese.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        raise Misuse(
            f"{len(idle)} parameters get no gradient, the first: {idle[0]}. Several processes wait for those of all: take it out, or "
            "freeze it, requires_grad_(False), or devices=1"
        )


def _clip(model: nn.Module, recipe: Recipe, norm: Tensor) -> None:
    """norm: of all gradients together."""
    if recipe.clip:
        params = [p for p in model.parameters() if p.grad is not None]
        if recipe.clip.per == "model":
            nn.utils.clip_grads_with_norm_(params, recipe.clip.norm, norm)
        else:
            grads = [p.grad for p in params if p.grad is not None]
            norms = torch.stack(torch._foreach_norm(grads))
            torch._foreach_mul_(grads, list((recipe.clip.norm / (norms + 1e-6)).clamp(max=1.0).unbind()))


def _freeze(optimizer: torch.optim.Optimizer, now: Progress) -> None:
    """A parameter without gradient is passed over: no step, no decay, no momentum (DINO's `cancel_gradients_last_layer`)."""
    for group in optimizer.param_groups:
        if now.epoch < group["frozen_epochs"]:
            for p in group["params"]:
                p.grad = None


def _finish(run: Run, siamese: Siamese, journal: Journal) -> None:
    """backbone.safetensors and summary.json, with kNN over the whole bank beside its two baselines."""
    write_whole(run.path / "backbone.safetensors", safetensors.torch.save(state_of(siamese.backbone.net)))
    summary = object_of(run.path / "summary.json") | journal.last  # a run that had ended keeps what protocols added
    summary["images"] = len(run.source.train)
    try:
        bank, labels, test, targets = run.source.labelled()
    except Misuse:
        pass
    else:
        k = usual_k(len(bank))
        summary["knn_top1"] = run.knn(k)
        # A module of the user's own may be drawn anew when a run goes on: what it was worth at first, the first line tells. The probes'
        # share is held against the same share at the end.
        first = next((row["knn_top1"] for row in run.metrics if row["step"] == 0), None)  # none of a file that was lost
        if run.recipe.init_from or run.own_encoder is not None:
            summary |= {"knn_at_start": first, "knn_at_end": journal.last.get("knn_top1")}
        if run.own_encoder is None:
            summary["knn_random_init"] = run.knn(k, trained=False)
        elif whole(bank, test):
            summary["knn_random_init"] = first
        if run.recipe.labels is not None:
            summary |= test_errors(siamese, run.recipe, test, targets)
        if isinstance(bank, Pixels) and isinstance(test, Pixels):
            summary["knn_raw_pixels"] = knn_accuracy(bank.pixels.flatten(1), labels, test.pixels.flatten(1), targets, k)
    write_whole(run.path / "summary.json", json.dumps(summary, indent=2) + "\n")
