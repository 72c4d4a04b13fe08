"""Commands that train: pretrain."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING, Annotated

import typer

from selfdistill import own
from selfdistill.cli.app import Settings, app, console, is_setting, said
from selfdistill.errors import Misuse

if TYPE_CHECKING:
    from selfdistill.api import Run

# Imports of the package stand inside the commands: PyTorch takes seconds, and --help should not.


@app.command()
def pretrain(
    method: Annotated[
        str | None,
        typer.Argument(help="a name that `selfdistill methods` lists, a recipe's YAML or .py file, or a run folder"),
    ] = None,
    settings: Settings = None,
    without: Annotated[list[str] | None, typer.Option("--without", help="take an ingredient out, e.g. stop-gradient; repeatable")] = None,
    out: Annotated[Path | None, typer.Option(help="the run folder, a new one under runs/ if not given")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in --out from its checkpoint")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="say where the time went, and write profile.json and trace.json")] = False,
    config: Annotated[
        Path | None, typer.Option(help="a recipe's YAML file in place of the method's own; what it leaves out is as the method has it")
    ] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="write report.html into the run folder at the end")] = True,
) -> None:
    """Pretrain METHOD on images: selfdistill pretrain simsiam data=path/to/images epochs=100."""
    from torch import distributed

    from selfdistill import api
    from selfdistill.train.faults import Stopped

    settings = settings or []
    if method and is_setting(method):
        settings, method = [method, *settings], None
    if config and resume:
        raise Misuse(f"--config {config} with --resume: a run goes on with its own recipe; leave one out")
    if config:
        recipe = api.recipe_of(config)
        if method not in (None, recipe.method):
            raise Misuse(f"METHOD {method} with --config {config}, a recipe of {recipe.method}: name one of them")
    elif resume and out:
        if method and method.endswith(".py"):  # what the file registers is needed again
            method = api.recipe_of(method).method
        recipe = api.load(out).recipe
        if method not in (None, recipe.method):
            raise Misuse(f"METHOD {method} with --resume of {out}, a run of {recipe.method}: leave the method out")
    elif resume:
        raise Misuse("--resume continues a run folder: name it with --out")
    elif method:
        recipe = api.recipe_of(method)
    else:
        raise Misuse(f"METHOD is missing: {', '.join(api.METHODS)}. For example: selfdistill pretrain simsiam data=digits")
    try:
        run = api.pretrain(recipe, *settings, without=without or [], out=out, resume=resume, profile=profile)
    except (api.Interrupted, Stopped) as e:
        if distributed.is_initialized() and distributed.get_rank():
            raise typer.Exit(0) from e  # the first says it; Fabric kills that one where another ends with a code
        if isinstance(e, api.Interrupted):  # here, because click turns every KeyboardInterrupt into "Aborted!"
            raise typer.Exit(said(e, 128 + e.signum)) from e
        raise
    except KeyboardInterrupt as e:  # before the first step or after the last: what there is to save is saved
        raise typer.Exit(said(KeyboardInterrupt("interrupted; --out DIR --resume goes on with a run that had begun"), 128 + SIGINT)) from e
    if not distributed.is_initialized() or distributed.get_rank() == 0:  # of all nodes' processes one
        _summary(run)
        if report:
            _report(run)


def _report(run: Run) -> None:
    """A run that is done does not fail for want of a picture of it."""
    from selfdistill import api

    try:
        console.print(f"report: {api.write_report(run)}", soft_wrap=True)
    except Exception as e:  # whatever it is, the run is whole
        console.print(f"no report ({e}): selfdistill report {run.path} tries again", soft_wrap=True)


def _summary(run: Run) -> None:
    from selfdistill.ablate.edits import without
    from selfdistill.diagnose.verdict import below_start

    s = run.summary
    console.print(f"\n{s['because']}", soft_wrap=True)
    if s.get("knn_top1") is not None:
        beside = {"random init": s.get("knn_random_init"), "raw pixels": s.get("knn_raw_pixels")}
        others = ", ".join(f"{name} {value:.3f}" for name, value in beside.items() if value is not None)
        spread = "not finite" if s["output_std"] is None else f"{s['output_std']:.2f}"
        console.print(f"kNN top-1 on held-out images {s['knn_top1']:.3f} ({others}), output_std {spread}", soft_wrap=True)
        if below := below_start(s):
            console.print(below, soft_wrap=True)
    if s.get("error_teacher") is not None:
        console.print(
            f"test error with {run.recipe.labels} labels: student {s['error_student']:.4f}, teacher {s['error_teacher']:.4f}",
            soft_wrap=True,
        )
        with suppress(Misuse):  # the run was that baseline
            without(run.recipe, ["consistency"])
            alone = ["labelled_share=1", "--without", "consistency"]
            baseline = shlex.join(["selfdistill", "pretrain", os.path.join(".", run.path), *own.flags(), *alone])
            console.print(f"from the same labels alone: {baseline}", soft_wrap=True)
    console.print(f"run folder: {run.path}", soft_wrap=True)
